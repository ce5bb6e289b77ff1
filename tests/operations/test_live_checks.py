"""CHECKs on live tables."""

import pytest
from django.apps import apps
from django.db import connection
from django.db.migrations.state import ProjectState
from django.db.models import CheckConstraint, Q
from django.test.utils import CaptureQueriesContext

from quotas.operations.live_checks import ReplaceCheck

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True, serialized_rollback=True)]
NAME = "ledger_balance_in_range"


def replace(condition: Q) -> list[str]:
    """Replace the CHECK as a migration would, and bring it back; return the statements of the former."""
    operation = ReplaceCheck("ledgerentry", NAME, CheckConstraint(condition=condition, name=NAME))
    before = ProjectState.from_apps(apps)
    after = before.clone()
    operation.state_forwards("quotas", after)
    with connection.schema_editor(atomic=False) as editor:
        try:
            with CaptureQueriesContext(connection) as captured:
                operation.database_forwards("quotas", editor, before, after)
        finally:
            operation.database_backwards("quotas", editor, after, before)
    return [query["sql"] for query in captured]


def test_a_check_is_replaced_at_once_and_the_rows_are_read_without_the_lock_of_that() -> None:
    begin, drop, add, commit, validate = replace(Q(balance_after__gte=0))
    assert (begin, commit) == ("BEGIN", "COMMIT")
    assert drop.endswith(f'DROP CONSTRAINT "{NAME}"')
    assert add.endswith('CHECK ("balance_after" >= 0) NOT VALID')
    assert validate == f'ALTER TABLE "ledger_entries" VALIDATE CONSTRAINT "{NAME}"'


def test_a_check_that_is_brought_back_holds_for_all_rows() -> None:
    replace(Q(balance_after__gte=0))
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT convalidated, pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = %s", [NAME]
        )
        assert cursor.fetchall() == [
            (True, "CHECK (((balance_after >= 0) AND (balance_after <= 2147483647)))")
        ]

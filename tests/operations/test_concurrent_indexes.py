"""Indexes on live tables."""

import pytest
from django.apps import apps
from django.db import connection
from django.db.migrations.state import ProjectState
from django.db.models import Index
from django.test.utils import CaptureQueriesContext

from quotas.operations import concurrent_indexes

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True, serialized_rollback=True)]


def add_index() -> str:
    """Add an index to the ledger as a migration would; return the statements."""
    operation = concurrent_indexes.AddIndex("ledgerentry", Index(fields=["cost"], name="ledger_for_a_test"))
    before = ProjectState.from_apps(apps)
    after = before.clone()
    operation.state_forwards("quotas", after)
    with CaptureQueriesContext(connection) as captured, connection.schema_editor(atomic=False) as editor:
        operation.database_forwards("quotas", editor, before, after)
    return "\n".join(query["sql"] for query in captured)


def test_an_index_is_made_beside_the_traffic_and_what_a_broken_try_left_is_no_hindrance() -> None:
    try:
        for _ in range(2):
            assert 'CREATE INDEX CONCURRENTLY "ledger_for_a_test"' in add_index()
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP INDEX IF EXISTS ledger_for_a_test")

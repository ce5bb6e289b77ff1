"""Prepared statements, and what makes PostgreSQL drop them."""

import pytest
from django.db import IntegrityError, connection, transaction

from quotas.models import ChallengeQuota, LedgerEntry
from quotas.store import thread
from quotas.store.thread import PreparedSession, execute, fetch_row
from tests.conftest import USER

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True, serialized_rollback=True)]
ENOUGH = 6  # uses: one more than the threshold


def session() -> PreparedSession:
    session = thread._local.session
    assert session
    return session


def prepared_statements() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'kept%%'")
        return int(cursor.fetchone()[0])


def spend(times: int) -> None:
    for _ in range(times):
        ChallengeQuota.objects.consume(USER)


def test_a_statement_is_kept_once_it_was_used_often_enough() -> None:
    connection.close()
    spend(ENOUGH)
    assert prepared_statements() == 0  # the first spend opens the quota, with other statements
    spend(1)
    assert prepared_statements() == 2


@pytest.mark.parametrize("forgetting", ["DEALLOCATE ALL", "DISCARD ALL"])
def test_what_the_server_was_told_to_forget_is_asked_anew(forgetting: str) -> None:
    spend(ENOUGH + 1)
    with connection.cursor() as cursor:
        cursor.execute(forgetting)
    spend(2 * ENOUGH)
    assert ChallengeQuota.objects.get(pk=USER).quota_remaining == 20 - 3 * ENOUGH - 1
    assert LedgerEntry.objects.filter(kind="consumed").count() == 3 * ENOUGH + 1


def test_a_migration_that_changes_a_result_ends_no_session() -> None:
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE changing AS SELECT 1 AS number")
        for _ in range(ENOUGH):
            assert fetch_row("SELECT number FROM changing WHERE number = %s", [1]) == (1,)
        assert session().names
        cursor.execute("ALTER TABLE changing ALTER number TYPE text")
        cursor.execute("ALTER TABLE changing ALTER number TYPE numeric USING number::numeric")
        assert fetch_row("SELECT number FROM changing WHERE number = %s", [1]) == (1,)


def test_a_change_in_a_transaction_that_is_rolled_back_leaves_nothing() -> None:
    spend(2 * ENOUGH)
    with transaction.atomic():
        spend(1)
        transaction.set_rollback(True)
    spend(1)
    assert ChallengeQuota.objects.get(pk=USER).quota_remaining == 20 - 2 * ENOUGH - 1


def test_a_kept_statement_raises_what_django_calls_the_fault() -> None:
    insert = "INSERT INTO auth_group (name) VALUES (%s)"
    for number in range(ENOUGH):
        execute(insert, [f"group {number}"])
    assert session().names
    with pytest.raises(IntegrityError):
        execute(insert, ["group 0"])
    assert execute(insert, ["another group"]) == 1


def test_numbers_of_any_size_are_one_statement() -> None:
    text = "SELECT %s::bigint"
    for number in (1, 70_000, 5_000_000_000):
        assert fetch_row(text, [number]) == (number,)
    assert [uses for (statement, _), uses in session().uses.items() if statement == text] == [3]

"""Prepared statements, and what makes PostgreSQL drop them."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from django.db import IntegrityError, connection, transaction

from quotas.models import ChallengeQuota, LedgerEntry
from quotas.store.statements import Statement
from quotas.store.steps import InThread
from quotas.store.thread import execute, run_step
from tests.conftest import USER
from tests.tools.site import url_of_the_test_database

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True, serialized_rollback=True)]
ENOUGH = 6  # uses: one more than the threshold
quotas = ChallengeQuota.objects


def prepared_statements() -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT statement FROM pg_prepared_statements")
        return [statement for (statement,) in cursor.fetchall()]


def spend(times: int = 1) -> None:
    for _ in range(times):
        quotas.consume(USER)


@contextmanager
def altered_column() -> Iterator[None]:
    """Let a migration, in another session, change the type of a column that every read returns."""

    def alter(sql_type: str) -> None:
        with psycopg.connect(url_of_the_test_database()) as other:
            other.execute(f"ALTER TABLE challenge_quotas ALTER COLUMN plan_source TYPE {sql_type}")

    alter("varchar(9)")
    try:
        yield
    finally:
        alter("varchar(8)")


def test_a_statement_is_prepared_once_it_was_used_often_enough() -> None:
    connection.close()
    spend(ENOUGH)
    assert prepared_statements() == []  # the first spend opens the quota, with other statements
    spend(1)
    assert len(prepared_statements()) == 2


def test_no_statement_is_prepared_without_a_threshold() -> None:
    connection.ensure_connection()
    connection.connection.prepare_threshold = None
    spend(2 * ENOUGH)
    assert prepared_statements() == []
    connection.close()


@pytest.mark.parametrize("forgetting", ["DEALLOCATE ALL", "DISCARD ALL"])
def test_what_the_server_was_told_to_forget_is_asked_anew(forgetting: str) -> None:
    spend(ENOUGH + 1)
    connection.connection.pgconn.exec_(forgetting.encode())  # psycopg would notice it on a cursor of its own
    spend(2 * ENOUGH)
    assert quotas.current(USER).quota_remaining == 20 - 3 * ENOUGH - 1
    assert LedgerEntry.objects.filter(kind="consumed").count() == 3 * ENOUGH + 1


def test_a_migration_that_changes_a_column_under_a_warm_connection_is_no_error() -> None:
    for _ in range(ENOUGH):
        quotas.current(USER)
        spend()
    warm = connection.connection
    with altered_column():
        assert quotas.current(USER).quota_remaining == 20 - ENOUGH
    assert connection.connection is not warm
    spend(ENOUGH)
    with altered_column():
        spend()
    assert LedgerEntry.objects.filter(kind="consumed").count() == 2 * ENOUGH + 1


def test_a_change_in_a_transaction_that_is_rolled_back_leaves_nothing() -> None:
    spend(2 * ENOUGH)
    with transaction.atomic():
        spend(1)
        transaction.set_rollback(True)
    spend(1)
    assert ChallengeQuota.objects.get(pk=USER).quota_remaining == 20 - 2 * ENOUGH - 1


def test_a_prepared_statement_raises_what_django_calls_the_fault() -> None:
    insert = "INSERT INTO auth_group (name) VALUES (%(name)s)"
    for number in range(ENOUGH):
        execute(Statement(insert, {"name": f"group {number}"}))
    assert len(prepared_statements()) == 1
    with pytest.raises(IntegrityError):
        execute(Statement(insert, {"name": "group 0"}))
    assert execute(Statement(insert, {"name": "another group"})) == 1


def test_numbers_of_any_size_are_one_statement() -> None:
    for number in [1, 70_000, 5_000_000_000] * ENOUGH:
        assert execute(Statement("SELECT %(n)s::bigint", {"n": number}, wants_rows=True)) == [(number,)]
    assert len(prepared_statements()) == 1


def test_a_read_in_a_thread_is_repeated_if_its_connection_has_died() -> None:
    connection.ensure_connection()
    with psycopg.connect(url_of_the_test_database()) as other:
        other.execute("SELECT pg_terminate_backend(%s)", [connection.connection.info.backend_pid])
    assert run_step(InThread(LedgerEntry.objects.count)) == 0


def test_what_needs_no_database_opens_no_connection() -> None:
    connection.close()
    assert run_step(InThread(lambda: "done")) == "done"
    assert connection.connection is None

"""migrate: one at a time, never back over what Clerk chose, and only into a database of UTF-8."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from django.core.management import CommandError

from quotas.management.commands import migrate
from tests.store.test_faults import connected_to
from tests.tools.forked import manage
from tests.tools.postgres import Server
from tests.tools.waiting import wait_until

pytestmark = [pytest.mark.postgres, pytest.mark.once]
WAITS = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(fsync=False, in_memory=True) as server:
        yield server


def new_database(server: Server, name: str, options: str = "") -> str:
    with psycopg.connect(server.url, autocommit=True) as session:
        session.execute(f"CREATE DATABASE {name} {options}")
    return f"{server.url.rpartition('/')[0]}/{name}"


def test_a_second_migrate_waits_for_the_first_and_then_has_nothing_to_do(server: Server) -> None:
    url = new_database(server, "twice")
    with psycopg.connect(url) as first, psycopg.connect(url, autocommit=True) as watch:
        first.execute("SELECT pg_advisory_xact_lock(%s)", [migrate.LOCK_KEY])  # as another migrate does
        with ThreadPoolExecutor(1) as thread:
            second = thread.submit(manage, "migrate", DATABASE_URL=url)
            wait_until(lambda: watch.execute(WAITS).fetchone() == (1,), 30)
            assert watch.execute("SELECT to_regclass('plans')").fetchone() == (None,)
            first.rollback()
            assert second.result().returncode == 0
        assert watch.execute("SELECT count(*) FROM plans").fetchone() == (1,)
    assert "No migrations to apply" in manage("migrate", DATABASE_URL=url).stdout


def test_a_migrate_does_not_wait_for_ever(
    server: Server, monkeypatch: pytest.MonkeyPatch, django_db_blocker: Any
) -> None:
    monkeypatch.setattr(migrate, "WAIT", "100ms")
    with psycopg.connect(server.url) as first:
        first.execute("SELECT pg_advisory_xact_lock(%s)", [migrate.LOCK_KEY])
        with (
            django_db_blocker.unblock(),
            connected_to(server.port),
            pytest.raises(CommandError, match="Another migrate has been at work for 100ms"),
            migrate.one_at_a_time("default"),
        ):
            pytest.fail("it took a lock that another holds")


def test_the_lock_is_held_until_the_end_whatever_limit_the_role_has(
    server: Server, django_db_blocker: Any
) -> None:
    locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
    with psycopg.connect(server.url, autocommit=True) as other:
        other.execute("ALTER DATABASE quotasite SET idle_in_transaction_session_timeout = '1ms'")
        with django_db_blocker.unblock(), connected_to(server.port):
            with migrate.one_at_a_time("default"):
                other.execute("SELECT pg_sleep(0.1)")
                assert other.execute(locks).fetchone() == (1,)
            wait_until(lambda: other.execute(locks).fetchone() == (0,))
        other.execute("ALTER DATABASE quotasite RESET idle_in_transaction_session_timeout")


def test_what_clerk_assigned_is_not_lost_by_going_back(server: Server) -> None:
    url = new_database(server, "back")
    assert manage("migrate", "-v0", DATABASE_URL=url).returncode == 0
    with psycopg.connect(url, autocommit=True) as session:
        session.execute(
            "INSERT INTO plan_assignments (id, user_id, source, external_id, plan, updated_at)"
            " VALUES (gen_random_uuid(), 'user_1', 'metadata', '', 'pro', now())"
        )
        done = manage("migrate", "quotas", "0003", DATABASE_URL=url)
        assert done.returncode == 1
        assert "quotas 0005 holds 1 plans that Clerk assigned" in done.stderr
        assert "Traceback" not in done.stderr
        assert manage("migrate", "-v0", DATABASE_URL=url).returncode == 0
        assert session.execute("SELECT plan FROM plan_assignments").fetchall() == [("pro",)]
        session.execute("DELETE FROM plan_assignments")
    assert manage("migrate", "-v0", "quotas", "0003", DATABASE_URL=url).returncode == 0
    assert manage("migrate", "-v0", DATABASE_URL=url).returncode == 0


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_of_another_encoding_is_refused(server: Server, encoding: str) -> None:
    options = f"ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    url = new_database(server, f"in_{encoding.lower()}", options)
    for command in (["check", "--database", "default"], ["migrate"]):
        done = manage(*command, DATABASE_URL=url)
        assert done.returncode == 1
        assert "quotas.E009" in done.stderr
        assert f"encoding is {encoding}" in done.stderr

"""migrate: one at a time, never back over what Clerk chose, and only into a database of UTF-8."""

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from django.core.management import CommandError, call_command

from quotas.management.commands import migrate
from quotas.models import ChallengeQuota, Plan
from quotas.operations.old_table import MIGRATE_LOCK
from tests import ROOT
from tests.conftest import STAFF, USER
from tests.store.test_faults import connected_to
from tests.tools import pgbouncer
from tests.tools.forked import manage
from tests.tools.postgres import Server
from tests.tools.waiting import wait_until
from webhooks.handlers import CLERK
from webhooks.models import WebhookEvent

pytestmark = [pytest.mark.postgres, pytest.mark.once]
FLOORS = {"quotas": "0013", "webhooks": "0002"}  # what lies above can be derived again
TABLES = [
    "plans",
    "plan_versions",
    "challenge_quotas",
    "ledger_entries",
    "plan_assignments",
    "webhook_events",
]
LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(fsync=False, in_memory=True) as server:
        yield server


def new_database(server: Server, name: str, options: str = "") -> str:
    with psycopg.connect(server.url, autocommit=True) as session:
        session.execute(f"CREATE DATABASE {name} {options}")
    return f"{server.url.rpartition('/')[0]}/{name}"


def start(url: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "manage.py", "migrate"]
    environment = {"PATH": os.environ["PATH"], "ENV_FILE": "", "DATABASE_URL": url}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def both(url: str) -> tuple[str, str]:
    """Migrate twice at once; return what the two wrote."""
    runs = [start(url), start(url)]
    texts = ["".join(run.communicate(timeout=120)) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], texts
    return texts[0], texts[1]


def test_of_two_at_once_on_an_empty_database_one_waits_and_then_has_nothing_to_do(server: Server) -> None:
    texts = both(new_database(server, "twice"))
    [waited] = [text for text in texts if "Another migrate is at work: waiting for its end." in text]
    assert "No migrations to apply" in waited


@pytest.mark.skipif(not pgbouncer.find(), reason="not installed here: pgbouncer")
def test_two_at_once_succeed_through_a_pooler_of_few_sessions_and_leave_no_lock(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pgbouncer, "SESSIONS", 2)
    url = new_database(server, "pooled")
    with pgbouncer.Pooler(server) as pooler, psycopg.connect(url, autocommit=True) as session:
        both(pooler.url.replace("/quotasite?", "/pooled?"))
        assert session.execute(LOCKS).fetchone() == (0,)


def test_a_migrate_does_not_wait_for_ever(
    server: Server, monkeypatch: pytest.MonkeyPatch, django_db_blocker: Any
) -> None:
    monkeypatch.setattr(migrate, "WAIT_SECONDS", 0)
    with psycopg.connect(server.url) as first, django_db_blocker.unblock(), connected_to(server.port):
        first.execute("SELECT pg_advisory_xact_lock(%s)", [MIGRATE_LOCK])  # as another migrate does
        with pytest.raises(CommandError, match="Another migrate is still at work"):
            call_command("migrate", verbosity=0)
        call_command("migrate", plan=True, verbosity=0)  # this changes nothing, and waits for nobody


def test_the_lock_is_held_until_the_end_whatever_limit_the_role_has(
    server: Server, django_db_blocker: Any
) -> None:
    with psycopg.connect(server.url, autocommit=True) as other:
        other.execute("ALTER DATABASE quotasite SET idle_in_transaction_session_timeout = '50ms'")
        with django_db_blocker.unblock(), connected_to(server.port):
            with migrate.one_at_a_time("default", print):
                other.execute("SELECT pg_sleep(0.2)")
                assert other.execute(LOCKS).fetchone() == (1,)
            wait_until(lambda: other.execute(LOCKS).fetchone() == (0,))
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


def test_back_to_the_floor_and_up_again_nothing_is_lost(server: Server, django_db_blocker: Any) -> None:
    def everything() -> dict[str, Any]:
        with psycopg.connect(server.url) as session:
            rows = {table: f"SELECT to_jsonb(t) FROM {table} AS t ORDER BY t::text" for table in TABLES}
            return {table: session.execute(query).fetchall() for table, query in rows.items()}

    assert manage("migrate", "-v0", DATABASE_URL=server.url).returncode == 0
    with django_db_blocker.unblock(), connected_to(server.port):
        Plan(name="pro", allowance=50).save()
        clerk = {"updated_at": datetime.now(UTC), "actor": CLERK}
        ChallengeQuota.objects.assign_plan(USER, "metadata", "pro", **clerk)
        ChallengeQuota.objects.consume(USER, 50)
        ChallengeQuota.objects.adjust(USER, 3, reason="a kind word", actor=STAFF)
        WebhookEvent(svix_id="msg_1", type="user.updated", plan="pro", external_id="item_1").save()
    before = everything()
    assert all(before.values())
    for app, floor in FLOORS.items():
        assert manage("migrate", "-v0", app, floor, DATABASE_URL=server.url).returncode == 0
    assert manage("migrate", "-v0", DATABASE_URL=server.url).returncode == 0
    assert everything() == before


def test_the_floor_is_named_where_operators_read() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    assert all(f"`migrate {app} {floor}`" in text for app, floor in FLOORS.items())

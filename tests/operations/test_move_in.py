"""Moving in: a table of our name is noticed before anything is made, and taken over in its place."""

import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple

import psycopg
import pytest

from quotas.operations.old_table import MIGRATE_LOCK
from tests import ROOT
from tests.tools.forked import manage
from tests.tools.postgres import Server

pytestmark = [pytest.mark.postgres, pytest.mark.once]
SEED = (
    "CREATE TABLE challenge_quotas (id serial PRIMARY KEY, user_id varchar NOT NULL UNIQUE, "
    "quota_remaining integer NOT NULL, last_reset_date timestamp)"
)
USERS = (
    "INSERT INTO challenge_quotas (user_id, quota_remaining, last_reset_date) "
    "SELECT 'user_' || n, n %% 21, (now() - n %% 40 * interval '1 hour') AT TIME ZONE 'UTC' "
    "FROM generate_series(1, %s) AS n"
)
KEPT = "challenge_quotas_before_quotasite"
IN_PLACE = ("import_quotas", "--in-place", "--despite-sessions")  # the tests' own session is open
LEFT = "SELECT user_id, quota_remaining FROM {} ORDER BY user_id"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(fsync=False, in_memory=True) as server:
        yield server


@contextmanager
def old_database(server: Server, name: str) -> Iterator[psycopg.Connection[Any]]:
    """A session of a new database in which the old app's table stands, with 50 users."""
    with psycopg.connect(server.url, autocommit=True) as session:
        session.execute(f"CREATE DATABASE {name}")
    with psycopg.connect(f"{server.url.rpartition('/')[0]}/{name}", autocommit=True) as session:
        session.execute(SEED)
        session.execute(USERS, [50])
        yield session


@pytest.fixture
def database(server: Server, request: pytest.FixtureRequest) -> Iterator[psycopg.Connection[Any]]:
    with old_database(server, f"old_{abs(hash(request.node.name))}") as session:
        yield session


class Moved(NamedTuple):
    """A database that was taken over in its place, with the old rows before and what the command said."""

    session: psycopg.Connection[Any]
    before: list[Any]
    done: "subprocess.CompletedProcess[str]"

    @property
    def url(self) -> str:
        return url_of(self.session)


@pytest.fixture(scope="module")
def moved(server: Server) -> Iterator[Moved]:
    """Once for all tests that only look, because it waits to see whether somebody writes."""
    with old_database(server, "moved") as session:
        before = rows(session, "SELECT * FROM challenge_quotas ORDER BY id")
        yield Moved(session, before, manage(*IN_PLACE, DATABASE_URL=url_of(session)))


def url_of(session: psycopg.Connection[Any]) -> str:
    info = session.info
    return f"postgres://{info.user}:{info.password}@{info.host}:{info.port}/{info.dbname}"


@pytest.fixture
def in_place(database: psycopg.Connection[Any]) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    def run(*options: str) -> "subprocess.CompletedProcess[str]":
        return manage(*IN_PLACE, *options, DATABASE_URL=url_of(database))

    return run


def tables(session: psycopg.Connection[Any]) -> set[str]:
    found = session.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    return {name for (name,) in found}


def rows(session: psycopg.Connection[Any], query: str) -> list[Any]:
    return session.execute(query).fetchall()


InPlace = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.parametrize("command", [["migrate"], ["check", "--database", "default"]])
def test_the_old_table_is_noticed_before_anything_is_made(
    database: psycopg.Connection[Any], command: list[str]
) -> None:
    done = manage(*command, DATABASE_URL=url_of(database))
    assert done.returncode == 1
    assert "The table challenge_quotas of another app stands in this database." in done.stderr
    assert "manage.py import_quotas --in-place" in done.stderr
    assert done.stderr.strip().count("\n") <= 5
    assert tables(database) == {"challenge_quotas"}


def test_other_tables_of_our_names_are_noticed_too_and_nothing_is_renamed(
    database: psycopg.Connection[Any], in_place: InPlace
) -> None:
    database.execute("CREATE VIEW plans AS SELECT 1 AS id")
    for done in (manage("migrate", DATABASE_URL=url_of(database)), in_place()):
        assert done.returncode == 1
        assert "Tables of another app have the names of ours: challenge_quotas, plans." in done.stderr
    assert tables(database) == {"challenge_quotas"}


def test_tables_that_another_migrate_is_making_are_ours(database: psycopg.Connection[Any]) -> None:
    with database.transaction():
        database.execute("SELECT pg_advisory_xact_lock(%s)", [MIGRATE_LOCK])
        done = manage("check", "--database", "default", DATABASE_URL=url_of(database))
    assert (done.returncode, "quotas.E012" in done.stderr) == (0, False)


def test_a_schema_of_its_own_is_the_other_way_out(database: psycopg.Connection[Any]) -> None:
    database.execute("CREATE SCHEMA quota")
    database.execute(f"ALTER DATABASE {database.info.dbname} SET search_path = quota")
    url = url_of(database)
    assert manage("migrate", "-v0", DATABASE_URL=url).returncode == 0
    done = manage("import_quotas", "--from", url, "--table", "public.challenge_quotas", DATABASE_URL=url)
    assert (done.returncode, done.stderr) == (0, "")
    assert rows(database, LEFT.format("quota.challenge_quotas")) == rows(
        database, LEFT.format("public.challenge_quotas")
    )


def test_in_place_the_old_table_is_kept_and_its_users_are_taken_over(moved: Moved) -> None:
    assert moved.done.returncode == 0, moved.done.stderr
    assert moved.done.stdout == "rows 50, imported 50, already here 0, deleted here 0, left out 0\n"
    assert rows(moved.session, f"SELECT * FROM {KEPT} ORDER BY id") == moved.before
    assert rows(moved.session, LEFT.format("challenge_quotas")) == rows(moved.session, LEFT.format(KEPT))
    assert manage("audit_ledger", DATABASE_URL=moved.url).returncode == 0
    assert manage("check", "--database", "default", DATABASE_URL=moved.url).returncode == 0


def test_in_place_again_it_changes_nothing(moved: Moved) -> None:
    again = manage(*IN_PLACE, DATABASE_URL=moved.url)
    assert (again.returncode, again.stdout) == (
        0,
        "rows 50, imported 0, already here 50, deleted here 0, left out 0\n",
    )


def test_in_place_a_dry_run_renames_and_makes_nothing(
    database: psycopg.Connection[Any], in_place: InPlace
) -> None:
    assert in_place("--dry-run").stdout.startswith("dry run: rows 50, imported 50, ")
    assert tables(database) == {"challenge_quotas"}


def test_in_place_another_session_of_the_database_is_refused_by_its_name(
    database: psycopg.Connection[Any],
) -> None:
    database.execute("SET application_name = 'the old app'")
    done = manage("import_quotas", "--in-place", DATABASE_URL=url_of(database))
    assert done.returncode == 1
    assert "(the old app on 127.0.0.1, idle). Stop the old app" in done.stderr
    assert tables(database) == {"challenge_quotas"}


@pytest.mark.parametrize("dry_run", [["--dry-run"], []])
def test_in_place_a_plan_that_cannot_exist_yet_is_refused_before_anything_is_renamed(
    database: psycopg.Connection[Any], in_place: InPlace, dry_run: list[str]
) -> None:
    done = in_place("--plan", "pro", *dry_run)
    assert done.returncode == 1
    assert "There is no plan pro: add it first, or leave --plan out." in done.stderr
    assert tables(database) == {"challenge_quotas"}


def test_in_place_a_role_that_may_not_read_the_table_is_named_the_fix(
    database: psycopg.Connection[Any],
) -> None:
    database.execute("DROP ROLE IF EXISTS guest")
    database.execute("CREATE ROLE guest LOGIN")
    url = url_of(database).replace(database.info.user, "guest", 1)
    done = manage("import_quotas", "--in-place", "--dry-run", DATABASE_URL=url)
    assert done.returncode == 1
    assert "DATABASE_URL: permission denied for table challenge_quotas. Use the role that owns" in done.stderr


def test_in_place_the_first_plan_has_the_allowance_of_the_variable(database: psycopg.Connection[Any]) -> None:
    database.execute("UPDATE challenge_quotas SET quota_remaining = 45 WHERE id = 1")
    for allowance, warned in (("20", True), ("50", False)):
        done = manage(
            *IN_PLACE, "--dry-run", DATABASE_URL=url_of(database), QUOTA_DEFAULT_ALLOWANCE=allowance
        )
        assert ("1 users have more left than the plan's" in done.stderr) == warned
    assert manage(*IN_PLACE, DATABASE_URL=url_of(database), QUOTA_DEFAULT_ALLOWANCE="50").returncode == 0
    assert rows(database, "SELECT allowance FROM plans") == [(50,)]


def test_in_place_an_open_transaction_on_the_table_is_refused(
    database: psycopg.Connection[Any], in_place: InPlace
) -> None:
    with database.transaction():
        database.execute("UPDATE challenge_quotas SET quota_remaining = 0 WHERE id = 1")
        done = in_place()
    assert done.returncode == 1
    assert "challenge_quotas is in use by session " in done.stderr
    assert tables(database) == {"challenge_quotas"}


def test_in_place_a_table_that_is_written_to_is_refused(
    database: psycopg.Connection[Any], in_place: InPlace
) -> None:
    stop, url = Event(), url_of(database)

    def spend() -> None:
        with psycopg.connect(url, autocommit=True) as app:
            while not stop.wait(0.2):
                app.execute("UPDATE challenge_quotas SET quota_remaining = 20 - quota_remaining WHERE id = 1")

    app = Thread(target=spend)
    app.start()
    try:
        done = in_place()
    finally:
        stop.set()
        app.join()
    assert done.returncode == 1
    # Of the two, the one that is seen first: the writer's transaction, or what it wrote.
    assert re.search("Somebody writes to challenge_quotas|is in use by session", done.stderr)
    assert "stop the old app" in done.stderr
    assert tables(database) == {"challenge_quotas"}


def test_in_place_an_app_that_made_its_table_again_is_noticed(
    database: psycopg.Connection[Any], in_place: InPlace
) -> None:
    database.execute(f"ALTER TABLE challenge_quotas RENAME TO {KEPT}")  # as a run that was killed then
    database.execute(SEED)
    done = in_place()
    assert done.returncode == 1
    assert f"{KEPT} is kept from an earlier run, but there is a new challenge_quotas" in done.stderr


def test_in_place_without_an_old_table_it_names_the_other_way(server: Server) -> None:
    done = manage("import_quotas", "--in-place", DATABASE_URL=server.url)
    assert done.returncode == 1
    assert "There is no table challenge_quotas of another app in this database: name its" in done.stderr


def test_users_who_are_left_behind_are_counted_by_check(moved: Moved) -> None:
    new = f"INSERT INTO {KEPT} (user_id, quota_remaining) VALUES ('user_a', 1), ('user_b', 2)"
    moved.session.execute(new)
    done = manage("check", "--database", "default", DATABASE_URL=moved.url)
    moved.session.execute(f"DELETE FROM {KEPT} WHERE user_id IN ('user_a', 'user_b')")
    assert done.returncode == 0
    assert "quotas.W010" in done.stderr
    assert f"Users of {KEPT} who have no quota here, counted up to a thousand: 2." in done.stderr


def kill_until_done(command: list[str], environment: dict[str, str], chance: random.Random) -> int:
    """Run the command, and kill it after a random time, until it ends by itself; return how often it died."""
    for killed in range(40):
        run = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            _, errors = run.communicate(timeout=chance.uniform(1, 7 + killed / 2))
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGKILL)
            run.communicate()
            continue
        assert run.returncode == 0, errors
        return killed
    raise AssertionError("it never ended")


@pytest.mark.full
def test_a_run_that_is_killed_at_any_time_is_completed_by_the_next(database: psycopg.Connection[Any]) -> None:
    database.execute("DELETE FROM challenge_quotas")
    database.execute(USERS, [40_000])
    before = rows(database, LEFT.format("challenge_quotas"))
    command = [sys.executable, "manage.py", "import_quotas", "--in-place", "--despite-sessions"]
    environment = {"PATH": os.environ["PATH"], "DATABASE_URL": url_of(database)}
    killed = kill_until_done(command, environment, random.Random(7))
    assert killed > 2
    print(f"killed {killed} times")
    assert rows(database, LEFT.format("challenge_quotas")) == before == rows(database, LEFT.format(KEPT))
    kinds = "SELECT kind, count(*) FROM ledger_entries GROUP BY kind ORDER BY kind"
    assert rows(database, kinds) == [("imported", 40_000), ("opened", 40_000)]
    assert manage("audit_ledger", DATABASE_URL=url_of(database)).returncode == 0


def test_a_table_in_sqlite_is_taken_over_in_its_place(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/app.sqlite3"
    with closing(sqlite3.connect(tmp_path / "app.sqlite3")) as app:
        app.execute(SEED.replace("serial", "integer"))
        app.execute("INSERT INTO challenge_quotas VALUES (1, 'user_1', 7, datetime('now', '-1 hour'))")
        app.commit()
    refused = manage("migrate", DATABASE_URL=url)
    assert refused.returncode == 1
    assert "The table challenge_quotas of another app stands" in refused.stderr
    done = manage("import_quotas", "--in-place", DATABASE_URL=url)
    assert (done.returncode, done.stdout[:19]) == (0, "rows 1, imported 1,")
    assert manage("audit_ledger", DATABASE_URL=url).returncode == 0
    with closing(sqlite3.connect(tmp_path / "app.sqlite3")) as app:
        assert app.execute("SELECT quota_remaining FROM challenge_quotas").fetchall() == [(7,)]
        assert app.execute(f"SELECT user_id FROM {KEPT}").fetchall() == [("user_1",)]


def test_going_back_over_an_import_is_refused(moved: Moved) -> None:
    done = manage("migrate", "quotas", "0014", DATABASE_URL=moved.url)
    assert done.returncode == 1
    assert "quotas 0015 holds quotas that import_quotas made" in done.stderr
    assert "Traceback" not in done.stderr
    assert manage("migrate", "-v0", DATABASE_URL=moved.url).returncode == 0

"""Tests of the test tools: the throw-away server, the wire in front of it, the halves, forked starts."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import psycopg
import pytest
from django.test import Client
from pytest_django import Settings

from tests import ROOT
from tests.__main__ import is_passed
from tests.tools.coverage_gaps import compare
from tests.tools.forked import manage
from tests.tools.postgres import WHEEL, Server, is_of
from tests.tools.waiting import wait_until
from tests.tools.wire import Wire

pytestmark = pytest.mark.once
OWNER = """
from tests.tools.postgres import Server
server = Server(in_memory=True)
server.start()
print(server.port, server.folder, server.data, flush=True)
input()
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(fsync=False, in_memory=True) as running:
        with connect(running.port) as connection:
            connection.execute("CREATE TABLE note (text varchar)")
        yield running


@pytest.fixture
def wire(server: Server) -> Iterator[Wire]:
    with Wire("127.0.0.1", server.port) as between:
        yield between


def connect(port: int) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(f"postgres://quotasite@127.0.0.1:{port}/quotasite", autocommit=True)


def notes(server: Server, text: str) -> int:
    with connect(server.port) as connection:
        row = connection.execute("SELECT count(*) FROM note WHERE text = %s", [text]).fetchone()
        assert row is not None
        return int(str(row[0]))


@pytest.mark.parametrize("end", [Server.stop, Server.kill], ids=["stop", "kill"])
def test_what_was_committed_is_there_after_a_new_start(server: Server, end: Callable[[Server], None]) -> None:
    with connect(server.port) as session:
        session.execute("INSERT INTO note VALUES (%s)", [end.__name__])
        end(server)
        with pytest.raises(psycopg.OperationalError):
            connect(server.port)
        server.start()
    assert notes(server, end.__name__) == 1


def test_a_start_waits_for_a_session_that_outlives_the_kill(server: Server) -> None:
    with closing(connect(server.port)) as session:
        session.pgconn.send_query(b"SELECT count(*) FROM generate_series(1, 5000000)")
        time.sleep(0.1)
        server.kill()
        server.start()
        connect(server.port).close()


def test_a_server_outlives_the_thread_that_started_it() -> None:
    with Server(fsync=False, in_memory=True) as server:
        server.stop()
        starter = Thread(target=server.start)
        starter.start()
        starter.join()
        time.sleep(0.2)
        connect(server.port).close()


def test_a_killed_owner_takes_its_server_along_and_the_next_one_sweeps_up() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        port, folder, data = owner.stdout.readline().split()
        connect(int(port)).close()
        owner.kill()
    wait_until(lambda: not Path(data, "postmaster.pid").exists())
    with pytest.raises(psycopg.OperationalError):
        connect(int(port))
    Server(in_memory=True).close()
    assert not Path(folder).exists()
    assert not Path(data).parent.exists()


@pytest.mark.full
def test_the_programs_of_the_wheel_serve_as_well() -> None:
    with Server(finders=WHEEL) as server, connect(server.port) as connection:
        assert "pginstall" in str(server.programs)
        connection.execute("DO 'BEGIN PERFORM 1; END'")


@pytest.mark.full
def test_the_wheel_serves_from_a_copy_where_its_own_place_cannot_be_read() -> None:
    with Server(finders=WHEEL[1:]) as server:
        assert server.programs.is_relative_to(server.folder)
        connect(server.port).close()


def test_one_statement_is_one_round_trip(wire: Wire) -> None:
    with connect(wire.port) as connection:
        assert wire.round_trips == 0
        connection.execute("SELECT 1")
        assert wire.round_trips == 1


def test_a_statement_with_parameters_is_one_round_trip(wire: Wire) -> None:
    with connect(wire.port) as connection:
        connection.execute("SELECT %s::int", [1])
        assert wire.round_trips == 1


def test_the_ends_of_a_transaction_are_round_trips_too(wire: Wire) -> None:
    with connect(wire.port) as connection:
        connection.execute("SELECT 1")
        wire.reset()
        with connection.transaction():
            connection.execute("SELECT 1")
        assert wire.round_trips == 3


def test_a_message_in_many_segments_arrives_whole(wire: Wire) -> None:
    with connect(wire.port) as connection:
        row = connection.execute("SELECT length(%s)", ["x" * 3_000_000]).fetchone()
        assert row == (3_000_000,)
        assert wire.round_trips == 1


def test_the_hook_sees_each_statement_before_the_server_does(server: Server, wire: Wire) -> None:
    seen: list[bytes] = []

    def note_and_cut(text: bytes) -> None:
        seen.append(text)
        wire.cut()

    wire.on_query = note_and_cut
    with connect(wire.port) as connection, pytest.raises(psycopg.OperationalError):
        connection.execute("INSERT INTO note VALUES ('cut before')")
    assert seen == [b"INSERT INTO note VALUES ('cut before')"]
    assert notes(server, "cut before") == 0


@pytest.mark.parametrize("cursor", [psycopg.Cursor, psycopg.ClientCursor], ids=["Parse", "Query"])
def test_a_statement_whose_reply_is_dropped_is_stored_all_the_same(
    server: Server, wire: Wire, cursor: type[psycopg.Cursor]
) -> None:
    text = f"dropped {cursor.__name__}"
    wire.drop_reply_when = lambda sql: b"INSERT" in sql
    with connect(wire.port) as connection, pytest.raises(psycopg.OperationalError):
        cursor(connection).execute("INSERT INTO note VALUES (%s)", [text])
    assert notes(server, text) == 1


def test_a_cut_ends_the_sessions_and_lets_new_ones_in(wire: Wire) -> None:
    with connect(wire.port) as connection:
        wire.cut()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    connect(wire.port).close()


def test_a_wire_that_refuses_keeps_the_sessions_it_has(wire: Wire) -> None:
    with connect(wire.port) as connection:
        wire.refuse = True
        with pytest.raises(psycopg.OperationalError):
            connect(wire.port)
        connection.execute("SELECT 1")


@pytest.mark.parametrize(
    ("marks", "halves"),
    [
        ("", "first second"),
        ("postgres", "first"),
        ("full", "first"),
        ("once", "second"),
        ("once full", "second"),
        ("once postgres", "first"),
        ("full postgres", "first"),
        ("once full postgres", "first"),
    ],
)
def test_a_test_belongs_to_one_half_and_a_portable_one_to_both(marks: str, halves: str) -> None:
    item = SimpleNamespace(get_closest_marker=lambda name: name in marks.split())
    assert [half for half in ("first", "second") if is_of(half, item)] == halves.split()


@pytest.mark.parametrize(
    ("codes", "chosen", "passed"),
    [
        ({0}, [], True),
        ({0, 1}, [], False),
        ({0, 5}, [], False),
        ({0, 5}, ["tests/rules/test_verbs.py"], True),
        ({5}, ["-k", "nothing"], False),
        ({1, 5}, ["-k", "one"], False),
    ],
)
def test_a_half_may_be_empty_only_where_the_tests_were_chosen(
    codes: set[int], chosen: list[str], passed: bool
) -> None:
    assert is_passed(codes, chosen) is passed


def test_a_gap_in_coverage_must_be_listed_and_a_listed_function_must_exist() -> None:
    covered, missed = ({"missing_lines": lines, "missing_branches": []} for lines in ([], [7]))
    functions = {"": covered, "known": missed, "new": missed, "covered_by_now": covered}
    listed = "".join(f"| `a/one.py` | `{name}` | why |\n" for name in ("known", "covered_by_now", "gone"))
    errors = [*compare({"files": {"a/one.py": {"functions": functions}}}, listed)]
    assert len(errors) == 2
    assert "covers all of new." in errors[0]
    assert "lists gone" in errors[1]


def test_a_forked_start_knows_the_variables_that_it_is_given_and_no_others() -> None:
    code = "import os; print(os.environ.get('ONE'), os.environ.get('TWO'), os.environ.get('USER'))"
    assert manage("shell", "-v0", "-c", code, ONE="1").stdout == "1 None None\n"
    assert manage("shell", "-v0", "-c", code, TWO="2").stdout == "None 2 None\n"


@pytest.mark.parametrize(
    ("end", "code", "stderr"),
    [
        ("", 0, ""),
        ("exit(3)", 3, ""),
        ("raise SystemExit('why')", 1, "why\n"),
        ("1 / 0", 1, "division by zero\n"),
    ],
)
def test_a_forked_start_ends_as_any_other(end: str, code: int, stderr: str) -> None:
    done = manage("shell", "-v0", "-c", f"print('printed'); {end}")
    assert (done.returncode, done.stdout) == (code, "printed\n")
    assert done.stderr.endswith(stderr)


def test_clients_share_the_list_of_static_files_no_longer_than_the_settings(settings: Settings) -> None:
    def statuses() -> list[int]:
        paths = ("/static/admin/css/base.css", "/files/admin/css/base.css")
        return [Client().head(path, secure=True).status_code for path in paths]

    assert statuses() == statuses() == [200, 404]
    settings.STATIC_URL = "files/"
    assert statuses() == [404, 200]


def database_of_a_run(tmp_path: Path, **environment: str) -> str:
    """Return the lines about the database at the beginning of a pytest run without tests."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml", tmp_path],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 5, done.stderr  # nothing to run
    return "\n".join(re.findall(r"^database: .*|^DATABASE_URL .*", done.stdout, re.MULTILINE))


def test_the_tests_leave_the_database_of_the_shell_alone(tmp_path: Path) -> None:
    shown = database_of_a_run(tmp_path, DATABASE_URL="postgres://somebody:hunter2@127.0.0.1:1/production")
    assert re.search(r"database: PostgreSQL .+ at 127.0.0.1, a throw-away server of ", shown)
    assert "DATABASE_URL is ignored" in shown
    assert "hunter2" not in shown


def test_the_tests_use_the_database_that_is_named_for_them(tmp_path: Path) -> None:
    shown = database_of_a_run(tmp_path, TEST_DATABASE_URL=f"sqlite:///{tmp_path}/mine.sqlite3")
    assert re.fullmatch(r"database: SQLite [0-9.]+, from TEST_DATABASE_URL", shown)

"""A database that is away, refuses the password or lacks tables: each command says so in a line or two."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from django.core.management import get_commands

from tests import ROOT
from tests.tools.forked import manage
from tests.tools.postgres import Server

pytestmark = [pytest.mark.postgres, pytest.mark.once]

# All of `manage.py help` that use the database, and what they say of one without tables: "" if they are done.
LACKS, OK = "lacks migrations (", ""
COMMANDS = {
    "audit_ledger": LACKS,
    "apply_plans docs/plans.toml": LACKS,
    "axes_list_attempts": LACKS,
    "axes_reset": LACKS,
    "axes_reset_failure_logs": LACKS,
    "axes_reset_ip 192.0.2.1": LACKS,
    "axes_reset_ip_username 192.0.2.1 alice": LACKS,
    "axes_reset_logs": LACKS,
    "axes_reset_username alice": LACKS,
    "backfill_quotas --ids {folder}/ids": LACKS,
    "changepassword alice": LACKS,
    "check_webhooks": LACKS,
    "clearsessions": LACKS,
    "create_service_key name --scopes read": LACKS,
    "createsuperuser --noinput --username alice --email a@example.com": LACKS,
    "distribute_tables": "There is no table challenge_quotas: run manage.py migrate.",
    "dumpdata quotas": LACKS,
    "export_plans": LACKS,
    "export_user user_1": LACKS,
    "flush --noinput": OK,
    "import_quotas --csv {folder}/quotas.csv": LACKS,
    "inspectdb": OK,
    "list_service_keys": LACKS,
    "loaddata {folder}/group.json": LACKS,
    "migrate --check": OK,
    "migrate --plan": OK,
    "prune_inbox --older-than 90": LACKS,
    "prune_ledger --older-than 400": LACKS,
    "revoke_service_key name": LACKS,
    "rotate_service_key name": LACKS,
    "remove_stale_contenttypes --noinput": LACKS,
    "shell -v0 -c __import__('quotas.models').models.Plan.objects.count()": LACKS,
    "showmigrations": OK,
    "sqlflush": OK,
    "sqlmigrate quotas 0001": OK,
}
# Those that must not reach the empty database of these tests, or serve it until they are stopped.
WITHOUT_EMPTY = ("migrate", "runserver --noreload 127.0.0.1:0")
# `check` says it among its other findings (test_database_checks.py), `report_drift` asks Clerk first
# (test_drift.py), psql speaks for `dbshell`; `testserver` and `test` make a database of their own.
TESTED_ELSEWHERE = {"check", "report_drift", "dbshell", "testserver", "test"}
WITHOUT_DATABASE = {
    *("collectstatic", "compilemessages", "createcachetable", "demo", "diffsettings", "findstatic"),
    *(
        "generateschema",
        "makemessages",
        "makemigrations",
        "optimizemigration",
        "sendtestemail",
        "spectacular",
    ),
    *("sqlsequencereset", "squashmigrations", "startapp", "startproject"),
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The URL of an empty database, whose server asks for a password."""
    with Server(fsync=False, in_memory=True, connections=20) as server:
        yield server.add_user("quota", "hunter2", "SUPERUSER")


def run(command: str, url: str, folder: Path) -> tuple[int, str]:
    (folder / "ids").write_text("user_1\n")
    (folder / "quotas.csv").write_text("user_id,used,last_reset\nuser_1,5,2026-01-01\n")
    (folder / "group.json").write_text('[{"model": "auth.group", "fields": {"name": "staff"}}]')
    password = {"DJANGO_SUPERUSER_PASSWORD": "a password of 23 chars"}
    done = manage(*command.format(folder=folder).split(), DATABASE_URL=url, DEBUG="1", **password)
    return done.returncode, done.stderr


@pytest.mark.parametrize("command", [*COMMANDS, *WITHOUT_EMPTY])
@pytest.mark.parametrize(
    ("right", "wrong", "fix"),
    [
        (r":\d+/", ":1/", "Connection refused. Start the server, or correct the host and the port in it."),
        pytest.param(
            "hunter2",
            "hunter3",
            'password authentication failed for user "quota". Correct the user and the password in it',
            marks=pytest.mark.full,
        ),
    ],
)
def test_a_database_that_cannot_be_used_is_named_with_the_fix(
    url: str, tmp_path: Path, command: str, right: str, wrong: str, fix: str
) -> None:
    code, said = run(command, re.sub(right, wrong, url), tmp_path)
    assert code == 1
    assert "CommandError: The database (DATABASE_URL) cannot be used: " in said
    assert fix in said
    assert len(said.splitlines()) <= 3
    assert "hunter" not in said


@pytest.mark.parametrize(("command", "says"), COMMANDS.items())
def test_missing_tables_are_named_with_the_fix(url: str, tmp_path: Path, command: str, says: str) -> None:
    code, said = run(command, url, tmp_path)
    assert code == (1 if says or command == "migrate --check" else 0)
    assert says in said
    assert (said.count("manage.py migrate"), len(said.splitlines()) <= 3) == (1 if says else 0, True)


def test_the_reloader_of_runserver_ends_in_one_line_too(url: str) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "ENV_FILE": "",
        "DATABASE_URL": url.replace("hunter2", "hunter3"),
        "DEBUG": "1",
        "RUN_MAIN": "true",  # as the process that serves
    }
    done = subprocess.run(
        [sys.executable, "manage.py", "runserver", "127.0.0.1:0"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "CommandError: The database (DATABASE_URL) cannot be used: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_role_that_may_not_make_tables_is_named_with_the_fix(url: str) -> None:
    """As every role but the owner's on PostgreSQL 15 and later."""
    with psycopg.connect(url, autocommit=True) as session:
        session.execute("CREATE ROLE guest LOGIN")
        session.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    done = manage("migrate", "-v0", DATABASE_URL=url.replace("quota:hunter2", "guest"))
    assert done.returncode == 1
    assert done.stderr.endswith("GRANT CREATE, USAGE ON SCHEMA public TO the user in it.\n")
    assert len(done.stderr.splitlines()) == 1


def test_a_fault_of_ours_keeps_its_traceback(url: str) -> None:
    query = "from django.db import connection; connection.cursor().execute('SELEC 1')"
    done = manage("shell", "-v0", "-c", query, DATABASE_URL=url)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_no_command_is_left_out() -> None:
    tested = {command.split()[0] for command in (*COMMANDS, *WITHOUT_EMPTY)}
    assert set(get_commands()) == tested | TESTED_ELSEWHERE | WITHOUT_DATABASE

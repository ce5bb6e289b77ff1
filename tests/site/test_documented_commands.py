"""Every command of the pages for operators is run, from an empty PostgreSQL on, or listed as not run."""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import psycopg
import pytest
from django.core.management import get_commands
from psycopg import errors

from tests import ROOT
from tests.operations.test_deploy_checks import GOOD
from tests.tools.forked import manage
from tests.tools.pages import OPERATORS, PAGES, blocks_of, checkout_in, commands_of, not_run
from tests.tools.postgres import Server
from tests.tools.site import ask, running, served

pytestmark = pytest.mark.once
PASSWORD = "hunter2"
ANSWERS = {"DJANGO_SUPERUSER_PASSWORD": "quite-a-long-one", "DJANGO_SUPERUSER_USERNAME": "staff"}
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]


# Commands that no test runs


def test_every_command_that_is_listed_as_not_run_stands_in_a_page_and_is_one_of_the_shell() -> None:
    all_commands = {line for page in PAGES for line in commands_of(page)}
    assert set(not_run()) < all_commands
    for line in not_run():
        done = subprocess.run(["sh", "-n", "-c", line], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_a_page_names_only_commands_that_exist(path: Path) -> None:
    named = set(re.findall(r"manage\.py ([a-z_]+)", path.read_text()))
    assert named <= set(get_commands())


# The pages for operators, from top to bottom


# What a command misses there, and says so.
NEEDS = {
    "backfill_quotas": "CLERK_SECRET_KEY",
    "report_drift": "CLERK_SECRET_KEY",
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """PostgreSQL as it is after its installation: a superuser postgres, and passwords for everyone else."""
    with Server(fsync=False, in_memory=True) as server:
        with psycopg.connect(server.url, autocommit=True) as session:
            session.execute("CREATE ROLE postgres SUPERUSER LOGIN")
        execute(server, "DROP DATABASE quotasite; ALTER ROLE quotasite RENAME TO of_the_harness")
        rules = "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
        (server.data / "pg_hba.conf").write_text(rules)
        execute(server, "SELECT pg_reload_conf()")
        execute(server, blocks_of("deploy", "sql")[0])
        yield server


def execute(server: Server, text: str, database: str = "postgres") -> None:
    """Run SQL of a page as the superuser, one statement after the other, as psql does."""
    url = f"postgres://postgres@127.0.0.1:{server.port}/{database}"
    with psycopg.connect(url, autocommit=True) as session:
        for statement in filter(None, map(str.strip, text.replace("CHANGE-ME", PASSWORD).split(";"))):
            session.execute(statement.encode())


def url_of(server: Server, database: str, role: str = "quotasite") -> str:
    return f"postgres://{role}:{PASSWORD}@127.0.0.1:{server.port}/{database}"


def test_whoever_follows_the_pages_has_a_sound_service_and_a_backup(server: Server, tmp_path: Path) -> None:
    """The commands run in their order; those that ask the site come last, while it is served."""
    if not (server.programs / "pg_dump").exists():
        pytest.skip("not installed here: pg_dump")
    execute(server, blocks_of("operations", "sql")[0])  # the database of the restore drill
    url, restored = url_of(server, "quotasite"), url_of(server, "restored")
    environment = {**ANSWERS, "DIRECT_URL": url, "RESTORED_URL": restored}
    # The checkout's manage.py is a link, and would read the file where that leads.
    environment["ENV_FILE"] = str(tmp_path / ".env")
    environment["PATH"] = f"{server.programs}{os.pathsep}{os.environ['PATH']}"
    folder, lines = checkout_in(tmp_path), [line for page in OPERATORS for line in commands_of(page)]
    lines = [line for line in lines if line not in not_run()]
    [serve] = [line for line in lines if "s/^web: //p" in line]
    questions = [line for line in lines if line.startswith("curl ")]
    for line in lines:
        if line not in (serve, *questions):
            done = run(line, folder, environment)
            [missing] = [what for command, what in NEEDS.items() if command in line] or [""]
            assert (done.returncode != 0) == bool(missing), f"{line}\n{done.stderr}"
            assert missing in done.stderr
        if line.startswith("cp .env.example .env"):
            fill_in(folder / ".env", {**GOOD, "DATABASE_URL": url})
    with running(url, workers=1, line=serve, folder=folder, PATH="/usr/bin:/bin") as (port, _):
        for line in questions:
            done = run(
                line.replace("https://quota.example.com", f"http://127.0.0.1:{port}"), folder, environment
            )
            assert '"ready"' in done.stdout, f"{line}\n{done.stderr}"
        with closing(HTTPConnection("127.0.0.1", port)) as client:
            assert ask(client, "POST", "/api/v1/quota/consume", "user_1", b"{}") == 201


def fill_in(file: Path, values: dict[str, str]) -> None:
    """Write the values into the copy of .env.example: no variable of the shell has them."""
    lines = [line.partition("=")[::2] for line in file.read_text().splitlines()]
    file.write_text(
        "".join(f"{name}={values.get(name, old)}\n" for name, old in lines if name.isidentifier())
    )


ADDRESSES = [line for page in OPERATORS for line in commands_of(page) if re.search(r"\$\W?(\w+_URL)", line)]


@pytest.mark.parametrize("line", ADDRESSES)
def test_a_command_whose_address_is_not_set_names_the_variable_and_runs_nothing(
    line: str, tmp_path: Path
) -> None:
    done = run(line, tmp_path, {"PATH": "/usr/bin:/bin"})
    assert done.returncode != 0
    assert re.search(r"(DIRECT|RESTORED)_URL: ", done.stderr), done.stderr


def test_without_a_pooler_the_direct_address_comes_from_the_file(tmp_path: Path) -> None:
    [line] = [line for line in commands_of("connections") if line.startswith("export ")]
    (tmp_path / ".env").write_text("SECRET_KEY=a b\nDATABASE_URL=postgres://a:b%20c@d/e?sslmode=require\n")
    done = run(f'{line}; echo "$DIRECT_URL"', tmp_path, {"PATH": "/usr/bin:/bin"})
    assert done.stdout == "postgres://a:b%20c@d/e?sslmode=require\n", done.stderr


def run(line: str, folder: Path, environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    extra = " --noinput --email s@example.com" if line.endswith("createsuperuser") else ""
    return subprocess.run(
        ["sh", "-c", line + extra], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_the_role_of_the_service_may_not_create_a_database(server: Server) -> None:
    """So the restore drill has a superuser make it."""
    url, refused = url_of(server, "quotasite"), pytest.raises(errors.InsufficientPrivilege)
    with psycopg.connect(url, autocommit=True) as session, refused:
        session.execute("CREATE DATABASE of_its_own")


# Roles with fewer rights


@pytest.fixture(scope="module")
def database(server: Server) -> str:
    """Another database in which the roles of connections.md were made, before and after its first migrate."""
    before, after = blocks_of("connections", "sql")
    execute(server, "CREATE DATABASE roles OWNER quotasite")
    execute(server, before, "roles")
    done = manage("migrate", "-v0", DATABASE_URL=url_of(server, "roles"))
    assert done.returncode == 0, done.stderr
    execute(server, after, "roles")
    return "roles"


def test_the_service_needs_only_the_rows(server: Server, database: str) -> None:
    url = url_of(server, database, "quotasite_web")
    with served(url, workers=1) as port, closing(HTTPConnection("127.0.0.1", port)) as client:
        spends = [ask(client, "POST", "/api/v1/quota/consume", "user_1", b"{}") for _ in range(2)]
        assert (spends, ask(client, "GET", "/readyz", "user_1")) == ([201, 201], 200)
    for command in ("createsuperuser --noinput --email s@example.com", "audit_ledger", "clearsessions"):
        done = manage(*command.split(), DATABASE_URL=url, **ANSWERS)
        assert done.returncode == 0, done.stderr
    with psycopg.connect(url, autocommit=True) as session, pytest.raises(errors.InsufficientPrivilege):
        session.execute("ALTER TABLE plans ADD COLUMN more integer")


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("SELECT user_id, quota_remaining, resets_at FROM challenge_quotas", None),
        ("SELECT sum(cost) FROM ledger_entries", None),
        ("SELECT * FROM plans, plan_versions, hourly_totals", None),
        ("SELECT email FROM challenge_quotas", errors.InsufficientPrivilege),
        ("SELECT * FROM service_keys", errors.InsufficientPrivilege),
        ("SELECT * FROM webhook_events", errors.InsufficientPrivilege),
        ("SELECT * FROM auth_user", errors.InsufficientPrivilege),
        ("UPDATE plans SET allowance = 1", errors.ReadOnlySqlTransaction),
        (
            "BEGIN READ WRITE; UPDATE plans SET allowance = 1",
            errors.InsufficientPrivilege,
        ),
    ],
)
def test_a_dashboard_reads_figures_and_nothing_else(
    server: Server, database: str, statement: str, error: type[Exception] | None
) -> None:
    with psycopg.connect(url_of(server, database, "dashboards"), autocommit=True) as session:
        if error is None:
            session.execute(statement.encode())
        else:
            with pytest.raises(error):
                session.execute(statement.encode())

"""A release that runs before its migrations, or between two of them: a 503 that says so, and no traceback."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.http import HttpResponse
from django.test import Client

from tests.conftest import USER, Api
from tests.store.test_states import run
from tests.tools.forked import manage
from tests.tools.postgres import Server
from tests.tools.staff import LIST, Browser, send, sign_in

PERSON = {"id": USER, "updated_at": 1_716_883_200_000, "email_addresses": []}
COMMANDS = [
    "apply_plans docs/plans.toml",
    "audit_ledger",
    "backfill_quotas --ids {ids}",
    "changepassword alice",
    "create_service_key name --scopes read",
    "export_user user_1",
    "list_service_keys",
    "revoke_service_key name",
    "rotate_service_key name",
    "createsuperuser --noinput --username alice --email a@example.com",
    "export_plans",
    "prune_inbox --older-than 90",
    "prune_ledger --older-than 400",
]


def with_postgres(test: Callable[..., None]) -> Callable[..., None]:
    committed = pytest.mark.django_db(transaction=True, serialized_rollback=True)
    return pytest.mark.postgres(committed(test))


def is_not_migrated(answer: HttpResponse) -> bool:
    found = answer.status_code, answer.get("Content-Type"), answer.get("Retry-After")
    return found == (503, "application/problem+json", "5") and answer.json()["code"] == "not_migrated"


@pytest.fixture
def staff(db: None) -> Client:
    browser = sign_in(is_superuser=True)
    browser.raise_request_exception = False
    return browser


@pytest.fixture(params=["table", "column"])
def half_migrated(request: pytest.FixtureRequest) -> Iterator[str]:
    """Let a table be missing, or a column of each."""
    tables = ("challenge_quotas", "webhook_events", "service_keys", "plans")
    columns = ("usage_seq", "note", "last_used_at", "is_public")
    if request.param == "table":
        away = [f"ALTER TABLE {table} RENAME TO {table}_later" for table in tables]
        back = [f"ALTER TABLE {table}_later RENAME TO {table}" for table in tables]
    else:
        pairs = list(zip(tables, columns, strict=True))
        away = [f"ALTER TABLE {table} RENAME {column} TO later" for table, column in pairs]
        back = [f"ALTER TABLE {table} RENAME later TO {column}" for table, column in pairs]
    run(*away)
    yield request.param
    run(*back)


@with_postgres
def test_each_request_says_so(api: Api, deliver: Callable[..., HttpResponse], half_migrated: str) -> None:
    key = f"qs_00000000_{'x' * 43}"
    answers = {
        "read": api.quota(),
        "spend": api.consume(),
        "plans": api.get("/api/v1/plans"),
        "service": api.client.get("/api/v1/plans", headers={"Authorization": f"Bearer {key}"}),
        "delivery": deliver("user.created", PERSON),
    }
    assert [name for name, answer in answers.items() if not is_not_migrated(answer)] == []


@with_postgres
def test_the_admin_says_so(staff: Client, half_migrated: str) -> None:
    for page in (staff.get(LIST), send(staff, "adjust", USER, reason="r", delta="1", confirmed="1")):
        assert (page.status_code, page.get("Retry-After")) == (503, "5")
        assert "run manage.py migrate" in page.content.decode()


@with_postgres
def test_the_service_recovers_without_a_restart(api: Api) -> None:
    run("ALTER TABLE challenge_quotas RENAME TO later")
    assert is_not_migrated(api.consume())
    run("ALTER TABLE later RENAME TO challenge_quotas")
    assert api.consume().status_code == 201


@pytest.fixture(scope="module")
def empty() -> Iterator[str]:
    with Server(fsync=False, in_memory=True, connections=20) as server:
        yield server.url


@pytest.mark.postgres
@pytest.mark.once
@pytest.mark.parametrize("engine", ["PostgreSQL", "SQLite"])
@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_says_so_in_one_line(empty: str, tmp_path: Path, engine: str, command: str) -> None:
    url = empty if engine == "PostgreSQL" else f"sqlite:///{tmp_path}/empty.sqlite3"
    (tmp_path / "ids").write_text("user_1\n")
    command = command.format(ids=tmp_path / "ids")
    done = manage(*command.split(), DATABASE_URL=url, DJANGO_SUPERUSER_PASSWORD="a password of 23 chars")
    assert done.returncode == 1
    assert "The database (DATABASE_URL) lacks migrations (" in done.stderr
    assert "run manage.py migrate." in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.postgres
@pytest.mark.once
def test_the_check_of_an_empty_database_has_no_traceback(empty: str) -> None:
    done = manage("check", "--database", "default", DATABASE_URL=empty)
    assert "Traceback" not in done.stderr


@pytest.mark.django_db
def test_a_missing_table_of_sqlite_is_said_too(settings_for_clerk: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE auth_user RENAME TO later")
    browser = Browser(raise_request_exception=False)
    page = browser.post("/admin/login/", {"username": "a", "password": "b"})
    assert page.status_code == 503
    assert "run manage.py migrate" in page.content.decode()

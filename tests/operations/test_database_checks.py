"""The connection to the database: addresses of poolers, contradictory settings, and checks that query it."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from django.core.checks import run_checks
from django.db import connection
from pytest_django import Settings

from quotas.models import ChallengeQuota, Plan
from quotas.operations import database_checks
from quotas.rules import zones
from quotasite.demo.tour import shift
from quotasite.environment import looks_pooled
from tests.conftest import STAFF
from tests.operations.test_deploy_checks import GOOD
from tests.site.test_settings import read_setting
from tests.tools import pgbouncer
from tests.tools.forked import manage
from tests.tools.postgres import Server

pytestmark = pytest.mark.once
NEON = "postgres://u:p@ep-a-1-pooler.us-east-2.aws.neon.tech/d?sslmode=require&channel_binding=require"
OF_ZONES = ("quotas.I001", "quotas.W007", "quotas.E008")
SUPABASE = "postgres://postgres.abc:p@aws-0-eu-west-1.pooler.supabase.com"


@pytest.mark.parametrize(
    ("url", "is_pooled"),
    [
        (NEON, True),
        (NEON.replace("-pooler", ""), False),
        (f"{SUPABASE}:6543/postgres", True),
        (f"{SUPABASE}:5432/postgres", False),  # session mode
        ("postgres://postgres:p@db.abc.supabase.co:6543/postgres", True),  # the dedicated pooler
        ("postgres://postgres:p@db.abc.supabase.co:5432/postgres", False),
        ("postgres://u:p@db.example.com:6543/d", False),
        ("postgres://u:p@db.example.com:6432/d", True),
        ("postgres://u:p@db.example.com/d?pgbouncer=true", True),
        ("postgres://u:p@db.example.com/d?pgbouncer=false", False),
        ("postgres://u:p@db.example.com/pgbouncer", False),
        ("postgres://u:p@my-pooler.example.com/d", False),
        ("postgres://u:p@[db/d", False),
        ("sqlite:////x-pooler.neon.tech", False),
        ("", False),
    ],
)
def test_a_poolers_address_is_known_by_what_its_vendor_documents(url: str, is_pooled: bool) -> None:
    assert looks_pooled(url) is is_pooled


@pytest.mark.parametrize(
    ("value", "url", "is_pooled"),
    [("", NEON, "True"), ("off", NEON, "False"), ("1", GOOD["DATABASE_URL"], "True")],
)
def test_what_is_said_outranks_what_the_address_tells(value: str, url: str, is_pooled: str) -> None:
    settings = "DATABASE_IS_POOLED, settings.DATABASES['default']['DISABLE_SERVER_SIDE_CURSORS']"
    assert read_setting(settings, DATABASE_POOLED=value, DATABASE_URL=url) == f"{is_pooled} {is_pooled}"


def test_the_mark_of_a_pooler_is_not_sent_to_the_database() -> None:
    url = "postgres://u:p@db.example.com/d?pgbouncer=true&sslmode=require"
    options = read_setting("DATABASES['default']['OPTIONS']", DATABASE_URL=url)
    assert "sslmode" in options
    assert "pgbouncer" not in options


@pytest.mark.parametrize(
    ("check_id", "environment", "hint"),
    [
        ("quotas.W002", {"DATABASE_URL": NEON, "DATABASE_POOLED": "off"}, "Unset DATABASE_POOLED"),
        ("quotas.W003", {"DATABASE_URL": f"{NEON}&prepare_threshold=5"}, "Unset DATABASE_PREPARE"),
        ("quotas.W004", {"DATABASE_URL": f"{NEON}&options=-c%20work_mem%3D1MB"}, "ALTER ROLE"),
    ],
)
def test_a_contradiction_is_told_with_its_fix(check_id: str, environment: dict[str, str], hint: str) -> None:
    done = manage("check", "--deploy", "--offline", "--fail-level", "WARNING", **{**GOOD, **environment})
    assert done.returncode == 1
    assert f"({check_id})" in done.stderr
    assert hint in done.stderr


def test_a_poolers_address_alone_is_clean() -> None:
    done = manage(
        "check", "--deploy", "--offline", "--fail-level", "WARNING", **{**GOOD, "DATABASE_URL": NEON}
    )
    assert done.returncode == 0, done.stderr


# What only the database shows


def ids() -> list[str]:
    messages = run_checks(databases=["default"])
    return [str(message.id) for message in messages if str(message.id).startswith("quotas.")]


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("rules", "version", "expected"),
    [
        ({"timezone": "UTC", "reset_policy": "daily"}, "2020.1", []),
        ({"timezone": "Europe/Berlin", "reset_policy": "rolling"}, "2020.1", []),
        ({"timezone": "Europe/Berlin", "reset_policy": "daily"}, "2990.1", ["quotas.I001"]),
        ({"timezone": "Europe/Berlin", "reset_policy": "weekly"}, "2020.1", ["quotas.I001", "quotas.W007"]),
        ({"timezone": "Mars/Olympus", "reset_policy": "monthly"}, "2990.1", ["quotas.I001", "quotas.E008"]),
    ],
)
def test_the_zone_data_is_named_where_plans_depend_on_it(
    monkeypatch: pytest.MonkeyPatch, rules: dict[str, str], version: str, expected: list[str]
) -> None:
    monkeypatch.setattr(zones, "VERSION", version)
    Plan(name="local", allowance=20, **rules).save()
    found = [message for message in run_checks(databases=["default"]) if str(message.id) in OF_ZONES]
    assert [message.id for message in found] == expected
    assert all(version in message.msg for message in found)


@pytest.mark.django_db
def test_quotas_that_a_clock_ahead_has_dated_are_counted() -> None:
    for user_id in ("user_1", "user_2", "user_3"):
        ChallengeQuota.objects.current(user_id)
    ChallengeQuota.objects.delete("user_3", actor=STAFF)
    shift("user_2", -timedelta(days=3))
    shift("user_3", -timedelta(days=3))
    [warning] = [each for each in run_checks(databases=["default"]) if each.id == "quotas.W008"]
    assert "future: 1." in warning.msg
    ChallengeQuota.objects.reset("user_2", reason="the clock was ahead", actor=STAFF)
    assert "quotas.W008" not in {each.id for each in run_checks(databases=["default"])}


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("allowance", "is_set", "says"),
    [(50, True, "an allowance of 50"), (None, True, "no limit"), (20, True, ""), (50, False, "")],
)
def test_an_allowance_that_has_no_effect_is_told(
    settings: Settings, allowance: int | None, is_set: bool, says: str
) -> None:
    settings.QUOTA_DEFAULT_ALLOWANCE, settings.QUOTA_DEFAULT_ALLOWANCE_IS_SET = 20, is_set
    Plan.objects.filter(is_default=True).update(allowance=allowance)
    found = [each for each in run_checks(databases=["default"]) if each.id == "quotas.I002"]
    assert [says in each.msg and "in the admin" in str(each.hint) for each in found] == [True] * bool(says)


def test_a_database_without_tables_has_no_faulty_zones(tmp_path: Path) -> None:
    done = manage(
        "check", "--database", "default", **{**GOOD, "DATABASE_URL": f"sqlite:///{tmp_path}/x.sqlite3"}
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.postgres
@pytest.mark.django_db
def test_a_direct_database_with_our_time_is_clean() -> None:
    assert ids() == []


@pytest.mark.postgres
@pytest.mark.django_db
@pytest.mark.parametrize(
    ("seconds", "expected"), [(3, ["quotas.W005"]), (-3, ["quotas.W005"]), (1, []), (-1, [])]
)
def test_a_clock_that_is_more_than_two_seconds_off_is_told(
    monkeypatch: pytest.MonkeyPatch, seconds: int, expected: list[str]
) -> None:
    query_value = database_checks._query_value

    def query_another_clock(database: object, query: str) -> object:
        value = query_value(database, query)
        return value + timedelta(seconds=seconds) if "clock" in query else value

    monkeypatch.setattr(database_checks, "_query_value", query_another_clock)
    assert ids() == expected


@pytest.mark.postgres
@pytest.mark.django_db
def test_another_default_isolation_is_reported() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL default_transaction_isolation = 'repeatable read'")
    assert ids() == ["quotas.W006"]


@pytest.mark.postgres
@pytest.mark.skipif(not pgbouncer.find(), reason="not installed here: pgbouncer")
def test_migrate_stops_before_a_pooler_that_nobody_told_of() -> None:
    with Server(fsync=False, in_memory=True) as server, pgbouncer.Pooler(server) as pooler:
        bare = pooler.url.partition("?")[0]
        refused = manage("migrate", DATABASE_URL=bare)
        assert refused.returncode == 1
        assert "(quotas.E007)" in refused.stderr
        assert manage("migrate", "-v0", DATABASE_URL=bare, DATABASE_POOLED="on").returncode == 0


# A database that cannot be used


@pytest.fixture(scope="module")
def guarded() -> Iterator[str]:
    """The URL of a server that asks its user `quota` for a password."""
    with Server(fsync=False, in_memory=True, connections=20) as server:
        url = server.add_user("quota", "hunter2")
        with psycopg.connect(server.url, autocommit=True) as session:
            session.execute("CREATE DATABASE own OWNER quota")
        yield url.replace("/quotasite", "/own")


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("right", "wrong", "fix"),
    [
        ("hunter2", "hunter3", "Correct the user and the password in it"),
        ("quota:", "stranger:", "Correct the user and the password in it"),
        ("127.0.0.1", "database.invalid", "Correct the host in it"),
        ("/own", "/other", "Create that database"),
        ("/own", "/own?sslmode=require", "Correct sslmode"),
        ("/own", "/own?connect_timeout=hunter2", "Correct the options"),
    ],
)
@pytest.mark.parametrize("command", [("check", "--database", "default"), ("check", "--deploy")], ids=str)
def test_a_database_that_cannot_be_used_is_refused_with_the_fix(
    guarded: str, right: str, wrong: str, fix: str, command: tuple[str, ...]
) -> None:
    done = manage(*command, **{**GOOD, "DATABASE_URL": guarded.replace(right, wrong)})
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if "(quotas." in line]
    assert "(quotas.E011) The database (DATABASE_URL) cannot be used: " in line
    assert fix in line
    assert "hunter3" not in done.stderr


def test_a_closed_port_is_refused_with_the_fix() -> None:
    done = manage("check", "--deploy", **{**GOOD, "DATABASE_URL": "postgres://u:hunter2@127.0.0.1:1/d"})
    assert done.returncode == 1
    assert (
        "port 1 failed: Connection refused. Start the server, or correct the host and the port" in done.stderr
    )
    assert "hunter2" not in done.stderr


@pytest.mark.postgres
def test_a_release_can_be_checked_before_its_first_migrate(guarded: str) -> None:
    done = manage("check", "--deploy", **{**GOOD, "DATABASE_URL": guarded})
    assert done.returncode == 0, done.stderr
    assert "(quotas.I003)" in done.stderr
    assert "Run manage.py migrate." in done.stderr


def test_the_settings_alone_can_be_checked() -> None:
    done = manage("check", "--deploy", "--offline", **{**GOOD, "DATABASE_URL": "postgres://u@127.0.0.1:1/d"})
    assert (done.returncode, done.stderr) == (0, "")


def test_a_database_that_nobody_named_is_not_asked() -> None:
    """SQLite would make its file."""
    environment = {name: value for name, value in GOOD.items() if name != "DATABASE_URL"}
    done = manage("check", "--deploy", **environment)
    assert "(quotas.E010)" in done.stderr
    assert "(quotas.I003)" not in done.stderr


# Options of DATABASE_URL


@pytest.mark.parametrize(
    "option",
    ["schema=public", "connection_limit=5&pool_timeout=10", "supa=base-pooler.x", "statement_cache_size=0"],
)
def test_an_option_for_another_client_is_left_out(option: str) -> None:
    read = read_setting(
        "DATABASES['default']['OPTIONS']", DATABASE_URL=f"postgres://u@h/d?{option}&sslmode=require"
    )
    assert option.partition("=")[0] not in read
    assert "'sslmode': 'require'" in read


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (
            "schema=hunter2",
            "the option schema, which PostgreSQL's client does not know: remove it. To use another",
        ),
        (
            "ssl=true",
            "the option ssl, which PostgreSQL's client does not know: remove it. To encrypt, set sslmode",
        ),
        ("sslmod=require", "the option sslmod, which"),
        ("hunter2%20x=1", "an option, which"),
    ],
)
def test_an_option_that_every_request_would_fail_by_is_refused_at_the_start(option: str, says: str) -> None:
    done = manage("check", DATABASE_URL=f"postgres://u:hunter2@127.0.0.1:1/d?{option}")
    assert done.returncode == 1
    assert f"manage.py: DATABASE_URL has {says}" in done.stderr
    assert "hunter2" not in done.stderr

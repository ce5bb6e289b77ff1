"""`.env`: read at every start, outranked by the environment, and its values are never shown."""

import os
import shutil
import subprocess
import sys
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import pytest

from quotasite.variable_checks import OTHER_NAMES, misnamed
from tests.operations.test_deploy_checks import GOOD
from tests.site.test_settings import ROOT, read_setting
from tests.tools.forked import coverage_variables, manage
from tests.tools.site import served, url_of_the_test_database

pytestmark = pytest.mark.once


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    """A file that fills in .env.example as an operator does."""
    text = (ROOT / ".env.example").read_text()
    for name, value in GOOD.items():
        default = next(line for line in text.splitlines() if line.startswith(f"{name}="))
        text = text.replace(f"\n{default}\n", f"\n{name}={value}\n")
    path = tmp_path / ".env"
    path.write_text(text)
    path.chmod(0o600)
    return path


def check(path: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return manage("check", "--deploy", "--offline", ENV_FILE=str(path), **environment)


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join([*lines, ""]))
    path.chmod(0o600)
    return path


def test_the_example_filled_in_is_enough(env_file: Path) -> None:
    done = check(env_file)
    assert done.returncode == 0, done.stderr
    assert "WARNINGS" not in done.stderr


def test_the_file_beside_manage_py_is_read(tmp_path: Path) -> None:
    """By a copy of the code: there may be a .env here."""
    for folder in ("quotas", "quotasite", "webhooks", "templates"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "manage.py", tmp_path)
    write(
        tmp_path / ".env", "ALLOWED_HOSTS=of-the-file.example.com", "DATABASE_URL=postgres://u@127.0.0.1:1/d"
    )

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, str(tmp_path / "manage.py"), *arguments]
        environment = {"PATH": os.environ["PATH"], **coverage_variables()}
        return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True)

    shown = run("shell", "-v0", "-c", "from django.conf import settings; print(settings.ALLOWED_HOSTS)")
    assert shown.stdout.strip() == "['of-the-file.example.com']", shown.stderr
    assert "All steps succeeded" in run("demo", "--once", "8810").stdout  # the demo leaves the file alone


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True, serialized_rollback=True)
def test_the_servers_workers_read_it(tmp_path: Path) -> None:
    path = write(tmp_path / ".env", "METRICS_TOKEN=of the file")
    with (
        served(url_of_the_test_database(), workers=1, ENV_FILE=str(path)) as port,
        closing(HTTPConnection("127.0.0.1", port)) as client,
    ):
        client.request("GET", "/metrics", headers={"Authorization": "Bearer of the file"})
        assert client.getresponse().status == 200


@pytest.mark.parametrize(
    ("environment", "hosts"),
    [
        ({}, ["a.example.com"]),
        ({"ALLOWED_HOSTS": "b.example.com"}, ["b.example.com"]),
        ({"ALLOWED_HOSTS": ""}, []),
    ],
)
def test_the_environment_wins_even_by_an_empty_value(
    tmp_path: Path, environment: dict[str, str], hosts: list[str]
) -> None:
    path = write(tmp_path / ".env", "ALLOWED_HOSTS=a.example.com")
    assert read_setting("ALLOWED_HOSTS", ENV_FILE=str(path), **environment) == str(hosts)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("SECRET_KEY=a$b${PATH}c#d", "a$b${PATH}c#d"),
        ("export SECRET_KEY=abc # a comment", "abc"),
        ('SECRET_KEY="abc"', "abc"),
        ("SECRET_KEY = abc\r", "abc"),
    ],
)
def test_a_value_is_taken_to_the_letter(tmp_path: Path, line: str, value: str) -> None:
    assert read_setting("SECRET_KEY", ENV_FILE=str(write(tmp_path / ".env", line))) == value


@pytest.mark.parametrize(
    "line", ["SECRET_KEY hunter2", "SECRET_KEY", "SECRET-KEY=hunter2", 'SECRET_KEY="hunter2', "A=hunter2\0"]
)
def test_a_malformed_line_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / ".env", "# one", "A=1", "", "", line, "B=2")
    done = manage("check", ENV_FILE=str(path))
    assert done.returncode == 1
    assert done.stderr == "manage.py: .env: line 5 must have the form NAME=value, or begin with #.\n"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    done = manage("check", ENV_FILE=str(tmp_path / "missing.env"))
    assert done.stderr == "manage.py: missing.env cannot be read: No such file or directory.\n"
    (tmp_path / ".env").write_bytes(b"A=\xff\n")
    assert (
        "manage.py: .env cannot be read: it is not UTF-8."
        in manage("check", ENV_FILE=str(tmp_path / ".env")).stderr
    )


def test_the_check_shows_where_each_variable_comes_from(env_file: Path) -> None:
    done = check(env_file, ALLOWED_HOSTS=GOOD["ALLOWED_HOSTS"])
    [line] = [line for line in done.stderr.splitlines() if "(quotasite.I001)" in line]
    _, of_file, of_environment = line.split("From ")
    assert "DATABASE_URL" in of_file
    assert "SECRET_KEY" in of_file
    assert of_environment == "the environment: ALLOWED_HOSTS."
    assert "hunter2" not in done.stderr
    assert "(quotasite.W010)" not in done.stderr


def test_two_values_of_one_variable_are_reported(env_file: Path) -> None:
    done = check(env_file, DATABASE_URL="postgres://u:hunter3@db.example.com/quota", METRICS_TOKEN="0" * 16)
    assert ".env and the environment differ, and the environment counts: DATABASE_URL.\n" in done.stderr
    assert "hunter" not in done.stderr


def test_what_only_the_shell_of_the_server_reads_is_reported(env_file: Path) -> None:
    env_file.write_text(env_file.read_text().replace("PORT=8000", "PORT=9000"))
    assert "which does not read that file: PORT." in check(env_file).stderr
    assert "(quotasite.W011)" not in check(env_file, PORT="9000").stderr


def test_a_file_that_everybody_can_read_is_reported(env_file: Path) -> None:
    env_file.chmod(0o644)
    assert "HINT: chmod o= .env" in check(env_file).stderr
    env_file.chmod(0o640)
    assert "(quotasite.W012)" not in check(env_file).stderr


# Names that are not ours


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("CLERK_WEBHOOK_SECRET", "CLERK_WEBHOOK_SIGNING_SECRET"),
        ("JWT_KEY", "CLERK_JWT_KEY"),
        ("ALLOWED_ORIGINS", "CORS_ALLOWED_ORIGINS"),
        ("CLERK_AUTHORISED_PARTIES", "CLERK_AUTHORIZED_PARTIES"),
        ("VITE_CLERK_PUBLISHABLE_KEY", "CLERK_PUBLISHABLE_KEY"),
        ("NEXT_PUBLIC_CLERK_PUBLISHABLE_KEY", "CLERK_PUBLISHABLE_KEY"),
        ("ALLOWED_HOST", "ALLOWED_HOSTS"),
        ("CLERK_WEBHOOK_SIGNING_SECRETS", "CLERK_WEBHOOK_SIGNING_SECRET"),
    ],
)
def test_another_name_of_a_variable_is_reported(name: str, ours: str) -> None:
    unset = {**GOOD, "CLERK_PUBLISHABLE_KEY": "", ours: ""}
    done = manage("check", "--deploy", "--offline", **{**unset, name: "hunter2"})
    assert f"{name} is set, which this service does not read, and {ours} is not.\n" in done.stderr
    assert f"HINT: Rename {name} to {ours}.\n" in done.stderr
    assert "hunter2" not in done.stderr


def test_another_name_beside_ours_is_for_another_program() -> None:
    others = dict.fromkeys(OTHER_NAMES, "x")
    done = manage("check", "--deploy", "--offline", "--fail-level", "WARNING", **{**others, **GOOD})
    assert done.returncode == 0, done.stderr


COMMON = """
    PATH HOME USER LANG LC_ALL SHELL TERM PWD TZ HOSTNAME HOSTTYPE PORTS LOGNAME EDITOR DISPLAY
    SSH_AUTH_SOCK PGPORT PGHOST PGUSER PGPASSWORD PGDATABASE POSTGRES_PASSWORD POSTGRES_USER POSTGRES_DB
    REDIS_URL PYTHON_VERSION PYTHONUNBUFFERED PYTHONPATH VIRTUAL_ENV PIP_INDEX_URL NODE_ENV NODE_VERSION
    NPM_TOKEN RENDER RENDER_SERVICE_ID RENDER_EXTERNAL_HOSTNAME RENDER_GIT_COMMIT DYNO HEROKU_APP_NAME
    FLY_APP_NAME RAILWAY_ENVIRONMENT RAILWAY_PUBLIC_DOMAIN DATABASE_PUBLIC_URL DATABASE_UNPOOLED_URL
    DATABASE_URL_OLD DIRECT_URL DATABASE_HOST DATABASE_NAME DATABASE_PASSWORD SECRET_KEY_BASE
    AWS_SECRET_ACCESS_KEY STRIPE_SECRET_KEY STRIPE_WEBHOOK_SECRET SENTRY_DSN CI GITHUB_TOKEN
    KUBERNETES_SERVICE_HOST KUBERNETES_PORT WEB_MEMORY LOG_FORMAT GUNICORN_CMD_ARGS
    DJANGO_SETTINGS_MODULE DJANGO_SUPERUSER_PASSWORD SSL_CERT_FILE NO_PROXY HTTPS_PROXY DEBUGGER
    CLERK_API_VERSION CLERK_SIGN_IN_URL NEXT_PUBLIC_CLERK_SIGN_IN_URL PROMETHEUS_PORT METRICS_PORT
    HOST_IP
"""


def test_the_variables_of_common_machines_are_no_misspelt_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where none of ours is set."""
    monkeypatch.delenv("DATABASE_URL")
    assert [*misnamed(COMMON.split())] == []


def test_an_empty_database_url_is_refused_because_the_default_is_another_database(tmp_path: Path) -> None:
    """As DATABASE_URL="$DIRECT_URL" makes it in a shell that knows the variable only from the file."""
    (tmp_path / ".env").write_text("DATABASE_URL=postgres://u:p@127.0.0.1:1/d\n")
    for file in (str(tmp_path / ".env"), ""):
        done = manage("migrate", ENV_FILE=file, DATABASE_URL="", SECRET_KEY="s" * 40)
        assert done.returncode == 1
        assert done.stderr == (
            "manage.py: DATABASE_URL is empty in the environment: give it a value, or unset it.\n"
        )

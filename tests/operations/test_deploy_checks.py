"""`check --deploy`: it passes a good environment, and refuses each bad one with an id and a hint."""

import base64
import re
import runpy
from pathlib import Path

import pytest
from pytest_django import Settings

from quotasite.checks import check_foreign_origins
from tests.site.test_settings import OF_APPS, ROOT
from tests.tools import keys
from tests.tools.forked import manage

pytestmark = pytest.mark.once
SECRET = "whsec_" + base64.b64encode(bytes(range(24))).decode()
APP = "https://app.example.com"
GOOD = {
    "SECRET_KEY": "Qn7-wJ0r2xkU5yPz8Vb3LhTfC9sGdEmAa1R4oYi6KuNtXvBqZ2p",
    "ALLOWED_HOSTS": "quota.example.com",
    "DATABASE_URL": "postgres://quota:hunter2@db.example.com/quota",
    "CLERK_PUBLISHABLE_KEY": "pk_live_Y2xlcmsuZXhhbXBsZS5jb20k",
    "CLERK_AUTHORIZED_PARTIES": APP,
    "CLERK_WEBHOOK_SIGNING_SECRET": SECRET,
    "CORS_ALLOWED_ORIGINS": APP,
    "TRUSTED_PROXY": "1",
}


def test_a_good_environment_is_clean() -> None:
    done = manage("check", "--deploy", "--offline", "--fail-level", "WARNING", **GOOD)
    assert done.returncode == 0, done.stderr
    assert "no issues" in done.stdout


def test_the_example_with_these_filled_in_is_clean() -> None:
    """The example's values of all other variables can be used unchanged."""
    example = dict(re.findall(r"^([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert set(GOOD) < set(example)
    done = manage("check", "--deploy", "--offline", "--fail-level", "WARNING", **{**example, **GOOD})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "changes",
    [
        {
            "CLERK_PUBLISHABLE_KEY": "",
            "CLERK_JWT_KEY": keys.public_pem.replace("\n", "\\n"),
            "CLERK_ISSUER": "https://clerk.example.com",
        },
        {"CLERK_JWT_KEY": keys.public_pem, "CLERK_JWKS_URL": "https://elsewhere.example/jwks"},
        {"CORS_ALLOWED_ORIGINS": "", "ALLOWED_HOSTS": "app.example.com"},  # one origin for both
        {name: f"{APP},{','.join(OF_APPS)}" for name in ("CLERK_AUTHORIZED_PARTIES", "CORS_ALLOWED_ORIGINS")},
        {"CLERK_AUTHORIZED_PARTIES": f"{APP},{OF_APPS[0]}"},
        {"RENDER": "true"},
        {"CLERK_SECRET_KEY": "sk_live_x", "CLERK_INSTANCE_ID": "ins_2ab"},
        {"CLERK_PUBLISHABLE_KEY": "pk_test_Y2xlcmsuZXhhbXBsZS5jb20k", "ALLOWED_HOSTS": "localhost,127.0.0.1"},
        {"HOST": "::", "METRICS_TOKEN": "0123456789abcdef", "SECRET_KEY": "0123456789abcdef" * 2},
        {"CLERK_AUTHORIZED_PARTIES": f"{APP.upper()}:443/"},
    ],
    ids=str,
)
def test_other_good_environments_are_clean_too(changes: dict[str, str]) -> None:
    done = manage("check", "--deploy", "--offline", "--fail-level", "WARNING", **{**GOOD, **changes})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("check_id", "changes", "text"),
    [
        (
            "quotas.E001",
            {"DATABASE_URL": None, "RENDER": "true"},
            "every quota, ledger entry and staff account",
        ),
        ("quotas.E001", {"DATABASE_URL": "sqlite:///x.sqlite3", "DYNO": "web.1"}, "Set DATABASE_URL"),
        ("quotas.E002", {"SECRET_KEY": ""}, "Set SECRET_KEY"),
        ("quotas.E003", {"ALLOWED_HOSTS": ""}, "Set ALLOWED_HOSTS"),
        ("quotas.E004", {"CLERK_PUBLISHABLE_KEY": ""}, "Set CLERK_PUBLISHABLE_KEY"),
        ("quotas.E004", {"CLERK_JWT_KEY": "hunter2"}, "CLERK_JWT_KEY is not a PEM public key"),
        ("quotas.E005", {"CLERK_PUBLISHABLE_KEY": ""}, "CLERK_ISSUER"),
        ("quotas.E006", {"CLERK_AUTHORIZED_PARTIES": ""}, "origins of your SPA"),
        ("webhooks.E001", {"CLERK_WEBHOOK_SIGNING_SECRET": ""}, "Signing Secret"),
        ("webhooks.E002", {"CLERK_WEBHOOK_SIGNING_SECRET": f"{SECRET},sk_test_hunter2"}, "Item 2"),
        ("webhooks.E002", {"CLERK_WEBHOOK_SIGNING_SECRET": "whsec_hunter2"}, "Item 1"),
        ("quotas.E010", {"DATABASE_URL": None}, "Set DATABASE_URL"),
        ("quotasite.E003", {"SECRET_KEY": "hunter2"}, "secrets.token_urlsafe(50)"),
        ("quotasite.E003", {"SECRET_KEY": "django-insecure-hunter2-0123456789-abcdefghij"}, "can be guessed"),
        ("quotasite.E003", {"SECRET_KEY": "abcd" * 20}, "can be guessed"),
        ("quotasite.E004", {"DEBUG": "1"}, "Set DEBUG=0"),
        ("quotasite.E005", {"HOST": "hunter2"}, "the server would not start"),
        ("quotasite.W013", {"METRICS_TOKEN": "hunter2"}, "Set METRICS_TOKEN"),
        ("quotasite.W014", {"CLERK_PUBLISHABLE_KEY": "pk_test_Y2xlcmsuZXhhbXBsZS5jb20k"}, "pk_live_ key"),
        ("quotas.E004", {"CLERK_JWT_KEY": keys.public_pem[:200]}, "from BEGIN PUBLIC KEY to END"),
        ("quotasite.W001", {"ALLOWED_HOSTS": "quota.example.com,*"}, "own host names"),
        ("quotasite.W002", {"RENDER": "true", "TRUSTED_PROXY": ""}, "Set TRUSTED_PROXY=1"),
        ("quotasite.W002", {"DYNO": "web.1", "TRUSTED_PROXY": "0"}, "(DYNO is set)"),
        ("quotasite.W003", {"CORS_ALLOWED_ORIGINS": ""}, "Item 1 of CLERK_AUTHORIZED_PARTIES is not in"),
        ("quotasite.W003", {"CORS_ALLOWED_ORIGINS": "https://www.hunter2"}, "Add the same origin"),
        ("quotasite.W004", {"CORS_ALLOWED_ORIGINS": f"{APP},https://hunter2"}, "Item 2 of CORS_ALLOWED"),
        ("quotasite.W005", {"CLERK_AUTHORIZED_PARTIES": f"{APP},http://hunter2"}, "Item 2 of CLERK_AUTH"),
        ("quotasite.W005", {"CLERK_AUTHORIZED_PARTIES": "http://localhost:5173"}, "for development"),
        ("quotasite.W006", {"CLERK_ISSUER": "https://hunter2.clerk.accounts.dev"}, "KEY alone"),
        ("quotasite.W006", {"CLERK_JWKS_URL": "https://hunter2/.well-known/jwks.json"}, "KEY alone"),
        ("quotasite.W007", {"CLERK_ISSUER": "http://clerk.example.com"}, "Use https://"),
        ("quotasite.W007", {"CLERK_JWKS_URL": "http://clerk.example.com/jwks"}, "sign in as any user"),
        ("quotasite.W008", {"CLERK_SECRET_KEY": "sk_test_hunter2"}, "beside the publishable key"),
        ("webhooks.E002", {"CLERK_WEBHOOK_SIGNING_SECRET": f"{SECRET} {SECRET}"}, "Item 1"),
        ("webhooks.E003", {"CLERK_INSTANCE_ID": "hunter2"}, "ins_…"),
    ],
)
def test_a_bad_environment_is_refused_with_an_id_and_a_hint(
    check_id: str, changes: dict[str, str | None], text: str
) -> None:
    environment = {name: value for name, value in {**GOOD, **changes}.items() if value is not None}
    done = manage("check", "--deploy", "--offline", "--fail-level", "WARNING", **environment)
    assert done.returncode == 1
    assert f"({check_id})" in done.stderr
    assert text in done.stderr
    assert "hunter2" not in done.stderr


def test_debug_is_one_fault_and_nothing_that_follows_from_it() -> None:
    done = manage("check", "--deploy", "--offline", **{**GOOD, "DEBUG": "1"})
    assert done.returncode == 1
    assert re.findall(r"\((\w+\.[A-Z]\d+)\)", done.stderr) == ["quotasite.E004"]


@pytest.mark.parametrize(
    ("allows", "refused"),
    [
        ({"CORS_ALLOW_ALL_ORIGINS": True}, True),
        ({"CORS_ALLOWED_ORIGIN_REGEXES": [".*"]}, True),
        ({"CORS_ALLOWED_ORIGIN_REGEXES": [r"^https://\w+\.example\.com$", r"^https?://"]}, True),
        ({"CORS_ALLOWED_ORIGIN_REGEXES": [r"^https://\w+\.example\.com$"]}, False),
        ({"CORS_ALLOW_ALL_ORIGINS": True, "CORS_ALLOW_CREDENTIALS": False}, False),
        ({}, False),
    ],
)
def test_every_origin_with_credentials_is_refused(
    settings: Settings, allows: dict[str, object], refused: bool
) -> None:
    """No variable can do that, only a change of settings.py."""
    settings.CORS_ALLOW_CREDENTIALS = True
    for name, value in allows.items():
        setattr(settings, name, value)
    found = [(message.id, bool(message.hint)) for message in check_foreign_origins()]
    assert found == ([("quotasite.E002", True)] if refused else [])


@pytest.mark.parametrize(
    "host",
    [
        "RENDER",
        "DYNO",
        "RAILWAY_ENVIRONMENT",
        "FLY_APP_NAME",
        "K_SERVICE",
        "VERCEL",
        "AWS_LAMBDA_FUNCTION_NAME",
        "WEBSITE_INSTANCE_ID",
    ],
)
def test_each_host_that_empties_its_disk_is_known(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(host, "x")
    assert runpy.run_path(str(ROOT / "quotasite/settings.py"))["PLATFORM"] == host


def test_sqlite_that_was_chosen_is_only_a_warning(tmp_path: Path) -> None:
    done = manage("check", "--deploy", **{**GOOD, "DATABASE_URL": f"sqlite:///{tmp_path}/x.sqlite3"})
    assert done.returncode == 0
    assert "(quotas.W001)" in done.stderr


def test_the_server_itself_warns_of_an_ephemeral_disk() -> None:
    code = "import quotasite.wsgi"
    environment = {**GOOD, "RENDER": "true"}
    del environment["DATABASE_URL"]
    done = manage("shell", "-v0", "-c", code, **environment)
    assert "every quota, ledger entry and staff account would be lost" in done.stderr

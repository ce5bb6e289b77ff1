"""`check --deploy`: it passes a good environment, and refuses each bad one with an id and a hint."""

import base64
import re
import runpy

import pytest
from pytest_django import Settings

from quotasite.checks import check_foreign_origins
from tests.site.test_settings import ROOT
from tests.tools import keys
from tests.tools.forked import manage

pytestmark = pytest.mark.once
SECRET = "whsec_" + base64.b64encode(bytes(range(24))).decode()
GOOD = {
    "SECRET_KEY": "Qn7-wJ0r2xkU5yPz8Vb3LhTfC9sGdEmAa1R4oYi6KuNtXvBqZ2p",
    "ALLOWED_HOSTS": "quota.example.com",
    "DATABASE_URL": "postgres://quota:hunter2@db.example.com/quota",
    "CLERK_PUBLISHABLE_KEY": "pk_test_Y2xlcmsuZXhhbXBsZS5jb20k",
    "CLERK_AUTHORIZED_PARTIES": "https://app.example.com",
    "CLERK_WEBHOOK_SIGNING_SECRET": SECRET,
    "CORS_ALLOWED_ORIGINS": "https://app.example.com",
    "TRUSTED_PROXY": "1",
}


def test_a_good_environment_is_clean() -> None:
    done = manage("check", "--deploy", "--fail-level", "WARNING", **GOOD)
    assert done.returncode == 0, done.stderr
    assert "no issues" in done.stdout


def test_the_example_with_these_filled_in_is_clean() -> None:
    """The example's values of all other variables can be used unchanged."""
    example = dict(re.findall(r"^([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert set(GOOD) < set(example)
    done = manage("check", "--deploy", "--fail-level", "WARNING", **{**example, **GOOD})
    assert done.returncode == 0, done.stderr


def test_a_pem_with_an_issuer_is_as_good() -> None:
    changes = {
        "CLERK_PUBLISHABLE_KEY": "",
        "CLERK_JWT_KEY": keys.public_pem.replace("\n", "\\n"),
        "CLERK_ISSUER": "https://clerk.example.com",
    }
    assert manage("check", "--deploy", **{**GOOD, **changes}).returncode == 0


@pytest.mark.parametrize(
    ("check_id", "changes", "text"),
    [
        (
            "quotas.E001",
            {"DATABASE_URL": "", "RENDER": "true"},
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
        ("security.W018", {"DEBUG": "1"}, "DEBUG"),
        ("security.W009", {"SECRET_KEY": "hunter2"}, "SECRET_KEY"),
        ("quotas.E004", {"CLERK_JWT_KEY": keys.public_pem[:200]}, "from BEGIN PUBLIC KEY to END"),
    ],
)
def test_a_bad_environment_is_refused_with_an_id_and_a_hint(
    check_id: str, changes: dict[str, str], text: str
) -> None:
    done = manage("check", "--deploy", "--fail-level", "WARNING", **{**GOOD, **changes})
    assert done.returncode == 1
    assert f"({check_id})" in done.stderr
    assert text in done.stderr
    assert "hunter2" not in done.stderr


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
    assert runpy.run_path(str(ROOT / "quotasite/settings.py"))["EPHEMERAL_HOST"] == host


def test_sqlite_that_stays_is_only_a_warning() -> None:
    done = manage("check", "--deploy", **{**GOOD, "DATABASE_URL": ""})
    assert done.returncode == 0
    assert "(quotas.W001)" in done.stderr


def test_the_server_itself_warns_of_an_ephemeral_disk() -> None:
    code = "import quotasite.wsgi"
    done = manage("shell", "-v0", "-c", code, **{**GOOD, "DATABASE_URL": "", "RENDER": "true"})
    assert "every quota, ledger entry and staff account would be lost" in done.stderr

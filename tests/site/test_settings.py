"""The environment: every variable is documented, a bad value is reported with its fix and never shown."""

import re
import runpy
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from tests import ROOT
from tests.tools.forked import manage

pytestmark = pytest.mark.once
SETTINGS = "".join((ROOT / f"quotasite/{name}.py").read_text() for name in ("environment", "settings"))
OF_APPS = [
    "chrome-extension://abcdefghijklmnopabcdefghijklmnop",
    "moz-extension://0f6c1b7e-5a3d-4c55-9d0a-2f3b1f0e9a11",
    "capacitor://localhost",
    "ionic://localhost",
    "tauri://localhost",
    "app://-",
]
OF_THE_SERVER = ("PORT", "WEB_CONCURRENCY", "WEB_THREADS", "WORKER_CONNECTIONS", "KEEP_ALIVE_SECONDS")
PUBLISHABLE = "pk_test_Y2xlcmsuZXhhbXBsZS5jb20k"  # clerk.example.com$


def read_setting(name: str, **environment: str) -> str:
    code = f"from django.conf import settings; print(settings.{name})"
    done = manage("shell", "-v0", "-c", code, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_example_names_each_variable_that_is_read() -> None:
    read = set(re.findall(r'(?:env_\w+|ENV\.get)\(\s*"([A-Z_]+)"', SETTINGS))
    files = (ROOT / "Procfile").read_text() + (ROOT / "compose.yaml").read_text()
    served = set(re.findall(r"\$\{([A-Z_]+)", files))
    shown = re.findall(r"^([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert len(shown) == len(set(shown))
    assert set(shown) == read | served


def test_only_the_settings_read_the_environment() -> None:
    sources = [path for app in ("quotasite", "quotas", "webhooks") for path in (ROOT / app).rglob("*.py")]
    reading = [
        path.name for path in sources if re.search(r"os\.environ(?!\.setdefault)|getenv", path.read_text())
    ]
    assert reading == ["environment.py"]


NOT_ORIGINS = [
    "https://*.hunter2.example",
    "https://hunter2.example/path",
    "https://hunter2.example https://b.example",
    "hunter2.example",
    "null",
    "file://",
    "https://user:hunter2@a.example",
    "https://hunter2.example?a=b",
    "https://hunter2.example:65536",
    "https://büro.hunter2",
    "https://a.example;https://hunter2.example",
    "[https://hunter2.example]",
]
NOT_HOSTS = [
    "https://hunter2.example",
    "hunter2.example/",
    "hunter2.example:8000",
    "hunter2.example www.example.com",
    "*.hunter2.example",
    '["hunter2.example"]',
    '"hunter2.example"',
    "hunter2_example",  # Django refuses a Host with an underscore
    "hunter2.example.",  # Django removes the dot of a Host
    "hunter2..example",
    "büro.hunter2",
    "::1",
    "user@hunter2",
]


@pytest.mark.parametrize(
    ("variable", "value", "fix"),
    [
        ("DATABASE_URL", "postgres://u:hunter2@[db/x", "postgres://USER:PASSWORD@HOST:PORT/NAME"),
        ("DATABASE_URL", "postgres://u:hunter2@db:port/x", "postgres://USER:PASSWORD@HOST:PORT/NAME"),
        ("DATABASE_URL", "hunter2", "postgres://USER:PASSWORD@HOST:PORT/NAME"),
        ("DATABASE_URL", "mysql://u:hunter2@db/x", "postgres://USER:PASSWORD@HOST:PORT/NAME"),
        ("DATABASE_URL", "postgres://u:hunter2@db", "postgres://USER:PASSWORD@HOST:PORT/NAME"),
        ("DATABASE_URL", "postgres://u:12/hunter2@db/x", "postgres://USER:PASSWORD@HOST:PORT/NAME"),
        *((name, "hunter2", "must be a whole number") for name in OF_THE_SERVER),
        ("WEB_CONCURRENCY", "0", "from 1 to 256"),
        ("KEEP_ALIVE_SECONDS", "61", "from 1 to 60"),
        ("PORT", "65536", "from 1 to 65535"),
        ("DATABASE_POOLED", "hunter2", "must be one of: auto, on, off"),
        ("DEBUG", "hunter2", "must be 1 or 0"),
        ("QUOTA_DEFAULT_ALLOWANCE", "hunter2", "a whole number from 0 to 2147483647"),
        ("QUOTA_DEFAULT_ALLOWANCE", "2147483648", "a whole number from 0 to 2147483647"),
        ("CLERK_PUBLISHABLE_KEY", "sk_test_hunter2", "pk_test_"),
        ("CLERK_PUBLISHABLE_KEY", "pk_test_hunter2", "pk_test_"),
        ("CLERK_ISSUER", "hunter2", "an address such as https://"),
        ("CORS_ALLOWED_ORIGINS", "*", "an origin such as https://"),
        ("CORS_ALLOWED_ORIGINS", "https://a.example,https://hunter2/path", "item 2 must be an origin"),
        ("CLERK_AUTHORIZED_PARTIES", "https://host:hunter2", "an origin such as https://"),
        *(("CLERK_AUTHORIZED_PARTIES", origin, "item 1 must be an origin") for origin in NOT_ORIGINS),
        *(("CORS_ALLOWED_ORIGINS", origin, "item 1 must be an origin") for origin in NOT_ORIGINS[:3]),
        ("CSRF_TRUSTED_ORIGINS", "https://*hunter2", "item 1 must be an origin"),
        ("CSRF_TRUSTED_ORIGINS", "https://a.*.hunter2", "item 1 must be an origin"),
        *(("ALLOWED_HOSTS", f"quota.example.com,{host}", "item 2 must be a host name") for host in NOT_HOSTS),
        ("CLERK_ISSUER", "https://clerk.hunter2 example", "an address such as https://"),
        ("CLERK_JWKS_URL", "clerk.hunter2/.well-known/jwks.json", "an address such as https://"),
        ("CLERK_API_URL", "ftp://hunter2", "an address such as https://"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_its_fix_and_not_shown(
    variable: str, value: str, fix: str
) -> None:
    done = manage("check", **{variable: value})
    assert done.returncode == 1
    assert done.stderr.startswith(f"manage.py: {variable}")
    assert fix in done.stderr
    assert "hunter2" not in done.stderr
    assert "Traceback" not in done.stderr


def test_the_publishable_key_alone_configures_tokens() -> None:
    assert read_setting("CLERK_ISSUER", CLERK_PUBLISHABLE_KEY=PUBLISHABLE) == "https://clerk.example.com"
    jwks = read_setting("CLERK_JWKS_URL", CLERK_PUBLISHABLE_KEY=PUBLISHABLE)
    assert jwks == "https://clerk.example.com/.well-known/jwks.json"


def test_an_explicit_issuer_overrides_the_publishable_key() -> None:
    issuer = "https://clerk.other.example"
    assert read_setting("CLERK_ISSUER", CLERK_PUBLISHABLE_KEY=PUBLISHABLE, CLERK_ISSUER=issuer) == issuer


def test_a_pem_may_come_with_literal_line_breaks() -> None:
    assert read_setting("CLERK_JWT_KEY", CLERK_JWT_KEY=r"-----BEGIN\nabc") == "-----BEGIN\nabc"


def test_a_secret_key_that_is_not_set_is_another_one_at_each_start() -> None:
    assert read_setting("SECRET_KEY") != read_setting("SECRET_KEY")


def test_without_a_proxy_to_trust_no_forwarded_scheme_is_believed() -> None:
    assert read_setting("SECURE_PROXY_SSL_HEADER") == "None"
    assert "HTTP_X_FORWARDED_PROTO" in read_setting("SECURE_PROXY_SSL_HEADER", TRUSTED_PROXY="1")


def test_the_default_allowance_seeds_the_default_plan(tmp_path: Path) -> None:
    environment = {"DATABASE_URL": f"sqlite:///{tmp_path}/first.sqlite3", "QUOTA_DEFAULT_ALLOWANCE": "7"}
    assert manage("migrate", "-v0", **environment).returncode == 0
    code = "from quotas.models import Plan; print(Plan.objects.get(is_default=True).allowance)"
    assert manage("shell", "-v0", "-c", code, **environment).stdout.strip() == "7"


def test_a_migration_that_was_interrupted_is_run_again(tmp_path: Path) -> None:
    environment = {"DATABASE_URL": f"sqlite:///{tmp_path}/halfway.sqlite3"}
    assert manage("migrate", "-v0", "quotas", "0001", **environment).returncode == 0
    assert manage("migrate", "-v0", **environment).returncode == 0
    assert manage("migrate", "-v0", **environment).returncode == 0
    code = "from quotas.models import Plan; print(Plan.objects.count())"
    assert manage("shell", "-v0", "-c", code, **environment).stdout.strip() == "1"


READ = re.findall(r'env_\w+\(\s*"([A-Z_]+)"', SETTINGS)


@pytest.mark.parametrize("variable", READ)
@pytest.mark.parametrize("value", ['"hunter2"', "'hunter2'", "“hunter2”", '"hunter2","b"', '""'])
def test_no_value_is_in_quotes(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgres://u@db/x")  # DATABASE_PREPARE is read with PostgreSQL only
    monkeypatch.setenv(variable, value)
    with pytest.raises(ImproperlyConfigured, match=f"{variable} is in quotes: remove them") as refused:
        runpy.run_path(str(ROOT / "quotasite/settings.py"))
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("https://App.Example.com", "https://app.example.com"),
        ("HTTPS://app.example.com:443/", "https://app.example.com"),
        ("http://localhost:80", "http://localhost"),
        ("http://localhost:443", "http://localhost:443"),
        ("https://app.example.com:08443", "https://app.example.com:8443"),
        ("https://xn--bro-hoa.example\r", "https://xn--bro-hoa.example"),
        ("https://[::1]:8443", "https://[::1]:8443"),
        *((origin, origin) for origin in OF_APPS),
    ],
)
def test_an_origin_is_read_as_a_browser_writes_it(given: str, expected: str) -> None:
    names = ["CLERK_AUTHORIZED_PARTIES", "CORS_ALLOWED_ORIGINS", "CSRF_TRUSTED_ORIGINS"]
    lists = ", ".join(f"settings.{name}" for name in names).removeprefix("settings.")
    read = read_setting(lists, **dict.fromkeys(names, f" {given} ,,"))
    assert read == " ".join([f"[{expected!r}]"] * 3)


def test_a_wildcard_is_for_staff_alone() -> None:
    read = read_setting("CSRF_TRUSTED_ORIGINS", CSRF_TRUSTED_ORIGINS="https://*.Example.com:443")
    assert read == "['https://*.example.com']"


@pytest.mark.parametrize("host", ["quota.example.com", ".Example.com", "*", "127.0.0.1", "[::1]", "a-1"])
def test_a_host_is_what_a_request_can_name(host: str) -> None:
    assert read_setting("ALLOWED_HOSTS", ALLOWED_HOSTS=f"{host},") == f"[{host!r}]"


def test_an_issuer_is_read_as_clerk_writes_it() -> None:
    read = read_setting("CLERK_ISSUER", CLERK_ISSUER="https://App.Example.com:443/Clerk/\r\n")
    assert read == "https://app.example.com/Clerk"

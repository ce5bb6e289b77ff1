"""The files for your own server do what docs/deploy.md says: nginx, the systemd unit, the cron lines."""

import configparser
import http.client
import re
import shlex
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from django.core.management import get_commands, load_command_class

from quotas.models import ChallengeQuota
from tests import ROOT
from tests.tools.nginx import HOST, nginx
from tests.tools.pages import checkout_in
from tests.tools.site import running, served, url_of_the_test_database

UNIT = ROOT / "deploy/quotasite.service"
CHECKOUT = "/srv/quotasite"  # in all files and pages
CRON = (ROOT / "deploy/crontab").read_text()
CRON_LINES = [line for line in CRON.splitlines() if line[:1].isdigit()]
RANGES = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 7)]  # of cron's five fields

needs_nginx = pytest.mark.skipif(not shutil.which("nginx"), reason="not installed here: nginx")


def ask(connection: http.client.HTTPConnection, method: str, path: str) -> tuple[int, str]:
    """Return the status, and where it leads."""
    connection.request(method, path, headers={"Host": HOST})
    answer = connection.getresponse()
    connection.close()
    return answer.status, answer.getheader("Location") or ""


# nginx


@needs_nginx
@pytest.mark.parametrize(
    ("trusted_proxy", "answer"), [("0", (301, f"https://{HOST}/admin/login/")), ("1", (200, ""))]
)
@pytest.mark.postgres
@pytest.mark.django_db(transaction=True, serialized_rollback=True)
def test_behind_nginx_the_admin_redirects_to_itself_unless_the_proxy_is_trusted(
    trusted_proxy: str, answer: tuple[int, str]
) -> None:
    site = {"ALLOWED_HOSTS": HOST, "TRUSTED_PROXY": trusted_proxy}
    with served(url_of_the_test_database(), workers=1, **site) as port, nginx(port) as ports:
        context = ssl._create_unverified_context()
        browser = http.client.HTTPSConnection("127.0.0.1", ports.https, context=context, timeout=10)
        assert ask(browser, "GET", "/admin/login/") == answer


@needs_nginx
@pytest.mark.once
def test_nginx_leads_to_https_and_keeps_the_method() -> None:
    with nginx(site=1) as ports:
        client = http.client.HTTPConnection("127.0.0.1", ports.http, timeout=10)
        assert ask(client, "POST", "/api/v1/quota?a=b") == (308, f"https://{HOST}/api/v1/quota?a=b")


# systemd


def unit() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None, comment_prefixes="#")
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(UNIT)
    return parser["Service"]


@pytest.mark.once
@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="not installed here: systemd-analyze")
def test_systemd_knows_every_setting_of_the_unit(tmp_path: Path) -> None:
    def verify(text: str) -> "subprocess.CompletedProcess[str]":
        copy = tmp_path / UNIT.name
        copy.write_text(text)
        command = ["systemd-analyze", "verify", "--man=no", copy]
        return subprocess.run(command, capture_output=True, text=True)

    done = verify(UNIT.read_text())
    assert (done.returncode, done.stderr) == (0, "")
    assert "Unknown key 'Umask'" in verify(UNIT.read_text().replace("UMask=", "Umask=")).stderr


@pytest.mark.once
def test_the_unit_stops_as_long_as_the_server_needs_and_lets_it_write_nowhere() -> None:
    service = unit()
    stop = [service[name] for name in ("KillSignal", "KillMode", "TimeoutStopSec", "Restart")]
    assert stop == ["SIGTERM", "mixed", "30", "on-failure"]
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert (service["ProtectSystem"], service["PrivateTmp"]) == ("strict", "yes")
    assert service["EnvironmentFile"] == f"{service['WorkingDirectory']}/.env" == f"{CHECKOUT}/.env"


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True, serialized_rollback=True)
def test_the_units_command_is_the_server_of_the_checkouts_virtual_environment(checkout: Path) -> None:
    """As systemd starts it, except for the user and the fences: no other PATH leads to granian."""
    path = unit()["Environment"].removeprefix("PATH=").replace(CHECKOUT, str(checkout))
    line = shlex.join(shlex.split(unit()["ExecStart"].replace("$$", "$")))
    url = url_of_the_test_database()
    with running(url, workers=1, line=line, folder=checkout, PATH=path) as (_, process):
        program = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")[1]
    assert program.decode() == f"{checkout}/.venv/bin/granian"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return checkout_in(tmp_path)


# cron


@pytest.mark.once
@pytest.mark.parametrize("line", CRON_LINES)
def test_a_cron_line_names_a_time_a_user_and_a_command_whose_options_exist(line: str) -> None:
    *fields, user, command = line.split(" ", 6)
    assert all(
        field == "*" or low <= int(field) <= high for field, (low, high) in zip(fields, RANGES, strict=True)
    )
    assert user == unit()["User"]
    match = re.fullmatch(rf"cd {CHECKOUT} && \.venv/bin/python manage\.py (\w+)(.*) >/dev/null", command)
    assert match
    name, options = match.groups()
    parser = load_command_class(get_commands()[name], name).create_parser("manage.py", name)
    parser.parse_args(options.split())


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True, serialized_rollback=True)
def test_each_cron_line_works_and_prints_nothing_unless_it_finds_something(checkout: Path) -> None:
    ChallengeQuota.objects.consume("user_1", 5)
    done = {line: as_cron(line, checkout) for line in CRON_LINES}
    [without_clerk] = [line for line in done if "report_drift" in line]
    assert (done.pop(without_clerk)).startswith("CommandError: CLERK_SECRET_KEY")
    assert set(done.values()) == {""}
    ChallengeQuota.objects.update(quota_remaining=19)
    [audit] = [line for line in done if "audit_ledger" in line]
    assert "faults" in as_cron(audit, checkout)


def as_cron(line: str, checkout: Path) -> str:
    """Run a line with the variables of the file, and return what cron would mail."""
    variables = dict(re.findall(r"^([A-Z]+)=(.*)$", CRON, re.MULTILINE))
    environment = {"PATH": "/usr/bin:/bin", "DATABASE_URL": url_of_the_test_database(), **variables}
    command = line.split(" ", 6)[6].replace(CHECKOUT, str(checkout))
    done = subprocess.run(
        [variables["SHELL"], "-c", command], env=environment, capture_output=True, text=True
    )
    return done.stdout + done.stderr

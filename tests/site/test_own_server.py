"""The files for your own server do what docs/deploy.md says: nginx, the systemd unit, the cron lines."""

import configparser
import http.client
import re
import shlex
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import pytest
from django.core.management import get_commands, load_command_class

from quotas.models import ChallengeQuota
from tests import ROOT
from tests.tools.nginx import HOST, nginx
from tests.tools.pages import checkout_in, not_run
from tests.tools.site import running, served, url_of_the_test_database

UNIT = ROOT / "deploy/quotasite.service"
CHECKOUT = "/srv/quotasite"  # in all files and pages
CRON = (ROOT / "deploy/crontab").read_text()
CRON_LINES = [line for line in CRON.splitlines() if line[:1].isdigit()]
[DUMP_LINE] = [line.removeprefix("#") for line in CRON.splitlines() if re.match("#[0-9]", line)]
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


@needs_nginx
@pytest.mark.once
def test_nginx_does_not_redirect_the_renewal_of_its_certificate() -> None:
    with nginx(site=1) as ports:
        client = http.client.HTTPConnection("127.0.0.1", ports.http, timeout=10)
        assert ask(client, "GET", "/.well-known/acme-challenge/unknown") == (404, "")


@needs_nginx
@pytest.mark.once
def test_nginx_speaks_http_2() -> None:
    context = ssl._create_unverified_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        nginx(site=1) as ports,
        socket.create_connection(("127.0.0.1", ports.https), timeout=10) as line,
        context.wrap_socket(line) as encrypted,
    ):
        assert encrypted.selected_alpn_protocol() == "h2"


@needs_nginx
@pytest.mark.once
def test_a_browser_cannot_read_the_502_of_nginx_while_the_site_is_down() -> None:
    """So deploy/nginx.conf and docs/operations.md explain the error that the browser shows instead."""
    with nginx(site=1) as ports:
        context = ssl._create_unverified_context()
        browser = http.client.HTTPSConnection("127.0.0.1", ports.https, context=context, timeout=10)
        browser.request("GET", "/api/quota", headers={"Host": HOST, "Origin": "https://app.example.com"})
        answer = browser.getresponse()
        browser.close()
        assert (answer.status, answer.getheader("Access-Control-Allow-Origin")) == (502, None)


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


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True, serialized_rollback=True)
@pytest.mark.skipif(not Path("/usr/bin/pg_dump").exists(), reason="not installed here: pg_dump")
def test_the_cron_line_of_the_backup_dumps_the_database_that_the_file_names(checkout: Path) -> None:
    (checkout / ".env").write_text(f"SECRET_KEY=a b\nDATABASE_URL={url_of_the_test_database()}\n")
    assert as_cron(DUMP_LINE.replace("/var/backups/quotasite", str(checkout)), checkout) == ""
    [dump] = checkout.glob("[1-7].dump")  # the day of the week
    content = subprocess.run(["pg_restore", "--list", dump], capture_output=True, text=True).stdout
    assert "TABLE DATA public ledger_entries" in content


@pytest.mark.once
def test_for_containers_each_cron_line_runs_in_the_container() -> None:
    [line] = [line for line in not_run() if line.startswith("sed ")]
    command, _, target = line.partition(" > ")
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line[:1].isdigit()]
    prefix = f" root cd {CHECKOUT} && docker compose exec -T web python manage.py "
    assert target == "/etc/cron.d/quotasite"
    assert [prefix in line for line in lines] == [True] * len(CRON_LINES)


def as_cron(line: str, checkout: Path) -> str:
    """Run a line with the variables of the file, and return what cron would mail."""
    variables = dict(re.findall(r"^([A-Z]+)=(.*)$", CRON, re.MULTILINE))
    environment = {"PATH": "/usr/bin:/bin", "DATABASE_URL": url_of_the_test_database(), **variables}
    command = line.split(" ", 6)[6].replace(CHECKOUT, str(checkout)).replace(r"\%", "%")
    done = subprocess.run(
        [variables["SHELL"], "-c", command], env=environment, capture_output=True, text=True
    )
    return done.stdout + done.stderr

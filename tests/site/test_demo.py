"""The tour, run as a newcomer runs it."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import jwt
import pytest

from quotas.rules.values import EntryKind
from tests.site.test_readme import CURLS
from tests.site.test_settings import ROOT
from tests.tools.forked import coverage_variables, manage

pytestmark = pytest.mark.once


def tour(folder: Path, port: int) -> "subprocess.CompletedProcess[str]":
    """Run the tour of the site in `folder`, as a newcomer does."""
    return subprocess.run(
        [sys.executable, "manage.py", "demo", "--once", str(port)],
        cwd=folder,
        env={"PATH": os.environ["PATH"], **coverage_variables()},
        capture_output=True,
        text=True,
    )


def test_the_tour_shows_the_main_job_and_ends_well() -> None:
    done = tour(ROOT, 8750)
    assert done.returncode == 0, done.stderr
    for shown in (
        '200  {"status": "success"}',
        "400  delivery_refused",
        "201  20 times, down to 0",
        "429  quota_exhausted: Quota exhausted: 0 of 20 left, 20 more at ",
        "seen 1200, made 1200, already there 0",
        "201  cost 5, action generate, 495 left",
        "201  amount 5, 500 left",
        "200  plan_source billing, 500 left",
        "All steps succeeded",
    ):
        assert shown in done.stdout


def copy_site(folder: Path) -> None:
    for name in ("manage.py", "quotasite", "quotas", "webhooks", "templates"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)


@pytest.mark.parametrize(
    ("path", "rule", "broken"),
    [
        ("quotas/rules/periods.py", "return now >= state.resets_at", "return False"),
        ("quotas/rules/verbs.py", "if cost <= left:", "if True:"),
        ("webhooks/handlers.py", "ChallengeQuota.objects.open_missing(", "str("),
    ],
)
def test_the_tour_fails_when_a_rule_is_broken(tmp_path: Path, path: str, rule: str, broken: str) -> None:
    """A copy of the site with one rule changed must not pass."""
    copy_site(tmp_path)
    source = (tmp_path / path).read_text()
    assert source.count(rule) == 1
    (tmp_path / path).write_text(source.replace(rule, broken))
    done = tour(tmp_path, 8770)
    assert done.returncode == 1
    assert "The tour failed" in done.stderr


def test_the_tour_listens_on_this_machine_alone() -> None:
    for address in ("0.0.0.0:8000", "192.168.1.7:8000", "8000:", "0", "99999"):
        done = manage("demo", address)
        assert done.returncode == 1
        assert "only on this machine" in done.stderr


def test_the_tour_leaves_every_other_database_alone(tmp_path: Path) -> None:
    done = manage("demo", DATABASE_URL=f"sqlite:///{tmp_path}/mine.sqlite3")
    assert done.returncode == 1
    assert "unset DATABASE_URL" in done.stderr
    assert not (tmp_path / "mine.sqlite3").exists()


def test_a_command_beside_the_demo_says_that_it_has_another_database(tmp_path: Path) -> None:
    copy_site(tmp_path)
    done = subprocess.run(
        [sys.executable, "manage.py", "create_service_key", "api server", "--scopes", "read"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], **coverage_variables()},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    for said in ("DATABASE_URL is not set", "run manage.py migrate", "The demo has a database of its own"):
        assert said in done.stderr


def send(port: int, method: str, path: str, form: str = "", **headers: str) -> tuple[int, bytes]:
    client = HTTPConnection("127.0.0.1", port, timeout=10)
    content_type = {"Content-Type": "application/x-www-form-urlencoded"} if form else {}
    client.request(method, path, form, {**headers, **content_type})
    with contextlib.closing(client), client.getresponse() as answer:
        return answer.status, answer.read()


@contextlib.contextmanager
def demo(port: int, folder: Path, until: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Start the demo with its files below `folder`; yield it with its output up to the line with `until`."""
    running = subprocess.Popen(
        [sys.executable, "manage.py", "demo", str(port)],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "TMPDIR": str(folder), **coverage_variables()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert running.stdout
    try:
        output = ""
        while until not in output:
            output += (line := running.stdout.readline())
            assert line, output
        yield running, output
    finally:
        if running.poll() is None:
            running.terminate()
            running.communicate(timeout=15)


@pytest.fixture(scope="module")
def served_demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """All that the demo prints until it serves."""
    with demo(8790, tmp_path_factory.mktemp("demo"), "Ctrl-C") as (_, output):
        yield output


def test_after_the_tour_the_site_is_served(served_demo: str) -> None:
    port = int(re.findall(r"http://127\.0\.0\.1:(\d+)/readyz", served_demo)[0])
    printed = set(re.findall(rf"http://127\.0\.0\.1:{port}(/\S*)", served_demo))
    answers = {path: send(port, "GET", path)[0] for path in printed}
    assert answers == {"/demo": 200, "/admin/": 302, "/api/docs": 200, "/healthz": 200, "/readyz": 200}
    status, body = send(port, "POST", "/demo/token", "user_id=user_demo_late")
    assert status == 200
    token = json.loads(body)["token"]
    assert send(port, "GET", "/api/quota", Authorization=f"Bearer {token}")[0] == 200


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not on this machine")
def test_the_lines_that_the_demo_prints_and_those_of_the_readme_can_be_pasted(served_demo: str) -> None:
    variables, *printed = re.findall(r"^    (\S.*)$", served_demo, re.MULTILINE)
    assert len(printed) == 2
    for line in [*printed, *CURLS]:
        done = subprocess.run(["sh", "-c", f"{variables}\n{line} -sSf"], capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stderr}"


def test_a_backend_can_verify_the_tokens_of_the_demo_with_what_its_file_sets(served_demo: str) -> None:
    variables = re.findall(r"^    (\. \S*)$", served_demo, re.MULTILINE)[0]
    names = ("CLERK_JWT_KEY", "TOKEN", "CLERK_AUTHORIZED_PARTIES")
    shown = "; ".join(f'printf "%s|" "${name}"' for name in names)
    done = subprocess.run(["sh", "-c", f"{variables}; {shown}"], capture_output=True, text=True)
    key, token, party, _ = done.stdout.split("|")
    assert jwt.decode(token, key, algorithms=["RS256"])["azp"] == party


def test_no_token_fills_the_screen(served_demo: str) -> None:
    assert max(map(len, served_demo.splitlines())) < 150


@pytest.mark.parametrize(
    ("number", "when"),
    [
        (signal.SIGINT, "Ctrl-C"),
        (signal.SIGTERM, "2. The SPA"),
        (signal.SIGTERM, "Ctrl-C"),
        (signal.SIGHUP, "Making"),
    ],
)
def test_a_signal_leaves_no_folder_behind(tmp_path: Path, number: signal.Signals, when: str) -> None:
    with demo(8830, tmp_path, when) as (running, _):
        assert len(list(tmp_path.iterdir())) == 1
        running.send_signal(number)
        output, _ = running.communicate(timeout=15)
    assert output.endswith("Stopped. Its database is removed.\n")
    assert running.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_the_page_has_words_for_every_kind_of_entry() -> None:
    script = (ROOT / "quotasite/static/demo/page.js").read_text()
    assert [kind for kind in EntryKind if f'  {kind}: "' not in script] == []

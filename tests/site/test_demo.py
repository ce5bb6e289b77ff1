"""The tour, run as a newcomer runs it."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path

import pytest

from quotas.rules.values import EntryKind
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
        "All steps succeeded",
    ):
        assert shown in done.stdout


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
    for name in ("manage.py", "quotasite", "quotas", "webhooks", "templates"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
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


def send(port: int, method: str, path: str, form: str = "", **headers: str) -> tuple[int, bytes]:
    client = HTTPConnection("127.0.0.1", port, timeout=10)
    content_type = {"Content-Type": "application/x-www-form-urlencoded"} if form else {}
    client.request(method, path, form, {**headers, **content_type})
    with contextlib.closing(client), client.getresponse() as answer:
        return answer.status, answer.read()


def test_after_the_tour_the_site_is_served_until_ctrl_c() -> None:
    demo = subprocess.Popen(
        [sys.executable, "-u", "manage.py", "demo", "8790"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **coverage_variables()},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert demo.stdout
    try:
        output = ""
        while "Ctrl-C" not in output:
            output += (line := demo.stdout.readline())
            assert line, output
        port = int(re.findall(r"http://127\.0\.0\.1:(\d+)/readyz", output)[0])
        printed = set(re.findall(rf"http://127\.0\.0\.1:{port}(/\S*)", output))
        answers = {path: send(port, "GET", path)[0] for path in printed}
        assert answers == {
            "/demo": 200,
            "/admin/": 302,
            "/api/docs": 200,
            "/api/v1/quota": 401,  # the printed line has a token
            "/healthz": 200,
            "/readyz": 200,
        }
        status, body = send(port, "POST", "/demo/token", "user_id=user_demo_late")
        assert status == 200
        token = json.loads(body)["token"]
        assert send(port, "GET", "/api/quota", Authorization=f"Bearer {token}")[0] == 200
    finally:
        demo.send_signal(signal.SIGINT)
        demo.wait(15)
        demo.stdout.close()
    assert demo.returncode == 0


def test_the_page_has_words_for_every_kind_of_entry() -> None:
    script = (ROOT / "quotasite/static/demo/page.js").read_text()
    assert [kind for kind in EntryKind if f'  {kind}: "' not in script] == []

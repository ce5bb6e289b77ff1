"""Every command in the README is run."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from quotas.models import ServiceKey
from tests.operations.test_deploy_checks import GOOD
from tests.site.test_settings import ROOT
from tests.tools import keys
from tests.tools.forked import manage
from tests.tools.site import served, url_of_the_test_database

README = (ROOT / "README.md").read_text()
LINES = [
    line.strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]
CURLS = [line for line in LINES if line.startswith("curl ")]
COMMANDS = [line for line in LINES if line.startswith(".venv/bin/python manage.py ")]
BY_CI = [line for line in LINES if line.startswith("python3 -m venv ")]  # run by .ci/run as they stand


def test_every_command_of_the_readme_is_run_by_a_test_or_by_ci() -> None:
    assert [line for line in LINES if line in CURLS + COMMANDS + BY_CI] == LINES
    ci = (ROOT / ".ci/run").read_text()
    assert all(f"'{line.rpartition('.venv/bin/python ')[2]}'" in ci for line in BY_CI)
    assert (len(CURLS), len(COMMANDS), len(BY_CI)) == (5, 10, 2)


@pytest.fixture
def site() -> Iterator[str]:
    with served(url_of_the_test_database(), workers=1) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True, serialized_rollback=True)
@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not on this machine")
def test_the_curl_lines_work(site: str) -> None:
    _, key = ServiceKey.make("the README's", ["read", "consume"])
    for line in CURLS:
        environment = {**os.environ, "SITE": site, "TOKEN": keys.mint(sub="user_reader"), "KEY": key}
        done = subprocess.run(["sh", "-c", f"{line} -sSf"], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stderr}"


@pytest.mark.once
def test_the_manage_lines_work(tmp_path: Path) -> None:
    """In the README's order: later commands need the migration. Without a key those for Clerk must fail."""
    environment = {**GOOD, "DATABASE_URL": f"sqlite:///{tmp_path}/readme.sqlite3"}
    runs = [run(line, environment) for line in COMMANDS]
    assert [done.returncode for done in runs] == [0, 0, 1, 1, 2, 0, 0, 0, 0, 0]
    assert all("CLERK_SECRET_KEY" in done.stderr for done in runs[2:5])
    assert runs[5].stdout.startswith("qs_")
    assert "0 faults" in runs[7].stdout


def run(line: str, environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    answers = {"DJANGO_SUPERUSER_PASSWORD": "quite-a-long-one", "DJANGO_SUPERUSER_USERNAME": "staff"}
    extra = ["--noinput", "--email", "s@example.com"] if line.endswith("createsuperuser") else []
    return manage(*shlex.split(line)[2:], *extra, **environment, **answers)

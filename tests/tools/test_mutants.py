"""The tests are tested: each fault that is sown is noticed by the tests that claim to guard the line."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests import ROOT
from tests.tools.mutants import MUTANTS, Mutant

pytestmark = [pytest.mark.full, pytest.mark.postgres]
PASSED, FAILED = 0, 1  # pytest's exit codes; the others are faults of the run itself


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project to sow a fault into."""
    litter = shutil.ignore_patterns(
        ".*", "__pycache__", "*.sqlite3*", "docs", "bench", "static", "staticfiles"
    )
    return Path(shutil.copytree(ROOT, tmp_path / "project", ignore=litter))


def run(project: Path, killers: set[str], *, postgres: bool) -> tuple[int, str]:
    """Run these tests of the copy; on PostgreSQL in a database of their own beside the suite's."""
    if postgres:
        database = urlsplit(os.environ["DATABASE_URL"])._replace(path="/quotasite_mutant").geturl()
    else:
        database = f"sqlite:///{project}/mutant.sqlite3"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line"]
        + ["-p", "tests.tools.mutants", "--hypothesis-profile=unshrunk"]
        + [f"tests/{killer}" for killer in sorted(killers)],
        cwd=project,
        env=os.environ | {"DATABASE_URL": database, "PYTHONDONTWRITEBYTECODE": "1"},
        text=True,
        capture_output=True,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("postgres", [True, False], ids=["PostgreSQL", "SQLite"])
def test_without_a_fault_they_pass(project: Path, postgres: bool) -> None:
    killers = {killer for mutant in MUTANTS if mutant.postgres == postgres for killer in mutant.killers}
    code, told = run(project, killers, postgres=postgres)
    assert code == PASSED, told
    assert f"{len(killers)} passed" in told


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_a_fault_is_noticed(project: Path, mutant: Mutant) -> None:
    sown = project / mutant.path
    text = sown.read_text()
    assert text.count(mutant.old) == 1
    sown.write_text(text.replace(mutant.old, mutant.new))
    code, told = run(project, set(mutant.killers), postgres=mutant.postgres)
    assert code == FAILED, told
    noticed = re.findall(r"^FAILED tests/(.+?)(?: - .*)?$", told, re.MULTILINE)
    assert set(noticed) == set(mutant.killers)

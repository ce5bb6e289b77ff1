"""Tests of the tests: each seeded fault must fail the tests that guard its line."""

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
PASSED, FAILED = 0, 1  # pytest's exit codes; with any other the run itself failed


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project to seed a fault in."""
    ignored = shutil.ignore_patterns(
        ".*", "__pycache__", "*.sqlite3*", "docs", "bench", "static", "staticfiles"
    )
    return Path(shutil.copytree(ROOT, tmp_path / "project", ignore=ignored))


def run(project: Path, killers: set[str], *, postgres: bool) -> tuple[int, str]:
    """Run these tests of the copy, in a database of their own; return the exit code and the output."""
    if postgres:
        database = urlsplit(os.environ["DATABASE_URL"])._replace(path="/quotasite_mutant").geturl()
    else:
        database = f"sqlite:///{project}/mutant.sqlite3"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--tb=line"]
        + ["-p", "tests.tools.mutants", "--hypothesis-profile=unshrunk"]
        + [f"tests/{killer}" for killer in sorted(killers)],
        cwd=project,
        env=os.environ | {"TEST_DATABASE_URL": database, "PYTHONDONTWRITEBYTECODE": "1"},
        text=True,
        capture_output=True,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("postgres", [True, False], ids=["PostgreSQL", "SQLite"])
def test_without_a_fault_they_pass(project: Path, postgres: bool) -> None:
    killers = {killer for mutant in MUTANTS if mutant.postgres == postgres for killer in mutant.killers}
    code, output = run(project, killers, postgres=postgres)
    assert code == PASSED, output
    assert f"{len(killers)} passed" in output


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_a_fault_is_noticed(project: Path, mutant: Mutant) -> None:
    module = project / mutant.path
    text = module.read_text()
    assert text.count(mutant.old) == 1
    module.write_text(text.replace(mutant.old, mutant.new))
    code, output = run(project, set(mutant.killers), postgres=mutant.postgres)
    assert code == FAILED, output
    failed = re.findall(r"^FAILED tests/(.+?)(?: - .*)?$", output, re.MULTILINE)
    assert set(failed) == set(mutant.killers)

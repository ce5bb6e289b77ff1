"""The pre-commit hook: which files it checks and what stops a commit, with stand-ins for the tools."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import ROOT

pytestmark = pytest.mark.once

NOBODY = {f"GIT_{who}_{what}": "nobody" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
RUFF = """#!/bin/sh
for file; do ! grep -s '^wrong' "./$file" || exit 1; done
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository where `make hooks` was run, whose ruff rejects lines that begin with "wrong"."""
    [line] = [line for line in (ROOT / "Makefile").read_text().splitlines() if "core.hooksPath" in line]
    shutil.copytree(ROOT / ".githooks", tmp_path / ".githooks")
    tools = tmp_path / ".venv/bin"
    tools.mkdir(parents=True)
    for name, program in {"ruff": RUFF, "lint-imports": "#!/bin/sh\n"}.items():
        (tools / name).write_text(program)
        (tools / name).chmod(0o755)
    run(tmp_path, "git", "init", "--quiet")
    run(tmp_path, *line.split())
    return tmp_path


def run(folder: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), **NOBODY}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def stage(clone: Path, text: str) -> None:
    (clone / "some.py").write_text(text)
    run(clone, "git", "add", "some.py")


def commit(clone: Path) -> "subprocess.CompletedProcess[str]":
    return run(clone, "git", "commit", "--quiet", "-m", "Some work")


def test_a_bad_staged_file_stops_the_commit(clone: Path) -> None:
    stage(clone, "wrong = 1\n")
    done = commit(clone)
    assert done.returncode == 1
    assert "wrong = 1" in done.stdout + done.stderr


def test_changes_that_are_not_staged_do_not_stop_it(clone: Path) -> None:
    stage(clone, "right = 1\n")
    (clone / "some.py").write_text("wrong = 1\n")
    (clone / "other.py").write_text("wrong = 1\n")
    assert commit(clone).returncode == 0


@pytest.mark.parametrize("tool", ["ruff", "lint-imports"])
def test_a_missing_tool_is_named_with_the_fix(clone: Path, tool: str) -> None:
    (clone / ".venv/bin" / tool).unlink()
    stage(clone, "right = 1\n")
    done = commit(clone)
    assert done.returncode == 1
    assert f"needs {tool} in .venv: run 'make hooks'" in done.stderr

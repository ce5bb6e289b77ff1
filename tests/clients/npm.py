"""The TypeScript client as an app installs it, and npm."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import ROOT

CLIENT = ROOT / "clients/typescript"
APPS = Path(__file__).parent
PATIENCE = 180  # seconds for one command
UNREACHABLE = r"npm error code (E(NOTFOUND|AI_AGAIN|CONN\w+|TIMEDOUT|\w+UNREACH|5\d\d)|ERR_SOCKET)"


def run(*command: str | Path, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE,
    )


def npm(*arguments: str | Path, cwd: Path) -> str:
    """Run npm, and return what it reported as an error or a warning."""
    done = run("npm", *arguments, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


def install(*arguments: str, cwd: Path) -> None:
    """Let npm fetch packages; skip the test if the registry cannot be reached."""
    try:
        done = run("npm", *arguments, "--no-audit", "--no-fund", "--ignore-scripts", cwd=cwd)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm {arguments[0]} took more than {PATIENCE} seconds")
    if unreachable := re.search(UNREACHABLE, done.stderr):
        pytest.skip(f"npm cannot reach its registry: {unreachable[0]}")
    assert done.returncode == 0, done.stderr


def app(source: str | Path, packed: Path, folder: Path) -> Path:
    """Copy an app, from APPS or another folder, with its locked packages and the packed client."""
    source, made = APPS / source, shutil.ignore_patterns("node_modules", ".next", "dist")
    copy = shutil.copytree(source, folder / source.name, ignore=made)
    install("ci", cwd=copy)
    shutil.unpack_archive(packed, copy / "node_modules")
    (copy / "node_modules/package").rename(copy / "node_modules/quotasite-client")
    return copy

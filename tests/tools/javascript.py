"""Run Clerk's and Svix's own JavaScript, which signs and verifies in some tests."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
SVIX = "svix@1.99.1"  # the newest that runs on node 20
CLERK = "@clerk/backend@3.25.0"


def install(folder: Path, package: str, script: str) -> Path:
    """Install the npm package in the folder and return a copy of the script there; skip if npm cannot."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("node and npm are not on PATH")
    options = ("--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=1", "--prefix", folder)
    try:
        installed = run("npm", "install", *options, package, cwd=folder)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm install {package} took more than two minutes")
    if installed.returncode:
        reasons = [line for line in installed.stderr.splitlines() if line.startswith("npm error")]
        pytest.skip(f"npm cannot install {package}: {' '.join(reasons)[:200]}")
    return Path(shutil.copy(HERE / script, folder))


def ask(script: Path, **request: Any) -> Any:
    """Run the script with the request as JSON, and return its JSON response."""
    answer = run("node", script, stdin=json.dumps(request), cwd=script.parent)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


def run(*command: str | Path, stdin: str = "", cwd: Path = HERE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=stdin, cwd=cwd, capture_output=True, encoding="utf-8", timeout=120)

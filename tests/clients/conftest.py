"""The client, installed and built once for all of its tests."""

import shutil
from pathlib import Path

import pytest

from tests import ROOT
from tests.clients.npm import CLIENT, install, npm, run


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the client with its tools, at the same relative path to the schema as in the project."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("node and npm are not on PATH")
    version = run("node", "--version", cwd=ROOT).stdout
    if int(version[1:].partition(".")[0]) < 20:
        pytest.skip(f"the client's tests need node 20, and this is {version}")
    root = tmp_path_factory.mktemp("clients")
    copy = root / "clients/typescript"
    shutil.copytree(CLIENT, copy, ignore=shutil.ignore_patterns("node_modules", "dist"))
    (root / "docs").mkdir()
    shutil.copy(ROOT / "docs/openapi.yaml", root / "docs")
    install("ci", cwd=copy)
    return copy


@pytest.fixture(scope="session")
def built(package: Path) -> Path:
    npm("run", "build", cwd=package)
    return package

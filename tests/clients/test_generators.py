"""What a generator of clients makes of the OpenAPI file: no warning, sound types, every response parsed.

The other generator, openapi-typescript, makes the types of the TypeScript client: test_clients.py.
"""

import json
import os
import re
import sys
import venv
from pathlib import Path

import pytest

from quotas.models import ServiceKey
from tests import ROOT
from tests.clients.npm import APPS, run
from tests.tools.site import served, url_of_the_test_database

USER = "user_generated"


@pytest.fixture
def generator(tmp_path: Path) -> Path:
    """The folder of the programs of an environment with the pinned generator."""
    venv.create(tmp_path / "venv", with_pip=False)
    programs = tmp_path / "venv/bin"
    pip = (sys.executable, "-m", "pip", "--python", programs / "python", "install", "--quiet")
    done = run(*pip, "-r", APPS / "python/requirements.txt", cwd=tmp_path)
    if re.search("connection broken|No matching distribution|Could not fetch", done.stdout + done.stderr):
        pytest.skip("pip cannot reach its registry")
    assert done.returncode == 0, done.stderr
    return programs


@pytest.mark.full
@pytest.mark.postgres
@pytest.mark.django_db(transaction=True, serialized_rollback=True)
def test_a_generated_python_client_parses_successes_and_problems(generator: Path, tmp_path: Path) -> None:
    folder = tmp_path / "app"
    folder.mkdir()
    path = f"{generator}{os.pathsep}{os.environ['PATH']}"
    generate = ("generate", "--fail-on-warning", "--meta", "none", "--output-path", folder / "generated")
    made = run(
        generator / "openapi-python-client",
        *(*generate, "--path", ROOT / "docs/openapi.yaml"),
        cwd=tmp_path,
        PATH=path,
    )
    assert (made.returncode, "arning" in made.stdout + made.stderr) == (0, False), made.stdout + made.stderr

    (folder / "spend.py").write_text((APPS / "python/spend.py").read_text())
    # Not its client.py, which is the same for every API, and passes *args: object to httpx.
    checked = run(
        generator / "mypy",
        *("--strict", "--follow-imports=silent", "spend.py", "generated/models", "generated/api"),
        cwd=folder,
    )
    assert checked.returncode == 0, checked.stdout

    _, key = ServiceKey.make("the generated client", ["read", "consume"])
    with served(url_of_the_test_database(), workers=1) as port:
        site = {"SITE": f"http://127.0.0.1:{port}", "SERVICE_KEY": key, "USER_ID": USER}
        done = run(generator / "python", "spend.py", cwd=folder, **site)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [20, 5, 5, "quota_exhausted", 422, "cost_exceeds_limit", "free"]

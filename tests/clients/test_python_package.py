"""The Python client as others get it: its README, line by line, its wheel, and its types."""

import os
import re
import subprocess
import venv
import zipfile
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests import ROOT
from tests.clients.apps import serving
from tests.clients.conftest import Site
from tests.clients.npm import APPS
from tests.clients.test_python_client import token
from tests.clients.test_python_spending import SPENT, ledger

PACKAGE = ROOT / "clients/python"
README = (PACKAGE / "README.md").read_text()
BLOCKS = re.findall(r"^```(.*?)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
SCRIPT = "".join(block for kind, block in BLOCKS if kind == "python")
UNREACHABLE = "connection broken|No matching distribution|Could not fetch|Could not resolve host"
# What the README's functions call, and the one that an app has already.
AROUND = """async def call_the_model(prompt: str) -> str:
    return prompt.upper()


def do_the_work(job_id: str) -> str:
    return job_id.upper()


def get_session_token() -> str:
    return os.environ["SESSION_TOKEN"]


"""
AUTH = """from typing import Annotated

from fastapi import Header


def current_user(x_user: Annotated[str, Header()]) -> str:
    return x_user
"""
DJANGO = """import views
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.urls import path


def authenticated(get_response):
    def middleware(request):
        request.clerk_user_id = request.headers.get("X-User")
        return get_response(request)

    return middleware


settings.configure(
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    SECRET_KEY="of a test",
    MIDDLEWARE=[f"{__name__}.authenticated"],
)
urlpatterns = [path("generate", views.generate)]
wsgi = get_wsgi_application()
"""


@pytest.mark.once
def test_each_block_of_the_readme_is_run() -> None:
    kinds = [kind for kind, _ in BLOCKS]
    assert sorted(kinds) == ["python"] * 5 + ["python django", "python fastapi", "sh"]


@pytest.mark.postgres
@pytest.mark.django_db
def test_what_the_readme_shows_works(
    site: Site, user_id: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QUOTASITE_URL", site.url)
    monkeypatch.setenv("QUOTASITE_KEY", site.key)
    monkeypatch.setenv("SESSION_TOKEN", token(user_id))
    names = run(SCRIPT, user_id)
    names["client"].reset(user_id, reason="for a test", key="t-1")

    async def generate() -> str:
        async with names["quotas"]:
            return str(await names["generate"](user_id, "hello"))

    assert anyio.run(generate) == "HELLO"
    assert names["run_job"]("job-1", user_id) == "JOB-1"
    assert names["run_job"]("job-1", user_id).startswith("already_spent: This was already paid for")
    assert names["client"].quota(user_id).quota_remaining == 16
    names["client"].close()
    assert "False 18\n" in capsys.readouterr().out


def run(code: str, user_id: str, **names: Any) -> dict[str, Any]:
    code = code.replace("import os\n", f"import os\n\n{AROUND}", 1).replace("user_2abc", user_id)
    exec(compile(code, "README.md", "exec"), names)
    return names


@pytest.mark.postgres
@pytest.mark.django_db
@pytest.mark.parametrize(
    ("kind", "interface", "app"), [("fastapi", "asgi", "views:app"), ("django", "wsgi", "site_:wsgi")]
)
def test_the_apps_of_the_readme_spend(
    site: Site, user_id: str, tmp_path: Path, kind: str, interface: str, app: str
) -> None:
    (tmp_path / "views.py").write_text(next(block for name, block in BLOCKS if name == f"python {kind}"))
    (tmp_path / "auth.py").write_text(AUTH)
    (tmp_path / "site_.py").write_text(DJANGO)
    settings = {"QUOTASITE_URL": site.url, "QUOTASITE_KEY": site.key}
    with serving(interface, app, tmp_path, tmp_path / "log", **settings) as client:
        statuses = [client.post("/generate", headers={"X-User": user_id}).status_code for _ in range(11)]
    assert statuses == [200] * 10 + [429]
    assert ledger(user_id)[:10] == SPENT * 10


@pytest.mark.full
@pytest.mark.once
def test_the_install_lines_of_the_readme_work_and_the_types_arrive(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    [lines] = [block for kind, block in BLOCKS if kind == "sh"]
    for line in lines.splitlines():
        installed(shell(line, tmp_path))
    installed(shell(f"pip wheel --no-deps --wheel-dir {tmp_path} ./clients/python", tmp_path))
    [wheel] = tmp_path.glob("quotasite_client-*-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "quotasite_client/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)

    [mypy] = re.findall(r"^mypy==.*$", (APPS / "python/requirements.txt").read_text(), re.MULTILINE)
    installed(shell(f"pip install {mypy} fastapi", tmp_path))
    (tmp_path / "readme.py").write_text(SCRIPT.replace("import os\n", f"import os\n\n{AROUND}", 1))
    (tmp_path / "auth.py").write_text(AUTH)
    (tmp_path / "endpoint.py").write_text(next(block for name, block in BLOCKS if name == "python fastapi"))
    files = f"{APPS / 'python/typed.py'} {tmp_path / 'readme.py'} {tmp_path / 'endpoint.py'}"
    checked = shell(f"mypy --strict --config-file= {files}", tmp_path, MYPYPATH=str(tmp_path))
    assert checked.returncode == 0, checked.stdout


def shell(line: str, folder: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a line in the checkout with the programs of the folder's environment."""
    path = f"{folder / 'venv/bin'}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["sh", "-c", line],
        cwd=ROOT,
        env={**os.environ, "PATH": path, "REPOSITORY": f"file://{ROOT}", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def installed(done: "subprocess.CompletedProcess[str]") -> None:
    if done.returncode and re.search(UNREACHABLE, done.stdout + done.stderr):
        pytest.skip("pip cannot reach its registry")
    assert done.returncode == 0, done.stderr


@pytest.mark.once
def test_the_licence_is_the_project_s() -> None:
    assert (PACKAGE / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()

"""docs/integrate.md: its blocks are the files of the examples, or run here, with the running service."""

import json
import re
import shutil
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from quotas.models import ServiceKey
from quotasite_client import Quotasite
from tests import ROOT
from tests.clients.apps import serving
from tests.clients.conftest import Site
from tests.clients.npm import app, run
from tests.clients.test_clients import CONSUMER
from tests.clients.test_examples import CLERK, FASTAPI, VITE, Browser
from tests.clients.test_python_spending import ledger
from tests.tools.site import served, url_of_the_test_database

PAGE = (ROOT / "docs/integrate.md").read_text()
BLOCKS = dict(re.findall(r"^```(\w.*?)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
FILES = {
    "python auth.py": FASTAPI / "auth.py",
    "python app.py": FASTAPI / "app.py",
    "tsx App.tsx": VITE / "src/App.tsx",
}
RUN = {"python django", "ts route.ts"}
DJANGO = """import views
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.urls import path

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="of a test", MIDDLEWARE=[])
urlpatterns = [path("api/challenges", views.create_challenge)]
wsgi = get_wsgi_application()
"""
WORK = """export async function generate(topic: string) {
  if (topic !== "lists") throw new Error("no model");
  return "Merge two sorted lists.";
}
"""
STUB_OF_CLERK = "export const auth = async () => ({ userId: process.env.USER_ID });"


@pytest.mark.once
def test_each_block_is_a_file_of_an_example_or_run_here() -> None:
    assert BLOCKS.keys() == FILES.keys() | RUN
    for name, path in FILES.items():
        assert BLOCKS[name] == path.read_text(), f"{name}: copy {path.relative_to(ROOT)} into the page"


@pytest.mark.postgres
@pytest.mark.django_db
def test_the_view_of_django_spends_gives_back_and_does_no_work_twice(
    site: Site, user_id: str, tmp_path: Path
) -> None:
    (tmp_path / "views.py").write_text(BLOCKS["python django"])
    (tmp_path / "site_.py").write_text(DJANGO)
    shutil.copy(FASTAPI / "challenges.py", tmp_path)
    settings = {"QUOTASITE_URL": site.url, "QUOTASITE_KEY": site.key, **CLERK}
    with serving("wsgi", "site_:wsgi", tmp_path, tmp_path / "log", **settings) as backend:
        browser, made, failed = Browser(backend, user_id), str(uuid4()), str(uuid4())
        assert refused(backend) == 401
        assert browser.create("lists", "short").status_code == 400
        assert browser.create("lists", made).json()["topic"] == "lists"
        assert code_of(browser.create("lists", made)) == (409, "already_spent")
        assert browser.create("poetry", failed).status_code == 500
        assert code_of(browser.create("poetry", failed)) == (409, "already_refunded")
        with Quotasite(site.url, key=site.key) as quotas:
            quotas.consume(user_id, cost=19, key="elsewhere")
        assert code_of(browser.create("lists", str(uuid4()))) == (429, "quota_exhausted")
    changes = [change for kind, change in ledger(user_id) if kind != "refused"]
    assert changes == [-1, -1, +1, -19]


def refused(backend: httpx.Client) -> int:
    return backend.post("/api/challenges", headers={"Idempotency-Key": str(uuid4())}).status_code


def code_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


@pytest.fixture(scope="module")
def next_app(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = app("types", packed, tmp_path_factory.mktemp("next"))
    (folder / "route.ts").write_text(BLOCKS["ts route.ts"])
    (folder / "generate.ts").write_text(WORK)
    return folder


@pytest.mark.full
@pytest.mark.parametrize("typescript", ["typescript", "typescript-5"])
def test_the_route_of_next_has_the_types_of_next_and_clerk(next_app: Path, typescript: str) -> None:
    settings = {"compilerOptions": {**CONSUMER, "skipLibCheck": True}, "include": ["route.ts"]}
    (next_app / "tsconfig.json").write_text(json.dumps(settings))
    done = run(next_app / "node_modules" / typescript / "bin/tsc", cwd=next_app)
    assert done.returncode == 0, done.stdout


@pytest.mark.full
@pytest.mark.postgres
@pytest.mark.django_db(transaction=True, serialized_rollback=True)
def test_the_route_of_next_spends_gives_back_and_does_no_work_twice(next_app: Path, tmp_path: Path) -> None:
    """Clerk's `auth()` needs its middleware and an account, so the test says who is signed in."""
    folder = shutil.copytree(next_app, tmp_path / "app", ignore=shutil.ignore_patterns("@clerk"))
    clerk = folder / "node_modules/@clerk/nextjs"
    clerk.mkdir(parents=True)
    (clerk / "package.json").write_text('{"type": "module", "exports": {"./server": "./server.js"}}')
    (clerk / "server.js").write_text(STUB_OF_CLERK)
    (folder / "route.ts").write_text(BLOCKS["ts route.ts"].replace("./generate", "./generate.js"))
    shutil.copy(Path(__file__).parent / "types/route.mjs", folder)
    emitted = ("--ignoreConfig", "--module", "esnext", "--moduleResolution", "bundler", "--types", "node")
    run("node_modules/typescript/bin/tsc", "route.ts", *emitted, "--target", "es2022", cwd=folder)
    _, key = ServiceKey.make("the route", ["consume", "refund"])
    with served(url_of_the_test_database(), workers=1) as port:
        site = {"QUOTASITE_URL": f"http://127.0.0.1:{port}", "QUOTASITE_KEY": key, "USER_ID": "user_next"}
        done = run("node", "route.mjs", cwd=folder, **site)
        assert done.returncode == 0, done.stderr
        away = run("node", "route.mjs", cwd=folder, **{**site, "QUOTASITE_URL": "http://127.0.0.1:9"})
        assert json.loads(away.stdout)[1] == 503
    assert json.loads(done.stdout) == [400, 201, 409, 502, 409, [201] * 18, 201, 429, True]
    changes = [change for kind, change in ledger("user_next") if kind != "refused"]
    assert changes == [-1, -1, +1] + [-1] * 19

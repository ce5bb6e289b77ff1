"""The page in examples/vite, with the backend in examples/fastapi and the running service."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import time
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import pytest

from quotas.models import ServiceKey
from tests.clients.apps import serving
from tests.clients.npm import app, npm, run
from tests.clients.test_examples import CLERK, FASTAPI, VITE
from tests.clients.test_runtimes import accepts
from tests.tools import keys
from tests.tools.ledger import assert_sound, spent
from tests.tools.postgres import free_port
from tests.tools.site import served, url_of_the_test_database
from tests.tools.waiting import wait_until

if TYPE_CHECKING:
    from selenium.webdriver.chrome.webdriver import WebDriver

pytestmark = pytest.mark.full
USER = "user_of_the_page"
# Clerk's components need an account: here the address says who is signed in.
CLERK_STUB = """
const given = new URLSearchParams(location.search);
export const ClerkProvider = ({ children }) => children;
export const SignInButton = () => null;
const getToken = async () => given.get("token");
export const useAuth = () => ({ isSignedIn: true, userId: given.get("user"), getToken });
"""
LOSE_AN_ANSWER = """
const real = window.fetch;
window.fetch = async (...request) => {
  const response = await real(...request);
  if (request[0] !== "/api/challenges") return response;
  window.fetch = real;
  throw new TypeError("Failed to fetch");
};
"""


@pytest.fixture(scope="module")
def page_app(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return app(VITE, packed, tmp_path_factory.mktemp("page"))


def test_the_page_builds_with_clerk_s_own_package(page_app: Path) -> None:
    npm("run", "build", cwd=page_app)
    assert list(page_app.glob("dist/assets/*.js"))


@contextmanager
def previewed(folder: Path, port: int, **environment: str) -> Iterator[str]:
    """Serve the built page, and pass /api on to the backend, as the page's own server does."""
    command = [
        "node_modules/.bin/vite",
        "preview",
        "--host",
        "127.0.0.1",
        "--strictPort",
        "--port",
        str(port),
    ]
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **environment},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            wait_until(lambda: accepts(port), 30)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


@pytest.fixture
def page(page_app: Path, transactional_db: None, chromium: WebDriver, tmp_path: Path) -> Iterator[WebDriver]:
    """The page in Chromium, signed in."""
    folder = shutil.copytree(page_app, tmp_path / "page", symlinks=True)
    clerk = folder / "node_modules/@clerk/react"
    (clerk / "stub.js").write_text(CLERK_STUB)
    (clerk / "package.json").write_text(json.dumps({"name": "@clerk/react", "exports": "./stub.js"}))
    _, key = ServiceKey.make("the page", ["read", "consume", "refund"])
    port = free_port()
    with ExitStack() as stack:
        cors = f"http://127.0.0.1:{port}"
        site = stack.enter_context(served(url_of_the_test_database(), workers=1, CORS_ALLOWED_ORIGINS=cors))
        quotasite = {"QUOTASITE_URL": f"http://127.0.0.1:{site}", "QUOTASITE_KEY": key}
        backend = serving("asgi", "app:app", FASTAPI, tmp_path / "log", **quotasite, **CLERK)
        backend_url = str(stack.enter_context(backend).base_url)
        done = run(
            "node_modules/.bin/vite", "build", cwd=folder, VITE_QUOTASITE_URL=quotasite["QUOTASITE_URL"]
        )
        assert done.returncode == 0, done.stdout + done.stderr
        url = stack.enter_context(previewed(folder, port, BACKEND_URL=backend_url))
        token = keys.mint(sub=USER, exp=int(time()) + 600)
        chromium.get(f"{url}/?{urlencode({'user': USER, 'token': token})}")
        yield chromium


def text(page: WebDriver, selector: str) -> str:
    return page.find_element("css selector", selector).text


def click(page: WebDriver) -> str:
    """Ask for a challenge, and return what the page shows then."""
    page.find_element("css selector", "button").click()
    wait_until(lambda: page.find_element("css selector", "button").is_enabled(), 20)
    return text(page, "output")


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True, serialized_rollback=True)
def test_an_answer_that_is_lost_is_fetched_with_the_same_key(page: WebDriver) -> None:
    wait_until(lambda: bool(page.find_elements("css selector", "#left")))
    assert re.fullmatch(r"20 left, more .+", text(page, "#left"))
    page.execute_script(LOSE_AN_ANSWER)
    assert click(page).startswith("No answer came.")
    wait_until(lambda: text(page, "#left").startswith("19 left"))
    assert click(page) in ("Merge two sorted lists.", "Remove duplicates, and keep the order.")
    assert spent(USER) == 1
    click(page)  # a new attempt
    wait_until(lambda: text(page, "#left").startswith("18 left"))
    assert_sound(USER)

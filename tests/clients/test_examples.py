"""The apps in examples/, as they stand there, with the running service."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from quotasite_client import Quotasite
from tests import ROOT
from tests.clients.apps import serving
from tests.clients.conftest import Site
from tests.clients.test_python_spending import ledger
from tests.tools import keys

pytestmark = [pytest.mark.postgres, pytest.mark.django_db]
FASTAPI, VITE = ROOT / "examples/fastapi", ROOT / "examples/vite"
CLERK = {"CLERK_JWT_KEY": keys.public_pem, "CLERK_AUTHORIZED_PARTIES": keys.PARTY}


@pytest.fixture(scope="module")
def backend(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    log = tmp_path_factory.mktemp("backend") / "log"
    settings = {"QUOTASITE_URL": site.url, "QUOTASITE_KEY": site.key, **CLERK}
    with serving("asgi", "app:app", FASTAPI, log, **settings) as client:
        yield client


class Browser:
    """A signed-in user, whose requests to the backend are printed."""

    def __init__(self, backend: httpx.Client, user_id: str) -> None:
        self._backend, self._token = backend, keys.mint(sub=user_id)

    def ask(self, method: str, path: str, json: Any = None, **headers: str) -> httpx.Response:
        signed_in = {"Authorization": f"Bearer {self._token}", **headers}
        response = self._backend.request(method, path, json=json, headers=signed_in)
        print(f"> {method} {path} {json or ''} {headers or ''}\n< {response.status_code} {response.text}")
        return response

    def create(self, topic: str, attempt: str) -> httpx.Response:
        return self.ask("POST", "/api/challenges", {"topic": topic}, **{"Idempotency-Key": attempt})

    @property
    def left(self) -> int:
        return int(self.ask("GET", "/api/quota").json()["quota_remaining"])


@pytest.fixture
def browser(backend: httpx.Client, user_id: str) -> Browser:
    return Browser(backend, user_id)


@pytest.mark.full
def test_a_user_of_the_fastapi_example(browser: Browser, site: Site, user_id: str) -> None:
    """Spend, retry, fail, retry what was refunded, and run out; `-s` prints the transcript."""
    first, failed = str(uuid4()), str(uuid4())
    assert browser.left == 20
    made = browser.create("lists", first)
    assert made.status_code == 201
    assert browser.create("lists", first).json() == made.json()  # the answer was lost: no second work
    assert browser.left == 19

    assert browser.create("poetry", failed).status_code == 502
    again = browser.create("poetry", failed)
    assert (again.status_code, again.json()["code"]) == (409, "already_refunded")
    assert browser.left == 19

    with Quotasite(site.url, key=site.key) as quotas:
        quotas.consume(user_id, cost=19, key="elsewhere")
    exhausted = browser.create("lists", str(uuid4()))
    assert (exhausted.status_code, exhausted.json()["code"]) == (429, "quota_exhausted")
    assert int(exhausted.headers["Retry-After"]) == exhausted.json()["retry_after"] > 86_000
    assert browser.create("lists", first).json() == made.json()
    changes = [change for kind, change in ledger(user_id) if kind != "refused"]
    assert changes == [-1, -1, +1, -19]


def test_the_key_of_one_user_is_nothing_to_another(backend: httpx.Client, user_id: str) -> None:
    attempt = str(uuid4())
    for user in (user_id, f"{user_id}b"):
        browser = Browser(backend, user)
        assert browser.create("lists", attempt).status_code == 201
        assert browser.left == 19


def test_the_key_of_one_work_buys_no_other(browser: Browser) -> None:
    attempt = str(uuid4())
    assert [browser.create(topic, attempt).status_code for topic in ("lists", "strings")] == [201, 201]
    assert browser.left == 18


def test_one_attempt_that_is_sent_five_times_at_once_is_worked_for_once(
    browser: Browser, user_id: str
) -> None:
    attempt = str(uuid4())
    with ThreadPoolExecutor(5) as threads:
        answers = [*threads.map(lambda _: browser.create("lists", attempt), range(5))]
    assert {answer.status_code for answer in answers} <= {201, 409}
    assert len({answer.text for answer in answers if answer.status_code == 201}) == 1
    assert ledger(user_id) == [("consumed", -1)]


def test_a_challenge_that_was_paid_for_and_is_gone_is_not_made_again(
    browser: Browser, backend: httpx.Client, site: Site, user_id: str, tmp_path: Path
) -> None:
    """Such as on another machine, or after the loss of the app's database."""
    attempt = str(uuid4())
    assert browser.create("lists", attempt).status_code == 201
    settings = {"QUOTASITE_URL": site.url, "QUOTASITE_KEY": site.key, **CLERK}
    with serving("asgi", "app:app", FASTAPI, tmp_path / "log", **settings) as elsewhere:
        again = Browser(elsewhere, user_id).create("lists", attempt)
    assert (again.status_code, again.json()["code"]) == (409, "already_spent")


@pytest.mark.parametrize("claims", [{"azp": "https://evil.example"}, {"sts": "pending"}, {"exp": 1}])
def test_the_fastapi_example_refuses_what_the_service_refuses(
    backend: httpx.Client, claims: dict[str, Any]
) -> None:
    token = keys.mint(**claims)
    assert backend.get("/api/quota", headers={"Authorization": f"Bearer {token}"}).status_code == 401


@pytest.mark.full
def test_the_tests_of_the_fastapi_example_pass(site: Site, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=FASTAPI,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{FASTAPI}:{ROOT / 'clients/python/src'}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "QUOTASITE_URL": site.url,
            "QUOTASITE_KEY": site.key,
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 passed" in done.stdout

"""The FastAPI dependency and the Django decorator, each in an app of its own under a server of its own."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from quotasite_client import Quotasite
from tests.clients.apps import serving
from tests.clients.conftest import Site
from tests.clients.test_python_spending import GIVEN_BACK, SPENT, ledger
from tests.tools.postgres import free_port

pytestmark = [pytest.mark.postgres, pytest.mark.django_db]
FOLDER = Path(__file__).parent / "python"


class App(NamedTuple):
    interface: str
    name: str
    prefix: str = ""


APPS = {
    "fastapi": App("asgi", "fastapi_app:app"),
    "django": App("wsgi", "django_app:wsgi"),
    "django-async": App("asgi", "django_app:asgi", "/async"),
}
Generate = Callable[..., httpx.Response]


@pytest.fixture(
    scope="module", params=["fastapi", "django", pytest.param("django-async", marks=pytest.mark.full)]
)
def app(request: pytest.FixtureRequest) -> App:
    return APPS[request.param]


@pytest.fixture(scope="module")
def running(app: App, site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    log = tmp_path_factory.mktemp("app") / "log"
    settings = {"QUOTASITE_URL": site.url, "QUOTASITE_KEY": site.key}
    with serving(app.interface, app.name, FOLDER, log, **settings) as client:
        yield client


@pytest.fixture
def generate(running: httpx.Client, app: App, user_id: str) -> Generate:
    return lambda **headers: ask(running, app, user_id, **headers)


def ask(client: httpx.Client, app: App, user_id: str, **headers: str) -> httpx.Response:
    given = {f"X-{name}": value for name, value in headers.items()}
    return client.post(f"{app.prefix}/generate", headers={"X-User": user_id, **given})


def test_the_work_is_paid_for(generate: Generate, user_id: str) -> None:
    response = generate()
    assert (response.status_code, response.json()["left"]) == (200, 18)
    assert ledger(user_id) == SPENT


@pytest.mark.parametrize(("fail", "status"), [("raise", 500), ("502", 502), ("404", 404)])
def test_the_work_that_fails_is_given_back(generate: Generate, user_id: str, fail: str, status: int) -> None:
    assert generate(Fail=fail).status_code == status
    assert ledger(user_id) == GIVEN_BACK


def test_without_units_the_answer_is_the_service_s(generate: Generate, site: Site, user_id: str) -> None:
    with Quotasite(site.url, key=site.key) as service:
        service.consume(user_id, cost=19, key="k-1")
    response = generate()
    problem = response.json()
    assert (response.status_code, problem["status"], problem["code"]) == (429, 429, "quota_exhausted")
    assert response.headers["Content-Type"] == "application/problem+json"
    assert int(response.headers["Retry-After"]) == problem["retry_after"] > 86_000
    assert problem["resets_at"].endswith("Z")
    assert problem["detail"].startswith("Quota exhausted: 1 of 20 left")


def test_the_same_attempt_is_not_worked_for_twice(generate: Generate, user_id: str) -> None:
    assert generate(Attempt="a-1").status_code == 200
    again = generate(Attempt="a-1")
    assert (again.status_code, again.json()["code"]) == (409, "already_spent")
    assert again.headers["Content-Type"] == "application/problem+json"
    assert ledger(user_id) == SPENT


def test_an_attempt_that_failed_needs_a_new_key(generate: Generate, user_id: str) -> None:
    generate(Attempt="a-1", Fail="502")
    again = generate(Attempt="a-1")
    assert (again.status_code, again.json()["code"]) == (409, "already_refunded")
    assert generate(Attempt="a-2").json()["left"] == 18
    assert ledger(user_id) == GIVEN_BACK + SPENT


@pytest.mark.full
@pytest.mark.parametrize("name", APPS)
def test_a_service_that_is_away_is_a_503(name: str, tmp_path: Path) -> None:
    app = APPS[name]
    settings = {"QUOTASITE_URL": f"http://127.0.0.1:{free_port()}", "QUOTASITE_KEY": "qs_00000000_a"}
    with serving(app.interface, app.name, FOLDER, tmp_path / "log", **settings) as client:
        response = ask(client, app, "user_1")
    assert (response.status_code, response.json()["code"]) == (503, "quota_unavailable")
    assert response.headers["Retry-After"] == "1"


@pytest.mark.full
@pytest.mark.parametrize("name", APPS)
def test_an_app_with_a_wrong_key_fails_and_signs_nobody_out(name: str, site: Site, tmp_path: Path) -> None:
    app = APPS[name]
    settings = {"QUOTASITE_URL": site.url, "QUOTASITE_KEY": "qs_00000000_a"}
    with serving(app.interface, app.name, FOLDER, tmp_path / "log", **settings) as client:
        assert ask(client, app, "user_1").status_code == 500
    log = (tmp_path / "log").read_text()
    assert "This service key is not known" in log
    assert "qs_00000000" not in log


@pytest.mark.full
def test_a_fastapi_app_without_the_handler_is_told_so(site: Site, tmp_path: Path) -> None:
    settings = {"QUOTASITE_URL": site.url, "QUOTASITE_KEY": site.key, "NO_HANDLER": "1"}
    app = APPS["fastapi"]
    with serving(app.interface, app.name, FOLDER, tmp_path / "log", **settings) as client:
        assert ask(client, app, "user_1").status_code == 500
    assert "app.add_exception_handler(QuotaError, answer_problem)" in (tmp_path / "log").read_text()

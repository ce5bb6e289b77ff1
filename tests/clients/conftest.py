"""The TypeScript client, built once; a site for the Python client, and its drivers."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from anyio.from_thread import start_blocking_portal

from quotas.models import ChallengeQuota, LedgerEntry, ServiceKey
from tests import ROOT
from tests.clients.drivers import Clients, pauses
from tests.clients.faults import MakeProxy, faulty
from tests.clients.npm import CLIENT, install, npm, run
from tests.tools.site import served, url_of_the_test_database

NUMBERS = count(1)
USER = "user_of_python_"


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
def packed(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive that an app installs; packing builds the client."""
    folder = tmp_path_factory.mktemp("packed")
    npm("pack", "--pack-destination", folder, cwd=package)
    return next(folder.glob("*.tgz"))


@pytest.fixture(scope="session")
def built(package: Path, packed: Path) -> Path:
    return package


class Site(NamedTuple):
    port: int
    key: str  # a service key that may do everything

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture(scope="module")
def site(django_db_setup: None, django_db_blocker: Any) -> Iterator[Site]:
    """One site for a module, whose tests use ids of `user_id`: what they store is removed in the end."""
    with django_db_blocker.unblock():
        made, key = ServiceKey.make("the Python client", ["read", "consume", "refund", "adjust", "admin"])
        url = url_of_the_test_database()
    with served(url, workers=1) as port:
        yield Site(port, key)
    with django_db_blocker.unblock():
        LedgerEntry.objects.filter(user__user_id__startswith=USER).delete()
        ChallengeQuota.objects.filter(user_id__startswith=USER).delete()
        made.delete()


@pytest.fixture
def user_id() -> str:
    """The id of a user that the service does not know yet."""
    return f"{USER}{next(NUMBERS)}"


@pytest.fixture(scope="module", params=["threads", "loop"])
def clients(request: pytest.FixtureRequest) -> Iterator[Clients]:
    """Both drivers of the Python client, one after the other."""
    if request.param == "threads":
        with httpx.Client() as http:
            yield Clients(http)
        return
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(httpx.AsyncClient()) as http,
    ):
        yield Clients(http, portal)


@pytest.fixture
def service(clients: Clients, site: Site) -> Any:
    return clients.service(site.url, key=site.key)


@pytest.fixture
def proxy(site: Site) -> Iterator[MakeProxy]:
    """Start proxies, each with its faults, between the clients and the site."""
    with ExitStack() as stack:
        yield lambda *faults: stack.enter_context(faulty(site.port, faults))


@pytest.fixture
def short_pauses() -> Iterator[None]:
    with pauses(0.01, 0.01):
        yield

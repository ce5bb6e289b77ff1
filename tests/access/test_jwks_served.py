"""The keys as the deployed site fetches them: two worker processes with threads, and a key server."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

import pytest

from quotas.access.jwks import FETCH_TIMEOUT
from tests.access.test_session_tokens import other_key
from tests.tools.key_server import KeyServer
from tests.tools.keys import mint
from tests.tools.site import served, url_of_the_test_database

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True, serialized_rollback=True)]
WORKERS = 2


@pytest.fixture
def keys_at() -> Iterator[KeyServer]:
    with KeyServer() as server:
        yield server


@pytest.fixture
def ask(keys_at: KeyServer) -> Iterator[Callable[..., tuple[int, float]]]:
    """Return a function that reads a quota over a new connection; it returns the status and the seconds."""
    environment = {"CLERK_JWT_KEY": "", "CLERK_JWKS_URL": keys_at.url, "NO_PROXY": "127.0.0.1"}
    with served(url_of_the_test_database(), workers=WORKERS, **environment) as port:

        def get(token: str = "") -> tuple[int, float]:
            client, began = HTTPConnection("127.0.0.1", port, timeout=20), time.monotonic()
            client.request("GET", "/api/quota", headers={"Authorization": f"Bearer {token or mint()}"})
            status = client.getresponse().status
            client.close()
            return status, time.monotonic() - began

        yield get


def test_forged_tokens_cost_each_process_one_fetch_at_the_most(
    ask: Callable[..., tuple[int, float]], keys_at: KeyServer
) -> None:
    forged = [mint(header={"kid": f"ins_{n}"}, key=other_key) for n in range(20)]
    with ThreadPoolExecutor(20) as pool:
        statuses = {status for status, _ in pool.map(ask, forged)}
        assert statuses <= {401, 503}
        assert {status for status, _ in pool.map(ask, [""] * 20)} == {200}
    assert 1 <= keys_at.fetches <= WORKERS


def test_a_silent_key_server_holds_nobody_up_once_it_is_known_and_is_found_again(
    ask: Callable[..., tuple[int, float]], keys_at: KeyServer
) -> None:
    keys_at.release.clear()
    with ThreadPoolExecutor(24) as pool:
        for _ in range(4):  # each worker must notice, and the kernel chooses which one answers
            answers = list(pool.map(ask, [""] * 24))
            assert {status for status, _ in answers} == {503}
            if max(seconds for _, seconds in answers) < FETCH_TIMEOUT:
                break
        else:
            pytest.fail("A request still waits for a key server that is known to be silent.")
    keys_at.release.set()
    deadline = time.monotonic() + 10
    while [ask()[0] for _ in range(8)] != [200] * 8:
        assert time.monotonic() < deadline
        time.sleep(0.2)

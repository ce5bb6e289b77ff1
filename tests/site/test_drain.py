"""Graceful shutdown of a worker: it announces that it closes connections, and loses no request."""

import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest
from django.conf import settings

from bench.chaos.client import wait_until
from bench.chaos.ground import children
from quotasite.serving.drain import DRAIN_SECONDS, listeners
from tests.conftest import USER
from tests.tools import keys
from tests.tools.site import running, url_of_the_test_database, web_line

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True, serialized_rollback=True)]
Served = tuple[int, "subprocess.Popen[bytes]"]


@pytest.fixture
def site() -> Iterator[Served]:
    """The port and the master of a site with one worker."""
    with running(url_of_the_test_database(), workers=1, SECRET_KEY=settings.SECRET_KEY) as served:
        yield served


def get(client: HTTPConnection, path: str) -> HTTPResponse:
    headers = {"Authorization": f"Bearer {keys.mint(sub=USER)}"}
    client.request("GET", path, headers=headers)
    response = client.getresponse()
    response.read()
    return response


def is_last(response: HTTPResponse) -> bool:
    assert response.status == 200
    return response.headers["Connection"] == "close"


def is_last_of_a_new_one(port: int, path: str = "/healthz") -> bool:
    with closing(HTTPConnection("127.0.0.1", port, timeout=5)) as client:
        return is_last(get(client, path))


def is_ended_by_sigterm(pid: int) -> bool:
    """Return whether SIGTERM kills the process: neither Granian nor we handle it."""
    with suppress(FileNotFoundError):
        caught = Path(f"/proc/{pid}/status").read_text().partition("SigCgt:")[2].split()[0]
        return not int(caught, 16) >> signal.SIGTERM - 1 & 1
    return False


@pytest.mark.parametrize("path", ["/api/quota", "/healthz"])
def test_who_keeps_a_connection_is_told_before_it_is_closed(site: Served, path: str) -> None:
    port, master = site
    reused = HTTPConnection("127.0.0.1", port, timeout=5)
    assert not is_last(get(reused, path))
    master.send_signal(signal.SIGTERM)
    while not is_last(get(reused, path)):
        time.sleep(0.01)
    assert reused.sock is None
    assert is_last_of_a_new_one(port, path)  # still served
    assert master.wait(30) == 0


def test_a_connection_that_was_only_made_is_served(site: Served) -> None:
    port, master = site
    reused, made = (HTTPConnection("127.0.0.1", port, timeout=5) for _ in range(2))
    get(reused, "/healthz")
    made.connect()
    master.send_signal(signal.SIGTERM)
    while not is_last(get(reused, "/healthz")):
        time.sleep(0.01)
    assert is_last(get(made, "/healthz"))
    assert master.wait(30) == 0


@pytest.mark.parametrize(("host", "family"), [("0.0.0.0", socket.AF_INET), ("::", socket.AF_INET6)])
def test_new_connections_go_to_the_worker_that_takes_the_place(host: str, family: int) -> None:
    with running(url_of_the_test_database(), workers=1, HOST=host) as (port, master):
        [worker] = children(master.pid)
        reused = HTTPConnection("127.0.0.1", port, timeout=5)
        get(reused, "/healthz")
        master.send_signal(signal.SIGHUP)
        wait_until(lambda: listeners(port, family) == 2)
        wait_until(lambda: not any(is_ended_by_sigterm(child) for child in children(master.pid)))
        time.sleep(1.5 * DRAIN_SECONDS)  # a worker removes earlier filters one DRAIN_SECONDS after its start
        os.kill(worker, signal.SIGTERM)  # as the master does after 10 s
        while not is_last(get(reused, "/healthz")):
            time.sleep(0.01)
        assert not any(is_last_of_a_new_one(port) for _ in range(12))


def test_the_address_and_the_connections_are_settings() -> None:
    """IPv6 too, more connections than a process may have files by default, and how long they are kept."""
    given = {"HOST": "::", "WORKER_CONNECTIONS": "4", "KEEP_ALIVE_SECONDS": "1"}
    with running(url_of_the_test_database(), workers=1, **given) as (port, _), ExitStack() as clients:
        kept = [clients.enter_context(closing(HTTPConnection("::1", port, timeout=5))) for _ in range(4)]
        for client in kept:
            get(client, "/healthz")
        waiting = clients.enter_context(closing(HTTPConnection("127.0.0.1", port, timeout=5)))
        began = time.monotonic()
        get(waiting, "/healthz")  # once the first of the others was closed
        assert time.monotonic() - began > 0.3
        assert kept[0].sock.recv(1) == b""


@pytest.mark.full
def test_a_worker_holds_more_connections_than_the_usual_limit_of_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 8_000:
        pytest.skip(f"a process may have no more than {hard} open files here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (8_000, hard))
    line = f"sh -c 'ulimit -S -n 1024; exec {web_line()}'"
    with running(url_of_the_test_database(), workers=1, line=line) as (port, _), ExitStack() as clients:
        for _ in range(1_500):
            client = clients.enter_context(closing(HTTPConnection("127.0.0.1", port, timeout=5)))
            get(client, "/healthz")
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("is_loaded", [False, True])
def test_one_that_only_starts_hears_its_end(site: Served, is_loaded: bool) -> None:
    _, master = site
    [old] = children(master.pid)
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: any(is_ended_by_sigterm(child) for child in children(master.pid) if child != old))
    if is_loaded:
        wait_until(lambda: not any(is_ended_by_sigterm(child) for child in children(master.pid)))
    master.send_signal(signal.SIGTERM)
    assert master.wait(19) == 0  # a worker that does not end is killed after 20 s

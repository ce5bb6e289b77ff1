"""The site as Granian serves it: a request gets a thread once its body is there, and arrives unchanged."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.client import HTTPConnection
from io import BytesIO

import pytest
from django.conf import settings
from django.test import Client

from quotas.models import ChallengeQuota, LedgerEntry
from quotas.rules.values import Actor
from quotasite.serving.rsgi import environment
from tests.conftest import USER, WEBHOOK_SECRET
from tests.tools import keys
from tests.tools.site import ask, served, url_of_the_test_database
from tests.tools.staff import sign_in


class Headers:
    """As Granian's: a header with a non-ASCII value is counted and named, but not among the items."""

    def __init__(self, given: list[tuple[str, str | None]]) -> None:
        self.given = given

    def items(self) -> list[tuple[str, str]]:
        return [(name, value) for name, value in self.given if value is not None]

    def __len__(self) -> int:
        return len({name for name, _ in self.given})

    def __iter__(self) -> Iterator[str]:
        return iter({name for name, _ in self.given})


@dataclass
class Scope:
    headers: Headers
    method: str = "GET"
    path: str = "/api/quota"
    query_string: str = ""
    server: str = "127.0.0.1:8000"
    client: str = "[::1]:50000"
    scheme: str = "http"
    http_version: str = "1.1"
    environ: dict[str, object] = field(init=False)


def environ_of(*headers: tuple[str, str | None], **scope: str) -> dict[str, object]:
    return environment(Scope(Headers([*headers]), **scope), b"")


def test_a_request_is_told_as_pep_3333_wants_it() -> None:
    environ = environ_of(
        ("host", "a.example"), ("content-length", "2"), ("content-type", "text/plain"), path="/ü"
    )
    assert (environ["PATH_INFO"], environ["REMOTE_ADDR"]) == ("/ü".encode().decode("latin-1"), "::1")
    assert (environ["SERVER_NAME"], environ["SERVER_PORT"]) == ("127.0.0.1", "8000")
    assert (environ["HTTP_HOST"], environ["CONTENT_LENGTH"]) == ("a.example", "2")
    assert isinstance(environ["wsgi.input"], BytesIO)
    assert "HTTP_CONTENT_TYPE" not in environ


def test_a_header_that_is_there_twice_is_not_taken_for_one() -> None:
    assert environ_of(("idempotency-key", "a"), ("idempotency-key", "b"))["HTTP_IDEMPOTENCY_KEY"] == "a,b"


def test_a_garbled_header_is_not_taken_for_none() -> None:
    environ = environ_of(("host", "a.example"), ("idempotency-key", None))
    assert environ["HTTP_IDEMPOTENCY_KEY"] == "\ufffd"


def test_an_underscore_does_not_pass_for_a_dash() -> None:
    assert "HTTP_X_FORWARDED_PROTO" not in environ_of(("x_forwarded_proto", "https"))


served_site = pytest.mark.django_db(transaction=True, serialized_rollback=True)


@pytest.fixture
def port() -> Iterator[int]:
    """One worker with one thread: a request that holds it blocks all others."""
    with served(
        url_of_the_test_database(),
        workers=1,
        WEB_THREADS="1",
        SECRET_KEY=settings.SECRET_KEY,
        TRUSTED_PROXY="1",
        CLERK_WEBHOOK_SIGNING_SECRET=WEBHOOK_SECRET,
    ) as port:
        yield port


HTTPS = {"X-Forwarded-Proto": "https"}


def head(path: str, *lines: str) -> bytes:
    usual = ("Host: 127.0.0.1", "Content-Type: application/json", "Content-Length: 100")
    return "\r\n".join([f"POST {path} HTTP/1.1", *usual, *lines, "", ""]).encode()


@pytest.mark.postgres
@served_site
def test_clients_that_send_no_body_hold_nobody_up(port: int) -> None:
    token = f"Authorization: Bearer {keys.mint()}"
    heads = [
        head("/api/v1/quota/consume", token),
        head("/webhooks/clerk"),
        b"POST /webhooks/clerk HTTP/1.1\r\n",
    ]
    with ExitStack() as stalled:
        for number in range(60):
            client = stalled.enter_context(socket.create_connection(("127.0.0.1", port)))
            client.sendall(heads[number % len(heads)])
        honest = HTTPConnection("127.0.0.1", port, timeout=5)
        assert ask(honest, "GET", "/api/quota", USER) == 200
        assert ask(honest, "POST", "/api/v1/quota/consume", USER, b"{}") == 201
        honest.close()
    assert ChallengeQuota.objects.get(pk=USER).quota_remaining == 19


@pytest.mark.postgres
@pytest.mark.full
@served_site
def test_a_body_that_does_not_come_is_answered_in_the_end(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(head("/webhooks/clerk"))
        answer = client.recv(65_536)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"body_timeout"' in answer


@pytest.mark.postgres
@served_site
def test_garbled_headers_are_refused_and_nothing_is_spent(port: int) -> None:
    for header, status in ((b"Authorization: Bearer \xff", 401), (b"Idempotency-Key: \xe9", 400)):
        token = b"" if b"Auth" in header else f"Authorization: Bearer {keys.mint()}\r\n".encode()
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            client.sendall(
                b"POST /api/v1/quota/consume HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\n"
                + b"Content-Type: application/json\r\n"
                + token
                + header
                + b"\r\n\r\n{}"
            )
            assert client.recv(65_536).split()[1] == str(status).encode()
    assert not LedgerEntry.objects.filter(kind="consumed").exists()


@pytest.mark.postgres
@served_site
@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8"])
def test_too_many_parameters_are_refused(port: int, content_type: str) -> None:
    client = HTTPConnection("127.0.0.1", port, timeout=5)
    client.request("GET", "/admin/login/?" + "a&" * 1_100, headers={"Content-Type": content_type} | HTTPS)
    answer = client.getresponse()
    assert answer.status == 400
    client.close()


@pytest.mark.postgres
@served_site
def test_a_body_in_chunks_is_not_taken_for_an_empty_one(port: int) -> None:
    lines = ("Transfer-Encoding: chunked", f"Authorization: Bearer {keys.mint()}")
    request = head("/api/v1/quota/consume", *lines).replace(b"Content-Length: 100\r\n", b"")
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(request + b'b\r\n{"cost": 2}\r\n0\r\n\r\n')  # at once: the server does not read it
        assert client.recv(65_536).startswith(b"HTTP/1.1 411 ")
    assert not LedgerEntry.objects.filter(kind="consumed").exists()


@pytest.mark.postgres
@served_site
def test_long_answers_arrive_whole(port: int) -> None:
    users = [(f"user_{number}", "", None) for number in range(3_000)]
    ChallengeQuota.objects.open_many(users, actor=Actor("command", "a test"))
    staff: Client = sign_in("view_challengequota", "view_ledgerentry")
    cookie = f"sessionid={staff.cookies['sessionid'].value}"
    client = HTTPConnection("127.0.0.1", port, timeout=30)
    client.request(
        "GET", "/admin/quotas/challengequota/csv/", headers={"Cookie": cookie, "X-Forwarded-Proto": "https"}
    )
    export = client.getresponse().read().decode()
    assert len(export.splitlines()) == len(users) + 1
    client.request(
        "GET",
        "/static/drf_spectacular_sidecar/swagger-ui-dist/swagger-ui-bundle.js",
        headers={"X-Forwarded-Proto": "https"},
    )
    script = client.getresponse()
    assert len(script.read()) == int(script.headers["Content-Length"]) > 1_000_000
    client.close()

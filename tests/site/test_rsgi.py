"""The site as Granian serves it: a request gets a thread once its body is there, and arrives unchanged."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from io import BytesIO
from urllib.parse import quote

import pytest
from django.conf import settings
from django.db.models import Sum
from django.test import Client

from quotas.models import ChallengeQuota, LedgerEntry
from quotas.rules.values import Actor
from quotasite.serving.fast_path import Received
from quotasite.serving.rsgi import environment
from quotasite.wsgi import RequestInUTF8
from tests.conftest import USER, WEBHOOK_SECRET, delivery
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
    given = Scope(Headers([*headers]), **scope)
    own = dict(given.headers.items())
    request = Received(given.method, given.path, given.query_string, given.scheme, own, b"", 0.0)
    return environment(given, request)


def test_a_request_is_told_as_pep_3333_wants_it() -> None:
    environ = environ_of(
        ("host", "a.example"), ("content-length", "2"), ("content-type", "text/plain"), path="/ü"
    )
    assert (environ["PATH_INFO"], environ["REMOTE_ADDR"]) == ("/ü".encode().decode("latin-1"), "::1")
    assert (environ["SERVER_NAME"], environ["SERVER_PORT"]) == ("127.0.0.1", "8000")
    assert (environ["HTTP_HOST"], environ["CONTENT_LENGTH"]) == ("a.example", "2")
    assert isinstance(environ["wsgi.input"], BytesIO)
    assert "HTTP_CONTENT_TYPE" not in environ


def test_an_ipv4_client_of_an_ipv6_socket_is_known_by_its_own_address() -> None:
    assert environ_of(client="[::ffff:192.0.2.1]:50000")["REMOTE_ADDR"] == "192.0.2.1"


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


BODY = b'{"cost": 2}'
END, PAUSE, NO_MORE = b"0\r\n\r\n", b"pause", b"no more"
LONG = b'{"metadata": {"a": "%s"}}' % (b"b" * 70_000)


def chunk(data: bytes, extension: bytes = b"") -> bytes:
    return b"%x%s\r\n%s\r\n" % (len(data), extension, data)


# A coding, what is sent by and by, and the answer: a status, and the code of a problem.
CHUNKED: dict[str, tuple[str, list[bytes], tuple[int, str]]] = {
    "whole": ("chunked", [chunk(BODY), END], (201, "")),
    "at once": ("chunked", [chunk(BODY) + END], (201, "")),
    "in another case": ("Chunked", [chunk(BODY), END], (201, "")),
    "byte by byte": ("chunked", [*[chunk(bytes([byte])) for byte in BODY], END], (201, "")),
    "cut within a chunk": ("chunked", [chunk(BODY)[:5], PAUSE, chunk(BODY)[5:], PAUSE, END], (201, "")),
    "with extensions": ("chunked", [chunk(BODY, b';a="b"'), END], (201, "")),
    "with a length too": ("chunked\r\nContent-Length: 3", [chunk(BODY), END], (201, "")),
    "expecting to go on": ("chunked\r\nExpect: 100-continue", [PAUSE, chunk(BODY), END], (201, "")),
    "empty": ("chunked", [END], (400, "body_missing")),
    "not JSON": ("chunked", [chunk(b"{"), END], (400, "malformed_json")),
    "too long": ("chunked", [chunk(LONG), END], (413, "body_too_large")),
    "too long, and no end": ("chunked", [chunk(LONG)] * 300, (413, "body_too_large")),
    "never ending after the limit": ("chunked", [chunk(LONG), PAUSE], (413, "body_too_large")),
    "in another coding": ("gzip, chunked", [chunk(BODY), END], (411, "length_required")),
    "in two codings, a line each": (
        "gzip\r\nTransfer-Encoding: chunked",
        [chunk(BODY), END],
        (411, "length_required"),
    ),
    "with trailers": ("chunked", [chunk(BODY), b"0\r\nA: b\r\n\r\n"], (400, "body_incomplete")),
    "garbled": ("chunked", [chunk(BODY), b"x\r\n"], (400, "body_incomplete")),
    "without an end": ("chunked", [chunk(BODY), NO_MORE], (400, "body_incomplete")),
}


def exchange(port: int, request: bytes, parts: list[bytes]) -> tuple[int, bytes]:
    """Send the parts one after the other; return the status and the body of the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=8) as client:
        client.sendall(request)
        for part in parts:
            if part == NO_MORE:
                client.shutdown(socket.SHUT_WR)
            elif part == PAUSE:
                time.sleep(0.05)
            else:
                client.sendall(part)
        answer = HTTPResponse(client)
        answer.begin()
        return answer.status, answer.read()


@pytest.mark.postgres
@served_site
@pytest.mark.parametrize("fast_lane", ["1", "0"], ids=["fast path", "full path"])
def test_a_body_in_chunks_is_read_as_any_other(fast_lane: str) -> None:
    spends = 0
    with served(url_of_the_test_database(), workers=1, WEB_THREADS="1", FAST_LANE=fast_lane) as port:
        for name, (coding, parts, expected) in CHUNKED.items():
            lines = (f"Transfer-Encoding: {coding}", f"Authorization: Bearer {keys.mint()}")
            request = head("/api/v1/quota/consume", *lines).replace(b"Content-Length: 100\r\n", b"")
            status, body = exchange(port, request, parts)
            assert (status, json.loads(body).get("code", "")) == expected, name
            spends += status == 201
            spent = LedgerEntry.objects.filter(kind="consumed").aggregate(units=Sum("cost"))["units"]
            assert (spent or 0) == 2 * spends, name
        honest = HTTPConnection("127.0.0.1", port, timeout=5)
        assert ask(honest, "GET", "/api/quota", USER) == 200
        honest.close()
    assert spends == 8


@pytest.mark.postgres
@served_site
@pytest.mark.parametrize("charset", ["hex", "rot13", "idna", "punycode", "utf-7", "nonsense"])
def test_a_request_may_name_any_charset(port: int, charset: str) -> None:
    client = HTTPConnection("127.0.0.1", port, timeout=5)
    headers = {"Content-Type": f"application/json; charset={charset}"} | HTTPS
    for path, status in (("/healthz", 200), ("/admin/login/", 200), ("/api/v1/plan", 404)):
        client.request("GET", f"{path}?a=%2B2AA-&b=b", headers=headers)
        answer = client.getresponse()
        answer.read()
        assert answer.status == status, path
    client.request("POST", "/webhooks/clerk?a=%2B2AA-", b"{}", headers)
    assert client.getresponse().status == 400
    client.close()


@pytest.mark.parametrize(("charset", "half"), [("utf-7", "+2AA-"), ("raw_unicode_escape", "\\ud800")])
def test_no_charset_makes_half_a_character(charset: str, half: str) -> None:
    body = f'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n{half}\r\n--x--\r\n'.encode()
    headers = {"CONTENT_TYPE": f"multipart/form-data; boundary=x; charset={charset}"}
    sent = {"wsgi.input": BytesIO(body), "CONTENT_LENGTH": str(len(body)), "REQUEST_METHOD": "POST"}
    request = RequestInUTF8({**headers, **sent, "QUERY_STRING": f"a={quote(half)}"})
    assert (request.POST["a"], request.GET["a"]) == (half, half)


@pytest.mark.postgres
@served_site
def test_deliveries_and_forms_may_come_in_chunks(port: int) -> None:
    body, headers = delivery("user.created", {"id": USER, "object": "user", "bio": "a" * 70_000})
    for sent, status in ((body, 200), (body + b" ", 400), (body.ljust(2**20 + 1), 413)):
        lines = [f"{name}: {value}" for name, value in headers.items()]
        request = head("/webhooks/clerk", "Transfer-Encoding: chunked", *lines)
        parts = [chunk(sent[:1_000]), chunk(sent[1_000:]), END]
        assert exchange(port, request.replace(b"Content-Length: 100\r\n", b""), parts)[0] == status
    assert ChallengeQuota.objects.filter(pk=USER).exists()
    client = HTTPConnection("127.0.0.1", port, timeout=5)
    client.request("GET", "/admin/login/", headers=HTTPS)
    page = client.getresponse()
    token = page.headers["Set-Cookie"].partition("csrftoken=")[2].partition(";")[0]
    form = f"csrfmiddlewaretoken={token}&username=nobody&password=wrong".encode()
    lines = ["Transfer-Encoding: chunked", f"Cookie: csrftoken={token}", "X-Forwarded-Proto: https"]
    lines += ["Referer: https://127.0.0.1/admin/login/", "Content-Type: application/x-www-form-urlencoded"]
    request = "\r\n".join(["POST /admin/login/ HTTP/1.1", "Host: 127.0.0.1", *lines, "", ""]).encode()
    status, answer = exchange(port, request, [chunk(form), END])
    assert (status, b"Please enter the correct" in answer) == (200, True)
    page.read()
    client.close()


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

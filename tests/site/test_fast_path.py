"""The event loop answers every request to the API as a view does, and leaves all others to Django."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from django.http import HttpResponse
from django.test import Client
from pytest_django import Settings

from quotas.access import session_tokens
from quotas.models import ChallengeQuota, LedgerEntry, ServiceKey
from quotas.problems import BODY_TIMEOUT
from quotasite.serving.fast_path import FastPath, Received
from tests.conftest import USER
from tests.tools import keys
from tests.tools.fast_path import FastPathHandler

pytestmark = [pytest.mark.postgres, pytest.mark.django_db]

CONSUME = "/api/v1/quota/consume"
# What five kinds of hosts, and browsers with tracing, add to a request.
ADDED_BY_HOSTS = [
    {"CF_RAY": "8f1", "CF_VISITOR": '{"scheme":"https"}', "CDN_LOOP": "cloudflare", "RNDR_ID": "a-1"},
    {"X_REQUEST_START": "1732", "X_FORWARDED_PORT": "443", "CONNECT_TIME": "1", "TOTAL_ROUTE_TIME": "0"},
    {"X_RAILWAY_EDGE": "eu", "X_RAILWAY_REQUEST_ID": "b", "FLY_REGION": "ams", "FLY_CLIENT_IP": "1.2.3.4"},
    {"X_AMZN_TRACE_ID": "Root=1-67", "X_CLOUD_TRACE_CONTEXT": "105/1;o=1", "FORWARDED": "for=1.2.3.4"},
    {"TRACEPARENT": "00-4b-00-01", "BAGGAGE": "a=1", "SENTRY_TRACE": "4b-00-1", "X_DATADOG_TRACE_ID": "1"},
]


class FastPathUser:
    """One user's requests, sent to the fast path, or to Django alone."""

    def __init__(self, *, is_fast: bool = True) -> None:
        self.client = Client(raise_request_exception=False)
        if is_fast:
            self.handler = self.client.handler = FastPathHandler()

    def send(self, method: str, path: str, body: bytes = b"", **environ: Any) -> HttpResponse:
        given = {"HTTP_AUTHORIZATION": f"Bearer {keys.mint(sub=USER)}", **environ}
        return self.client.generic(method, path, body, "application/json", **given)

    def get(self, path: str = "/api/quota", **environ: Any) -> HttpResponse:
        return self.send("GET", path, **environ)

    def consume(self, body: bytes = b"{}", **environ: Any) -> HttpResponse:
        return self.send("POST", CONSUME, body, **environ)

    def takes_fast_path(self, send: Callable[[], HttpResponse]) -> bool:
        before = self.handler.full_path_count
        send()
        return self.handler.full_path_count == before


@pytest.fixture
def user(settings_for_clerk: Settings) -> FastPathUser:
    return FastPathUser()


@pytest.fixture
def by_django(settings_for_clerk: Settings) -> FastPathUser:
    return FastPathUser(is_fast=False)


def same(answer: HttpResponse) -> tuple[int, dict[str, str], bytes]:
    """Return the parts that equal answers share: without the request id and the seconds to the reset."""
    headers = {name.lower(): value for name, value in answer.items() if name.lower() != "x-request-id"}
    headers["ratelimit"] = headers.get("ratelimit", "").partition(";t=")[0]
    if answer.status_code == 429:
        del headers["retry-after"]
    return answer.status_code, headers, re.sub(SECONDS, b"", answer.content)


SECONDS = rb'"(seconds_to_reset|retry_after)":\d+'
ORIGIN = {"HTTP_ORIGIN": keys.PARTY}
BY_HTTPS = {"wsgi.url_scheme": "https"}
STRANGER = {"HTTP_ORIGIN": "https://evil.example"}


@pytest.mark.parametrize("path", ["/api/quota", "/api/v1/quota"])
@pytest.mark.parametrize("given", [{}, ORIGIN, BY_HTTPS, {**ORIGIN, **BY_HTTPS}, STRANGER], ids=str)
def test_a_read_is_answered_as_by_django(
    user: FastPathUser, by_django: FastPathUser, path: str, given: dict[str, str]
) -> None:
    by_django.get(path)  # opens the quota
    assert same(user.get(path, **given)) == same(by_django.get(path, **given))
    assert user.handler.full_path_count == 0


@pytest.mark.parametrize("forwarded", ["https", "http", "https, http", " https", "", "ftp"])
def test_behind_a_trusted_proxy_its_scheme_decides(
    user: FastPathUser, by_django: FastPathUser, settings: Settings, forwarded: str
) -> None:
    settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    by_django.get()
    given = {"HTTP_X_FORWARDED_PROTO": forwarded}
    assert same(user.get(**given)) == same(by_django.get(**given))


@pytest.mark.parametrize("given", ADDED_BY_HOSTS, ids=lambda given: next(iter(given)))
def test_headers_that_hosts_add_change_nothing(user: FastPathUser, given: dict[str, str]) -> None:
    added = {f"HTTP_{name}": value for name, value in given.items()}
    user.get()
    assert user.takes_fast_path(lambda: user.get(**added))
    assert same(user.get(**added)) == same(user.get())


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"body": b'{"cost": 1000}'},
        {"body": b'{"cost": 0}'},
        {"body": b'{"ammount": 1}'},
        {"body": b'{"action": "generate", "metadata": {"a": 1}}'},
        {"body": b"[]"},
        {"body": b""},
        {"CONTENT_TYPE": "text/plain"},
        {"HTTP_AUTHORIZATION": ""},
        {"HTTP_AUTHORIZATION": "Bearer qs_0123abcd_" + "A" * 43},
        {"HTTP_AUTHORIZATION": f"Bearer {'x' * 9_000}"},
        {"HTTP_IDEMPOTENCY_KEY": "a, b"},
        {"QUERY_STRING": "x=1"},
        {"body": b'{"cost": 1}' + b" " * 5_000},  # which a thread parses
    ],
    ids=lambda given: str(given)[:60],
)
def test_what_is_wrong_is_answered_in_the_loop_as_by_django(
    user: FastPathUser, by_django: FastPathUser, given: dict[str, Any]
) -> None:
    by_django.consume(b'{"cost": 20}')
    assert same(by_django.consume(**given)) == same(user.consume(**given))
    assert user.handler.full_path_count == 0


@pytest.mark.parametrize(
    ("method", "path", "given"),
    [
        ("GET", "/api/nothing", {}),
        ("GET", "/api/schema", {}),
        ("POST", "/healthz", {}),
        ("GET", "/readyz", {}),
        ("GET", "/api/quota/", {}),
        ("HEAD", "/api/quota", {}),
        ("OPTIONS", "/api/quota", ORIGIN),
        ("DELETE", "/api/quota", {}),
        ("GET", "/api/v1/users/a/b/quota", {}),
        ("GET", "/api/quota", {"HTTP_HOST": "evil.example"}),
        ("GET", "/api/quota", {"HTTP_HOST": "a" * 300}),
        ("GET", "/api/quota", {"HTTP_HOST": "testserver:" + "0" * 250 + ".evil.example"}),
        ("POST", CONSUME, {"CONTENT_LENGTH": "99999999"}),
        ("POST", CONSUME, {"CONTENT_LENGTH": "\u0663"}),
        ("POST", CONSUME, {"HTTP_TRANSFER_ENCODING": "chunked"}),
    ],
)
def test_what_is_no_endpoint_is_djangos(
    user: FastPathUser, method: str, path: str, given: dict[str, Any]
) -> None:
    assert not user.takes_fast_path(lambda: user.send(method, path, **given))


@pytest.mark.parametrize("host", ["testserver", "10.42.8.201:8000", "evil.example"])
def test_the_loop_says_that_the_process_is_alive_as_django_does(
    user: FastPathUser, by_django: FastPathUser, host: str
) -> None:
    given = {"HTTP_HOST": host}
    assert user.takes_fast_path(lambda: user.send("GET", "/healthz", **given))
    answer = user.send("GET", "/healthz", **given)
    del answer["Vary"]  # that of the API; no answer to a probe depends on an origin
    assert same(answer) == same(by_django.send("GET", "/healthz", **given))


def test_what_may_wait_is_answered_in_the_loop_too(user: FastPathUser) -> None:
    _, key = ServiceKey.make("a test", ["read"])
    service = {"HTTP_AUTHORIZATION": f"Bearer {key}"}
    user.get()
    answers = [
        user.get("/api/v1/plans"),
        user.get("/api/v1/quota/history"),
        *(user.get(f"/api/v1/users/{USER}/{name}", **service) for name in ("quota", "history", "explain")),
    ]
    assert [answer.status_code for answer in answers] == [200] * 5
    assert user.handler.full_path_count == 0


def test_a_missing_row_is_opened_on_the_way(user: FastPathUser) -> None:
    assert user.takes_fast_path(user.get)
    assert LedgerEntry.objects.get(user_id=USER).kind == "opened"


def test_a_refusal_is_decided_once(user: FastPathUser) -> None:
    user.consume(b'{"cost": 20}')
    refused = user.consume()
    assert (refused.status_code, refused.json()["code"]) == (429, "quota_exhausted")
    assert [entry.kind for entry in LedgerEntry.objects.filter(user_id=USER)][:1] == ["refused"]


@pytest.mark.parametrize("spent", [0, 20])
def test_a_fault_of_our_own_is_a_500_that_says_nothing(
    user: FastPathUser, monkeypatch: pytest.MonkeyPatch, spent: int
) -> None:
    user.consume(b'{"cost": %d}' % spent)
    monkeypatch.setattr("quotas.api.responses.rate_limit_headers", lambda *_: 1 / 0)
    answer = user.consume()  # with 0 left, the fault is in the answer to a refusal
    assert (answer.status_code, answer.json()["code"]) == (500, "server_error")
    assert b"zero" not in answer.content


def test_a_forged_token_is_refused(user: FastPathUser) -> None:
    session_tokens._verified.clear()
    forged = keys.mint()[:-4] + "AAAA"
    assert user.get(HTTP_AUTHORIZATION=f"Bearer {forged}").status_code == 401


def test_strange_hosts_do_not_fill_the_memory(user: FastPathUser) -> None:
    for number in range(300):
        assert user.get(HTTP_HOST=f"{number}.example").status_code == 400
    fast_path = user.handler.fast_path
    assert fast_path
    assert fast_path.is_allowed_host.cache_info().currsize == 256


def test_the_quota_is_what_both_paths_leave(user: FastPathUser, by_django: FastPathUser) -> None:
    for one in (user, by_django, user):
        assert one.consume(b'{"cost": 2}').status_code == 201
    assert ChallengeQuota.objects.current(USER).quota_remaining == 14


def test_a_late_request_shows_no_text_of_its_sender_in_the_log(
    user: FastPathUser, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "quotasite.requests")
    late = Received("SECRET", "/api/quota", "", "http", {"origin": keys.PARTY}, b"", 0.0)
    for request, may_read in ((late, True), (late._replace(path="/"), False)):
        answer = FastPath(None).refuse(request, BODY_TIMEOUT())
        assert answer.status == 408
        assert ("access-control-allow-origin" in dict(answer.headers)) == may_read
    assert '"method":"other"' in caplog.text
    assert "SECRET" not in caplog.text

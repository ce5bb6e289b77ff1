"""The log: one JSON object per line, one line per request, no secrets, and no forged lines."""

import io
import json
import logging
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import httpx
import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError
from django.urls import URLPattern, URLResolver, get_resolver

from quotas.api import responses
from quotas.models import ServiceKey
from quotasite.observing import json_logs
from tests.access.test_session_tokens import ATTACKS, UNSENDABLE
from tests.api.test_attacks_served import bearer, status_of
from tests.conftest import WEBHOOK_SECRET, Api, delivery
from tests.site.test_settings import read_setting
from tests.tools.keys import mint
from tests.tools.postgres import free_port
from tests.tools.site import running, url_of_the_test_database
from tests.tools.staff import Browser
from tests.webhooks.test_webhook import CREATED, FORGED, UPDATED

FIELDS = {
    *("time", "level", "logger", "request_id", "method", "route", "verb", "outcome", "status"),
    *("principal", "principal_id", "cost", "ms"),
}
Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """A function that returns what was logged since its last call, in the format of LOGGING."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(json_logs.JSONLines())
    handler.addFilter(json_logs.OncePerRequest())

    def logged() -> list[dict[str, Any]]:
        text = stream.getvalue()
        stream.seek(0)
        stream.truncate()
        return [json.loads(line) for line in text.splitlines()]

    logging.getLogger().addHandler(handler)
    yield logged
    logging.getLogger().removeHandler(handler)


def short(line: dict[str, Any]) -> list[Any]:
    return [line[name] for name in ("verb", "outcome", "status", "principal", "principal_id", "cost")]


@pytest.mark.django_db
def test_a_request_is_one_line_with_these_fields(api: Api, make_quota: Any, lines: Lines) -> None:
    make_quota()
    lines()
    answer = api.consume({"cost": 3})
    [line] = lines()
    assert line.keys() == FIELDS
    assert line["request_id"] == answer["X-Request-Id"]
    assert (line["method"], line["route"]) == ("POST", "api/v1/quota/consume")
    assert short(line) == ["consume", "granted", 201, "user", "user_1", 3]
    assert line["ms"] > 0
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])


@pytest.mark.django_db
def test_a_line_tells_what_became_of_the_request(api: Api, make_quota: Any, lines: Lines) -> None:
    make_quota(remaining=2)
    api.consume({"cost": 2}, key="a")
    api.consume({"cost": 2}, key="a")
    api.consume({"cost": 2})
    api.quota()
    api.consume({"cost": 10**6})
    api.get("/api/quota", Authorization="")
    api.get("/api/v1/users/user_1/quota")
    api.get("/api/nothing")
    api.send("POST", "/api/v1/quota/consume", "x" * 70_000)
    api.get("/api/quota", Host="elsewhere.example")
    logged = [short(line) for line in lines() if line["logger"] == "quotasite.requests"]
    assert logged == [
        ["consume", "granted", 201, "user", "user_1", 2],
        ["consume", "replayed", 201, "user", "user_1", 2],
        ["consume", "quota_exhausted", 429, "user", "user_1", 2],
        ["read", "ok", 200, "user", "user_1", None],
        ["consume", "cost_exceeds_limit", 422, "user", "user_1", None],
        ["read", "token_missing", 401, None, None, None],
        ["read", "service_only", 403, "user", "user_1", None],
        ["other", "not_found", 404, None, None, None],
        ["other", "body_too_large", 413, None, None, None],
        ["other", "bad_request", 400, None, None, None],
    ]


@pytest.mark.django_db
def test_a_service_is_told_by_the_id_of_its_key(api: Api, lines: Lines) -> None:
    key, text = ServiceKey.make("a test's", ["read"])
    api.get("/api/v1/users/user_1/quota", Authorization=f"Bearer {text}")
    assert short(lines()[-1]) == ["read", "ok", 200, "service", str(key.pk), None]


@pytest.mark.django_db
def test_staff_are_told_by_number_and_all_pages_of_the_admin_are_one_verb(lines: Lines) -> None:
    alice, browser = User.objects.create_superuser("alice@example.com"), Browser()
    browser.force_login(alice)
    browser.get("/admin/quotas/challengequota/?q=bob@example.com")
    [line] = lines()
    assert short(line) == ["admin", "ok", 200, "staff", str(alice.pk), None]
    assert line["route"] == "admin/quotas/challengequota/"


@pytest.mark.django_db
def test_nobody_is_looked_up_for_the_sake_of_the_log(lines: Lines, django_assert_num_queries: Any) -> None:
    browser = Browser()
    browser.force_login(User.objects.create_superuser("alice"))
    with django_assert_num_queries(0):
        browser.get("/healthz")
    assert short(lines()[-1]) == ["healthz", "ok", 200, None, None, None]


def test_each_address_of_the_api_has_a_verb() -> None:
    unnamed = [route for route, name in addresses(get_resolver()) if not name and "admin/" not in route]
    # The 404 of the API, and two redirects.
    assert unnamed == ["api/", "admin", "favicon.ico"]


def addresses(resolver: URLResolver, before: str = "") -> Iterator[tuple[str, str | None]]:
    for entry in resolver.url_patterns:
        route = before + str(entry.pattern)
        if isinstance(entry, URLPattern):
            yield route, entry.name
        else:
            yield from addresses(entry, route)


@pytest.mark.django_db
def test_a_fault_is_told_without_the_row_and_the_address_that_it_met(
    api: Api, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise IntegrityError("new row violates a check\nDETAIL: (user_1, bob@example.com)")

    monkeypatch.setattr(responses, "rate_limit_headers", fail)
    answer = api.get("/api/quota?token=abc")
    fault, line = lines()
    assert fault["error"] == ["django.db.utils.IntegrityError: new row violates a check"]
    assert fault["at"][-1].endswith(" fail")
    assert fault["request_id"] == line["request_id"] == answer["X-Request-Id"]
    assert (line["level"], line["outcome"], line["status"]) == ("error", "server_error", 500)
    assert "/api/quota" not in fault["message"]


def test_a_refused_form_is_told_without_the_page_that_it_came_from(client: Any, lines: Lines) -> None:
    browser = Browser(enforce_csrf_checks=True)
    browser.post("/admin/login/", headers={"Referer": "https://elsewhere.example/?token=abc"})
    refused, line = lines()
    assert refused["message"] == "CSRF: Referer checking failed"
    assert (line["verb"], line["outcome"]) == ("admin", "http_403")


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        (f"Invalid: 'Authorization: Bearer {mint()}'", "Invalid: 'Authorization: Bearer [hidden]'"),
        ("authorization: bearer abc.def ghi", "authorization: bearer [hidden] ghi"),
        ("token eyJhbGciOiJSUzI1NiJ9.e30.x", "token [hidden]"),
        ("key qs_0123abcd_abcdefgh-_", "key [hidden]"),
        ("postgres://me:pass@db.example/x", "postgres://[hidden]db.example/x"),
        ("for bob.b+1@mail.example.com.", "for [hidden]"),
        (WEBHOOK_SECRET, "[hidden]"),
        ("sk_live_abc", "[hidden]"),
        ("Cookie: sessionid=abc; csrftoken=def", "Cookie: [hidden]"),
        ("x" * 10_000, "x" * json_logs.MAX_MESSAGE),
        ("[" + "a" * 1_000_000 + "@b.example", "[" + "a" * (json_logs.MAX_MESSAGE - 1)),
    ],
)
def test_what_a_library_quotes_is_hidden(text: str, redacted: str) -> None:
    assert json_logs.redact(text) == redacted


def test_no_character_can_end_a_line(lines: Lines) -> None:
    hostile = "".join(map(chr, (*range(32), 0x7F, 0x85, 0x2028, 0x2029, 0xD800))) + "\"\\'}"
    logging.getLogger("quotas").warning("%s", hostile)
    formatted = json_logs.JSONLines().format(logging.LogRecord("a", 30, "", 0, hostile, None, None))
    assert formatted.isprintable()
    assert formatted.isascii()
    assert lines()[0]["message"] == hostile


def test_a_thread_that_dies_is_told_of(lines: Lines) -> None:
    def die() -> None:
        raise ValueError("of what")

    # Set it here, because pytest sets its own.
    hook, threading.excepthook = threading.excepthook, json_logs._log_thread_end
    try:
        thread = threading.Thread(target=die)
        thread.start()
        thread.join()
    finally:
        threading.excepthook = hook
    assert lines()[0]["error"] == ["builtins.ValueError: of what"]


@pytest.mark.django_db
def test_requests_need_not_be_told(api: Api, lines: Lines, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", "quotasite"):
        assert api.quota()["X-Request-Id"]
    assert lines() == []


@pytest.mark.once
def test_people_get_lines_for_people() -> None:
    assert read_setting("LOGGING", DEBUG="1") == "{}"
    assert "'quotas': {'level': 'ERROR'}" in read_setting("LOGGING", LOG_LEVEL="error")


class Secrets:
    """Everything secret that was sent, set or returned, which no line may contain."""

    database = "a-database-password"
    admin = "an-admins-password"
    email = "alice@example.com"
    environment = {
        "SECRET_KEY": "a-secret-key-" + "k" * 50,
        "METRICS_TOKEN": "a-metrics-token",
        "CLERK_WEBHOOK_SIGNING_SECRET": WEBHOOK_SECRET,
        "CLERK_SECRET_KEY": "sk_test_a_secret_of_clerks",
        "TRUSTED_PROXY": "1",
    }

    def __init__(self) -> None:
        self.tokens = [mint()] + [attack() for name, (_, attack) in ATTACKS.items() if name not in UNSENDABLE]
        self.cookies: list[str] = []
        self.service: list[str] = []

    def found_in(self, text: str) -> list[str]:
        parts = [part for token in self.tokens for part in token.split(".") if len(part) > 12]
        mails = [self.email, *re.findall(r"[\w.]+@example.com", json.dumps([CREATED, UPDATED]))]
        fixed = [self.database, self.admin, WEBHOOK_SECRET.removeprefix("whsec_"), *mails]
        given = [value for value in self.environment.values() if len(value) > 1]
        everything = [*parts, *fixed, *given, *self.cookies, *self.service]
        return [secret for secret in everything if secret in text]


def with_password(url: str) -> str:
    return url if urlsplit(url).password else url.replace("@", f":{Secrets.database}@", 1).replace("::", ":")


def test_the_secrets_would_be_found() -> None:
    secrets = Secrets()
    assert secrets.found_in(f"x {secrets.tokens[0]} {Secrets.email}")
    assert not secrets.found_in("x")


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True, serialized_rollback=True)
def test_whatever_is_asked_each_line_is_json_and_none_tells_a_secret(tmp_path: Path) -> None:
    secrets, log = Secrets(), tmp_path / "log"
    User.objects.create_superuser("alice@example.com", email=secrets.email, password=secrets.admin)
    url = with_password(url_of_the_test_database())
    with running(url, workers=2, log=log, **secrets.environment) as (port, _):
        use_the_api(port, secrets)
        use_the_admin(port, secrets)
        deliver_all(port)
        attack(port, secrets)
    check(log.read_text(), secrets)
    dead = f"postgres://quotasite:{secrets.database}@127.0.0.1:{free_port()}/quotasite"
    with running(dead, workers=1, log=log, **secrets.environment) as (port, _):
        use_the_api(port, secrets, is_dead=True)
        deliver_all(port)
    check(log.read_text(), secrets)
    assert "database_unavailable" in log.read_text()


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True, serialized_rollback=True)
@pytest.mark.parametrize("lane", ["1", "0"], ids=["fast path", "full path"])
def test_each_request_of_a_kind_is_told_alike_by_whichever_way_it_was_answered(
    tmp_path: Path, lane: str
) -> None:
    log, writing = tmp_path / "log", [bearer(mint(sub="user_1")), ("content-type", "application/json")]
    with running(url_of_the_test_database(), workers=1, log=log, FAST_LANE=lane) as (port, _):
        for _ in range(3):
            assert status_of(port, "GET", "/api/quota", [*writing, ("x-request-id", "mine")]) == 200
        for key in "aabb":
            keyed = [*writing, ("idempotency-key", key)]
            assert status_of(port, "POST", "/api/v1/quota/consume", keyed, b'{"cost":2}') == 201
        for _ in range(2):
            assert status_of(port, "POST", "/api/v1/quota/consume", writing, b'{"cost":17}') == 429
    logged = [json.loads(line) for line in log.read_text().splitlines()]
    logged = [line for line in logged if line["logger"] == "quotasite.requests" and line["verb"] != "healthz"]
    assert all(line.keys() == FIELDS for line in logged)
    assert [line["request_id"] for line in logged][:3] == ["mine"] * 3
    spends = [["consume", outcome, 201, "user", "user_1", 2] for outcome in ("granted", "replayed")]
    assert [short(line) for line in logged] == [
        *[["read", "ok", 200, "user", "user_1", None]] * 3,
        *spends * 2,
        *[["consume", "quota_exhausted", 429, "user", "user_1", 17]] * 2,
    ]
    routes = ["GET api/quota"] * 3 + ["POST api/v1/quota/consume"] * 6
    assert [f"{line['method']} {line['route']}" for line in logged] == routes


def check(text: str, secrets: Secrets) -> None:
    lines = [json.loads(line) for line in text.splitlines()]
    assert all({"time", "level", "logger"} <= line.keys() for line in lines)
    logged = [line for line in lines if line["logger"] == "quotasite.requests"]
    assert logged
    assert all(line.keys() == FIELDS for line in logged)
    assert len({line["request_id"] for line in logged}) == len(logged)  # one line each
    assert not [line for line in lines if line.get("logger") == "forged" or line["level"] == "forged"]
    assert secrets.found_in(text) == []


def use_the_api(port: int, secrets: Secrets, *, is_dead: bool = False) -> None:
    if not is_dead:
        for scopes in (["read", "consume", "refund", "adjust", "admin"], []):
            secrets.service.append(ServiceKey.make("a test's", scopes)[1])
    secrets.service.append("qs_0123abcd_" + "A" * 43)
    for token in secrets.tokens:
        status_of(port, "GET", "/api/quota", [bearer(token)])
    for token in [secrets.tokens[0], *secrets.service]:
        asking = [bearer(token)]
        writing = [*asking, ("content-type", "application/json"), ("idempotency-key", "k" * 8)]
        for path in ("v1/users/user_1/explain", f"quota?token={token}", "v1/nothing"):
            status_of(port, "GET", f"/api/{path}", asking)
        for path in ("quota/consume", "quota/consume", "users/user_1/consume", "users/user_1/reset"):
            status_of(port, "POST", f"/api/v1/{path}", writing, b'{"cost": 15}')
    assert status_of(port, "GET", "/metrics", [bearer(secrets.environment["METRICS_TOKEN"])]) == 200
    for path in ("/readyz", "/api/schema", "/api/docs", "/nothing", f"/{secrets.email}"):
        status_of(port, "GET", path, [])


def use_the_admin(port: int, secrets: Secrets) -> None:
    origin = f"http://127.0.0.1:{port}"
    proxied = {"X-Forwarded-Proto": "https", "Referer": origin.replace("http:", "https:") + "/"}
    cookies = {"csrftoken": "c" * 32}
    form = {"username": secrets.email, "csrfmiddlewaretoken": "c" * 32, "next": "/admin/"}
    for password in ("wrong-" + secrets.admin, secrets.admin):
        for referer in ("https://elsewhere.example/?token=" + secrets.tokens[0], proxied["Referer"]):
            answer = httpx.post(
                f"{origin}/admin/login/",
                data={**form, "password": password},
                headers={**proxied, "Referer": referer, "Cookie": urlencode(cookies)},
            )
    assert answer.status_code == 302
    secrets.cookies += [*answer.cookies.values(), cookies["csrftoken"]]
    sent = "; ".join(f"{name}={value}" for name, value in answer.cookies.items())
    for path in ("", f"quotas/challengequota/?q={secrets.email}", "nothing/", "quotas/servicekey/add/"):
        answer = httpx.get(f"{origin}/admin/{path}", headers={**proxied, "Cookie": sent})
        assert answer.status_code in (200, 404)


def deliver_all(port: int) -> None:
    events = [delivery(*event) for event in (CREATED, UPDATED, ("user.updated", {"id": 1}))]
    for body, headers in [*events, *(delivery(*CREATED, **change()) for change in FORGED.values())]:
        status_of(port, "POST", "/webhooks/clerk", [*headers.items()], body)


FORGERY = '\r\n{"level":"forged","logger":"forged"}\r\n'


def attack(port: int, secrets: Secrets) -> None:
    """Try to forge lines through every part of a request that is logged or could be."""
    token = secrets.tokens[0]
    bearer = f"Authorization: Bearer {token}"
    forgeries = (FORGERY, FORGERY.replace("\r", ""), FORGERY.replace("\n", ""), "\x85\u2028\x1b[31m\x7f\x00")
    for hostile in forgeries:
        encoded = quote(hostile, safe="")
        for start in (
            f"GET /api/v1/users/{encoded}/quota HTTP/1.1\r\n{bearer}",
            f"GET /{encoded} HTTP/1.1\r\nX-Request-Id: {encoded}",
            f"GET /api/quota?{encoded} HTTP/1.1\r\nUser-Agent: {encoded}",
            f"GET /api/quota{hostile} HTTP/1.1",
            f"GET /api/quota HTTP/1.1\r\nX-Request-Id: a{hostile}",
            f"GET /api/quota HTTP/1.1\r\nUser-Agent: a{hostile}",
            f"GET /api/quota HTTP/1.1\r\n{bearer}{hostile}",
            f"GET /admin/ HTTP/1.1\r\nCookie: sessionid={token}{hostile}",
            f"{hostile.strip() or 'X'} /api/quota HTTP/1.1",
            f"FORGED{encoded[:9]} /api/quota HTTP/1.1",
            f"GET {'/' * 3}{token} HTTP/1.1\r\n{bearer}",
        ):
            with closing(socket.create_connection(("127.0.0.1", port), timeout=10)) as connection:
                connection.sendall(f"{start}\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
                connection.shutdown(socket.SHUT_WR)
                try:
                    while connection.recv(65_536):
                        pass
                except ConnectionError:
                    continue  # the server closed the connection

"""Every page has a strict policy, and no page needs more."""

import re
from pathlib import Path

import pytest
from django.test import Client
from pytest_django import Settings

from tests import ROOT
from tests.tools.staff import Browser, sign_in

STRICT = {
    "default-src 'self'",
    "base-uri 'none'",
    "form-action 'self'",
    "frame-ancestors 'none'",
    "object-src 'none'",
}
TEMPLATES = sorted((ROOT / "templates").rglob("*.html"))

pytestmark = pytest.mark.django_db


@pytest.fixture
def visitor(settings_for_clerk: Settings) -> Client:
    settings_for_clerk.SECURE_SSL_REDIRECT = False
    return Client(raise_request_exception=False)


@pytest.mark.parametrize("path", ["/admin/login/", "/admin/", "/nothing", "/demo"])
def test_a_page_allows_its_own_site_alone(visitor: Client, settings: Settings, path: str) -> None:
    settings.DEBUG = path == "/demo"
    answer = visitor.get(path)
    assert set(answer["Content-Security-Policy"].split("; ")) == STRICT


PAGES = ["", "login/", "logout/", "password_change/", "password_change/done/", "jsi18n/", "autocomplete/"]


@pytest.mark.parametrize("path", [*PAGES, "nothing", "quotas/ledgerentry/add/", "?a=%00", "auth/user/"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_no_cache_keeps_a_page_of_the_admin(settings_for_clerk: Settings, method: str, path: str) -> None:
    for client in (sign_in(is_superuser=True), Browser(), Browser(enforce_csrf_checks=True)):
        answer = client.generic(method, f"/admin/{path}")
        assert {"no-store", "private"} <= set(answer["Cache-Control"].split(", ")), answer.status_code


@pytest.mark.parametrize("path", ["/api/quota", "/api/schema", "/webhooks/clerk", "/healthz", "/readyz"])
def test_json_is_no_page(visitor: Client, path: str) -> None:
    answer = visitor.get(path)
    assert "json" in answer["Content-Type"]
    assert "Content-Security-Policy" not in answer


# Responses of every layer: pages, JSON, files, refusals before any view.
ANSWERS = [
    ("GET", "/admin/login/", 200),
    ("GET", "/admin/", 302),
    ("POST", "/admin/login/", 403),
    ("GET", "/nothing", 404),
    ("GET", "/demo", 404),
    ("GET", "/static/quotas/admin.css", 200),
    ("GET", "/api/docs", 200),
    ("GET", "/api/schema", 200),
    ("GET", "/api/quota", 401),
    ("POST", "/api/v1/quota/consume", 401),
    ("POST", "/api/v1/users/user_1/consume", 413),
    ("GET", "/api/nothing", 404),
    ("POST", "/webhooks/clerk", 400),
    ("GET", "/healthz", 200),
    ("GET", "/readyz", 200),
    ("GET", "/metrics", 404),
]
KEPT = {
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@pytest.mark.parametrize(("method", "path", "status"), ANSWERS)
def test_every_answer_keeps_to_itself(
    settings_for_clerk: Settings, method: str, path: str, status: int
) -> None:
    visitor = Client(enforce_csrf_checks=True)
    body = b"x" * 65_537 if status == 413 else b"{}"
    answer = visitor.generic(method, path, body, content_type="application/json", secure=True)
    answer.close()  # it may be a file
    assert answer.status_code == status
    expected = {**KEPT, "Strict-Transport-Security": "max-age=31536000"}
    assert {name: answer.get(name) for name in expected} == expected
    is_page = not path.startswith(("/api/q", "/api/s", "/api/v", "/api/n", "/web", "/heal", "/ready", "/met"))
    assert ("Content-Security-Policy" in answer) == (is_page and not path.startswith("/static"))


@pytest.mark.parametrize("path", ["/admin/login/", "/nothing", "/static/quotas/admin.css"])
def test_a_page_that_comes_by_plain_http_is_sent_to_https(settings_for_clerk: Settings, path: str) -> None:
    answer = Client().get(path)
    assert (answer.status_code, answer["Location"]) == (301, f"https://testserver{path}")


@pytest.mark.parametrize("path", ["/api/quota", "/webhooks/clerk", "/healthz", "/readyz", "/metrics"])
def test_what_programs_ask_is_never_redirected(settings_for_clerk: Settings, path: str) -> None:
    answer = Client().get(path)
    assert answer.status_code not in (301, 302)
    assert {name: answer[name] for name in KEPT} == KEPT
    assert "Strict-Transport-Security" not in answer  # a browser ignores it over plain HTTP


@pytest.mark.parametrize("host", ["10.42.8.201:8000", "web.default.svc.cluster.local:8000", "[::1]:8000"])
def test_a_probe_may_name_any_host_and_nothing_else_may(settings_for_clerk: Settings, host: str) -> None:
    settings_for_clerk.METRICS_TOKEN = "a token"
    headers = {"Host": host, "Authorization": "Bearer a token"}
    for path in ("/healthz", "/readyz", "/metrics"):
        assert Client().get(path, headers=headers).status_code == 200
    for path in ("/api/quota", "/healthz/", "/admin/login/", "/webhooks/clerk", "/nothing"):
        assert Client().get(path, headers=headers, secure=True).status_code == 400


@pytest.mark.parametrize(
    ("is_trusted", "forwarded", "status"),
    [(True, "https", 200), (True, "http", 301), (True, "", 301), (False, "https", 301)],
)
def test_https_is_what_a_trusted_proxy_says(
    settings_for_clerk: Settings, is_trusted: bool, forwarded: str, status: int
) -> None:
    header = ("HTTP_X_FORWARDED_PROTO", "https") if is_trusted else None
    settings_for_clerk.SECURE_PROXY_SSL_HEADER = header
    answer = Client().get("/admin/login/", headers={"X-Forwarded-Proto": forwarded})
    assert answer.status_code == status
    assert ("Strict-Transport-Security" in answer) == (status == 200)


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: str(path.relative_to(ROOT / "templates")))
def test_a_template_has_no_inline_script_or_style(template: Path) -> None:
    inline = r"<style|\bstyle=|<script(?![^>]*\bsrc=)|\son\w+=|javascript:"
    assert not re.findall(inline, template.read_text())


def test_a_browser_that_asks_for_an_icon_gets_one(visitor: Client) -> None:
    answer = visitor.get("/favicon.ico", follow=True)
    answer.close()  # a file
    assert (answer.status_code, answer["Content-Type"]) == (200, "image/svg+xml")

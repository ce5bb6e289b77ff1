"""Every page has a strict policy, and no page needs more."""

import re
from pathlib import Path

import pytest
from django.test import Client
from pytest_django import Settings

ROOT = Path(__file__).resolve().parent.parent
STRICT = {
    "default-src 'self'",
    "base-uri 'none'",
    "form-action 'self'",
    "frame-ancestors 'none'",
    "object-src 'none'",
}
TEMPLATES = sorted((ROOT / "templates").rglob("*.html"))

pytestmark = [pytest.mark.django_db, pytest.mark.once]


@pytest.fixture
def visitor(settings_for_clerk: Settings) -> Client:
    settings_for_clerk.SECURE_SSL_REDIRECT = False
    return Client(raise_request_exception=False)


@pytest.mark.parametrize("path", ["/admin/login/", "/admin/", "/nothing", "/demo"])
def test_a_page_allows_its_own_site_alone(visitor: Client, settings: Settings, path: str) -> None:
    settings.DEBUG = path == "/demo"
    answer = visitor.get(path)
    assert set(answer["Content-Security-Policy"].split("; ")) == STRICT


@pytest.mark.parametrize("path", ["/api/quota", "/api/schema", "/webhooks/clerk", "/healthz", "/readyz"])
def test_json_is_no_page(visitor: Client, path: str) -> None:
    answer = visitor.get(path)
    assert "json" in answer["Content-Type"]
    assert "Content-Security-Policy" not in answer


@pytest.mark.parametrize("path", ["/admin/login/", "/api/docs", "/api/quota", "/healthz"])
def test_every_answer_keeps_to_itself(visitor: Client, path: str) -> None:
    answer = visitor.get(path)
    assert answer["X-Frame-Options"] == "DENY"
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert answer["Referrer-Policy"] == "same-origin"
    assert answer["Cross-Origin-Opener-Policy"] == "same-origin"


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: str(path.relative_to(ROOT / "templates")))
def test_a_template_has_no_inline_script_or_style(template: Path) -> None:
    inline = r"<style|\bstyle=|<script(?![^>]*\bsrc=)|\son\w+=|javascript:"
    assert not re.findall(inline, template.read_text())


def test_a_browser_that_asks_for_an_icon_gets_one(visitor: Client) -> None:
    answer = visitor.get("/favicon.ico", follow=True)
    answer.close()  # a file
    assert (answer.status_code, answer["Content-Type"]) == (200, "image/svg+xml")

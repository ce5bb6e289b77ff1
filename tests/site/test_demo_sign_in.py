"""The demo exists only under DEBUG, and the API verifies every token of its sign-in."""

import re
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from django.core.checks import run_checks
from django.http import HttpResponse
from django.test import Client
from pytest_django import Settings

from tests.conftest import USER
from tests.site.test_settings import read_setting
from tests.tools import keys

pytestmark = pytest.mark.django_db
FRONTEND_API = "https://clerk.example.com"


@pytest.fixture
def settings(settings_for_clerk: Settings) -> Settings:
    """The demo's settings: DEBUG, and a development key that the API trusts."""
    settings_for_clerk.DEBUG = True
    settings_for_clerk.SECURE_SSL_REDIRECT = False
    settings_for_clerk.DEVELOPMENT_SIGNING_KEY = keys.private_pem
    return settings_for_clerk


@pytest.fixture
def visitor() -> Client:
    return Client(raise_request_exception=False)


def ask_for_token(visitor: Client, user_id: str = USER) -> HttpResponse:
    return visitor.post("/demo/token", {"user_id": user_id})


def get_quota(visitor: Client, answer: Any) -> HttpResponse:
    token = answer.json()["token"]
    return visitor.get("/api/quota", headers={"Authorization": f"Bearer {token}"})


def with_clerk(settings: Settings) -> None:
    settings.CLERK_PUBLISHABLE_KEY = "pk_test_Y2xlcmsuZXhhbXBsZS5jb20k"
    settings.CLERK_FRONTEND_API = FRONTEND_API


def test_a_token_of_the_development_key_is_taken_for_its_user(settings: Settings, visitor: Client) -> None:
    answer = get_quota(visitor, ask_for_token(visitor))
    assert (answer.status_code, answer.json()["user_id"]) == (200, USER)


def test_the_key_opens_nothing_that_the_api_does_not_trust(settings: Settings, visitor: Client) -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    settings.DEVELOPMENT_SIGNING_KEY = pem
    answer = get_quota(visitor, ask_for_token(visitor))
    assert (answer.status_code, answer.json()["code"]) == (401, "token_signature")


@pytest.mark.parametrize("user_id", ["", "alice", "user_ü", "user_1\n", "user_" + 124 * "x"])
def test_a_user_id_that_no_clerk_would_give_is_refused(
    settings: Settings, visitor: Client, user_id: str
) -> None:
    answer = ask_for_token(visitor, user_id)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


@pytest.mark.parametrize("path", ["/", "/demo", "/demo/token"])
@pytest.mark.parametrize("method", ["get", "post"])
def test_without_debug_there_is_no_demo(settings: Settings, visitor: Client, path: str, method: str) -> None:
    settings.DEBUG = False
    assert getattr(visitor, method)(path).status_code == 404


def test_the_front_page_redirects_to_the_demo(settings: Settings, visitor: Client) -> None:
    assert visitor.get("/").headers["Location"] == "/demo"


def test_where_clerk_signs_in_nobody_else_does(settings: Settings, visitor: Client) -> None:
    with_clerk(settings)
    assert ask_for_token(visitor).status_code == 404


def test_without_a_key_no_token_is_made(settings: Settings, visitor: Client) -> None:
    settings.DEVELOPMENT_SIGNING_KEY = ""
    assert ask_for_token(visitor).status_code == 404
    assert "No sign-in is set up" in visitor.get("/demo").content.decode()


def test_a_token_is_only_posted_for(settings: Settings, visitor: Client) -> None:
    assert visitor.get("/demo/token").status_code == 405


def test_no_variable_of_the_environment_sets_the_key() -> None:
    name = "DEVELOPMENT_SIGNING_KEY"
    assert read_setting(name, **{name: keys.private_pem, "DEBUG": "1"}) == ""


def test_a_deployment_with_a_development_key_is_refused(settings: Settings) -> None:
    def found() -> bool:
        return "quotasite.E001" in {message.id for message in run_checks(include_deployment_checks=True)}

    assert found()
    settings.DEBUG = False  # the key alone is refused too
    assert found()
    settings.DEVELOPMENT_SIGNING_KEY = ""
    assert not found()


# The policy that Clerk's component needs, on this page only


def directives(answer: HttpResponse) -> dict[str, set[str]]:
    parts = [part.split() for part in answer["Content-Security-Policy"].split(";")]
    return {name: {*sources} for name, *sources in parts}


def test_with_a_clerk_key_the_page_allows_what_clerk_documents(settings: Settings, visitor: Client) -> None:
    plain = directives(visitor.get("/demo"))
    with_clerk(settings)
    answer = visitor.get("/demo")
    assert directives(answer) == plain | {
        "script-src": {
            "'self'",
            FRONTEND_API,
            "https://challenges.cloudflare.com",
            "https://*.protect.clerk.com",
        },
        "connect-src": {"'self'", FRONTEND_API, "https://*.protect.clerk.com:*"},
        "img-src": {"'self'", "https://img.clerk.com"},
        "worker-src": {"'self'", "blob:"},
        "style-src": {"'self'", "'unsafe-inline'"},
        "frame-src": {"https://challenges.cloudflare.com", "https://*.protect.clerk.com"},
    }
    assert directives(visitor.get("/admin/login/")) == plain


def test_clerk_s_scripts_come_from_its_frontend_api(settings: Settings, visitor: Client) -> None:
    with_clerk(settings)
    page = visitor.get("/demo").content.decode()
    foreign = re.findall(r'src="(https:[^"]+)"', page)
    assert foreign == [
        f"{FRONTEND_API}/npm/@clerk/ui@1/dist/ui.browser.js",
        f"{FRONTEND_API}/npm/@clerk/clerk-js@6/dist/clerk.browser.js",
    ]
    assert f'data-clerk-publishable-key="{settings.CLERK_PUBLISHABLE_KEY}"' in page

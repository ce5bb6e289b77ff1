"""Checks of the whole site, for `manage.py check --deploy`."""

import re
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.http.request import validate_host

STRANGERS = ("https://stranger.invalid", "http://stranger.invalid:8080")  # origins that no pattern may match
MIN_KEY_LENGTH = 32  # characters of SECRET_KEY: 128 bits in hexadecimal
MIN_TOKEN_LENGTH = 16  # characters of METRICS_TOKEN
LOCAL_HOSTS = {"localhost", ".localhost", "127.0.0.1", "[::1]"}


@register(Tags.security, deploy=True)
def check_development_sign_in(**kwargs: Any) -> list[CheckMessage]:
    """Refuse a key with which anyone can sign in as any user under DEBUG, even while DEBUG is off."""
    if not settings.DEVELOPMENT_SIGNING_KEY:
        return []
    return [
        Error(
            "DEVELOPMENT_SIGNING_KEY is set: under DEBUG anyone could sign in as any user at /demo.",
            hint="Unset DEVELOPMENT_SIGNING_KEY, and set CLERK_PUBLISHABLE_KEY.",
            id="quotasite.E001",
        )
    ]


@register(Tags.security, deploy=True)
def check_foreign_origins(**kwargs: Any) -> list[CheckMessage]:
    """Refuse to let scripts of any site send this site's cookies and read the responses."""
    patterns = getattr(settings, "CORS_ALLOWED_ORIGIN_REGEXES", [])
    is_open = getattr(settings, "CORS_ALLOW_ALL_ORIGINS", False) or any(
        re.match(pattern, origin) for pattern in patterns for origin in STRANGERS
    )
    if not (is_open and getattr(settings, "CORS_ALLOW_CREDENTIALS", False)):
        return []
    return [
        Error(
            "Scripts of every site could call this one with its cookies, and read the responses.",
            hint="List your SPA's origins in CORS_ALLOWED_ORIGINS, and leave CORS_ALLOW_CREDENTIALS off: "
            "session tokens are sent in a header.",
            id="quotasite.E002",
        )
    ]


@register(Tags.security, deploy=True)
def check_secrecy(**kwargs: Any) -> list[CheckMessage]:
    """Find what strangers could guess or read."""
    return list(_secrecy_faults())


@register(Tags.security, deploy=True)
def check_way_in(**kwargs: Any) -> list[CheckMessage]:
    """Find a host name, or a proxy, with which requests would not be what they seem."""
    return list(_way_in_faults())


@register(Tags.security, deploy=True)
def check_parties(**kwargs: Any) -> list[CheckMessage]:
    """Find origins that may get a token but no answer, or an answer but no token."""
    return list(_party_faults())


@register(Tags.security, deploy=True)
def check_clerk_instance(**kwargs: Any) -> list[CheckMessage]:
    """Find settings that name two instances of Clerk, or that fetch its keys unprotected."""
    return list(_instance_faults())


def _secrecy_faults() -> Iterator[CheckMessage]:
    key, token = settings.SECRET_KEY, settings.METRICS_TOKEN
    if len(key) < MIN_KEY_LENGTH or len(set(key)) < 5 or key.startswith("django-insecure-"):
        yield Error(
            "SECRET_KEY can be guessed: with it anyone could forge what the admin signs.",
            hint="Set SECRET_KEY to what this prints: python -c "
            '"import secrets; print(secrets.token_urlsafe(50))"',
            id="quotasite.E003",
        )
    if settings.DEBUG:
        yield Error(
            "DEBUG is 1: error pages show source code and settings to everyone, and HTTPS is not enforced.",
            hint="Set DEBUG=0, or unset it.",
            id="quotasite.E004",
        )
    if token and len(token) < MIN_TOKEN_LENGTH:
        yield Warning(
            f"METRICS_TOKEN has fewer than {MIN_TOKEN_LENGTH} characters: strangers could guess it, and read "
            "the figures of /metrics.",
            hint="Set METRICS_TOKEN to a random text, the same as the scraper's.",
            id="quotasite.W013",
        )


def _way_in_faults() -> Iterator[CheckMessage]:
    try:
        ip_address(settings.HOST or "0.0.0.0")  # noqa: S104 - the Procfile's default
    except ValueError:
        yield Error(
            "HOST is not an IP address: the server would not start.",
            hint="Set HOST to the address to listen on: 0.0.0.0, :: or 127.0.0.1; or unset it.",
            id="quotasite.E005",
        )
    if "*" in settings.ALLOWED_HOSTS:
        yield Warning(
            "ALLOWED_HOSTS has *: a request may name any host, and redirects and links lead there.",
            hint="Set ALLOWED_HOSTS to this service's own host names, such as quota.example.com.",
            id="quotasite.W001",
        )
    if settings.PLATFORM and not settings.TRUSTED_PROXIES:
        yield Warning(
            f"This platform ({settings.PLATFORM} is set) ends HTTPS in a proxy, but TRUSTED_PROXY is 0: each "
            "page of the admin would redirect to itself, and failed log-ins of all clients count together.",
            hint="Set TRUSTED_PROXY=1, unless requests reach this service by a private network only.",
            id="quotasite.W002",
        )


def _party_faults() -> Iterator[CheckMessage]:
    parties, callers = settings.CLERK_AUTHORIZED_PARTIES, settings.CORS_ALLOWED_ORIGINS
    for position, party in enumerate(parties, start=1):
        is_web = party.startswith(("http://", "https://"))  # extensions and apps may do without CORS
        is_own = validate_host(urlsplit(party).hostname or "", settings.ALLOWED_HOSTS)
        if is_web and party not in callers and not is_own:
            yield Warning(
                f"Item {position} of CLERK_AUTHORIZED_PARTIES is not in CORS_ALLOWED_ORIGINS: browsers would "
                "not let the scripts of that origin read an answer.",
                hint="Add the same origin to CORS_ALLOWED_ORIGINS, www. or not as your users see it.",
                id="quotasite.W003",
            )
        if party.startswith("http://"):
            yield Warning(
                f"Item {position} of CLERK_AUTHORIZED_PARTIES is an http:// origin: whoever can change its "
                "pages on their way gets tokens that are accepted.",
                hint="Use https:// origins; http://localhost is for development.",
                id="quotasite.W005",
            )
    for position, origin in enumerate(callers, start=1):
        if parties and origin not in parties:
            yield Warning(
                f"Item {position} of CORS_ALLOWED_ORIGINS is not in CLERK_AUTHORIZED_PARTIES: every session "
                "token from that origin would be refused (token_azp).",
                hint="Add the same origin to CLERK_AUTHORIZED_PARTIES, or remove it.",
                id="quotasite.W004",
            )


def _instance_faults() -> Iterator[CheckMessage]:
    if settings.CLERK_PUBLISHABLE_KEY.startswith("pk_test_") and set(settings.ALLOWED_HOSTS) - LOCAL_HOSTS:
        yield Warning(
            "CLERK_PUBLISHABLE_KEY is of a development instance (pk_test_): its users are not those of your "
            "production instance, and Clerk limits their number.",
            hint="Set CLERK_PUBLISHABLE_KEY to the pk_live_ key, unless this is a site for trials.",
            id="quotasite.W014",
        )
    key, secret, issuer = settings.CLERK_PUBLISHABLE_KEY, settings.CLERK_SECRET_KEY, settings.CLERK_ISSUER
    jwks = "" if settings.CLERK_JWT_KEY else settings.CLERK_JWKS_URL  # the PEM outranks it
    hosts = {url and urlsplit(url).netloc for url in (settings.CLERK_FRONTEND_API, issuer, jwks)}
    if len(hosts - {""}) > 1:
        yield Warning(
            "CLERK_PUBLISHABLE_KEY, CLERK_ISSUER and CLERK_JWKS_URL do not name one host: if they are of two "
            "instances of Clerk, every session token would be refused.",
            hint="Set CLERK_PUBLISHABLE_KEY alone, unless a proxy of yours serves Clerk's Frontend API.",
            id="quotasite.W006",
        )
    if issuer.startswith("http://") or jwks.startswith("http://"):
        yield Warning(
            "CLERK_ISSUER or CLERK_JWKS_URL is an http:// address: no token of Clerk has such an issuer, and "
            "whoever can change keys on their way can sign in as any user.",
            hint="Use https:// in both, or set CLERK_PUBLISHABLE_KEY alone.",
            id="quotasite.W007",
        )
    if key and secret and key.startswith("pk_live_") != secret.startswith("sk_live_"):
        yield Warning(
            "Of CLERK_PUBLISHABLE_KEY and CLERK_SECRET_KEY one is of a development instance (test), one of a "
            "production instance (live): backfill_quotas would read the users of another instance.",
            hint="Set CLERK_SECRET_KEY to the secret key that Clerk shows beside the publishable key.",
            id="quotasite.W008",
        )

"""Checks of the whole site, for `manage.py check --deploy`."""

import re
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, register

STRANGERS = ("https://stranger.invalid", "http://stranger.invalid:8080")  # origins that no pattern may match


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

"""What `manage.py check --deploy` refuses of the site as a whole."""

import re
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, register

STRANGERS = ("https://stranger.invalid", "http://stranger.invalid:8080")  # origins that no pattern may let in


@register(Tags.security, deploy=True)
def check_development_sign_in(**kwargs: Any) -> list[CheckMessage]:
    """Refuse a key by which anybody may sign in as anybody, whether or not DEBUG opens the door now."""
    if not settings.DEVELOPMENT_SIGNING_KEY:
        return []
    return [
        Error(
            "The development sign-in is on: under DEBUG anybody could sign in as any user at /demo.",
            hint="Leave DEVELOPMENT_SIGNING_KEY empty, and set CLERK_PUBLISHABLE_KEY.",
            id="quotasite.E001",
        )
    ]


@register(Tags.security, deploy=True)
def check_foreign_origins(**kwargs: Any) -> list[CheckMessage]:
    """Refuse to let any site's scripts send what a browser keeps for this one, and read the answers."""
    patterns = getattr(settings, "CORS_ALLOWED_ORIGIN_REGEXES", [])
    is_open = getattr(settings, "CORS_ALLOW_ALL_ORIGINS", False) or any(
        re.match(pattern, origin) for pattern in patterns for origin in STRANGERS
    )
    if not (is_open and getattr(settings, "CORS_ALLOW_CREDENTIALS", False)):
        return []
    return [
        Error(
            "Scripts of every site may call this one with its cookies and read the answers.",
            hint="Name your SPA's origins in CORS_ALLOWED_ORIGINS, and leave CORS_ALLOW_CREDENTIALS off: "
            "session tokens come in a header.",
            id="quotasite.E002",
        )
    ]

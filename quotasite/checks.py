"""What `manage.py check --deploy` refuses of the site as a whole."""

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, register


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

"""Checks for `manage.py check --deploy`: each states what is at risk, and what to set."""

from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register

from quotas.access import session_tokens


@register(Tags.database, deploy=True)
def check_storage(**kwargs: Any) -> list[CheckMessage]:
    """Refuse to store quotas on a disk that the host erases."""
    if settings.DATABASES["default"]["ENGINE"] != "django.db.backends.sqlite3":
        return []
    hint = "Set DATABASE_URL to a PostgreSQL database: postgres://USER:PASSWORD@HOST:PORT/NAME."
    if settings.PLATFORM:
        return [
            Error(
                f"The database is a SQLite file, and this host ({settings.PLATFORM} is set) erases "
                "its disk at each deploy: every quota, ledger entry and staff account would be lost.",
                hint=hint,
                id="quotas.E001",
            )
        ]
    if not settings.DATABASE_URL_IS_SET:
        return [
            Error(
                "DATABASE_URL is not set: the quotas would be in a SQLite file in the folder of the code.",
                hint=hint,
                id="quotas.E010",
            )
        ]
    return [
        Warning(
            "The database is a SQLite file: it serves one machine, and is lost with that machine's disk.",
            hint=hint,
            id="quotas.W001",
        )
    ]


@register(Tags.security, deploy=True)
def check_site(**kwargs: Any) -> list[CheckMessage]:
    return list(_site_faults())


@register(Tags.security, deploy=True)
def check_session_tokens(**kwargs: Any) -> list[CheckMessage]:
    """Refuse settings that would reject every session token, or accept those of other sites."""
    return list(_token_faults())


def _site_faults() -> Iterator[CheckMessage]:
    if not settings.SECRET_KEY_IS_SET:
        yield Error(
            "SECRET_KEY is not set: staff would be signed out by each restart, and by each other worker.",
            hint="Set SECRET_KEY to 50 or more random characters, the same at every start.",
            id="quotas.E002",
        )
    if not settings.ALLOWED_HOSTS:
        yield Error(
            "ALLOWED_HOSTS is not set: every request would get a 400.",
            hint="Set ALLOWED_HOSTS to this service's own host names, such as quota.example.com.",
            id="quotas.E003",
        )


def _token_faults() -> Iterator[CheckMessage]:
    if settings.CLERK_JWT_KEY:
        try:
            session_tokens.public_key(settings.CLERK_JWT_KEY)
        except ValueError as error:
            yield Error(str(error), id="quotas.E004")
    elif not settings.CLERK_JWKS_URL:
        yield Error(
            "There is no key to verify session tokens with: every request of a user would get a 503.",
            hint="Set CLERK_PUBLISHABLE_KEY, which is enough, or CLERK_JWT_KEY and CLERK_ISSUER.",
            id="quotas.E004",
        )
    if not settings.CLERK_ISSUER:
        yield Error(
            "There is no issuer to verify session tokens with: every token would be refused.",
            hint="Set CLERK_PUBLISHABLE_KEY, or CLERK_ISSUER to the Frontend API URL that Clerk shows.",
            id="quotas.E005",
        )
    if not settings.CLERK_AUTHORIZED_PARTIES:
        yield Error(
            "CLERK_AUTHORIZED_PARTIES is not set: tokens for any site of your Clerk would be accepted.",
            hint="Set it to the origins of your SPA, such as https://app.example.com.",
            id="quotas.E006",
        )

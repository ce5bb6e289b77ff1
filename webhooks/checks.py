"""Checks of the signing secrets, for `manage.py check --deploy`."""

from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, register

from webhooks.clerk.deliveries import secret_fault


@register(Tags.security, deploy=True)
def check_signing_secrets(**kwargs: Any) -> list[CheckMessage]:
    return list(_secret_faults())


def _secret_faults() -> Iterator[CheckMessage]:
    hint = "Set CLERK_WEBHOOK_SIGNING_SECRET to the endpoint's Signing Secret (whsec_…) of Clerk's dashboard."
    secrets = settings.CLERK_WEBHOOK_SIGNING_SECRET
    if not secrets:
        yield Error(
            "CLERK_WEBHOOK_SIGNING_SECRET is not set: Clerk's deliveries would get a 503.",
            hint=hint,
            id="webhooks.E001",
        )
    for position, secret in enumerate(secrets, start=1):
        if fault := secret_fault(secret):
            yield Error(
                f"Item {position} of CLERK_WEBHOOK_SIGNING_SECRET is malformed: {fault}.",
                hint=hint,
                id="webhooks.E002",
            )

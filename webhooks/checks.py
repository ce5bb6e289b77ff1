"""Checks of the signing secrets, for `manage.py check --deploy`, and of the deliveries that arrived."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register

from quotas.operations.database_checks import faults_of_data
from webhooks.arrivals import Arrivals
from webhooks.clerk.deliveries import secret_fault


@register(Tags.security, deploy=True)
def check_signing_secrets(**kwargs: Any) -> list[CheckMessage]:
    return list(_secret_faults())


@register(Tags.database)
def check_arrivals(databases: Sequence[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Find signs that Clerk's deliveries do not arrive."""
    return faults_of_data(databases, _arrival_faults)


def _arrival_faults() -> Iterator[CheckMessage]:
    for fault in Arrivals.now().faults:
        yield Warning(fault, hint="manage.py check_webhooks lists the causes.", id="webhooks.W001")


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


@register(Tags.security, deploy=True)
def check_instance_id(**kwargs: Any) -> list[CheckMessage]:
    """Refuse an id that no delivery can carry."""
    if re.fullmatch(r"(ins_[A-Za-z0-9]+)?", settings.CLERK_INSTANCE_ID):
        return []
    return [
        Error(
            "CLERK_INSTANCE_ID is not the id of an instance: every delivery would be ignored.",
            hint="Set it to the ins_… that Clerk's deliveries name, or unset it.",
            id="webhooks.E003",
        )
    ]

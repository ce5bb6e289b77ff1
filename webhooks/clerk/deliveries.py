"""Verify that a delivery was signed for this endpoint within the last five minutes, and parse it."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings

from webhooks.clerk.payloads import DELIVERY_ID, NotConfigured, instant_from

SIGNED_HEADERS = ("svix-id", "svix-timestamp", "svix-signature")
HEADERS_LIMIT = 8_192  # characters; a signature takes 47, and each one is compared


class DeliveryRefused(Exception):
    """A delivery that is not from Clerk, or cannot be parsed.

    `reason` is one of those in webhooks/arrivals.py, `detail` one sentence with the fix.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class Delivery:
    """One verified event. `data` is {} if Clerk sent none."""

    id: str  # the same at every resend
    instance_id: str  # "" if Clerk sent none
    type: str  # at most 128 printable characters, else "unknown"
    occurred_at: datetime | None
    data: dict[str, object]


def verify_delivery(body: bytes, headers: Mapping[str, str]) -> Delivery:
    """Return the delivery, if one of the configured secrets signed exactly these bytes within five minutes.

    Raises DeliveryRefused, or NotConfigured if no configured secret is usable.
    """
    secrets = [secret for secret in settings.CLERK_WEBHOOK_SIGNING_SECRET if not secret_fault(secret)]
    if not secrets:
        raise NotConfigured(
            "CLERK_WEBHOOK_SIGNING_SECRET holds no usable secret: set it to the endpoint's signing secret "
            "(whsec_…) from Clerk's dashboard."
        )
    signed = _signed_headers(headers)
    # Importing svix takes up to a second: pay for it at the first delivery, not at the start of the process.
    from svix.webhooks import Webhook, WebhookVerificationError

    for secret in secrets:
        try:
            Webhook(secret).verify(body, signed)  # returns None; malformed input raises ValueError
        except (WebhookVerificationError, ValueError) as error:
            fault = str(error)
        else:
            return _read_delivery(signed["svix-id"], body)
    if "timestamp too" in fault:
        raise DeliveryRefused(
            "timestamp",
            "The svix-timestamp is more than five minutes from this server's clock: "
            "correct the clock, or resend the message.",
        )
    raise DeliveryRefused(
        "signature",
        f"The signature does not match any of the {len(secrets)} configured secrets: set "
        "CLERK_WEBHOOK_SIGNING_SECRET to this endpoint's own signing secret, and pass the body on unchanged.",
    )


def secret_fault(secret: str) -> str | None:
    """Return what is wrong with a signing secret, without its value; None if it is usable."""
    if not secret.startswith("whsec_"):
        return "it must begin with whsec_"
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError:
        return "what follows whsec_ must be base64"
    if not 24 <= len(key) <= 64:
        return f"it must hold 24 to 64 bytes, not {len(key)}"
    return None


def _signed_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the three signed headers, if they are all present and not too long."""
    given = {name.lower(): value for name, value in headers.items()}
    signed = {name: given.get(name, "") for name in SIGNED_HEADERS}
    if missing := [name for name, value in signed.items() if not value]:
        raise DeliveryRefused(
            "headers",
            f"The delivery lacks {', '.join(missing)}: make every proxy in front pass these headers on.",
        )
    if sum(map(len, signed.values())) > HEADERS_LIMIT:
        raise DeliveryRefused(
            "malformed",
            f"The svix headers are longer than {HEADERS_LIMIT} characters: send fewer signatures.",
        )
    if not DELIVERY_ID.fullmatch(signed["svix-id"]):
        raise DeliveryRefused(
            "malformed", "The svix-id must be 1 to 128 letters, digits, dots, underscores or hyphens."
        )
    return signed


def _read_delivery(delivery_id: str, body: bytes) -> Delivery:
    envelope = _parse(body)
    if not isinstance(envelope, dict):
        raise DeliveryRefused("malformed", "The body is not a JSON object: send a Clerk event.")
    timestamp, data = envelope.get("timestamp"), envelope.get("data")
    instance_id = envelope.get("instance_id")
    return Delivery(
        id=delivery_id,
        instance_id=instance_id if isinstance(instance_id, str) else "",
        type=_event_type(envelope.get("type")),
        # Milliseconds in Clerk's documentation, seconds in its own examples.
        occurred_at=instant_from(timestamp) or instant_from(timestamp, timedelta(seconds=1)),
        data=data if isinstance(data, dict) else {},
    )


def _event_type(name: object) -> str:
    is_name = isinstance(name, str) and 0 < len(name) <= 128 and name.isprintable()
    return str(name) if is_name else "unknown"


def _parse(body: bytes) -> object:
    """Parse JSON; return None if it is malformed, or nested too deeply."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None

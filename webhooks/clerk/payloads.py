"""Users and subscription items as Clerk sends them, parsed leniently.

Only the members that are used are read, so an unusable user, or a member that Clerk adds, affects nothing
else.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.conf import settings

from quotas.rules.values import USER_ID

DELIVERY_ID = re.compile(r"[A-Za-z0-9_.-]{1,128}")
EMAIL_LIMIT = 320  # characters
# The statuses of an item, as Clerk writes them. A payment that is past due keeps the plan.
GIVING, ENDED = ("active", "canceled", "past_due"), ("ended", "expired", "abandoned")
SLUG = re.compile("[!-~]{1,128}")

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)
SANE = (datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))


class NotConfigured(Exception):
    """A required setting is missing or malformed; the text names it and its form."""


class UnusablePayload(ValueError):
    """A user or item that cannot be processed; the text is the reason, without the value."""


@dataclass(frozen=True, slots=True)
class ClerkUser:
    user_id: str
    email: str  # the primary one, or ""
    updated_at: datetime | None
    plan: str | None = None  # its name in the metadata, "" if none; None if plans there are not read


@dataclass(frozen=True, slots=True)
class ClerkItem:
    """A subscription item: one plan, and the user or organization that pays for it."""

    item_id: str
    user_id: str  # "" if an organization pays
    plan: str  # its slug, "" if there is none
    updated_at: datetime | None
    status: str
    is_free: bool  # Clerk Billing gives each sign-up such an item

    @property
    def current_plan(self) -> str | None:
        """The plan that the item gives in its status; "" if it has ended, None if it gives none yet."""
        if self.status in ENDED:
            return ""
        return (self.plan or None) if self.status in GIVING else None


def read_user(data: Mapping[str, object]) -> ClerkUser:
    """Parse a user, in the form that user.* events and the Backend API share.

    Raises UnusablePayload if the id or e-mail cannot be stored; any other ill-typed member counts as absent.
    """
    user_id = data.get("id")
    if not isinstance(user_id, str) or not user_id:
        raise UnusablePayload("the id is missing")
    if not USER_ID.fullmatch(user_id):
        raise UnusablePayload("the id is not 1 to 128 of the characters A-Z a-z 0-9 _ : . @ -")
    return ClerkUser(
        user_id, _primary_email(data), instant_from(data.get("updated_at")), _plan_in_metadata(data)
    )


def read_item(data: Mapping[str, object]) -> ClerkItem:
    """Parse the subscription item of a subscriptionItem.* event.

    Raises UnusablePayload if the item has no usable id, or no payer, or a payer with an unusable id.
    """
    item_id, payer, plan = data.get("id"), data.get("payer"), data.get("plan")
    if not isinstance(item_id, str) or not DELIVERY_ID.fullmatch(item_id):
        raise UnusablePayload("the item's id is missing, or not 1 to 128 letters, digits, dots, _ or -")
    payer = payer if isinstance(payer, dict) else {}
    user_id = payer.get("user_id") or ""  # Clerk sends "" if an organization pays
    if not user_id and not payer.get("organization_id"):
        raise UnusablePayload("the item has no payer")
    if user_id and not (isinstance(user_id, str) and USER_ID.fullmatch(user_id)):
        raise UnusablePayload("the payer's id is not 1 to 128 of the characters A-Z a-z 0-9 _ : . @ -")
    plan = plan if isinstance(plan, dict) else {}
    return ClerkItem(
        item_id,
        str(user_id),
        _slug_from(plan.get("slug")),
        instant_from(data.get("updated_at")),
        status=str(data.get("status")),
        is_free=plan.get("amount") == 0,
    )


def signed_up_at(data: Mapping[str, object]) -> datetime | None:
    """Return when a user of the Backend API was created; `walk_users` is in this order."""
    return instant_from(data.get("created_at"))


def _primary_email(data: Mapping[str, object]) -> str:
    primary_id, addresses = data.get("primary_email_address_id"), data.get("email_addresses")
    if not isinstance(primary_id, str) or not isinstance(addresses, list):
        return ""
    for address in addresses:
        if isinstance(address, dict) and address.get("id") == primary_id:
            email = address.get("email_address")
            return _storable(email) if isinstance(email, str) else ""
    return ""


def _plan_in_metadata(data: Mapping[str, object]) -> str | None:
    key, metadata = settings.CLERK_PLAN_METADATA_KEY, data.get("public_metadata")
    if not key:
        return None
    name = metadata.get(key) if isinstance(metadata, dict) else ""
    # A name that no plan can have, such as " pro", is kept too, so that a warning can show it.
    return name if isinstance(name, str) and len(name) <= 128 and name.isprintable() else ""


def _slug_from(value: object) -> str:
    """Return the slug of a plan, which need not exist here; "" if the value cannot be a slug."""
    return value if isinstance(value, str) and SLUG.fullmatch(value) else ""


def _storable(email: str) -> str:
    if len(email) > EMAIL_LIMIT:
        raise UnusablePayload(f"the e-mail is longer than {EMAIL_LIMIT} characters")
    if re.search("[\0\ud800-\udfff]", email):
        raise UnusablePayload("the e-mail holds U+0000 or half of a surrogate pair")
    return email


def instant_from(value: object, unit: timedelta = MILLISECOND) -> datetime | None:
    """Return the instant `value` units after 1970; None unless `value` is an int and this century's."""
    if not isinstance(value, int):
        return None
    try:
        instant = EPOCH + value * unit
    except OverflowError:
        return None
    return instant if SANE[0] <= instant < SANE[1] else None

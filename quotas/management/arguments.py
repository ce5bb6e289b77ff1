"""Argument types of the commands."""

import re
from argparse import ArgumentTypeError
from collections.abc import Callable
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from quotas.rules.values import USER_ID
from quotas.rules.zones import zone

FORMS = "2026-09-24 or 2026-09-24T08:00Z"  # examples of an instant


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError("must be a whole number from 1")
    return int(text)


def whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,10}", text) or not low <= int(text) <= high:
            raise ArgumentTypeError(f"must be a whole number from {low} to {high}")
        return int(text)

    return parse


def user_id(text: str) -> str:
    if not USER_ID.fullmatch(text):
        raise ArgumentTypeError("must be a user's id, as Clerk's dashboard shows it: user_…")
    return text


def instant(text: str) -> datetime:
    """Parse a day or an instant, in UTC unless it has an offset."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ArgumentTypeError(f"must be a day or an instant, such as {FORMS}") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def time_zone(name: str) -> ZoneInfo:
    try:
        return zone(name)
    except KeyError:
        raise ArgumentTypeError("must be a time zone such as Europe/Berlin or UTC") from None

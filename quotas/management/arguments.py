"""Types of the commands' arguments."""

from argparse import ArgumentTypeError
from datetime import UTC, datetime

FORMS = "2026-09-24, 2026-09-24T08:00Z"  # of an instant


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError("give a whole number from 1")
    return int(text)


def instant(text: str) -> datetime:
    """A day or an instant; in UTC if no offset is given."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ArgumentTypeError(f"write a day or an instant: {FORMS}") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)

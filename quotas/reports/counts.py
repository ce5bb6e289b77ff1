"""Counts that stop at a limit, so that a million rows are not counted for a page."""

from typing import Any

from django.db.models import QuerySet

MAX_COUNTED = 10_000  # rows; a longer list shows "more than 10,000"


class MoreThan(int):
    """A count that stopped at a limit: `MoreThan(10_000)` equals 10,000 and reads "more than 10,000"."""

    def __str__(self) -> str:
        return f"more than {int(self):,}"


def count_capped(rows: QuerySet[Any]) -> int:
    """Count the rows; return MoreThan(MAX_COUNTED) if there are more than MAX_COUNTED."""
    found = rows.order_by().values("pk")[: MAX_COUNTED + 1].count()
    return found if found <= MAX_COUNTED else MoreThan(MAX_COUNTED)


def count_in_words(count: int) -> str:
    return f"{count:,}" if type(count) is int else str(count)


def counted(count: int, noun: str) -> str:
    """Return "1 user" or "2 users"."""
    return f"{count_in_words(count)} {noun}{'' if count == 1 else 's'}"


def users_in_words(count: int, one: str = "", many: str = "") -> str:
    """Return "1 user" or "2 users", and the verb that fits, if it is given."""
    return f"{counted(count, 'user')} {one if count == 1 else many}".rstrip()

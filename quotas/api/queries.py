"""The query parameters, and the reads of lists, which a thread makes."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TypeVar
from urllib.parse import parse_qsl

import msgspec
from django.utils.dateparse import parse_datetime

from quotas.models import LedgerEntry, Plan
from quotas.problems import INSTANT_IN_FUTURE, INVALID_REQUEST
from quotas.reports import history

DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE = 50, 200  # entries
MAX_QUERY = 2_048  # characters: a longer one would hold up the event loop
MAX_PAGE_BYTES = 2**20  # more than a page of today's longest entries has

# A + that was not sent as %2B arrives as a blank. Between a time and an offset nothing else can be meant.
BARE_PLUS = re.compile(r"(:\d\d(?:\.\d+)?) (\d\d:?\d\d)\Z")

EntryMessage = TypeVar("EntryMessage", bound=msgspec.Struct)


def parameters(query: str) -> dict[str, str]:
    """Return the value of each parameter, the last one if there are several."""
    if len(query) > MAX_QUERY:
        raise INVALID_REQUEST(fault=f"The query must not be longer than {MAX_QUERY} characters.")
    return dict(parse_qsl(query, keep_blank_values=True))


def page(query: str) -> tuple[int, int | None]:
    """Return the size of the page of a ledger, and the seq before which it begins."""
    given = parameters(query)
    limit = number(given, "limit", DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
    before = number(given, "cursor", 0, 2**62)
    return limit, before or None


def number(given: Mapping[str, str], name: str, default: int, maximum: int) -> int:
    """Return a parameter as a whole number, or `default`; raises a 400 unless it is 1 to `maximum`."""
    if (text := given.get(name)) is None:
        return default
    if not re.fullmatch("[0-9]{1,19}", text) or not 1 <= int(text) <= maximum:
        raise INVALID_REQUEST(fault=f"{name}: must be a whole number from 1 to {maximum}.")
    return int(text)


def instant(given: Mapping[str, str], name: str) -> datetime | None:
    """Return a parameter as an instant in UTC that is not in the future; None if it is absent."""
    if (text := given.get(name)) is None:
        return None
    try:
        at = parse_datetime(BARE_PLUS.sub(r"\1+\2", text))
        at = at.astimezone(UTC) if at and at.tzinfo else None
    except (ValueError, OverflowError):  # the offset may lead to before the year 1
        at = None
    if at is None:
        raise INVALID_REQUEST(
            fault=f"{name}: must be a date and time with an offset, such as 2026-09-24T08:00:00Z."
        )
    if at > datetime.now(UTC):
        raise INSTANT_IN_FUTURE(name=name)
    return at


def truth(given: Mapping[str, str], name: str) -> bool | None:
    """Return a parameter that is true or false; None if it is absent."""
    if (text := given.get(name)) is None:
        return None
    if text not in ("true", "false"):
        raise INVALID_REQUEST(fault=f"{name}: must be true or false.")
    return text == "true"


def matching(given: Mapping[str, str], name: str, pattern: re.Pattern[str], fault: str) -> str | None:
    """Return a parameter that has this form; None if it is absent."""
    text = given.get(name)
    if text is not None and not pattern.fullmatch(text):
        raise INVALID_REQUEST(fault=f"{name}: {fault}")
    return text


def ledger_page(
    user_id: str, limit: int, before: int | None, message_of: Callable[[LedgerEntry], EntryMessage]
) -> tuple[list[EntryMessage], str | None]:
    """Return one page of a ledger, newest first, and the cursor of the next page."""
    entries = history.entries_page(user_id, before=before, limit=limit + 1)
    shown = list(fitting(map(message_of, entries[:limit])))
    return shown, str(entries[len(shown) - 1].seq) if len(entries) > len(shown) else None


def fitting(entries: Iterable[EntryMessage]) -> Iterator[EntryMessage]:
    """Yield the entries that fit into a page, at least one: metadata of earlier releases may be long."""
    size = 0
    for count, entry in enumerate(entries):
        size += len(msgspec.json.encode(entry))
        if count and size > MAX_PAGE_BYTES:
            return
        yield entry


def public_plans() -> list[Plan]:
    return list(Plan.objects.filter(is_public=True, is_archived=False))

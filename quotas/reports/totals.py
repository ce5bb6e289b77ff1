"""Spends and refusals per day (UTC, by the database's clock): of one user, and of all users.

A spend writes no total: all spends would wait for a row that each of them increments. Past hours are summed
once, at the first view, and stored, so they survive the pruning of the ledger; the rest is summed each time.
"""

import math
import time
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from django.db import OperationalError, connection, transaction
from django.db.models import Count, Func, Max, Q, QuerySet, Sum
from django.db.models.functions import Coalesce, TruncDate, TruncHour

from quotas.models import HourlyTotal, LedgerEntry
from quotas.rules.values import EntryKind
from quotas.store.direct import clock
from quotas.store.errors import is_statement_timeout

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
CLOSE_DELAY = timedelta(minutes=5)  # after an hour's end, when all that was decided in it is committed
SKEW = timedelta(minutes=15)  # at most, between the clock that makes the ids of entries and the database's
BUDGET = 1.0  # seconds that one view may spend on summing new hours
MAX_HOURS_PER_QUERY = 24
MAX_ENTRIES_READ = 10_000  # of one user
MAX_REFUSALS_READ = 10_000
MAX_USERS_COUNTED = 10_000  # more are estimated

# From the last ANALYZE: the number of rows, times the share of them that is not deleted.
ESTIMATE = """
    SELECT c.reltuples * COALESCE(s.null_frac, 1)
    FROM pg_class AS c
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    LEFT JOIN pg_stats AS s
        ON s.schemaname = n.nspname AND s.tablename = c.relname AND s.attname = 'deleted_at'
    WHERE c.oid = 'challenge_quotas'::regclass
"""


class Figures(NamedTuple):
    """The units consumed, without subtracting refunds, and the number of refusals.

    Only the first refusal in a user's period counts, because the ledger does not record later ones.
    """

    spent: int
    refused: int


class Day(NamedTuple):
    date: date
    spent: int
    refused: int


class Totals(NamedTuple):
    """The newest days, oldest first, ending today: fewer than `asked` until all hours are summed."""

    days: list[Day]
    asked: int

    @property
    def is_complete(self) -> bool:
        return len(self.days) == self.asked


class Refusals(NamedTuple):
    """The users with the most refusals since `since`, as (user id, count), the most first."""

    users: list[tuple[str, int]]
    since: datetime


class About(int):
    """An estimate: `About(1_000_000)` reads as "about 1,000,000"."""

    def __str__(self) -> str:
        return f"about {int(self):,}"


def estimated_users() -> About | None:
    """Return about how many users have a quota and are not deleted; None where a count is fast enough."""
    if connection.vendor != "postgresql":
        return None
    with connection.cursor() as cursor:
        cursor.execute(ESTIMATE)
        estimate = int(cursor.fetchone()[0])
    return About(estimate) if estimate > MAX_USERS_COUNTED else None


def most_refused(days: int = 7, users: int = 10) -> Refusals:
    """Return the users with the most refusals, of the newest MAX_REFUSALS_READ."""
    since = clock() - days * DAY
    refusals = LedgerEntry.objects.filter(kind=EntryKind.REFUSED, created_at__gte=since).order_by(
        "-created_at"
    )
    newest = list(refusals.values_list("user_id", flat=True)[:MAX_REFUSALS_READ])
    if len(newest) == MAX_REFUSALS_READ:
        since = refusals[MAX_REFUSALS_READ - 1].created_at
    return Refusals(Counter(newest).most_common(users), since)


def days_of_user(user_id: str, days: int = 30) -> list[Day]:
    """Return the user's newest days, oldest first, ending today.

    They are fewer where the newest MAX_ENTRIES_READ entries do not reach back that far.
    """
    entries = LedgerEntry.objects.filter(user_id=user_id)
    newest = entries.aggregate(seq=Max("seq"))["seq"] or 0
    entries = entries.filter(seq__gt=newest - MAX_ENTRIES_READ)
    today = clock().date()
    oldest = entries.order_by("seq").first()
    if oldest and oldest.seq > 1:  # its day, and those before it, may be incomplete
        days = max(1, min(days, (today - oldest.created_at.date()).days))  # at least today, even in part
    since = today - (days - 1) * DAY
    found = _figures(entries.filter(created_at__gte=_utc_midnight(since)), TruncDate("created_at"))
    return [Day(day, *found.get(day, (0, 0))) for day in (since + n * DAY for n in range(days))]


def days_of_everyone(days: int = 30) -> Totals:
    """Return the newest days of all users together, after summing missing hours within BUDGET."""
    now = clock()
    first, settled = _utc_midnight(now.date() - (days - 1) * DAY), _whole_hour(now - CLOSE_DELAY)
    end = _whole_hour(now) + HOUR
    hours = _closed_hours(first, settled) | _of_hours(settled, end)
    newest_first = []
    for day in (now.date() - n * DAY for n in range(days)):
        of_day = [hours.get(hour) for hour in _hours(_utc_midnight(day), min(_utc_midnight(day + DAY), end))]
        if None in of_day:
            break
        newest_first.append(Day(day, *map(sum, zip(*of_day, strict=True))))
    return Totals(newest_first[::-1], days)


def _closed_hours(first: datetime, settled: datetime) -> dict[datetime, Figures]:
    """Return the figures of the hours in between; sum and store the missing ones, the newest first.

    The stored figures of an hour are final, so concurrent calls store the same ones.
    """
    stored = HourlyTotal.objects.filter(hour__gte=first, hour__lt=settled)
    known = {total.hour: Figures(total.spent, total.refused) for total in stored}
    missing = [hour for hour in reversed(_hours(first, settled)) if hour not in known]
    deadline, at_once = time.monotonic() + BUDGET, 1
    while missing and (began := time.monotonic()) < deadline:
        end = missing[0] + HOUR
        begin = next(hour for hour in reversed(missing[:at_once]) if end - hour <= at_once * HOUR)
        try:
            with transaction.atomic():  # a timeout undoes none of the hours summed before
                of_hours = _of_hours(begin, end)
        except OperationalError as error:
            if not is_statement_timeout(error):
                raise
            break
        summed = {hour: figures for hour, figures in of_hours.items() if hour not in known}
        rows = [
            HourlyTotal(hour=hour, **figures._asdict())
            for hour, figures in sorted(summed.items(), reverse=True)
        ]
        HourlyTotal.objects.bulk_create(rows, ignore_conflicts=True)
        known |= summed
        missing = missing[len(summed) :]
        is_quick = time.monotonic() - began < BUDGET / 10
        at_once = min(2 * at_once, MAX_HOURS_PER_QUERY) if is_quick else 1
    return known


def _of_hours(begin: datetime, end: datetime) -> dict[datetime, Figures]:
    """Return the figures of each hour that begins in between, from the ledger.

    Ids are time-ordered, so the primary key finds the entries, and a spend has one index less to write.
    """
    entries = LedgerEntry.objects.filter(
        id__gte=least_id(begin - SKEW),
        id__lt=least_id(end + SKEW),
        created_at__gte=begin,
        created_at__lt=end,
    )
    found = _figures(entries, TruncHour("created_at"))
    return {hour: found.get(hour, Figures(0, 0)) for hour in _hours(begin, end)}


def _figures(entries: QuerySet[LedgerEntry], when: Func) -> dict[Any, Figures]:
    """Return the figures for each value of `when`."""
    counted = entries.filter(kind__in=[EntryKind.CONSUMED, EntryKind.REFUSED]).order_by().annotate(when=when)
    rows = counted.values_list("when").annotate(
        spent=Coalesce(Sum("cost", filter=Q(kind=EntryKind.CONSUMED)), 0),
        refused=Count("id", filter=Q(kind=EntryKind.REFUSED)),
    )
    return {at: Figures(spent, refused) for at, spent, refused in rows}


def _hours(begin: datetime, end: datetime) -> list[datetime]:
    """Return the hours from `begin`, a whole hour, until before `end`."""
    return [begin + n * HOUR for n in range(math.ceil((end - begin) / HOUR))]


def _whole_hour(instant: datetime) -> datetime:
    return instant.replace(minute=0, second=0, microsecond=0)


def _utc_midnight(day: date) -> datetime:
    return datetime.combine(day, datetime.min.time(), UTC)


def least_id(instant: datetime) -> UUID:
    """Return a lower bound of the version 7 UUIDs of that millisecond."""
    return UUID(int=int(instant.timestamp() * 1000) << 80)

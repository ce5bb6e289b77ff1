"""The removal of old history, by whole periods, so that the rest can still be audited.

Of each user's periods that began before the cut, the newest stays whole, with everything after it; the older
ones are removed. So a pruned ledger starts with the first entry of a period, whose balance is the allowance;
a spend and the refunds that gave units of it back are in one period, and go together; and the running period
is never touched. A change of plan may continue an older period (its entries then carry an older period_seq):
what lies between goes with it.
"""

import math
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from django.db import connection, transaction
from django.db.models import Count, Max, Min

from quotas.models import ChallengeQuota, LedgerEntry, Plan, PlanVersion
from quotas.store.direct import clock

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
MIN_AGE = 35 * DAY  # of an entry that may go: idempotency keys are honoured for at least that long
# Calendar periods, plus the hour when clocks are set back; other policies use the plan's own period.
LONGEST_PERIODS = {"daily": DAY + HOUR, "weekly": 7 * DAY + HOUR, "monthly": 31 * DAY + HOUR}
USERS_PER_QUERY = 1_000

DELETE = "DELETE FROM ledger_entries WHERE user_id = %s AND seq <= %s"


class TooYoung(ValueError):
    """The cut would remove entries that retries and refunds may still need."""

    def __init__(self, minimum: int) -> None:
        super().__init__(
            f"The minimum age is {minimum} days: 35, or twice the longest period that any plan has or had."
        )


class Period(NamedTuple):
    """A closed period of one user."""

    user_id: str
    period_seq: int
    last_seq: int
    entries: int


class PruneProgress(NamedTuple):
    """The work since the previous report."""

    users: int  # examined
    entries: int  # removed, or in a dry run to be removed


def min_days() -> int:
    """Return the minimum age, in days, of an entry that may go, by all plans as they are and were."""
    periods = [
        LONGEST_PERIODS.get(policy, timedelta(seconds=seconds))
        for plans in (Plan.objects, PlanVersion.objects)
        for policy, seconds in plans.values_list("reset_policy", "period_seconds")
    ]
    return math.ceil(max(MIN_AGE, 2 * max(periods, default=DAY)) / DAY)


def prune(days: int, *, batch: int, dry_run: bool = False) -> Iterator[PruneProgress]:
    """Remove the periods that had ended `days` ago, in transactions of at most `batch` entries.

    A longer period is a transaction of its own. If the caller stops, finished transactions stay, and the
    next run does the rest. Raises TooYoung at the call, before the first step.
    """
    minimum = min_days()
    if days < minimum:
        raise TooYoung(minimum)
    cut = clock() - days * DAY
    return (step for users in _users() for step in _prune(users, cut, batch, dry_run=dry_run))


def _users() -> Iterator[list[str]]:
    """Yield all user ids in chunks, by key: each starts after the last id of the one before."""
    last = ""
    ids = ChallengeQuota.objects.order_by("pk").values_list("pk", flat=True)
    while users := list(ids.filter(pk__gt=last)[:USERS_PER_QUERY]):
        yield users
        last = users[-1]


def _prune(users: list[str], cut: datetime, batch: int, *, dry_run: bool) -> Iterator[PruneProgress]:
    for periods in _batches(_closed(users, cut), batch):
        found = sum(period.entries for period in periods)
        yield PruneProgress(0, found if dry_run else _delete(periods))
    yield PruneProgress(len(users), 0)


def _closed(users: list[str], cut: datetime) -> Iterator[Period]:
    """Yield the periods of these users that may go: user by user, oldest first.

    One range of ids per query: over the index, and in one answer for all of them.
    """
    rows = (
        LedgerEntry.objects.filter(user_id__gte=users[0], user_id__lte=users[-1])
        .values_list("user_id", "period_seq")
        .annotate(Min("created_at"), Max("seq"), Count("id"))
        .order_by("user_id", "period_seq")
    )
    known = set(users)
    for user_id, of_user in groupby(rows, itemgetter(0)):
        if user_id in known:
            yield from _closed_of(user_id, of_user, cut)


def _closed_of(user_id: str, rows: Iterable[tuple[Any, ...]], cut: datetime) -> list[Period]:
    """Return the user's periods that may go: those that began before the cut, except the newest."""
    closed: list[Period] = []
    for _, period_seq, began_at, last_seq, entries in rows:
        if closed and period_seq <= closed[-1].last_seq:  # it continues that one, or lies within it
            before = closed.pop()
            merged = max(before.last_seq, last_seq), before.entries + entries
            closed.append(Period(user_id, before.period_seq, *merged))
        elif began_at < cut:
            closed.append(Period(user_id, period_seq, last_seq, entries))
    return closed[:-1]


def _batches(periods: Iterable[Period], size: int) -> Iterator[list[Period]]:
    """Yield the periods in groups of at most `size` entries; a longer period is a group of its own."""
    group: list[Period] = []
    entries = 0
    for period in periods:
        if group and entries + period.entries > size:
            yield group
            group, entries = [], 0
        group.append(period)
        entries += period.entries
    if group:
        yield group


def _delete(periods: list[Period]) -> int:
    """Remove these periods, and return the number of their entries."""
    ends = {period.user_id: period.last_seq for period in periods}
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.executemany(DELETE, list(ends.items()))
        return int(cursor.rowcount)

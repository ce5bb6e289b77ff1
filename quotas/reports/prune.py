"""The removal of old history, period by whole period, so that what stays can still be audited.

Of each user's periods that had begun before the cut the newest stays, whole, and with it all that
came after; the older ones go. So a pruned ledger begins with the entry that began a period, whose
balance is that period's allowance; a spend and the refunds that gave some of it back, which are of
one period, go together; and the running period is never touched.
"""

import math
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import NamedTuple

from django.db import connection, transaction
from django.db.models import Count, Max

from quotas.models import ChallengeQuota, LedgerEntry, Plan, PlanVersion
from quotas.store.commit import clock

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
MIN_AGE = 35 * DAY  # of an entry that may go: keys are honoured at least that long
# By the calendar, with the hour of a clock that is set back; the other policies go by their period.
LONGEST_PERIODS = {"daily": DAY + HOUR, "weekly": 7 * DAY + HOUR, "monthly": 31 * DAY + HOUR}
USERS_PER_QUERY = 500  # ids in one query

DELETE = "DELETE FROM ledger_entries WHERE user_id = %s AND seq <= %s"


class TooYoung(ValueError):
    """A cut that would take what retries and refunds may still ask for."""

    def __init__(self, least: int) -> None:
        super().__init__(
            f"The least age is {least} days: 35, or twice the longest period of any plan, now or earlier."
        )


class Period(NamedTuple):
    """A closed period of one user."""

    user_id: str
    period_seq: int
    last_seq: int
    entries: int


class PruneProgress(NamedTuple):
    """What was done since the last one."""

    users: int  # looked at
    entries: int  # removed


def min_days() -> int:
    """Return the age, in days, that an entry must have to go, by all plans as they are and were."""
    periods = [
        LONGEST_PERIODS.get(policy, timedelta(seconds=seconds))
        for plans in (Plan.objects, PlanVersion.objects)
        for policy, seconds in plans.values_list("reset_policy", "period_seconds")
    ]
    return math.ceil(max(MIN_AGE, 2 * max(periods, default=DAY)) / DAY)


def prune(days: int, *, batch: int, dry_run: bool = False) -> Iterator[PruneProgress]:
    """Remove the periods that were over `days` ago, in transactions of at most `batch` entries.

    A period that has more is a transaction of its own. What was done stays done if the caller
    stops, and the next run does the rest. Raises TooYoung before anything else.
    """
    least = min_days()
    if days < least:
        raise TooYoung(least)
    cut = clock() - days * DAY
    return (step for users in _users() for step in _prune(users, cut, batch, dry_run=dry_run))


def _users() -> Iterator[list[str]]:
    """Yield all user ids, some at a time, each time from where the last ones ended."""
    last = ""
    ids = ChallengeQuota.objects.order_by("pk").values_list("pk", flat=True)
    while users := list(ids.filter(pk__gt=last)[:USERS_PER_QUERY]):
        yield users
        last = users[-1]


def _prune(users: list[str], cut: datetime, batch: int, *, dry_run: bool) -> Iterator[PruneProgress]:
    closed = (period for user_id in users for period in _closed(user_id, cut))
    for periods in _batches(closed, batch):
        found = sum(period.entries for period in periods)
        yield PruneProgress(0, found if dry_run else _delete(periods))
    yield PruneProgress(len(users), 0)


def _closed(user_id: str, cut: datetime) -> list[Period]:
    """Return what may go, in order: of the user's periods with an entry before the cut all but the newest.

    One user at a time, over the index: for many, PostgreSQL may read the whole ledger each time.
    """
    rows = (
        LedgerEntry.objects.filter(user_id=user_id, created_at__lt=cut)
        .values_list("user_id", "period_seq")
        .annotate(Max("seq"), Count("id"))
        .order_by("period_seq")
    )
    return [Period(*row) for row in rows][:-1]


def _batches(periods: Iterable[Period], size: int) -> Iterator[list[Period]]:
    """Yield the periods in groups of at most `size` entries, or of one period."""
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
    """Remove these periods and return how many entries that were."""
    ends = {period.user_id: period.last_seq for period in periods}
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.executemany(DELETE, list(ends.items()))
        return int(cursor.rowcount)

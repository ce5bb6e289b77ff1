"""The users in the order of their ids, page by page, for another program.

No index can find who is exhausted or was seen since: on a column that a spend changes, it would end
PostgreSQL's HOT updates. So a page looks at a limited number of rows, whatever its filters find among them.
"""

from datetime import datetime
from typing import NamedTuple

from django.db.models import F, Q, QuerySet
from django.db.models.functions import Now

from quotas.models import ChallengeQuota, Plan
from quotas.reports.current import effective_quotas, read_clock
from quotas.rules.outcomes import UnknownPlan
from quotas.rules.values import Quota

MAX_ROWS_PER_PAGE = 5_000  # that a page looks at


class UserFilter(NamedTuple):
    """Which users are asked for. None: whether or not."""

    plan: str | None = None
    is_exhausted: bool | None = None
    is_deleted: bool = False
    seen_since: datetime | None = None  # their row was changed then or later


class UsersPage(NamedTuple):
    """Users with their quotas as of now, and the id after which the next page begins; None after the last."""

    users: list[tuple[ChallengeQuota, Quota]]
    next_after: str | None


def users_page(wanted: UserFilter, *, after: str, limit: int) -> UsersPage:
    """Return at most `limit` users, perhaps none although more pages follow. Raises UnknownPlan."""
    if wanted.plan is not None and not Plan.objects.filter(pk=wanted.plan).exists():
        raise UnknownPlan
    end = _end_of_page(wanted, after)
    rows = _candidates(wanted).filter(pk__gt=after).order_by("pk")
    if end is not None:
        rows = rows.filter(pk__lte=end)
    found = [(row, row.effective(read_clock(row))) for row in rows[: limit + 1]]
    if len(found) > limit:
        end = found[limit - 1][0].pk
    users = [
        (row, quota)
        for row, quota in found[:limit]
        if wanted.is_exhausted in (None, quota.spendable == 0)  # the rules decide
    ]
    return UsersPage(users, end)


def _end_of_page(wanted: UserFilter, after: str) -> str | None:
    """Return the id of the last row to look at; None if fewer are left."""
    rows = ChallengeQuota.objects.filter(pk__gt=after)
    if wanted.is_deleted:
        rows = rows.filter(deleted_at__isnull=False)  # which have an index of their own
    ids = rows.order_by("pk").values_list("pk", flat=True)
    return next(iter(ids[MAX_ROWS_PER_PAGE - 1 : MAX_ROWS_PER_PAGE]), None)


def _candidates(wanted: UserFilter) -> QuerySet[ChallengeQuota]:
    rows = effective_quotas().filter(deleted_at__isnull=not wanted.is_deleted)
    if wanted.plan is not None:
        rows = rows.filter(plan=wanted.plan)
    if wanted.seen_since is not None:
        rows = rows.filter(updated_at__gte=wanted.seen_since)
    if not wanted.is_exhausted:
        return rows
    is_running = Q(resets_at__gt=Now()) | ~Q(usage_seq=F("seq"))  # or the row does not tell
    refills_to_nothing = Q(plan__in=Plan.objects.filter(allowance=0))
    return rows.filter(Q(quota_remaining=0, quota_limit__isnull=False) & is_running | refills_to_nothing)

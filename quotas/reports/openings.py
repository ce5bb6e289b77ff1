"""Who opened the quotas: a delivery of Clerk, the user's first request, a backfill, or staff."""

from datetime import datetime

from quotas.models import LedgerEntry
from quotas.reports.totals import SKEW, least_id
from quotas.rules.values import EntryKind

MAX_OPENINGS_READ = 10_000


def openings(since: datetime) -> list[tuple[str, datetime]]:
    """Return who opened a quota and when, by the actor's kind: the newest MAX_OPENINGS_READ."""
    entries = LedgerEntry.objects.filter(
        kind=EntryKind.OPENED,
        id__gte=least_id(since - SKEW),  # for the index: ids are time-ordered
        created_at__gte=since,
    )
    return [*entries.order_by("-id").values_list("actor_kind", "created_at")[:MAX_OPENINGS_READ]]

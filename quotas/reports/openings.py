"""Who opened the quotas: a delivery of Clerk, a first request, a command, or staff."""

from datetime import datetime

from quotas.models import LedgerEntry
from quotas.reports.totals import SKEW, least_id
from quotas.rules.values import EntryKind

MAX_OPENINGS_READ = 10_000


def openings(since: datetime) -> list[tuple[str, str, datetime]]:
    """Return who opened a quota, by the actor's kind and id, and when: the newest MAX_OPENINGS_READ."""
    entries = LedgerEntry.objects.filter(
        kind=EntryKind.OPENED,
        id__gte=least_id(since - SKEW),  # for the index: ids are time-ordered
        created_at__gte=since,
    )
    return [*entries.order_by("-id").values_list("actor_kind", "actor_id", "created_at")[:MAX_OPENINGS_READ]]

"""Who opened the quotas: a delivery of Clerk, the user's first request, a backfill, or staff."""

from collections import Counter
from datetime import datetime

from quotas.models import LedgerEntry
from quotas.reports.totals import SKEW, least_id
from quotas.rules.values import EntryKind

MAX_OPENINGS_READ = 10_000


def openings(begin: datetime, end: datetime) -> Counter[str]:
    """Return how many quotas each kind of actor opened in between, of the newest MAX_OPENINGS_READ."""
    entries = LedgerEntry.objects.filter(
        kind=EntryKind.OPENED,
        id__gte=least_id(begin - SKEW),  # for the index: ids are time-ordered
        created_at__gte=begin,
        created_at__lt=end,
    )
    return Counter(entries.order_by("-id").values_list("actor_kind", flat=True)[:MAX_OPENINGS_READ])

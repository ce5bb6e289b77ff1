"""Whether Clerk's deliveries arrive.

A user whose delivery is missing gets a quota by their first request, so nobody notices: a webhook that was
never added, or whose address is wrong, leaves no failed delivery here.
"""

from collections import Counter
from datetime import datetime, timedelta
from typing import NamedTuple

from quotas.reports.openings import openings
from quotas.store.direct import clock
from webhooks.models import WebhookEvent

DAYS = timedelta(days=7)
ON_ITS_WAY = timedelta(minutes=10)  # an app may ask for a new user's quota before the delivery arrives
REQUESTS = ("user", "service")  # the actors of a first request
OPENED_BY = {
    "A delivery from Clerk": ("webhook",),
    "The user's first request": ("user",),
    "A server's first request": ("service",),
    "Staff or a command, such as the backfill": ("staff", "command"),
}


class Arrivals(NamedTuple):
    """The quotas that were opened in the last DAYS by each kind of actor, and Clerk's last delivery."""

    opened: Counter[str]
    last: datetime | None  # when the newest delivery of the inbox was handled
    missed: int  # quotas that first requests opened since then, in the last DAYS

    @classmethod
    def now(cls) -> "Arrivals":
        now = clock()
        found = openings(now - DAYS)
        last = WebhookEvent.objects.values_list("handled_at", flat=True).order_by("-handled_at").first()
        missed = [
            kind
            for kind, at in found
            if kind in REQUESTS and at < now - ON_ITS_WAY and (last is None or at >= last)
        ]
        return cls(Counter(kind for kind, _ in found), last, len(missed))

    @property
    def rows(self) -> list[tuple[str, str]]:
        """Who opened quotas, and how many."""
        return [
            (label, f"{sum(self.opened[kind] for kind in kinds):,}") for label, kinds in OPENED_BY.items()
        ]

    @property
    def fault(self) -> str:
        """What is probably wrong, in a sentence; "" if nothing is."""
        if not self.missed:
            return ""
        since = f" since {self.last:%Y-%m-%d %H:%M} UTC" if self.last else ""
        return f"No delivery from Clerk has arrived{since}, but first requests opened quotas: {self.missed}."

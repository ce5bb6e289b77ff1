"""Whether Clerk's deliveries arrive.

A user whose delivery is missing gets a quota by their first request, so nobody notices: a webhook that was
never added, or whose address is wrong, leaves no failed delivery here.
"""

from collections import Counter
from datetime import datetime, timedelta
from typing import NamedTuple

from django.db.models import Max, Sum

from quotas.reports.openings import openings
from quotas.store.direct import clock
from webhooks.models import DeliveryRefusals, WebhookEvent

DAYS = timedelta(days=7)
ON_ITS_WAY = timedelta(minutes=10)  # an app may ask for a new user's quota before the delivery arrives
REQUESTS = ("user", "service")  # who opens a quota by a first request
COMMANDS = {"backfill_quotas": "backfill", "import_quotas": "import"}
OPENED_BY = {
    "webhook": "A delivery from Clerk",
    "user": "The user's first request",
    "service": "A server's first request",
    "backfill": "The backfill (backfill_quotas)",
    "import": "An import (import_quotas)",
    "staff": "Staff, or another command",
}
REASONS = {
    "signature": "The signature does not match CLERK_WEBHOOK_SIGNING_SECRET",
    "timestamp": "The time is off by more than five minutes: this server's clock, or an old message",
    "not_configured": "CLERK_WEBHOOK_SIGNING_SECRET holds no usable secret",
    "headers": "Svix's headers are missing: a stranger, or a proxy that drops them",
    "malformed": "The id or the body cannot be read",
}
OF_CLERK = ("signature", "timestamp", "not_configured")  # reasons that strangers seldom meet


class Refused(NamedTuple):
    times: int  # at least: each process writes what it counted every few seconds
    last: datetime


class Arrivals(NamedTuple):
    """The quotas that were opened in the last DAYS, by opener, and Clerk's deliveries."""

    opened: Counter[str]  # by the keys of OPENED_BY
    last: datetime | None  # when the newest delivery of the inbox was handled
    age: timedelta | None  # how long ago that was
    missed: int  # quotas that first requests opened since then, in the last DAYS
    refused: dict[str, Refused]  # by the keys of REASONS, in the last DAYS

    @classmethod
    def now(cls) -> "Arrivals":
        now = clock()
        found = [(_opener(kind, actor), at) for kind, actor, at in openings(now - DAYS)]
        last = last_delivery()
        missed = [
            opener
            for opener, at in found
            if opener in REQUESTS and at < now - ON_ITS_WAY and (last is None or at >= last)
        ]
        opened = Counter(opener for opener, _ in found)
        age = now - last if last else None
        return cls(opened, last, age, len(missed), _refused(now - DAYS))

    @property
    def rows(self) -> list[tuple[str, str]]:
        """Who opened quotas, and how many."""
        return [(label, f"{self.opened[opener]:,}") for opener, label in OPENED_BY.items()]

    @property
    def refusals(self) -> list[tuple[str, str, datetime]]:
        """Why deliveries were refused, how often, and when the last one was."""
        return [(REASONS[reason], f"{each.times:,}", each.last) for reason, each in self.refused.items()]

    @property
    def faults(self) -> list[str]:
        """What is probably wrong, in sentences."""
        since = f" since {self.last:%Y-%m-%d %H:%M} UTC" if self.last else ""
        faults = []
        if self.missed:
            faults.append(
                f"No delivery from Clerk has arrived{since}, but first requests opened quotas: {self.missed}."
            )
        for reason in OF_CLERK:
            each = self.refused.get(reason)
            if each and (self.last is None or each.last > self.last):
                faults.append(f"Deliveries were refused, and none has arrived{since}: {REASONS[reason]}.")
        return faults


def last_delivery() -> datetime | None:
    """Return when the newest verified delivery was handled."""
    return WebhookEvent.objects.values_list("handled_at", flat=True).order_by("-handled_at").first()


def _opener(kind: str, actor_id: str) -> str:
    if kind == "command":
        return COMMANDS.get(actor_id, "staff")
    return kind if kind in OPENED_BY else "staff"


def _refused(since: datetime) -> dict[str, Refused]:
    rows = DeliveryRefusals.objects.filter(day__gte=since.date(), last_at__gte=since).values_list("reason")
    sums = {
        reason: Refused(times, last) for reason, times, last in rows.annotate(Sum("times"), Max("last_at"))
    }
    return {reason: sums[reason] for reason in REASONS if reason in sums}

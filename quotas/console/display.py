"""How the console displays durations, times, states and quotas."""

import math
from dataclasses import dataclass
from datetime import datetime

from django.contrib.admin.utils import quote
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from quotas.models import ChallengeQuota, LedgerEntry
from quotas.reports.current import read_clock, state_of
from quotas.rules import values
from quotas.rules.durations import duration_in_words
from quotas.rules.values import Quota


def period_in_words(plan: values.Plan) -> str:
    return duration_in_words(int(plan.window.total_seconds())) if plan.window else "a month"


def time_tag(instant: datetime, text: str = "") -> SafeString:
    """Return a <time> element with the instant in UTC, or with `text` and the instant as its tooltip."""
    shown = f"{instant:%Y-%m-%d %H:%M:%S}"
    return format_html(
        '<time datetime="{}" title="{} UTC">{}</time>', values.rfc3339(instant), shown, text or shown
    )


def chip(label: str, colour: str) -> SafeString:
    return format_html('<span class="chip {}">{}</span>', colour, label)


def quota_url(user_id: str) -> str:
    return reverse("admin:quotas_challengequota_change", args=[quote(user_id)])


def actor_label(entry: LedgerEntry) -> str:
    actor = f"{entry.actor_kind} {entry.actor_id}"
    if (entry.actor_kind, entry.actor_id) == ("user", entry.user_id):
        actor = "the user"
    return f"{actor}, by {entry.act}" if entry.act else actor


@dataclass(frozen=True, slots=True)
class QuotaDisplay:
    """A quota at one instant, as the console displays it."""

    quota: Quota
    is_deleted: bool = False

    @property
    def state(self) -> str:
        """healthy, low, exhausted or deleted."""
        return "deleted" if self.is_deleted else state_of(self.quota)

    @property
    def chip(self) -> SafeString:
        return chip(self.state, self.state)

    @property
    def units(self) -> str:
        if self.is_deleted:
            return "–"
        if self.quota.quota_limit is None:
            return "unlimited"
        return f"{self.quota.quota_remaining:,} of {self.quota.quota_limit:,}"

    @property
    def meter(self) -> str:
        """The units, after a bar if the quota has a limit."""
        limit = self.quota.quota_limit
        if self.is_deleted or limit is None:
            return self.units
        bar = (
            '<meter min="0" max="{}" low="{}" optimum="{}" value="{}" aria-label="{} units left"></meter> {}'
        )
        most = max(limit, 1)  # a <meter>'s max must exceed its min
        return format_html(
            f'<span class="units">{bar}</span>',
            *(most, most / 5, most, self.quota.quota_remaining, self.units, self.units),
        )

    @property
    def why(self) -> str:
        """How the balance relates to the plan, in one sentence."""
        plan, limit = self.quota.plan.name, self.quota.quota_limit
        used, given = self.quota.used, self.quota.given
        if limit is None:
            return f"The plan {plan} has no limit."
        parts = [f"The plan {plan} gives {limit:,} per period", f"used so far: {used:,}"]
        if given:
            parts.append(f"{'added' if given > 0 else 'removed'} by staff: {abs(given):,}")
        if (over := used - limit - given) > 0:
            parts.append(f"so {over:,} were used beyond it, and units that are added cover these first")
        return "; ".join(parts) + "."

    @property
    def resets_in(self) -> str:
        """The time until the reset, rounded up, with the instant as its tooltip."""
        if self.is_deleted:
            return self.units
        seconds = self.quota.seconds_to_reset
        step = 1 if seconds < 60 else 60 if seconds < 86_400 else 3_600
        return time_tag(self.quota.resets_at, duration_in_words(math.ceil(seconds / step) * step))


def display_of(quota: ChallengeQuota) -> QuotaDisplay:
    return QuotaDisplay(quota.effective(read_clock(quota)), quota.deleted_at is not None)

"""What the pages of the console share: how staff read things, and lists that stay quick however long."""

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from django.contrib import admin
from django.contrib.admin.utils import quote
from django.core.paginator import Paginator
from django.db.models import Model, QuerySet
from django.db.models.functions import Now
from django.http import HttpRequest
from django.urls import reverse
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.safestring import SafeString

from quotas.models import ChallengeQuota, LedgerEntry
from quotas.rules import values
from quotas.rules.values import Quota

MOST_COUNTED = 10_000  # rows; a list of more says so
UNITS_OF_TIME = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


class MoreThan(int):
    """A count that was broken off: `MoreThan(10_000)` is 10,000, and reads as "more than 10,000"."""

    def __str__(self) -> str:
        return f"more than {int(self):,}"


def count_some(rows: QuerySet[Any]) -> int:
    """How many rows there are, counted no further than MOST_COUNTED."""
    found = rows.order_by().values("pk")[: MOST_COUNTED + 1].count()
    return found if found <= MOST_COUNTED else MoreThan(MOST_COUNTED)


class CappedPaginator(Paginator):  # type: ignore[type-arg] # Django's is not generic when it runs
    """Count only so far, so that the first page of a million rows comes at once."""

    @cached_property
    def count(self) -> int:
        return count_some(cast(QuerySet[Model], self.object_list))


class ReadOnlyAdmin(admin.ModelAdmin):  # type: ignore[type-arg] # nor is this
    """A list that stays quick when it is long, of what nobody adds, edits or deletes here."""

    paginator = CappedPaginator
    list_per_page = list_max_show_all = 50
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    sortable_by = ()

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


def in_words(seconds: int) -> str:
    """5400 is "1 h 30 min"."""
    words = []
    for unit, size in UNITS_OF_TIME:
        count, seconds = divmod(seconds, size)
        words += [f"{count} {unit}"] if count else []
    return " ".join(words) or "0 s"


def length(plan: values.Plan) -> str:
    """How long a period of the plan is, in words."""
    return in_words(int(plan.window.total_seconds())) if plan.window else "a month"


def clock_time(instant: datetime, text: str = "") -> SafeString:
    """The instant, or `text` with the instant behind it; in UTC, the time zone of the settings."""
    shown = f"{instant:%Y-%m-%d %H:%M:%S}"
    return format_html(
        '<time datetime="{}" title="{} UTC">{}</time>', values.rfc3339(instant), shown, text or shown
    )


def chip(word: str, colour: str) -> SafeString:
    return format_html('<span class="chip {}">{}</span>', colour, word)


def address(user_id: str) -> str:
    """Where the page of the user's quota is."""
    return reverse("admin:quotas_challengequota_change", args=[quote(user_id)])


def who(entry: LedgerEntry) -> str:
    actor = f"{entry.actor_kind} {entry.actor_id}"
    if (entry.actor_kind, entry.actor_id) == ("user", entry.user_id):
        actor = "the user"
    return f"{actor}, by {entry.act}" if entry.act else actor


@dataclass(frozen=True, slots=True)
class Standing:
    """How a quota stands at one instant, as staff read it."""

    quota: Quota
    is_deleted: bool = False

    @property
    def state(self) -> str:
        """One word: healthy, low (a fifth is left, or less), exhausted or deleted."""
        limit, remaining = self.quota.quota_limit, self.quota.quota_remaining
        if self.is_deleted:
            return "deleted"
        if limit is None or remaining * 5 > limit:
            return "healthy"
        return "low" if remaining else "exhausted"

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
        """The units in figures, behind a bar where there is a limit."""
        limit = self.quota.quota_limit
        if self.is_deleted or limit is None:
            return self.units
        bar = (
            '<meter min="0" max="{}" low="{}" optimum="{}" value="{}" aria-label="{} units left"></meter> {}'
        )
        most = max(limit, 1)  # a bar has a length
        return format_html(
            f'<span class="units">{bar}</span>',
            *(most, most / 5, most, self.quota.quota_remaining, self.units, self.units),
        )

    @property
    def why(self) -> str:
        """What the figures come from, in one sentence."""
        plan, limit, used = self.quota.plan.name, self.quota.quota_limit, self.quota.used
        if limit is None:
            return f"The plan {plan} has no limit."
        if (extra := self.quota.quota_remaining - limit) > 0:
            return f"The plan {plan} gives {limit:,} a period, and {extra:,} more were added."
        return f"The plan {plan} gives {limit:,} a period, and {used:,} of them are used."

    @property
    def resets_in(self) -> str:
        """The time to the reset, rounded up, with the instant behind it."""
        if self.is_deleted:
            return self.units
        seconds = self.quota.seconds_to_reset
        step = 1 if seconds < 60 else 60 if seconds < 86_400 else 3_600
        return clock_time(self.quota.resets_at, in_words(math.ceil(seconds / step) * step))


def effective_quotas() -> QuerySet[ChallengeQuota]:
    """Quotas with all that it takes to tell how each stands: no query more for any of them."""
    quotas = ChallengeQuota.objects.annotate(now=Now())
    return quotas.select_related("plan").prefetch_related("plan__versions")


def read_clock(quota: ChallengeQuota) -> datetime:
    """The database's clock when `quota` was read, which is the one that the rules go by."""
    return cast(datetime, quota.now)  # type: ignore[attr-defined] # of effective_quotas


def standing(quota: ChallengeQuota) -> Standing:
    return Standing(quota.effective(read_clock(quota)), quota.deleted_at is not None)

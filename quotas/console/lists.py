"""Lists of the console that stay quick however long they are."""

from typing import Any, cast

from django.contrib import admin
from django.core.paginator import Paginator
from django.db.models import Model, QuerySet
from django.db.models.functions import Now
from django.http import HttpRequest
from django.utils.functional import cached_property

from quotas.models import ChallengeQuota

MAX_COUNTED = 10_000  # rows; a list of more says so


class MoreThan(int):
    """A count that was broken off: `MoreThan(10_000)` is 10,000, and reads as "more than 10,000"."""

    def __str__(self) -> str:
        return f"more than {int(self):,}"


def count_capped(rows: QuerySet[Any]) -> int:
    """How many rows there are, counted no further than MOST_COUNTED."""
    found = rows.order_by().values("pk")[: MAX_COUNTED + 1].count()
    return found if found <= MAX_COUNTED else MoreThan(MAX_COUNTED)


class CappedPaginator(Paginator):  # type: ignore[type-arg] # Django's is not generic when it runs
    """Count only so far, so that the first page of a million rows comes at once."""

    @cached_property
    def count(self) -> int:
        return count_capped(cast(QuerySet[Model], self.object_list))


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


def effective_quotas() -> QuerySet[ChallengeQuota]:
    """Quotas with all that it takes to tell how each stands: no query more for any of them."""
    quotas = ChallengeQuota.objects.annotate(now=Now())
    return quotas.select_related("plan").prefetch_related("plan__versions")

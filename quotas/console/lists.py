"""Console lists that stay fast on tables of any size."""

from typing import Any, cast

from django.contrib import admin
from django.core.paginator import Paginator
from django.db.models import Model, QuerySet
from django.db.models.functions import Now
from django.http import HttpRequest
from django.utils.functional import cached_property

from quotas.models import ChallengeQuota

MAX_COUNTED = 10_000  # rows; a longer list shows "more than 10,000"


class MoreThan(int):
    """A count that stopped at a limit: `MoreThan(10_000)` equals 10,000 and reads "more than 10,000"."""

    def __str__(self) -> str:
        return f"more than {int(self):,}"


def count_capped(rows: QuerySet[Any]) -> int:
    """Count the rows; return MoreThan(MAX_COUNTED) if there are more than MAX_COUNTED."""
    found = rows.order_by().values("pk")[: MAX_COUNTED + 1].count()
    return found if found <= MAX_COUNTED else MoreThan(MAX_COUNTED)


class CappedPaginator(Paginator):  # type: ignore[type-arg] # Django's is not generic at run time
    """Counts at most MAX_COUNTED rows, so that the first page of a million rows comes at once."""

    @cached_property
    def count(self) -> int:
        return count_capped(cast(QuerySet[Model], self.object_list))


class ReadOnlyAdmin(admin.ModelAdmin):  # type: ignore[type-arg] # Django's is not generic at run time
    """A fast list of rows that cannot be added, edited or deleted in the console."""

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
    """Return quotas with everything that their display needs, so that no row costs a query of its own."""
    quotas = ChallengeQuota.objects.annotate(now=Now())
    return quotas.prefetch_related("plan__versions")  # one Plan for all its rows, unlike select_related

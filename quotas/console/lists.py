"""Console lists that stay fast on tables of any size."""

from typing import cast

from django.contrib import admin
from django.core.paginator import Paginator
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.utils.functional import cached_property

from quotas.reports.counts import count_capped


class CappedPaginator(Paginator):  # type: ignore[type-arg] # Django's is not generic at run time
    """Counts capped, so that the first page of a million rows comes at once."""

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

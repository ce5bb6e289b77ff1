"""The inbox, for staff who ask what a delivery did."""

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString

from quotas.admin import ReadOnlyAdmin, clock_time
from webhooks.handlers import HANDLERS
from webhooks.models import WebhookEvent


class TypeFilter(admin.SimpleListFilter):
    """By the types that are handled: asking the rows which types there are would read them all."""

    title = parameter_name = "type"

    def lookups(self, request: HttpRequest, model_admin: object) -> list[tuple[str, str]]:
        return [*((name, name) for name in HANDLERS), ("other", "other")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() in HANDLERS:
            return queryset.filter(type=self.value())
        return queryset.exclude(type__in=HANDLERS) if self.value() == "other" else queryset


@admin.register(WebhookEvent)
class WebhookEventAdmin(ReadOnlyAdmin):
    list_display = ["when", "type", "user_id", "status", "note"]
    list_filter = ["status", TypeFilter]
    search_fields = ["user_id__startswith", "svix_id__startswith"]
    search_help_text = "The beginning of a user id, or of a delivery's id"

    @admin.display(description="handled (UTC)")
    def when(self, event: WebhookEvent) -> SafeString:
        return clock_time(event.handled_at)

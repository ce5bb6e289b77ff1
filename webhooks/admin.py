"""The inbox for staff: the outcome of each delivery, and an action that applies one again."""

from typing import Any

from django.contrib import admin, messages
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString

from quotas.console.display import chip, quota_url, time_tag
from quotas.console.lists import ReadOnlyAdmin
from webhooks.handlers import HANDLERS, apply
from webhooks.models import WebhookEvent

MAX_EVENTS_PER_ACTION = 500
COLOURS = {"success": "healthy", "warning": "low", "ignored": "deleted"}


class TypeFilter(admin.SimpleListFilter):
    """Filter by handled type; a query for the types that exist would read all rows."""

    title = parameter_name = "type"

    def lookups(self, request: HttpRequest, model_admin: object) -> list[tuple[str, str]]:
        return [*((name, name) for name in HANDLERS), ("other", "other")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() in HANDLERS:
            return queryset.filter(type=self.value())
        if self.value() == "other":  # they are always ignored, and ignored events have an index
            return queryset.filter(status="ignored").exclude(type__in=HANDLERS)
        return queryset


@admin.register(WebhookEvent)
class WebhookEventAdmin(ReadOnlyAdmin):
    """Read-only, except for the action that applies events again."""

    list_display = ["when", "type", "user", "outcome", "plan", "note"]
    list_filter = ["status", TypeFilter]
    search_fields = ["user_id__startswith", "svix_id__startswith"]
    search_help_text = "The beginning of a user id, or of a delivery id"
    actions = ["apply_again"]

    def has_apply_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("webhooks.change_webhookevent")

    @admin.display(description="handled (UTC)")
    def when(self, event: WebhookEvent) -> SafeString:
        return time_tag(event.handled_at)

    @admin.display
    def user(self, event: WebhookEvent) -> SafeString | str:
        return event.user_id and format_html('<a href="{}">{}</a>', quota_url(event.user_id), event.user_id)

    @admin.display(description="status")
    def outcome(self, event: WebhookEvent) -> SafeString:
        return chip(event.status, COLOURS[event.status])

    @admin.action(description="Apply again", permissions=["apply"])
    def apply_again(self, request: HttpRequest, events: QuerySet[WebhookEvent]) -> None:
        """Apply the events again, oldest first, for example after an unknown plan was added."""
        chosen = list(events.order_by("handled_at")[: MAX_EVENTS_PER_ACTION + 1])
        if len(chosen) > MAX_EVENTS_PER_ACTION:
            too_many = f"At most {MAX_EVENTS_PER_ACTION} events at a time: nothing was done."
            self.message_user(request, too_many, messages.ERROR)
            return
        statuses = [self._apply(event) for event in chosen]
        counts = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
        has_warning = WebhookEvent.Status.WARNING in statuses
        level = messages.WARNING if has_warning else messages.SUCCESS
        self.message_user(request, f"Applied again: {counts}.", level)

    def _apply(self, event: WebhookEvent) -> str:
        if event.type in HANDLERS and not event.user_id:
            return event.status  # its data were not stored, for the reason in its note
        with transaction.atomic():
            apply(event)
            changes = {"status": event.status, "note": event.note}
            if not event.email:  # never write an e-mail: a concurrent deletion may have erased it
                changes["email"] = ""
            WebhookEvent.objects.filter(pk=event.pk).update(**changes)
        return event.status

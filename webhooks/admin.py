"""The inbox, for staff who ask what a delivery did, and for whom it is to be done again."""

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

MAX_EVENTS_PER_ACTION = 500  # events that are applied again
COLOURS = {"success": "healthy", "warning": "low", "ignored": "deleted"}


class TypeFilter(admin.SimpleListFilter):
    """By the types that are handled: asking the rows which types there are would read them all."""

    title = parameter_name = "type"

    def lookups(self, request: HttpRequest, model_admin: object) -> list[tuple[str, str]]:
        return [*((name, name) for name in HANDLERS), ("other", "other")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() in HANDLERS:
            return queryset.filter(type=self.value())
        if self.value() == "other":  # all of these are ignored, and for what is ignored there is an index
            return queryset.filter(status="ignored").exclude(type__in=HANDLERS)
        return queryset


@admin.register(WebhookEvent)
class WebhookEventAdmin(ReadOnlyAdmin):
    """Read-only, but for the one act of handling an event again."""

    list_display = ["when", "type", "user", "outcome", "plan", "note"]
    list_filter = ["status", TypeFilter]
    search_fields = ["user_id__startswith", "svix_id__startswith"]
    search_help_text = "The beginning of a user id, or of a delivery's id"
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
        """Handle the events once more, oldest first, such as after a plan was added that was unknown."""
        chosen = list(events.order_by("handled_at")[: MAX_EVENTS_PER_ACTION + 1])
        if len(chosen) > MAX_EVENTS_PER_ACTION:
            too_many = f"At most {MAX_EVENTS_PER_ACTION} events at a time: nothing was done."
            self.message_user(request, too_many, messages.ERROR)
            return
        statuses = [self._apply(event) for event in chosen]
        told = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
        has_warning = WebhookEvent.Status.WARNING in statuses
        level = messages.WARNING if has_warning else messages.SUCCESS
        self.message_user(request, f"Applied again: {told}.", level)

    def _apply(self, event: WebhookEvent) -> str:
        if event.type in HANDLERS and not event.user_id:
            return event.status  # nothing that could be applied was kept: why, its note tells
        with transaction.atomic():
            apply(event)
            told = {"status": event.status, "note": event.note}
            if not event.email:  # never written back: a deletion may have emptied it meanwhile
                told["email"] = ""
            WebhookEvent.objects.filter(pk=event.pk).update(**told)
        return event.status

"""Service keys in the console: created, shown once, revoked."""

from datetime import UTC, datetime
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import Q, QuerySet
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.safestring import SafeString

from quotas.access.service_keys import KEY_CACHE_SECONDS
from quotas.console.display import chip, time_tag
from quotas.models import ServiceKey


class ServiceKeyForm(forms.ModelForm):  # type: ignore[type-arg]
    scopes = forms.MultipleChoiceField(
        choices=[(scope, scope) for scope in ServiceKey.SCOPES],
        widget=forms.CheckboxSelectMultiple,
        help_text="What the key may do. Grant no more than it needs.",
    )

    expires_at = forms.DateTimeField(  # one labelled input; the admin's own widget has two without labels
        required=False,
        widget=forms.DateTimeInput({"type": "datetime-local"}, format="%Y-%m-%dT%H:%M"),
        help_text="In UTC. Leave it empty for a key that never expires.",
    )

    def clean_expires_at(self) -> datetime | None:
        expires_at: datetime | None = self.cleaned_data["expires_at"]
        if expires_at and expires_at <= datetime.now(UTC):
            raise forms.ValidationError("This time is in the past: the key would never work.")
        return expires_at


class KeyStateFilter(admin.SimpleListFilter):
    title = parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: object) -> list[tuple[str, str]]:
        return [(state, state) for state in ("active", "expired", "revoked")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        wanted = {
            "active": ServiceKey.ACTIVE,
            "expired": Q(revoked_at=None, expires_at__lte=Now()),
            "revoked": Q(revoked_at__isnull=False),
        }
        return queryset.filter(wanted.get(self.value() or "", Q()))


@admin.register(ServiceKey)
class ServiceKeyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Keys can be created and revoked, never edited or deleted."""

    form = ServiceKeyForm
    list_display = ["name", "state", "key", "holds", "created", "expires", "last_used"]
    list_filter = [KeyStateFilter]
    search_fields = ["name", "prefix"]
    search_help_text = "Part of the name, or of the key’s first characters after qs_"
    show_facets = admin.ShowFacets.NEVER
    actions = ["revoke"]

    def get_fields(self, request: HttpRequest, obj: ServiceKey | None = None) -> list[Any]:
        return [*self.list_display] if obj else ["name", "scopes", "expires_at"]

    def lookup_allowed(self, lookup: str, value: Any, request: HttpRequest) -> bool:
        """Refuse filters by the digest: a viewer could guess it one character at a time."""
        return not lookup.startswith("digest") and super().lookup_allowed(lookup, value, request)

    def has_change_permission(self, request: HttpRequest, obj: ServiceKey | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: ServiceKey | None = None) -> bool:
        return False

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("quotas.change_servicekey")

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        one_button = {"show_save_and_add_another": False, "show_save_and_continue": False}
        return super().add_view(request, form_url, one_button)

    def save_model(self, request: HttpRequest, obj: ServiceKey, form: forms.ModelForm, change: bool) -> None:  # type: ignore[type-arg]
        made, obj.text = ServiceKey.make(obj.name, obj.scopes, obj.expires_at)  # type: ignore[attr-defined] # for response_add
        obj.pk, obj.prefix = made.pk, made.prefix

    def response_add(
        self, request: HttpRequest, obj: ServiceKey, post_url_continue: str | None = None
    ) -> HttpResponse:
        """Show the key in this response only: a message would leave it in a cookie or session until shown."""
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": f"Key of {obj.name}",
            "key": obj,
        }
        return TemplateResponse(request, "admin/quotas/service_key.html", context)

    @admin.action(description="Revoke", permissions=["revoke"])
    def revoke(self, request: HttpRequest, keys: QuerySet[ServiceKey]) -> None:
        revoked = [key for key in keys if key.revoke()]
        for key in revoked:
            self.log_change(request, key, "Revoked.")
        result = f"Keys revoked: {len(revoked)} of {len(keys)}."
        text = f"{result} They stop working within {KEY_CACHE_SECONDS} seconds."
        self.message_user(request, text, messages.SUCCESS)

    @admin.display
    def key(self, key: ServiceKey) -> str:
        return f"qs_{key.prefix}_…"

    @admin.display(description="scopes")
    def holds(self, key: ServiceKey) -> str:
        return ", ".join(key.scopes)

    @admin.display(description="created (UTC)", ordering="created_at")
    def created(self, key: ServiceKey) -> SafeString:
        return time_tag(key.created_at)

    @admin.display(description="expires (UTC)", ordering="expires_at")
    def expires(self, key: ServiceKey) -> str:
        return time_tag(key.expires_at) if key.expires_at else "never"

    @admin.display(description="last used (UTC)", ordering="last_used_at")
    def last_used(self, key: ServiceKey) -> str:
        return time_tag(key.last_used_at) if key.last_used_at else "never"

    @admin.display
    def state(self, key: ServiceKey) -> SafeString:
        return chip(key.state, {"revoked": "deleted", "expired": "low", "active": "healthy"}[key.state])

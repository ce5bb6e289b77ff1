"""Plans in the console: an edit is saved only after a preview of the users that it affects."""

from typing import Any, ClassVar

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db.models import JSONField
from django.forms.fields import InvalidJSONInput
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.safestring import SafeString

from quotas.console.display import period_in_words
from quotas.models import Plan, PlanRules, PlanVersion
from quotas.reports.plan_edits import edits_between, impact_of


class JSONInput(forms.JSONField):
    """Django's field raises what json.loads does for numbers of over 4,300 digits and for deep nesting."""

    def to_python(self, value: Any) -> Any:
        try:
            return super().to_python(value)
        except (ValueError, RecursionError):
            raise ValidationError(self.error_messages["invalid"], code="invalid") from None

    def bound_data(self, data: Any, initial: Any) -> Any:
        try:
            return super().bound_data(data, initial)
        except (ValueError, RecursionError):
            return InvalidJSONInput(data)


class PlanForm(forms.ModelForm):  # type: ignore[type-arg]
    def clean_actions(self) -> object:
        return self.cleaned_data["actions"] or {}  # an empty field means no actions, not NULL


@admin.register(Plan)
class PlanAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Plans can be added, and all of their rules edited; a running period keeps its old rules."""

    form = PlanForm
    formfield_overrides: ClassVar = {JSONField: {"form_class": JSONInput}}
    list_display = [
        "name",
        "units",
        "reset_policy",
        "period",
        "timezone",
        "version",
        "is_public",
        "is_default",
        "users",
    ]
    show_facets = admin.ShowFacets.NEVER
    actions = None
    fieldsets = [
        (None, {"fields": ["name", "is_public", "is_default"]}),
        (
            "Allowance and reset",
            {
                "fields": [*PlanRules.RULES],
                "description": "Edited rules take effect at each user’s next reset.",
            },
        ),
    ]

    def get_readonly_fields(self, request: HttpRequest, obj: Plan | None = None) -> list[str]:
        return ["name", "is_default"] if obj else ["is_default"]

    def has_delete_permission(self, request: HttpRequest, obj: Plan | None = None) -> bool:
        return False

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Extend Django's view by the plan's versions, and by a preview before edited rules are saved."""
        is_unconfirmed = object_id and request.method == "POST" and "confirmed" not in request.POST
        if is_unconfirmed and (preview := self._preview(request, str(object_id))):
            return preview
        versions = PlanVersion.objects.filter(plan=object_id).order_by("-version")
        context = {
            "versions": [(version, period_in_words(version.value)) for version in versions]
            if object_id
            else [],
            "show_save_and_add_another": False,
            "show_save_and_continue": False,
        }
        return super().changeform_view(request, object_id, form_url, {**context, **(extra_context or {})})

    def _preview(self, request: HttpRequest, object_id: str) -> HttpResponse | None:
        """Return the preview page; None without such a plan, for an invalid form, or if no rule is edited."""
        plan = self.get_object(request, object_id)
        if plan is None:
            return None
        before = {rule: getattr(plan, rule) for rule in PlanRules.RULES}
        # Without the permission to change it the form has no fields: no rule is edited, and Django refuses.
        form = self.get_form(request, plan, change=True)(request.POST, instance=plan)
        if not form.is_valid():
            return None
        edits = edits_between(before, {rule: getattr(plan, rule) for rule in PlanRules.RULES})
        if not edits:
            return None
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": f"Save the plan {plan.name}",
            "plan": plan,
            "form": form,
            "edits": edits,
            "impact": impact_of(plan.value),
        }
        return TemplateResponse(request, "admin/quotas/plan_confirm.html", context)

    @admin.display(description="allowance", ordering="allowance")
    def units(self, plan: Plan) -> str:
        return "unlimited" if plan.allowance is None else f"{plan.allowance:,}"

    @admin.display
    def period(self, plan: Plan) -> str:
        return period_in_words(plan.value)

    @admin.display(description="users")
    def users(self, plan: Plan) -> SafeString:
        query = urlencode({"plan__name__exact": plan.name})
        return format_html(
            '<a href="{}?{}">show</a>', reverse("admin:quotas_challengequota_changelist"), query
        )

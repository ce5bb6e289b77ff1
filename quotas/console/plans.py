"""Plans, for staff: edited only after a look at whom it touches."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from django import forms
from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.safestring import SafeString

from quotas.console.display import QuotaDisplay, chip, period_in_words, read_clock
from quotas.console.lists import count_capped, effective_quotas
from quotas.models import ChallengeQuota, Plan, PlanRules, PlanVersion
from quotas.rules import outcomes, values, verbs
from quotas.rules.values import Actor, OnChange, Request

MAX_JUDGED = 1_000  # users, by the rules, for a preview
STATES = ("healthy", "low", "exhausted")


@dataclass(frozen=True, slots=True)
class PlanImpact:
    """Whom a change of a plan would touch: how many users, and how those that were judged would stand."""

    users: int
    judged: int
    now: Counter[str]
    saved: Counter[str]  # with their next request, by the plan as it would be
    counted: Counter[str]  # if what they used in the running period counted against the new allowance

    @property
    def is_sample(self) -> bool:
        return self.judged < self.users

    @property
    def lines(self) -> list[tuple[SafeString, int, int, int]]:
        return [
            (chip(state, state), self.now[state], self.saved[state], self.counted[state]) for state in STATES
        ]


def impact_of(plan: values.Plan) -> PlanImpact:
    """Judge by the rules what `plan` would be, instead of the plan of its name, to those who have it."""
    quotas = effective_quotas().filter(plan=plan.name, deleted_at=None)
    judged = [quota.snapshot(read_clock(quota)) for quota in quotas.order_by()[:MAX_JUDGED]]
    saved = [replace(snapshot, current_plan=plan) for snapshot in judged]
    moves = [replace(snapshot, target=replace(plan, name="")) for snapshot in judged]  # to his own is no move
    counted = [verbs.change_plan(move, Request(Actor("", "")), OnChange.KEEP) for move in moves]
    return PlanImpact(
        users=count_capped(ChallengeQuota.objects.filter(plan=plan.name, deleted_at=None)),
        judged=len(judged),
        now=Counter(QuotaDisplay(verbs.effective(snapshot)).state for snapshot in judged),
        saved=Counter(QuotaDisplay(verbs.effective(snapshot)).state for snapshot in saved),
        counted=Counter(QuotaDisplay(it.quota).state for it in counted if isinstance(it, outcomes.Change)),
    )


class PlanForm(forms.ModelForm):  # type: ignore[type-arg]
    def clean_actions(self) -> object:
        return self.cleaned_data["actions"] or {}  # an empty box is no action, not NULL


@admin.register(Plan)
class PlanAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Plans may be added, and all of their rules edited: a running period goes on by the old ones."""

    form = PlanForm
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
            "What it gives, and when it comes back",
            {
                "fields": [*PlanRules.RULES],
                "description": "What is edited here takes effect for a user at the next reset.",
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
        """As Django's, but with the plan's versions, and with a look at whom new rules touch first."""
        is_unseen = object_id and request.method == "POST" and "confirmed" not in request.POST
        if is_unseen and (first := self._look_first(request, str(object_id))):
            return first
        versions = PlanVersion.objects.filter(plan=object_id).order_by("-version")
        context = {
            "versions": [(version, period_in_words(version.value)) for version in versions]
            if object_id
            else [],
            "show_save_and_add_another": False,
            "show_save_and_continue": False,
        }
        return super().changeform_view(request, object_id, form_url, {**context, **(extra_context or {})})

    def _look_first(self, request: HttpRequest, object_id: str) -> HttpResponse | None:
        """The page that shows whom it touches, if it is well filled in and touches anybody's rules."""
        plan = self.get_object(request, object_id)
        if plan is None:
            return None
        before = {rule: getattr(plan, rule) for rule in PlanRules.RULES}
        # Who may not change it has no fields here, edits nothing, and is refused by Django.
        form = self.get_form(request, plan, change=True)(request.POST, instance=plan)
        if not form.is_valid():
            return None
        edited = [
            (rule, old, getattr(plan, rule)) for rule, old in before.items() if old != getattr(plan, rule)
        ]
        if not edited:
            return None
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": f"Save the plan {plan.name}",
            "plan": plan,
            "form": form,
            "edited": edited,
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

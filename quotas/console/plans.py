"""Plans in the console: an edit is saved only after a preview of the users that it affects."""

from functools import partial
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.utils import quote, unquote
from django.core.exceptions import PermissionDenied, ValidationError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.functional import SimpleLazyObject
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.safestring import SafeString
from django.views.decorators.http import require_http_methods

from quotas.console.display import chip, period_in_words
from quotas.console.plan_acts import ACTS, users_wait_for, waiting_list
from quotas.console.plan_form import PlanForm
from quotas.models import Plan, PlanRules, PlanVersion
from quotas.reports.plan_edits import edits_between, impact_of
from quotas.rules.values import Actor


def plan_url(name: str, plan: Plan) -> str:
    return reverse(f"admin:quotas_plan_{name}", args=[quote(plan.pk)])


@admin.register(Plan)
class PlanAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Plans can be added, and all of their rules edited; a running period keeps its old rules."""

    form = PlanForm
    list_display = [
        "name",
        "status",
        "units",
        "reset_policy",
        "period",
        "timezone",
        "version",
        "is_public",
        "users",
    ]
    show_facets = admin.ShowFacets.NEVER
    actions = None
    READ_ONLY = {"allowance": "units", "period_seconds": "period"}  # in words where there is no form

    def get_urls(self) -> list[URLPattern]:
        guarded = self.admin_site.admin_view
        acts = [
            path(
                f"<path:object_id>/{name}/",
                guarded(require_http_methods(["GET", "HEAD", "POST"])(partial(self.act_view, name))),
                name=f"quotas_plan_{name}",
            )
            for name in ACTS
        ]
        return [*acts, *super().get_urls()]

    def get_fieldsets(self, request: HttpRequest, obj: Plan | None = None) -> Any:
        rules = {
            "fields": [*PlanRules.RULES],
            "description": "Edited rules take effect at each user’s next reset.",
        }
        if obj and not self.has_change_permission(request, obj):
            rules["fields"] = [self.READ_ONLY.get(rule, rule) for rule in PlanRules.RULES]
        status = ["status"] if obj else []
        return [(None, {"fields": ["name", "is_public", *status]}), ("Allowance and reset", rules)]

    def get_readonly_fields(self, request: HttpRequest, obj: Plan | None = None) -> list[str]:
        return ["name", "status"] if obj else []

    def has_delete_permission(self, request: HttpRequest, obj: Plan | None = None) -> bool:
        return False

    def save_model(self, request: HttpRequest, obj: Plan, form: PlanForm, change: bool) -> None:
        """Save what the form has, and nothing that another request may have changed meanwhile."""
        if change:
            obj.save(update_fields=["is_public"])  # and the rules
        else:
            obj.save(force_insert=True)

    def response_add(
        self, request: HttpRequest, obj: Plan, post_url_continue: str | None = None
    ) -> HttpResponse:
        """If users wait for the new plan, ask to give it to them."""
        response = super().response_add(request, obj, post_url_continue)
        may_give = self.has_change_permission(request, obj) and users_wait_for(obj)
        return HttpResponseRedirect(plan_url("give", obj)) if may_give else response

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        context = {"waiting": waiting_list(), "has_change_permission": self.has_change_permission(request)}
        return super().changelist_view(request, {**context, **(extra_context or {})})

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
        plan = self.get_object(request, unquote(object_id)) if object_id else None
        may_act = plan is not None and self.has_change_permission(request, plan)
        versions = PlanVersion.objects.filter(plan=plan).order_by("-version") if plan else ()
        context = {
            "versions": [(version, period_in_words(version.value)) for version in versions],
            "acts": [
                (plan_url(name, plan), act.button)
                for name, act in ACTS.items()
                if plan and may_act and name != "give" and act.is_possible(plan)
            ],
            "waiting": SimpleLazyObject(waiting_list),  # not for a save, which shows no page
            "show_save_and_add_another": False,
            "show_save_and_continue": False,
        }
        return super().changeform_view(request, object_id, form_url, {**context, **(extra_context or {})})

    def act_view(self, name: str, request: HttpRequest, object_id: str) -> HttpResponse:
        """Show what the act changes and which users it affects; carry it out if this is confirmed."""
        plan, act = get_object_or_404(Plan, pk=unquote(object_id)), ACTS[name]
        if not self.has_change_permission(request, plan):
            raise PermissionDenied
        if request.method == "POST":
            return self._run_act(request, name, plan)
        context = {
            "title": act.title.format(plan),
            "plan": plan,
            "act": act,
            "is_possible": act.is_possible(plan),
            "edits": act.edits(plan),
            "sentences": act.sentences(plan),
        }
        return self._page(request, "plan_act", context)

    def _run_act(self, request: HttpRequest, name: str, plan: Plan) -> HttpResponse:
        try:
            done = ACTS[name].run(plan, Actor("staff", request.user.get_username()))
        except ValidationError as error:
            self.message_user(request, " ".join(error.messages), messages.ERROR)
            return HttpResponseRedirect(plan_url("change", plan))
        self.log_change(request, plan, done)
        self.message_user(request, done, messages.SUCCESS)
        if name == "give" and users_wait_for(plan):
            self.message_user(request, "Others still wait: go on with this page.", messages.WARNING)
            return HttpResponseRedirect(plan_url(name, plan))
        return HttpResponseRedirect(plan_url("change", plan))

    def _preview(self, request: HttpRequest, object_id: str) -> HttpResponse | None:
        """Return the preview page; None without such a plan, for an invalid form, or if no rule is edited."""
        plan = self.get_object(request, unquote(object_id))
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
            "title": f"Save the plan {plan.name}",
            "plan": plan,
            "form": form,
            "edits": edits,
            "impact": impact_of(plan.value),
        }
        return self._page(request, "plan_confirm", context)

    def _page(self, request: HttpRequest, name: str, context: dict[str, Any]) -> TemplateResponse:
        context = {**self.admin_site.each_context(request), "opts": self.opts, **context}
        return TemplateResponse(request, f"admin/quotas/{name}.html", context)

    @admin.display(description="allowance", ordering="allowance")
    def units(self, plan: Plan) -> str:
        return "unlimited" if plan.allowance is None else f"{plan.allowance:,}"

    @admin.display
    def period(self, plan: Plan) -> str:
        return period_in_words(plan.value)

    @admin.display
    def status(self, plan: Plan) -> SafeString | str:
        if plan.is_default:
            return chip("default", "healthy")
        return chip("archived", "deleted") if plan.is_archived else "–"

    @admin.display(description="users")
    def users(self, plan: Plan) -> SafeString:
        query = urlencode({"plan__name__exact": plan.name})
        return format_html(
            '<a href="{}?{}">show</a>', reverse("admin:quotas_challengequota_changelist"), query
        )

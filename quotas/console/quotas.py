"""Quotas in the console: their current state, and the actions of staff."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.utils import unquote
from django.contrib.admin.views.main import SEARCH_VAR, ChangeListSearchForm
from django.core.exceptions import BadRequest, PermissionDenied
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, StreamingHttpResponse
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.safestring import SafeString
from django.views.decorators.http import require_safe

from quotas.console import csv_export
from quotas.console.actions import AdjustForm, ChangePlanForm, Preview, ResetForm, preview
from quotas.console.charts import daily_bars
from quotas.console.display import actor_label, display_of, period_in_words, quota_url
from quotas.console.ledger import LEDGER_CSV_COLUMNS, entry_cells
from quotas.console.lists import ReadOnlyAdmin
from quotas.models import ChallengeQuota, PlanRules
from quotas.problems import of_refusal
from quotas.reports.counts import MAX_COUNTED
from quotas.reports.current import effective_quotas, read_clock
from quotas.reports.exhausted import MAX_EXHAUSTED, exhausted
from quotas.reports.totals import days_of_user
from quotas.rules import values, verbs
from quotas.rules.outcomes import KeyReused, Refusal
from quotas.rules.values import MAX_UNITS, Actor, PlanSource, Request

MAX_EXHAUSTED_IN_FILE = 5_000  # exhausted users in a CSV file
MAX_USERS_PER_ACTION = 500  # each is a form field, and Django takes 1,000 (DATA_UPLOAD_MAX_NUMBER_FIELDS)
MAX_REFUSALS_SHOWN = 10  # of one action, shown one by one
MAX_ENTRIES_SHOWN = 50  # of the ledger, on a quota's page
EXPORT_RETRY_SECONDS = 30

PLAN_SOURCE_LABELS = {
    PlanSource.STAFF: "chosen by staff",
    PlanSource.BILLING: "from Clerk’s billing",
    PlanSource.METADATA: "from Clerk’s metadata",
    PlanSource.DEFAULT: "the default plan",
}

QUOTA_COLUMNS = (
    "user_id", "email", "plan", "state", "quota_limit", "quota_used", "quota_remaining",
    "last_reset_date", "resets_at", "deleted_at", "as_of",
)  # fmt: skip


class SpendForm(forms.Form):
    """Checks whether the user can spend N units; spends nothing."""

    spend = forms.IntegerField(
        label="Can the user spend N units? N =",
        validators=[MinValueValidator(1), MaxValueValidator(MAX_UNITS)],
        widget=forms.NumberInput(attrs={"min": 1, "max": MAX_UNITS}),
    )

    def answer(self, quota: ChallengeQuota) -> str:
        """Return the rules' answer in one sentence, or "" if nothing valid was entered."""
        if not self.is_valid():
            return ""
        cost = self.cleaned_data["spend"]
        by = Request(Actor("user", quota.user_id))
        found = verbs.forecast(quota.snapshot(read_clock(quota)), by, cost)
        if isinstance(found, Refusal):
            return f"No. {of_refusal(found).detail}"
        if found.refusal:
            return f"No. {of_refusal(found.refusal).detail}"
        left = "no limit" if found.quota.is_unlimited else f"{found.remaining_after:,}"
        return f"Yes. Left afterwards: {left}."


class QuotaStateFilter(admin.SimpleListFilter):
    """Exhausted users are found by an index on the ledger; no index could find low or healthy ones."""

    title = parameter_name = "state"
    note = ""

    def lookups(self, request: HttpRequest, model_admin: object) -> list[tuple[str, str]]:
        return [("exhausted", "exhausted now"), ("open", "not deleted"), ("deleted", "deleted")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() == "exhausted":
            found = exhausted(getattr(request, "max_exhausted", MAX_EXHAUSTED))
            if not found.is_all:
                many = f"{len(found.user_ids):,}"
                self.note = f"These are the {many} exhausted users that reset soonest; there may be more."
            return queryset.filter(pk__in=found.user_ids)
        if self.value() in ("open", "deleted"):
            return queryset.filter(deleted_at__isnull=self.value() == "open")
        return queryset


@admin.register(ChallengeQuota)
class QuotaAdmin(ReadOnlyAdmin):
    """Quotas as a request would find them now, with three actions that change them, each for a reason."""

    list_display = ["user_id", "email", "plan", "remaining", "state", "resets_in"]
    list_filter = [QuotaStateFilter, "plan"]
    search_fields = ["user_id__startswith", "email__startswith"]
    search_help_text = "Start of a user id or e-mail address"
    actions = ["reset_now", "adjust", "change_plan", "export"]

    def get_urls(self) -> list[URLPattern]:
        guarded = self.admin_site.admin_view
        quotas, ledger = guarded(require_safe(self.csv_view)), guarded(require_safe(self.ledger_csv_view))
        return [
            path("csv/", quotas, name="quotas_challengequota_csv"),
            path("<path:object_id>/ledger.csv", ledger, name="quotas_challengequota_ledger_csv"),
            *super().get_urls(),
        ]

    def get_queryset(self, request: HttpRequest) -> QuerySet[ChallengeQuota]:
        return effective_quotas()

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Search like Django, but search first and sort afterwards.

        With a LIMIT in sight PostgreSQL scans the primary key in order instead of using the search index.
        """
        matches, _ = super().get_search_results(request, queryset, search_term)
        if not search_term:
            return matches, False
        return queryset.filter(pk__in=matches.order_by().values("pk")[: MAX_COUNTED + 1]), False

    def has_act_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("quotas.change_challengequota")

    def has_change_plan_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("quotas.change_plan_of_quota")

    @admin.display
    def remaining(self, quota: ChallengeQuota) -> str:
        return display_of(quota).meter

    @admin.display
    def state(self, quota: ChallengeQuota) -> SafeString:
        return display_of(quota).chip

    @admin.display
    def resets_in(self, quota: ChallengeQuota) -> str:
        return display_of(quota).resets_in

    @admin.action(description=ResetForm.name, permissions=["act"])
    def reset_now(self, request: HttpRequest, quotas: QuerySet[ChallengeQuota]) -> HttpResponse | None:
        return self._run_action(request, quotas, ResetForm, is_allowed=self.has_act_permission(request))

    @admin.action(description=AdjustForm.name, permissions=["act"])
    def adjust(self, request: HttpRequest, quotas: QuerySet[ChallengeQuota]) -> HttpResponse | None:
        return self._run_action(request, quotas, AdjustForm, is_allowed=self.has_act_permission(request))

    @admin.action(description=ChangePlanForm.name, permissions=["change_plan"])
    def change_plan(self, request: HttpRequest, quotas: QuerySet[ChallengeQuota]) -> HttpResponse | None:
        is_allowed = self.has_change_plan_permission(request)
        return self._run_action(request, quotas, ChangePlanForm, is_allowed=is_allowed)

    @admin.action(description="Export as CSV", permissions=["view"])
    def export(
        self, request: HttpRequest, quotas: QuerySet[ChallengeQuota]
    ) -> HttpResponse | StreamingHttpResponse:
        """Export the ticked quotas; "select all" redirects to the export of the whole list."""
        if request.POST.get("select_across") == "1":
            query = request.GET.urlencode()
            return HttpResponseRedirect(f"{reverse('admin:quotas_challengequota_csv')}?{query}")
        return self._csv(request, quotas)

    def csv_view(self, request: HttpRequest) -> HttpResponse | StreamingHttpResponse:
        """Export every row that matches the list's filters and search, not only the rows of one page."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        search = ChangeListSearchForm(request.GET)
        if not search.is_valid():
            raise BadRequest("This search is not valid.")
        filters = request.GET.copy()
        filters.pop(SEARCH_VAR, None)  # the list's own search stops at MAX_COUNTED matches
        request.GET = filters  # type: ignore[assignment] # the list only reads it
        request.max_exhausted = MAX_EXHAUSTED_IN_FILE  # type: ignore[attr-defined] # for QuotaStateFilter
        try:
            shown = self.get_changelist_instance(request)
        except IncorrectLookupParameters:
            raise BadRequest("There is no such filter.") from None
        term = search.cleaned_data[SEARCH_VAR]
        is_all = not any(getattr(spec, "note", "") for spec in shown.filter_specs)
        name = "quotas.csv" if is_all else "quotas, those that reset soonest.csv"
        return self._csv(request, super().get_search_results(request, shown.queryset, term)[0], name)

    def ledger_csv_view(self, request: HttpRequest, object_id: str) -> HttpResponse | StreamingHttpResponse:
        """Export one user's whole ledger, oldest entry first."""
        if not (self.has_view_permission(request) and self._may_read_ledger(request)):
            raise PermissionDenied
        quota = get_object_or_404(ChallengeQuota, pk=unquote(object_id))
        entries = csv_export.chunks_of(quota.entries.all(), "seq")
        name = f"ledger of {quota.user_id}.csv"
        return self._stream(request, name, LEDGER_CSV_COLUMNS, entries, entry_cells)

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Show what the user can spend now, and why. Read-only: changes go through the list's actions."""
        if request.method not in ("GET", "HEAD") or not self.has_view_permission(request):
            raise PermissionDenied
        quota = get_object_or_404(self.get_queryset(request), pk=unquote(object_id))
        now, may_read_ledger = display_of(quota), self._may_read_ledger(request)
        entries = quota.entries.order_by("-seq")[:MAX_ENTRIES_SHOWN] if may_read_ledger else ()
        spend_form = SpendForm(request.GET if "spend" in request.GET else None, label_suffix="")
        context = {
            "title": quota.user_id,
            "subtitle": quota.email,
            "quota": quota,
            "now": now,
            "is_due": not now.is_deleted and quota.last_reset_date != now.quota.last_reset_date,
            "plan_source": PLAN_SOURCE_LABELS[PlanSource(quota.plan_source)],
            "policy": PlanRules.ResetPolicy(now.quota.plan.reset_policy).label,
            "period": period_in_words(now.quota.plan),
            "spend_form": spend_form,
            "answer": spend_form.answer(quota),
            "chart": daily_bars(days_of_user(quota.user_id)),
            "entries": [(entry, actor_label(entry)) for entry in entries],
            "may_act": self.has_act_permission(request) and not now.is_deleted,
            "may_change_plan": self.has_change_plan_permission(request) and not now.is_deleted,
            "may_read_ledger": may_read_ledger,
        }
        return self._page(request, "quota", context)

    def _run_action(
        self,
        request: HttpRequest,
        quotas: QuerySet[ChallengeQuota],
        form_class: type[ResetForm],
        *,
        is_allowed: bool,
    ) -> HttpResponse | None:
        """Ask for a reason, preview the result, and apply the action once it is confirmed."""
        if not is_allowed:
            raise PermissionDenied
        is_sent = "token" in request.POST
        if is_sent:  # by user id: the list's filters may no longer match these users
            quotas = self.get_queryset(request).filter(pk__in=request.POST.getlist(ACTION_CHECKBOX_NAME))
        rows = list(quotas[: MAX_USERS_PER_ACTION + 1])
        if len(rows) > MAX_USERS_PER_ACTION:
            too_many = f"Nothing was changed: select at most {MAX_USERS_PER_ACTION} users at a time."
            self.message_user(request, too_many, messages.ERROR)
            return None
        form = form_class(request.POST) if is_sent else form_class(initial={"token": uuid4()})
        actor = Actor("staff", request.user.get_username())
        back = quota_url(rows[0].user_id) if len(rows) == 1 else request.get_full_path()
        if form.is_valid() and "confirmed" in request.POST:
            self._apply(request, form, [row.user_id for row in rows], actor)
            return HttpResponseRedirect(back)
        shows_after = form_class.shows_at_once or form.is_valid()
        context = {
            "title": form.title,
            "form": form,
            "action": request.POST["action"],
            "previews": [
                preview(row, form, actor) if shows_after else Preview(row.user_id, display_of(row))
                for row in rows
            ],
            "shows_after": shows_after,
            "checkbox_name": ACTION_CHECKBOX_NAME,
            "back": back,
        }
        return self._page(request, "confirm", context)

    def _apply(self, request: HttpRequest, form: ResetForm, user_ids: list[str], actor: Actor) -> None:
        """Apply the action user by user, and report the results."""
        receipts, refusals = [], []
        for user_id in user_ids:
            try:
                receipts.append(form.apply(user_id, actor))
            except KeyReused:
                reason = "this form was already submitted with other values. Open it again."
                refusals.append(f"Not done for {user_id}: {reason}")
            except Refusal as refusal:
                refusals.append(f"Not done for {user_id}: {of_refusal(refusal).detail}")
        for text in refusals[:MAX_REFUSALS_SHOWN]:
            self.message_user(request, text, messages.ERROR)
        if (more := len(refusals) - MAX_REFUSALS_SHOWN) > 0:
            self.message_user(request, f"Not done for {more} more users.", messages.ERROR)
        if fresh := [receipt.quota for receipt in receipts if not receipt.is_replay]:
            self.message_user(request, form.success_message(fresh), messages.SUCCESS)
        if again := len(receipts) - len(fresh):
            text = f"This form was already submitted: nothing was done again for {again} of the users."
            self.message_user(request, text, messages.WARNING)

    def _csv(
        self, request: HttpRequest, quotas: QuerySet[ChallengeQuota], name: str = "quotas.csv"
    ) -> HttpResponse | StreamingHttpResponse:
        chunks = csv_export.chunks_of(quotas, "user_id")
        return self._stream(request, name, QUOTA_COLUMNS, chunks, quota_cells)

    def _stream(self, request: HttpRequest, *export: Any) -> HttpResponse | StreamingHttpResponse:
        """Return the export, as csv_export.stream, or a page that says why not now."""
        try:
            return csv_export.stream(*export)
        except csv_export.Busy:
            page = self._page(request, "export_busy", {"title": "Another export is running"})
            page.status_code, page["Retry-After"] = 503, str(EXPORT_RETRY_SECONDS)
            return page

    def _may_read_ledger(self, request: HttpRequest) -> bool:
        return request.user.has_perm("quotas.view_ledgerentry")

    def _page(self, request: HttpRequest, name: str, context: dict[str, Any]) -> TemplateResponse:
        context = {**self.admin_site.each_context(request), "opts": self.opts, **context}
        return TemplateResponse(request, f"admin/quotas/{name}.html", context)


def quota_cells(quota: ChallengeQuota) -> Iterator[object]:
    """Yield the quota's values as the list shows them, in the order of QUOTA_COLUMNS."""
    now = display_of(quota)
    yield from (quota.user_id, quota.email, quota.plan_id, now.state)
    yield from (now.quota.quota_limit, now.quota.used, now.quota.spendable)
    for at in (now.quota.last_reset_date, now.quota.resets_at, quota.deleted_at, now.quota.at):
        yield at and values.rfc3339(at)

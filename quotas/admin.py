"""What staff see and may do: quotas as they stand now, their ledger, the plans, the service keys."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast
from uuid import uuid4

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.utils import quote, unquote
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db.models import Model, QuerySet
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.safestring import SafeString

from quotas import policy
from quotas.authentication import MEMORY
from quotas.models import ChallengeQuota, LedgerEntry, Plan, PlanRules, Receipt, ServiceKey
from quotas.policy import MAX_UNITS, Actor, Change, KeyReused, Outcome, Quota, Refusal, Request, Snapshot

MOST_COUNTED = 10_000  # rows; a list of more says so
MOST_AT_ONCE = 500  # users that one action may change
MOST_ENTRIES = 50  # of the ledger, on the page of a quota
UNITS_OF_TIME = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))

admin.site.site_header = admin.site.site_title = "Quotasite"
admin.site.site_url = None


class MoreThan(int):
    """A count that was broken off: `MoreThan(10_000)` is 10,000, and reads as "more than 10,000"."""

    def __str__(self) -> str:
        return f"more than {int(self):,}"


class CappedPaginator(Paginator):  # type: ignore[type-arg] # Django's is not generic when it runs
    """Count no further than MOST_COUNTED, so that the first page of a million rows comes at once."""

    @cached_property
    def count(self) -> int:
        rows = cast(QuerySet[Model], self.object_list)
        found = rows.order_by().values("pk")[: MOST_COUNTED + 1].count()
        return found if found <= MOST_COUNTED else MoreThan(MOST_COUNTED)


class ReadOnlyAdmin(admin.ModelAdmin):  # type: ignore[type-arg] # nor is this
    """A list that stays quick when it is long, of what nobody adds, edits or deletes here."""

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


def in_words(seconds: int) -> str:
    """5400 is "1 h 30 min"."""
    words = []
    for unit, size in UNITS_OF_TIME:
        count, seconds = divmod(seconds, size)
        words += [f"{count} {unit}"] if count else []
    return " ".join(words) or "0 s"


def length(plan: policy.Plan) -> str:
    """How long a period of the plan is, in words."""
    return in_words(int(plan.window.total_seconds())) if plan.window else "a month"


def clock_time(instant: datetime, text: str = "") -> SafeString:
    """The instant, or `text` with the instant behind it; in UTC, the time zone of the settings."""
    shown = f"{instant:%Y-%m-%d %H:%M:%S}"
    return format_html(
        '<time datetime="{}" title="{} UTC">{}</time>', policy.rfc3339(instant), shown, text or shown
    )


def chip(word: str, colour: str) -> SafeString:
    return format_html('<span class="chip {}">{}</span>', colour, word)


def address(user_id: str) -> str:
    """Where the page of the user's quota is."""
    return reverse("admin:quotas_challengequota_change", args=[quote(user_id)])


def who(entry: LedgerEntry) -> str:
    actor = f"{entry.actor_kind} {entry.actor_id}"
    if (entry.actor_kind, entry.actor_id) == ("user", entry.user_id):
        actor = "the user"
    return f"{actor}, by {entry.act}" if entry.act else actor


@dataclass(frozen=True, slots=True)
class Standing:
    """How a quota stands at one instant, as staff read it."""

    quota: Quota
    is_deleted: bool = False

    @property
    def state(self) -> str:
        """One word: healthy, low (a fifth is left, or less), exhausted or deleted."""
        limit, remaining = self.quota.quota_limit, self.quota.quota_remaining
        if self.is_deleted:
            return "deleted"
        if limit is None or remaining * 5 > limit:
            return "healthy"
        return "low" if remaining else "exhausted"

    @property
    def chip(self) -> SafeString:
        return chip(self.state, self.state)

    @property
    def units(self) -> str:
        if self.is_deleted:
            return "–"
        if self.quota.quota_limit is None:
            return "unlimited"
        return f"{self.quota.quota_remaining:,} of {self.quota.quota_limit:,}"

    @property
    def meter(self) -> str:
        """The units in figures, behind a bar where there is a limit."""
        limit = self.quota.quota_limit
        if self.is_deleted or limit is None:
            return self.units
        bar = (
            '<meter min="0" max="{}" low="{}" optimum="{}" value="{}" aria-label="{} units left"></meter> {}'
        )
        most = max(limit, 1)  # a bar has a length
        return format_html(
            f'<span class="units">{bar}</span>',
            *(most, most / 5, most, self.quota.quota_remaining, self.units, self.units),
        )

    @property
    def resets_in(self) -> str:
        """The time to the reset, rounded up, with the instant behind it."""
        if self.is_deleted:
            return self.units
        seconds = self.quota.seconds_to_reset
        step = 1 if seconds < 60 else 60 if seconds < 86_400 else 3_600
        return clock_time(self.quota.resets_at, in_words(math.ceil(seconds / step) * step))


def read_clock(quota: ChallengeQuota) -> datetime:
    """The database's clock when `quota` was read, which is the one that the rules go by."""
    return cast(datetime, quota.now)  # type: ignore[attr-defined] # QuotaAdmin.get_queryset adds it


def standing(quota: ChallengeQuota) -> Standing:
    return Standing(quota.effective(read_clock(quota)), quota.deleted_at is not None)


class ResetForm(forms.Form):
    """What staff say to refill quotas; what it does to one, in advance and in earnest."""

    name = "Reset now"
    done = "Reset"
    shows_at_once = True  # what comes after is known before anything is typed

    reason = forms.CharField(
        max_length=200,
        help_text="Kept in the ledger, with your name.",
        widget=forms.TextInput(attrs={"class": "vTextField"}),
    )
    # Made when the form is first shown, so that what is sent twice is done once.
    token = forms.UUIDField(widget=forms.HiddenInput)

    def decide(self, snapshot: Snapshot, request: Request) -> Outcome:
        return policy.reset(snapshot, request)

    def carry_out(self, user_id: str, actor: Actor) -> Receipt:
        return ChallengeQuota.objects.reset(user_id, actor=actor, **self.particulars)

    @property
    def title(self) -> str:
        return self.name

    @property
    def particulars(self) -> dict[str, Any]:
        return {"reason": self.cleaned_data["reason"], "key": str(self.cleaned_data["token"])}


class AdjustForm(ResetForm):
    name = "Adjust by ±N"
    done = "Adjusted"
    shows_at_once = False

    delta = forms.IntegerField(
        label="Units",
        validators=[MinValueValidator(-MAX_UNITS), MaxValueValidator(MAX_UNITS)],
        help_text="5 gives five units, -5 takes five away, until the next reset.",
    )
    field_order = ["delta", "reason"]

    @property
    def title(self) -> str:
        return f"Adjust by {self.cleaned_data['delta']:+,}" if self.is_valid() else self.name

    def clean_delta(self) -> int:
        delta: int = self.cleaned_data["delta"]
        if delta == 0:
            raise forms.ValidationError("An adjustment by 0 changes nothing.")
        return delta

    def decide(self, snapshot: Snapshot, request: Request) -> Outcome:
        return policy.adjust(snapshot, request, self.cleaned_data["delta"])

    def carry_out(self, user_id: str, actor: Actor) -> Receipt:
        delta = self.cleaned_data["delta"]
        return ChallengeQuota.objects.adjust(user_id, delta, actor=actor, **self.particulars)


class Preview(NamedTuple):
    """One user's line of a confirmation: before, and after or why not."""

    user_id: str
    before: Standing
    after: Standing | None = None
    refusal: Refusal | None = None


def preview(quota: ChallengeQuota, form: ResetForm, actor: Actor) -> Preview:
    """What the form would do to the quota, by the rules that will do it."""
    outcome = form.decide(quota.snapshot(read_clock(quota)), Request(actor))
    return Preview(
        quota.user_id,
        before=standing(quota),
        after=Standing(outcome.quota) if isinstance(outcome, Change) else None,
        refusal=outcome if isinstance(outcome, Refusal) else None,
    )


class DeletedFilter(admin.SimpleListFilter):
    title = "user"
    parameter_name = "deleted"

    def lookups(self, request: HttpRequest, model_admin: object) -> list[tuple[str, str]]:
        return [("no", "not deleted"), ("yes", "deleted")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() not in ("no", "yes"):
            return queryset
        return queryset.filter(deleted_at__isnull=self.value() == "no")


@admin.register(ChallengeQuota)
class QuotaAdmin(ReadOnlyAdmin):
    """Quotas as a request would find them now, and two acts on them, each with a reason."""

    list_display = ["user_id", "email", "plan", "remaining", "state", "resets_in"]
    list_select_related = ["plan"]
    list_filter = ["plan", DeletedFilter]
    search_fields = ["user_id__startswith", "email__startswith"]
    search_help_text = "The beginning of a user id, or of an e-mail address"
    actions = ["reset_now", "adjust"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[ChallengeQuota]:
        return ChallengeQuota.objects.annotate(now=Now())

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Search as Django does, but let what is found be sorted, not what is sorted be searched.

        With a LIMIT in sight PostgreSQL walks the whole key in order and looks at each row.
        """
        found, _ = super().get_search_results(request, queryset, search_term)
        if not search_term:
            return found, False
        return queryset.filter(pk__in=found.order_by().values("pk")[: MOST_COUNTED + 1]), False

    def has_act_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("quotas.change_challengequota")

    @admin.display
    def remaining(self, quota: ChallengeQuota) -> str:
        return standing(quota).meter

    @admin.display
    def state(self, quota: ChallengeQuota) -> SafeString:
        return standing(quota).chip

    @admin.display
    def resets_in(self, quota: ChallengeQuota) -> str:
        return standing(quota).resets_in

    @admin.action(description=ResetForm.name, permissions=["act"])
    def reset_now(self, request: HttpRequest, quotas: QuerySet[ChallengeQuota]) -> HttpResponse | None:
        return self._act(request, quotas, ResetForm)

    @admin.action(description=AdjustForm.name, permissions=["act"])
    def adjust(self, request: HttpRequest, quotas: QuerySet[ChallengeQuota]) -> HttpResponse | None:
        return self._act(request, quotas, AdjustForm)

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Show what the user can spend now, and why. Nothing can be sent here."""
        if request.method not in ("GET", "HEAD") or not self.has_view_permission(request):
            raise PermissionDenied
        quota = get_object_or_404(self.get_queryset(request).select_related("plan"), pk=unquote(object_id))
        now = standing(quota)
        context = {
            "title": quota.user_id,
            "subtitle": quota.email,
            "quota": quota,
            "now": now,
            "is_due": quota.last_reset_date != now.quota.last_reset_date,
            "period": length(now.quota.plan),
            "entries": [(entry, who(entry)) for entry in quota.entries.order_by("-seq")[:MOST_ENTRIES]],
            "may_act": self.has_act_permission(request) and not now.is_deleted,
        }
        return self._page(request, "quota", context)

    def _act(
        self, request: HttpRequest, quotas: QuerySet[ChallengeQuota], kind: type[ResetForm]
    ) -> HttpResponse | None:
        """Ask for a reason, show before and after, and do it when that is confirmed."""
        if not self.has_act_permission(request):
            raise PermissionDenied
        is_sent = "token" in request.POST
        if is_sent:  # by name, whatever the list's filters would show by now
            quotas = self.get_queryset(request).filter(pk__in=request.POST.getlist(ACTION_CHECKBOX_NAME))
        rows = list(quotas.select_related("plan")[: MOST_AT_ONCE + 1])
        if len(rows) > MOST_AT_ONCE:
            too_many = f"At most {MOST_AT_ONCE} users at a time: nothing was done."
            self.message_user(request, too_many, messages.ERROR)
            return None
        form = kind(request.POST) if is_sent else kind(initial={"token": uuid4()})
        actor = Actor("staff", request.user.get_username())
        back = address(rows[0].user_id) if len(rows) == 1 else request.get_full_path()
        if form.is_valid() and "confirmed" in request.POST:
            self._carry_out(request, form, [row.user_id for row in rows], actor)
            return HttpResponseRedirect(back)
        shows_after = kind.shows_at_once or form.is_valid()
        context = {
            "title": form.title,
            "form": form,
            "action": request.POST["action"],
            "previews": [
                preview(row, form, actor) if shows_after else Preview(row.user_id, standing(row))
                for row in rows
            ],
            "shows_after": shows_after,
            "checkbox_name": ACTION_CHECKBOX_NAME,
            "back": back,
        }
        return self._page(request, "confirm", context)

    def _carry_out(
        self, request: HttpRequest, form: ResetForm, user_ids: Iterable[str], actor: Actor
    ) -> None:
        """Do it to each user by itself, and tell what became of them."""
        receipts = []
        for user_id in user_ids:
            try:
                receipts.append(form.carry_out(user_id, actor))
            except KeyReused:
                told = (
                    f"Not done for {user_id}: this form was sent before, filled in otherwise. Open it anew."
                )
                self.message_user(request, told, messages.ERROR)
            except Refusal as refusal:
                self.message_user(request, f"Not done for {user_id}: {refusal}", messages.ERROR)
        fresh = [receipt.quota for receipt in receipts if not receipt.is_replay]
        if len(fresh) == 1:
            told = f"{form.done} {fresh[0].user_id}: now {Standing(fresh[0]).units}."
            self.message_user(request, told, messages.SUCCESS)
        elif fresh:
            self.message_user(request, f"{form.done} {len(fresh)} users.", messages.SUCCESS)
        if again := len(receipts) - len(fresh):
            told = f"This form had been sent before: nothing was done again for {again} of the users."
            self.message_user(request, told, messages.WARNING)

    def _page(self, request: HttpRequest, name: str, context: dict[str, Any]) -> TemplateResponse:
        context = {**self.admin_site.each_context(request), "opts": self.opts, **context}
        return TemplateResponse(request, f"admin/quotas/{name}.html", context)


@admin.register(LedgerEntry)
class LedgerEntryAdmin(ReadOnlyAdmin):
    """Every entry, the newest first. Nobody can add to it but the verbs."""

    list_display = ["when", "of_user", "kind", "cost", "delta", "balance_after", "who", "reason"]
    list_filter = ["kind"]
    search_fields = ["user__user_id__exact"]  # needs no join, and has the index of (user_id, seq)
    search_help_text = "A user id, in full"

    @admin.display(description="when (UTC)")
    def when(self, entry: LedgerEntry) -> SafeString:
        return clock_time(entry.created_at)

    @admin.display(description="user")
    def of_user(self, entry: LedgerEntry) -> SafeString:
        return format_html('<a href="{}">{}</a>', address(entry.user_id), entry.user_id)

    @admin.display
    def who(self, entry: LedgerEntry) -> str:
        return who(entry)


class PlanForm(forms.ModelForm):  # type: ignore[type-arg]
    def clean_actions(self) -> object:
        return self.cleaned_data["actions"] or {}  # an empty box is no action, not NULL


@admin.register(Plan)
class PlanAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Plans may be added, and all of their rules edited: a running period goes on by the old ones."""

    form = PlanForm
    list_display = ["name", "units", "reset_policy", "period", "timezone", "is_public", "is_default"]
    show_facets = admin.ShowFacets.NEVER
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

    @admin.display(description="allowance", ordering="allowance")
    def units(self, plan: Plan) -> str:
        return "unlimited" if plan.allowance is None else f"{plan.allowance:,}"

    @admin.display
    def period(self, plan: Plan) -> str:
        return length(plan.rules)


class ServiceKeyForm(forms.ModelForm):  # type: ignore[type-arg]
    scopes = forms.MultipleChoiceField(
        choices=[(scope, scope) for scope in ServiceKey.SCOPES],
        widget=forms.CheckboxSelectMultiple,
        help_text="What the key may do: give it no more than it needs.",
    )

    class Meta:
        help_texts = {"expires_at": "In UTC; empty is never."}

    def clean_expires_at(self) -> datetime | None:
        expires_at: datetime | None = self.cleaned_data["expires_at"]
        if expires_at and expires_at <= datetime.now(UTC):
            raise forms.ValidationError("This is past: the key would never work.")
        return expires_at


@admin.register(ServiceKey)
class ServiceKeyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Keys may be made and revoked; there is nothing else to do to one."""

    form = ServiceKeyForm
    list_display = ["name", "state", "key", "holds", "created", "expires", "last_used"]
    show_facets = admin.ShowFacets.NEVER
    actions = ["revoke"]

    def get_fields(self, request: HttpRequest, obj: ServiceKey | None = None) -> list[Any]:
        return [*self.list_display] if obj else ["name", "scopes", "expires_at"]

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
        """Show the key in this one answer: a message would lie in a cookie or session until it is read."""
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": f"Key of {obj.name}",
            "key": obj,
        }
        return TemplateResponse(request, "admin/quotas/service_key.html", context)

    @admin.action(description="Revoke", permissions=["revoke"])
    def revoke(self, request: HttpRequest, keys: QuerySet[ServiceKey]) -> None:
        """Revoke what is not revoked yet, at once."""
        revoked = list(keys.filter(revoked_at=None))
        for key in revoked:
            keys.filter(pk=key.pk, revoked_at=None).update(revoked_at=datetime.now(UTC))
            self.log_change(request, key, "Revoked.")
        told = f"Revoked {len(revoked)} of {len(keys)}: they stop working within {MEMORY} seconds."
        self.message_user(request, told, messages.SUCCESS)

    @admin.display
    def key(self, key: ServiceKey) -> str:
        return f"qs_{key.prefix}_…"

    @admin.display(description="scopes")
    def holds(self, key: ServiceKey) -> str:
        return ", ".join(key.scopes)

    @admin.display(description="created (UTC)", ordering="created_at")
    def created(self, key: ServiceKey) -> SafeString:
        return clock_time(key.created_at)

    @admin.display(description="expires (UTC)", ordering="expires_at")
    def expires(self, key: ServiceKey) -> str:
        return clock_time(key.expires_at) if key.expires_at else "never"

    @admin.display(description="last used (UTC)", ordering="last_used_at")
    def last_used(self, key: ServiceKey) -> str:
        return clock_time(key.last_used_at) if key.last_used_at else "never"

    @admin.display
    def state(self, key: ServiceKey) -> SafeString:
        if key.revoked_at:
            return chip("revoked", "deleted")
        if key.expires_at and key.expires_at <= datetime.now(UTC):
            return chip("expired", "low")
        return chip("active", "healthy")

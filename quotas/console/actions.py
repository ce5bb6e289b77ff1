"""Staff actions on quotas: forms that ask for a reason and preview the result by the rules that apply it."""

from typing import Any, NamedTuple

from django import forms
from django.core.validators import MaxValueValidator, MinValueValidator

from quotas.console.display import QuotaDisplay, display_of
from quotas.models import ChallengeQuota, Plan
from quotas.problems import of_refusal
from quotas.reports.current import read_clock
from quotas.rules import verbs
from quotas.rules.outcomes import Change, Outcome, Refusal
from quotas.rules.values import MAX_UNITS, Actor, OnChange, Quota, Request, Snapshot
from quotas.store.direct import read_snapshot
from quotas.store.manager import PlanChange, Receipt
from quotas.store.steps import SnapshotQuery


class ResetForm(forms.Form):
    """The reset, and the base of the other actions: its form, its preview by the rules, its verb."""

    name = "Reset now"
    done = "Reset"
    shows_at_once = True  # the result depends on no input

    reason = forms.CharField(
        max_length=200,
        help_text="Recorded in the ledger with your name.",
        widget=forms.TextInput(attrs={"class": "vTextField"}),
    )
    # Generated when the form is first shown: a form that is submitted twice is applied once.
    token = forms.UUIDField(widget=forms.HiddenInput)

    def snapshot(self, quota: ChallengeQuota) -> Snapshot:
        """Return what the action decides from: the row, or if it does not tell its usage, the store."""
        if quota.state.is_usage_known:
            return quota.snapshot(read_clock(quota))
        return read_snapshot(quota.user_id, SnapshotQuery())

    def decide(self, snapshot: Snapshot, request: Request) -> Outcome:
        return verbs.reset(snapshot, request)

    def apply(self, user_id: str, actor: Actor) -> Receipt | PlanChange:
        return ChallengeQuota.objects.reset(user_id, actor=actor, **self.verb_arguments)

    def success_message(self, quotas: list[Quota]) -> str:
        if len(quotas) == 1:
            return f"{self.done} {quotas[0].user_id}: now {QuotaDisplay(quotas[0]).units}."
        return f"{self.done} {len(quotas)} users."

    @property
    def title(self) -> str:
        return self.name

    @property
    def verb_arguments(self) -> dict[str, Any]:
        return {"reason": self.cleaned_data["reason"], "key": str(self.cleaned_data["token"])}


class AdjustForm(ResetForm):
    name = "Adjust by ±N"
    done = "Adjusted"
    shows_at_once = False

    delta = forms.IntegerField(
        label="Units",
        validators=[MinValueValidator(-MAX_UNITS), MaxValueValidator(MAX_UNITS)],
        help_text="5 adds five units, -5 removes five, until the next reset.",
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
        return verbs.adjust(snapshot, request, self.cleaned_data["delta"])

    def apply(self, user_id: str, actor: Actor) -> Receipt:
        delta = self.cleaned_data["delta"]
        return ChallengeQuota.objects.adjust(user_id, delta, actor=actor, **self.verb_arguments)


FOLLOW_CLERK = "*"  # in place of a plan's name: the plan that Clerk's assignments lead to


def plan_choices() -> list[tuple[str, str]]:
    clerk = (FOLLOW_CLERK, "Clerk’s assignment: a paid plan first, then metadata, then the default plan")
    return [
        ("", "Choose a plan"),
        clerk,
        *((plan.name, plan.name) for plan in Plan.objects.filter(is_archived=False)),
    ]


class ChangePlanForm(ResetForm):
    name = "Change plan"
    shows_at_once = False

    plan = forms.ChoiceField(
        choices=plan_choices, help_text="A plan that you choose here overrides Clerk’s assignment."
    )
    on_change = forms.ChoiceField(
        label="Running period",
        choices=[
            (OnChange.KEEP.value, "keep: units already used count against the new allowance"),
            (
                OnChange.PRORATE.value,
                "prorate: as keep, with the allowance changed in proportion to the remaining time",
            ),
            (OnChange.RESET.value, "reset: a new period begins now, with the full new allowance"),
        ],
        help_text="Prorate is keep if the new plan has no limit, or another time of reset.",
    )
    field_order = ["plan", "on_change", "reason"]

    @property
    def title(self) -> str:
        return f"Change plan to {self.plan_name or 'Clerk’s assignment'}" if self.is_valid() else self.name

    @property
    def plan_name(self) -> str | None:
        """The chosen plan; None is Clerk's assignment."""
        name: str = self.cleaned_data["plan"]
        return None if name == FOLLOW_CLERK else name

    def snapshot(self, quota: ChallengeQuota) -> Snapshot:
        return ChallengeQuota.objects.before_change(quota.user_id, self.plan_name)

    def decide(self, snapshot: Snapshot, request: Request) -> Outcome:
        return verbs.change_plan(snapshot, request, OnChange(self.cleaned_data["on_change"]))

    def apply(self, user_id: str, actor: Actor) -> PlanChange:
        plan, on_change = self.plan_name, OnChange(self.cleaned_data["on_change"])
        return ChallengeQuota.objects.change_plan(
            user_id, plan, on_change, actor=actor, **self.verb_arguments
        )

    def success_message(self, quotas: list[Quota]) -> str:
        """State the result, not a change: some users may have had the plan already."""
        if len(quotas) == 1:
            plan = quotas[0].plan.name
            return f"The plan of {quotas[0].user_id} is {plan}: now {QuotaDisplay(quotas[0]).units}."
        return f"{len(quotas)} users have the plan {self.plan_name or 'of Clerk’s assignment'}."


class Preview(NamedTuple):
    """One user's row of the confirmation page: the quota before, and the quota after or the refusal."""

    user_id: str
    before: QuotaDisplay
    after: QuotaDisplay | None = None
    refusal: str = ""


def preview(quota: ChallengeQuota, form: ResetForm, actor: Actor) -> Preview:
    """Decide what the action would do to the quota, by the same rules, without storing it."""
    outcome = form.decide(form.snapshot(quota), Request(actor))
    return Preview(
        quota.user_id,
        before=display_of(quota),
        after=QuotaDisplay(outcome.quota) if isinstance(outcome, Change) else None,
        refusal=of_refusal(outcome).detail if isinstance(outcome, Refusal) else "",
    )

"""What staff may do to quotas: forms that ask why, and tell what comes of it by the rules that will do it."""

from dataclasses import replace
from typing import Any, NamedTuple

from django import forms
from django.core.validators import MaxValueValidator, MinValueValidator
from django.utils.functional import cached_property

from quotas.console.display import QuotaDisplay, display_of, read_clock
from quotas.models import ChallengeQuota, Plan
from quotas.rules import values, verbs
from quotas.rules.outcomes import Change, Outcome, Refusal
from quotas.rules.values import MAX_UNITS, Actor, OnChange, Quota, Request, Snapshot
from quotas.store.manager import PlanChange, Receipt


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
        return verbs.reset(snapshot, request)

    def apply(self, user_id: str, actor: Actor) -> Receipt | PlanChange:
        return ChallengeQuota.objects.reset(user_id, actor=actor, **self.verb_arguments)

    def success_message(self, quotas: list[Quota]) -> str:
        """Say what was done to these."""
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
        return verbs.adjust(snapshot, request, self.cleaned_data["delta"])

    def apply(self, user_id: str, actor: Actor) -> Receipt:
        delta = self.cleaned_data["delta"]
        return ChallengeQuota.objects.adjust(user_id, delta, actor=actor, **self.verb_arguments)


FOLLOW_CLERK = "*"  # for a plan's name: whichever Clerk's word leads to


def plan_choices() -> list[tuple[str, str]]:
    given_back = (FOLLOW_CLERK, "Clerk’s word: what is billed, else the metadata, else the default plan")
    return [("", "Choose a plan"), given_back, *((plan.name, plan.name) for plan in Plan.objects.all())]


class ChangePlanForm(ResetForm):
    name = "Change plan"
    shows_at_once = False

    plan = forms.ChoiceField(choices=plan_choices, help_text="Your choice outranks Clerk’s word.")
    on_change = forms.ChoiceField(
        label="Running period",
        choices=[
            (OnChange.KEEP.value, "keep: what was used counts against the new allowance"),
            (OnChange.PRORATE.value, "prorate: the difference, for the part that is still to come"),
            (OnChange.RESET.value, "reset: the new allowance and a new period, from now on"),
        ],
        help_text="From or to unlimited it is always reset.",
    )
    field_order = ["plan", "on_change", "reason"]

    @property
    def title(self) -> str:
        return f"Change plan to {self.plan_name or 'Clerk’s word'}" if self.is_valid() else self.name

    @property
    def plan_name(self) -> str | None:
        """The plan's name; None is Clerk's word."""
        name: str = self.cleaned_data["plan"]
        return None if name == FOLLOW_CLERK else name

    @cached_property
    def target(self) -> values.Plan:
        """The plan of that name; read once, however many users are shown."""
        return Plan.objects.get(pk=self.plan_name).value

    def decide(self, snapshot: Snapshot, request: Request) -> Outcome:
        if self.plan_name is None:
            target, source = ChallengeQuota.objects.clerks_word(snapshot.user_id)
            aimed = replace(snapshot, target=target, target_source=source)
        else:
            aimed = replace(snapshot, target=self.target)
        return verbs.change_plan(aimed, request, OnChange(self.cleaned_data["on_change"]))

    def apply(self, user_id: str, actor: Actor) -> PlanChange:
        plan, on_change = self.plan_name, OnChange(self.cleaned_data["on_change"])
        return ChallengeQuota.objects.change_plan(
            user_id, plan, on_change, actor=actor, **self.verb_arguments
        )

    def success_message(self, quotas: list[Quota]) -> str:
        """As it is now: who had the plan before has it still."""
        if len(quotas) == 1:
            plan = quotas[0].plan.name
            return f"{quotas[0].user_id} has the plan {plan}: now {QuotaDisplay(quotas[0]).units}."
        return f"{len(quotas)} users have the plan {self.plan_name or 'of Clerk’s word'}."


class Preview(NamedTuple):
    """One user's line of a confirmation: before, and after or why not."""

    user_id: str
    before: QuotaDisplay
    after: QuotaDisplay | None = None
    refusal: Refusal | None = None


def preview(quota: ChallengeQuota, form: ResetForm, actor: Actor) -> Preview:
    """What the form would do to the quota, by the rules that will do it."""
    outcome = form.decide(quota.snapshot(read_clock(quota)), Request(actor))
    return Preview(
        quota.user_id,
        before=display_of(quota),
        after=QuotaDisplay(outcome.quota) if isinstance(outcome, Change) else None,
        refusal=outcome if isinstance(outcome, Refusal) else None,
    )

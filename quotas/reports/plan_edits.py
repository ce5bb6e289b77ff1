"""What an edit of a plan changes, in words, and how its users would stand after it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from quotas.models import ChallengeQuota, Plan
from quotas.reports.counts import count_capped, users_in_words
from quotas.reports.current import effective_quotas, read_clock, state_of
from quotas.rules import outcomes, values, verbs
from quotas.rules.durations import duration_in_words
from quotas.rules.values import Actor, OnChange, Request

MAX_JUDGED = 1_000  # users that a preview evaluates by the rules
STATES = ("healthy", "low", "exhausted")
LABELS = {  # of a plan's columns; plans.toml has the same names
    "allowance": "allowance",
    "reset_policy": "reset_policy",
    "period_seconds": "period",
    "timezone": "timezone",
    "actions": "actions",
    "is_public": "public",
    "is_default": "default",
    "is_archived": "archived",
}


class Edit(NamedTuple):
    """A column that differs, as people read it; `before` is "" for a new plan."""

    label: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.label}: {f'{self.before} → ' if self.before else ''}{self.after}"


def edits_between(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> list[Edit]:
    """Return what differs, in the order of LABELS; all of it if there was nothing before."""
    return [
        Edit(label, "" if before is None else in_words(name, before[name]), in_words(name, after[name]))
        for name, label in LABELS.items()
        if name in after and (before is None or before[name] != after[name])
    ]


def in_words(name: str, value: Any) -> str:
    """Return the value of a plan's column as people read it."""
    if name == "period_seconds":
        return duration_in_words(value)
    if name == "actions":
        return ", ".join(f"{action} {cost:,}" for action, cost in sorted(value.items())) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name == "allowance":
        return "unlimited" if value is None else f"{value:,}"
    return str(value)


@dataclass(frozen=True, slots=True)
class PlanImpact:
    """How an edit of a plan affects its users: their number, and the states of those that were evaluated."""

    users: int
    judged: int
    now: Counter[str]
    saved: Counter[str]  # right after the edit is saved
    counted: Counter[str]  # if the units used in the running period counted against the new allowance

    @property
    def lines(self) -> list[tuple[str, int, int, int]]:
        return [(state, self.now[state], self.saved[state], self.counted[state]) for state in STATES]

    @property
    def sentence(self) -> str:
        if not self.users:
            return "No user has this plan."
        return (
            f"{users_in_words(self.users, 'has', 'have')} this plan. A running period keeps the rules that "
            "it began with. The new rules take effect at each user’s next reset."
        )

    @property
    def basis(self) -> str:
        if self.judged < self.users:
            return (
                f"Only {self.judged:,} of them were evaluated: the first that the database returned, not a "
                "random sample."
            )
        return "Every user of the plan was evaluated."


def impact_of(plan: values.Plan) -> PlanImpact:
    """Evaluate by the rules how the users of the plan of this name would stand if it became `plan`."""
    quotas = effective_quotas().filter(plan=plan.name, deleted_at=None)
    judged = [quota.snapshot(read_clock(quota)) for quota in quotas.order_by()[:MAX_JUDGED]]
    saved = [snapshot._replace(current_plan=plan) for snapshot in judged]
    # Without a name: a change to the plan that a user already has moves no units.
    moves = [snapshot._replace(target=plan._replace(name="")) for snapshot in judged]
    counted = [verbs.change_plan(move, Request(Actor("", "")), OnChange.KEEP) for move in moves]
    return PlanImpact(
        users=count_capped(ChallengeQuota.objects.filter(plan=plan.name, deleted_at=None)),
        judged=len(judged),
        now=Counter(state_of(verbs.effective(snapshot)) for snapshot in judged),
        saved=Counter(state_of(verbs.effective(snapshot)) for snapshot in saved),
        counted=Counter(state_of(change.quota) for change in counted if isinstance(change, outcomes.Change)),
    )


def of_new_default() -> str:
    """Return which users a new default plan affects, in words."""
    old = Plan.objects.filter(is_default=True).first()
    keep = f" {_users_of(old.name)} {old}, and keep it." if old else ""
    return f"New users get this plan, and users whom Clerk no longer assigns one.{keep}"


def of_archiving(name: str) -> str:
    """Return which users the archiving of a plan affects, in words."""
    return (
        f"{_users_of(name)} this plan, and keep it. Clerk can still assign it; staff and the API cannot give "
        "it to anybody else."
    )


def _users_of(plan: str) -> str:
    return users_in_words(
        count_capped(ChallengeQuota.objects.filter(plan=plan, deleted_at=None)), "has", "have"
    )

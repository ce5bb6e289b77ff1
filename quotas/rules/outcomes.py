"""What a verb comes to: a change to store, a refusal, or a replay of what was done before."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import ClassVar

from quotas.rules.values import Entry, Plan, Quota, Snapshot, State, rfc3339


class Refusal(Exception):
    """A request that the rules turn down; its text is one plain sentence for the caller."""

    code: ClassVar[str]


class Exhausted(Refusal):
    code = "quota_exhausted"

    def __init__(self, quota: Quota, cost: int, next_plan: Plan) -> None:
        self.quota, self.cost = quota, cost
        asked = f" and {cost} asked" if quota.quota_remaining else ""
        more = "no limit" if next_plan.allowance is None else f"{next_plan.allowance} more"
        super().__init__(
            f"Quota exhausted: {quota.quota_remaining} of {quota.quota_limit} left{asked}, "
            f"{more} at {_whole_second(quota.resets_at)}."
        )


class CostExceedsLimit(Refusal):
    code = "cost_exceeds_limit"

    def __init__(self, cost: int, ceiling: int) -> None:
        super().__init__(f"A cost of {cost} can never be paid: the plan gives {ceiling} at the most.")


class UnknownAction(Refusal):
    code = "unknown_action"

    def __init__(self, plan: Plan, action: str) -> None:
        known = ", ".join(sorted(plan.actions)) or "none"
        super().__init__(f"The plan {plan.name} knows no action {action!r}; it knows: {known}.")


class CostBelowPrice(Refusal):
    code = "cost_below_price"

    def __init__(self, action: str, price: int) -> None:
        super().__init__(f"The action {action!r} costs {price}; a user cannot pay less for it.")


class AdjustmentOutOfRange(Refusal):
    code = "adjustment_out_of_range"


class UnknownPlan(Refusal):
    code = "unknown_plan"

    def __init__(self) -> None:
        super().__init__("There is no plan of this name; GET /api/v1/plans lists them.")


class ConsumptionNotFound(Refusal):
    code = "consumption_not_found"

    def __init__(self) -> None:
        super().__init__("This user has no consumption of this id, or its history was pruned.")


class RefundTooLarge(Refusal):
    code = "refund_too_large"

    def __init__(self, asked: int, rest: int) -> None:
        super().__init__(f"A refund of {asked} is more than the {rest} that are left of this consumption.")


class AlreadyRefunded(Refusal):
    code = "already_refunded"

    def __init__(self) -> None:
        super().__init__("Nothing is left of this consumption to give back.")


class Deleted(Refusal):
    code = "user_deleted"

    def __init__(self) -> None:
        super().__init__("This user was deleted; the quota is closed for good.")


class KeyReused(Refusal):
    code = "idempotency_key_reused"

    def __init__(self) -> None:
        super().__init__("This Idempotency-Key was used for another request; take a new key.")


@dataclass(frozen=True, slots=True)
class Replay:
    """The request was carried out before, by `entry`, which left `quota`; nothing is to be stored."""

    entry: Entry
    quota: Quota
    quota_now: Quota  # as it is now


@dataclass(frozen=True, slots=True)
class Change:
    """The state to store with its new entries (none: all stays as it is).

    `rules` are those by which the period of `state` goes. `refusal` is set where the entry to store
    is the first refusal of a period.
    """

    snapshot: Snapshot
    state: State
    plan_in_force: Plan
    resets_at: datetime
    entries: tuple[Entry, ...] = ()
    refusal: Refusal | None = None

    @property
    def quota(self) -> Quota:
        return Quota(
            user_id=self.state.user_id,
            plan=self.plan_in_force,
            quota_limit=self.state.quota_limit,
            quota_remaining=self.state.quota_remaining,
            last_reset_date=self.state.last_reset_date,
            resets_at=self.resets_at,
            at=self.snapshot.now,
        )

    @property
    def quota_now(self) -> Quota:
        return self.quota


Outcome = Change | Refusal | Replay


def _whole_second(instant: datetime) -> str:
    """Rounded up, so that what is promised for then is true then."""
    return rfc3339(instant + timedelta(microseconds=-instant.microsecond % 1_000_000))

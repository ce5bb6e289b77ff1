"""The outcome of a verb: a change to store, a refusal, or a replay of an earlier request."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import ClassVar

from quotas.rules.values import Entry, Plan, Quota, Snapshot, State, rfc3339


class Refusal(Exception):
    """A request that the rules refuse. The text is one plain sentence for the caller."""

    code: ClassVar[str]


class Exhausted(Refusal):
    code = "quota_exhausted"

    def __init__(self, quota: Quota, cost: int, current_plan: Plan) -> None:
        self.quota, self.cost = quota, cost
        needed = f" and {cost} needed" if quota.quota_remaining else ""
        allowance = current_plan.allowance  # of the next period
        more = "no limit" if allowance is None else f"{allowance} more"
        super().__init__(
            f"Quota exhausted: {quota.quota_remaining} of {quota.quota_limit} left{needed}, "
            f"{more} at {_whole_second(quota.resets_at)}."
        )


class CostExceedsLimit(Refusal):
    code = "cost_exceeds_limit"

    def __init__(self, cost: int, ceiling: int) -> None:
        super().__init__(f"A cost of {cost} can never be paid: at most {ceiling} can be spent at once.")


class UnknownAction(Refusal):
    code = "unknown_action"

    def __init__(self, plan: Plan, action: str) -> None:
        known = ", ".join(sorted(plan.actions)) or "none"
        super().__init__(f"The plan {plan.name} has no action {action!r}; its actions are: {known}.")


class CostBelowPrice(Refusal):
    code = "cost_below_price"

    def __init__(self, action: str, price: int) -> None:
        super().__init__(f"The action {action!r} costs {price}: a user cannot pay less for it.")


class AdjustmentOutOfRange(Refusal):
    code = "adjustment_out_of_range"


class UnknownPlan(Refusal):
    code = "unknown_plan"

    def __init__(self) -> None:
        super().__init__("There is no plan with this name: see GET /api/v1/plans.")


class ConsumptionNotFound(Refusal):
    code = "consumption_not_found"

    def __init__(self) -> None:
        super().__init__("This user has no consumption with this id, or it was pruned.")


class RefundTooLarge(Refusal):
    code = "refund_too_large"

    def __init__(self, asked: int, rest: int) -> None:
        super().__init__(f"Only {rest} of this consumption's units can still be refunded, not {asked}.")


class AlreadyRefunded(Refusal):
    code = "already_refunded"

    def __init__(self) -> None:
        super().__init__("This consumption has already been refunded in full.")


class Deleted(Refusal):
    code = "user_deleted"

    def __init__(self) -> None:
        super().__init__("This user was deleted: the quota is closed permanently.")


class KeyReused(Refusal):
    code = "idempotency_key_reused"

    def __init__(self) -> None:
        super().__init__("This Idempotency-Key was used for another request: use a new key.")


@dataclass(frozen=True, slots=True)
class Replay:
    """The same request was carried out before: it made `entry`, which left `quota`. Nothing is stored."""

    entry: Entry
    quota: Quota
    quota_now: Quota  # at the time of this request


@dataclass(frozen=True, slots=True)
class Change:
    """The state to store, with its new entries; without entries nothing is stored.

    `plan_in_force` is the plan version under which the period of `state` runs. `refusal` is set if the last
    entry records the first refusal of a period.
    """

    snapshot: Snapshot
    state: State
    plan_in_force: Plan
    entries: tuple[Entry, ...] = ()
    refusal: Refusal | None = None

    @property
    def quota(self) -> Quota:
        return Quota(
            user_id=self.state.user_id,
            plan=self.plan_in_force,
            quota_limit=self.state.quota_limit,
            quota_remaining=self.state.quota_remaining,
            used=self.state.period_consumed,
            given=self.state.period_given,
            last_reset_date=self.state.last_reset_date,
            resets_at=self.state.resets_at,
            at=self.snapshot.clock,
        )

    @property
    def quota_now(self) -> Quota:
        return self.quota


Outcome = Change | Refusal | Replay


def _whole_second(instant: datetime) -> str:
    """Round up to a whole second, so that a client that returns then is not too early."""
    return rfc3339(instant + timedelta(microseconds=-instant.microsecond % 1_000_000))

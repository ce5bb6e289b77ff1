"""The outcome of a verb: a change to store, a refusal, or a replay of an earlier request."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from quotas.rules.values import Entry, Plan, Quota, Snapshot, State


class Refusal(Exception):
    """A request that the rules refuse: its code, and the facts. Its sentence is in quotas/problems.py."""

    code: ClassVar[str]


@dataclass(eq=False)
class Exhausted(Refusal):
    code = "quota_exhausted"
    quota: Quota
    cost: int
    current_plan: Plan  # of the next period


@dataclass(eq=False)
class CostExceedsLimit(Refusal):
    code = "cost_exceeds_limit"
    cost: int
    ceiling: int  # the most that can be spent at once


@dataclass(eq=False)
class UnknownAction(Refusal):
    code = "unknown_action"
    plan: Plan
    action: str


@dataclass(eq=False)
class CostBelowPrice(Refusal):
    code = "cost_below_price"
    action: str
    price: int


@dataclass(eq=False)
class AdjustmentOutOfRange(Refusal):
    code = "adjustment_out_of_range"
    delta: int
    left: int | None  # the balance; None: the quota is unlimited


class UnknownPlan(Refusal):
    code = "unknown_plan"


class ConsumptionNotFound(Refusal):
    code = "consumption_not_found"


@dataclass(eq=False)
class RefundTooLarge(Refusal):
    code = "refund_too_large"
    asked: int
    rest: int  # what can still be refunded


class AlreadyRefunded(Refusal):
    code = "already_refunded"


class Deleted(Refusal):
    code = "user_deleted"


class UnknownUser(Refusal):
    """The user has no quota, and the request may not open one."""

    code = "unknown_user"


class KeyReused(Refusal):
    code = "idempotency_key_reused"


class Replay(NamedTuple):
    """The same request was carried out before: it made `entry`, which left `quota`. Nothing is stored."""

    entry: Entry
    quota: Quota
    quota_now: Quota  # at the time of this request
    refunded: int = 0  # of a consumption: its units that refunds asked for by now


class Forecast(NamedTuple):
    """What a spend of `cost` would meet. Nothing is stored."""

    quota: Quota  # before it, after a reset that is due
    cost: int
    remaining_after: int | None  # units that could be spent after it; None if it would be refused
    refusal: Exhausted | CostExceedsLimit | None


class Change(NamedTuple):
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

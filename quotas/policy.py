"""The rules of a quota, and nothing else: a snapshot in, an outcome out.

Every verb is one pure function. It takes a `Snapshot` (what the database held at one instant of its
own clock) and returns a `Change` to store, a `Refusal`, or a `Replay` of what was already done.
Nothing here reads a clock, a setting or a database, so each rule can be tested with a table.
"""

import math
import re
from calendar import monthrange
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from typing import Any, ClassVar, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

MAX_UNITS = 2_147_483_647
USER_ID = re.compile(r"[A-Za-z0-9_:.@-]{1,128}")  # use fullmatch: `$` lets a newline through
ACTION_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


class Kind(StrEnum):
    """What an entry of the ledger tells."""

    OPENED = "opened"
    RESET = "reset"
    CONSUMED = "consumed"
    REFUSED = "refused"
    REFUNDED = "refunded"
    ADJUSTED = "adjusted"
    PLAN_CHANGED = "plan_changed"
    DELETED = "deleted"


class PlanSource(StrEnum):
    """Who chose a user's plan. Staff outrank Clerk's billing, that its metadata, these the default plan."""

    STAFF = "staff"
    BILLING = "billing"
    METADATA = "metadata"
    DEFAULT = "default"


class OnChange(StrEnum):
    """What a change of plan makes of the running period."""

    KEEP = "keep"
    RESET = "reset"
    PRORATE = "prorate"


NAMED_PERIODS = {"daily": timedelta(days=1), "weekly": timedelta(weeks=1), "monthly": None}


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan as it stood in one of its versions."""

    name: str
    version: int
    allowance: int | None  # units a period; None is unlimited
    reset_policy: str  # a key of RESET_POLICIES
    period: timedelta
    timezone: str
    actions: Mapping[str, int] = field(default_factory=dict)  # named action -> cost

    @property
    def window(self) -> timedelta | None:
        """How long a period is, by name: a day may have 23 hours, and months differ too much to say."""
        return NAMED_PERIODS.get(self.reset_policy, self.period)


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks: user, service, staff, webhook or command; `act` is who stands behind an impersonated user."""

    kind: str
    id: str
    act: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """A user's row, but for what Clerk alone says of him (e-mail)."""

    user_id: str
    plan: str
    plan_source: str  # of PlanSource
    plan_version: int  # by which the running period goes
    quota_limit: int | None  # the running period's allowance; None is unlimited
    quota_remaining: int  # 0 when unlimited
    last_reset_date: datetime
    anchor_at: datetime
    period_seq: int  # seq of the entry that began the running period
    refused_at: datetime | None  # the running period's first refusal
    seq: int
    updated_at: datetime
    deleted_at: datetime | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger, with the state after it."""

    id: UUID
    user_id: str
    seq: int
    kind: str
    cost: int
    delta: int
    plan: str
    plan_source: str
    plan_version: int
    quota_limit: int | None
    balance_after: int
    last_reset_date: datetime
    anchor_at: datetime
    resets_at: datetime
    period_seq: int
    created_at: datetime
    actor_kind: str
    actor_id: str
    act: str
    reason: str
    action: str
    metadata: Mapping[str, Any] | None
    idempotency_key: str | None
    fingerprint: str
    refund_of: UUID | None  # the entry that a refund is tied to

    @property
    def amount(self) -> int:
        """What a refund gave back; an unlimited quota gets the units on paper."""
        return self.cost if self.quota_limit is None else self.delta

    @property
    def is_period_closed(self) -> bool:
        """Whether a refund came too late, in a later period than the spend: it asks for nothing then."""
        return self.cost == 0


NO_IDS = (UUID(int=0), UUID(int=0))  # for a snapshot that is only judged: nothing of it is stored


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one read of the database found.

    `plan` is the user's plan as it is now, by which the next period will go; `rules` the version by
    which the running one goes. Without a row `state` is None and both are the default plan. `entry`
    is the one that the request's idempotency key already made, under `entry_rules`.
    """

    user_id: str
    clock: datetime
    plan: Plan
    rules: Plan
    state: State | None
    entry: Entry | None
    entry_rules: Plan | None
    entry_ids: tuple[UUID, UUID]  # fresh: no change needs more
    consumption: Entry | None = None  # what a refund is about,
    refunded: int = 0  # and the units of it that were asked back before
    target: Plan | None = None  # what a change of plan is to lead to,
    target_source: str = PlanSource.STAFF.value  # and whose choice that is

    @property
    def now(self) -> datetime:
        """The database's clock, held back from running behind the row's last change."""
        return max(self.clock, self.state.updated_at) if self.state else self.clock


@dataclass(frozen=True, slots=True)
class Request:
    """Who asks, and what the entry shall remember of it."""

    actor: Actor
    reason: str = ""
    action: str = ""
    metadata: Mapping[str, Any] | None = None
    idempotency_key: str | None = None  # as stored: verb:kind of principal:key
    fingerprint: str = ""
    refund_of: UUID | None = None


@dataclass(frozen=True, slots=True)
class Quota:
    """How a quota stands at one instant: what every answer is made from."""

    user_id: str
    plan: Plan
    quota_limit: int | None
    quota_remaining: int
    last_reset_date: datetime
    resets_at: datetime
    at: datetime

    @property
    def is_unlimited(self) -> bool:
        return self.quota_limit is None

    @property
    def spendable(self) -> int:
        """Units that can be spent now."""
        return MAX_UNITS if self.quota_limit is None else self.quota_remaining

    @property
    def used(self) -> int:
        return max(0, self.quota_limit - self.quota_remaining) if self.quota_limit is not None else 0

    @property
    def seconds_to_reset(self) -> int:
        """Whole seconds until the reset, rounded up."""
        return max(0, math.ceil((self.resets_at - self.at) / timedelta(seconds=1)))


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
    standing: Quota  # as it is now


@dataclass(frozen=True, slots=True)
class Change:
    """The state to store with its new entries (none: all stays as it is).

    `rules` are those by which the period of `state` goes. `refusal` is set where the entry to store
    is the first refusal of a period.
    """

    snapshot: Snapshot
    state: State
    rules: Plan
    entries: tuple[Entry, ...] = ()
    refusal: Refusal | None = None

    @property
    def quota(self) -> Quota:
        return Quota(
            user_id=self.state.user_id,
            plan=self.rules,
            quota_limit=self.state.quota_limit,
            quota_remaining=self.state.quota_remaining,
            last_reset_date=self.state.last_reset_date,
            resets_at=resets_at(self.rules, self.state),
            at=self.snapshot.now,
        )

    @property
    def standing(self) -> Quota:
        return self.quota


Outcome = Change | Refusal | Replay


class ResetPolicy(NamedTuple):
    """When a running period is over, and where the period that holds an instant begins."""

    ends_at: Callable[[Plan, State], datetime]
    begins_at: Callable[[Plan, State, datetime], datetime]


def _on_grid(
    index: Callable[[Plan, datetime, datetime], int], boundary: Callable[[Plan, datetime, int], datetime]
) -> ResetPolicy:
    """Periods that meet at numbered boundaries; many missed ones cost as little as one.

    `index` gives the number of the boundary near an instant. Where a clock is set back it may be off
    by one, so the neighbours are looked at too.
    """

    def ends_at(plan: Plan, state: State) -> datetime:
        near = index(plan, state.anchor_at, state.last_reset_date)
        ends = (boundary(plan, state.anchor_at, number) for number in (near, near + 1, near + 2))
        return next(end for end in ends if end > state.last_reset_date)

    def begins_at(plan: Plan, state: State, now: datetime) -> datetime:
        near = index(plan, state.anchor_at, now)
        begins = (boundary(plan, state.anchor_at, number) for number in (near + 1, near, near - 1))
        return next(begin for begin in begins if begin <= now)

    return ResetPolicy(ends_at, begins_at)


def _local_day(plan: Plan, instant: datetime) -> date:
    return instant.astimezone(ZoneInfo(plan.timezone)).date()


def _midnight(plan: Plan, day: date) -> datetime:
    """The first instant of a local day, in UTC; a midnight that DST skips is the first after it."""
    zone = ZoneInfo(plan.timezone)
    wall = datetime.combine(day, time(), zone)
    late = wall.astimezone(UTC)
    if late.astimezone(zone).replace(tzinfo=None) == wall.replace(tzinfo=None):
        return late
    early = wall.replace(fold=1).astimezone(UTC)  # in a gap: by the offset behind it
    while late - early > timedelta.resolution:
        middle = early + (late - early) / 2
        is_there = middle.astimezone(zone).replace(tzinfo=None) >= wall.replace(tzinfo=None)
        early, late = (early, middle) if is_there else (middle, late)
    return late


def _month(plan: Plan, anchor: datetime, instant: datetime) -> int:
    day = _local_day(plan, instant)
    return day.year * 12 + day.month - 1


def _day_of_month(plan: Plan, anchor: datetime, number: int) -> datetime:
    """The anchor's day of the month, or the month's last; never carried over to the month after."""
    year, month = divmod(number, 12)
    last = monthrange(year, month + 1)[1]
    return _midnight(plan, date(year, month + 1, min(_local_day(plan, anchor).day, last)))


RESET_POLICIES = {
    "rolling": ResetPolicy(
        ends_at=lambda plan, state: state.last_reset_date + plan.period,
        begins_at=lambda plan, state, now: now,
    ),
    "anchored": _on_grid(
        index=lambda plan, anchor, instant: (instant - anchor) // plan.period,
        boundary=lambda plan, anchor, number: anchor + number * plan.period,
    ),
    "daily": _on_grid(
        index=lambda plan, anchor, instant: _local_day(plan, instant).toordinal(),
        boundary=lambda plan, anchor, number: _midnight(plan, date.fromordinal(number)),
    ),
    "weekly": _on_grid(  # the first day of the calendar, number 1, was a Monday
        index=lambda plan, anchor, instant: (_local_day(plan, instant).toordinal() - 1) // 7,
        boundary=lambda plan, anchor, number: _midnight(plan, date.fromordinal(number * 7 + 1)),
    ),
    "monthly": _on_grid(index=_month, boundary=_day_of_month),
}


def resets_at(plan: Plan, state: State) -> datetime:
    return RESET_POLICIES[plan.reset_policy].ends_at(plan, state)


def is_due(plan: Plan, state: State, now: datetime) -> bool:
    """A period is half-open: at its very end it is over."""
    return now >= resets_at(plan, state)


def current(snapshot: Snapshot, request: Request) -> Outcome:
    """The quota as it stands now: opened if missing, reset if due."""
    return _answered(snapshot, request) or _settled(snapshot, request)


def open_missing(snapshot: Snapshot, request: Request) -> Outcome:
    """Make the row if there is none; leave any other as it is."""
    if snapshot.state:
        return _answered(snapshot, request) or _unchanged(snapshot, snapshot.state)
    return _opened(snapshot, request)


def consume(snapshot: Snapshot, request: Request, cost: int | None = None) -> Outcome:
    """Spend `cost` units (default: what the plan asks for the action, or 1), all or nothing.

    A user may name a higher cost for an action than the plan does, and no lower one.
    """
    if answer := _answered(snapshot, request):
        return answer
    change = _settled(snapshot, request)
    if request.action and request.action not in change.rules.actions:
        return UnknownAction(change.rules, request.action)
    price = change.rules.actions[request.action] if request.action else 1
    cost = price if cost is None else cost
    if request.action and cost < price and request.actor.kind == "user":
        return CostBelowPrice(request.action, price)
    if change.state.quota_limit is None:
        return _enter(change, request, Kind.CONSUMED, cost=cost)
    remaining, allowance = change.state.quota_remaining, snapshot.plan.allowance
    if cost <= remaining:
        return _enter(change, request, Kind.CONSUMED, cost=cost, delta=-cost)
    if allowance is not None and cost > allowance:
        return CostExceedsLimit(cost, max(allowance, remaining))
    refusal = Exhausted(change.quota, cost, snapshot.plan)
    if change.state.refused_at:
        return refusal
    unkeyed = replace(request, idempotency_key=None, fingerprint="")  # a refusal never holds a key
    refused = _enter(change, unkeyed, Kind.REFUSED, cost=cost, refused_at=snapshot.now)
    return replace(refused, refusal=refusal)


def refund(snapshot: Snapshot, request: Request, amount: int | None = None) -> Outcome:
    """Give back `amount` units (default: all that is left) of the snapshot's consumption.

    A balance is never lifted above the allowance by it, and a closed period gets nothing back.
    """
    if answer := _answered(snapshot, request):
        return answer
    spend = snapshot.consumption
    if spend is None or spend.kind != Kind.CONSUMED:
        return ConsumptionNotFound()
    rest = spend.cost - snapshot.refunded
    if rest == 0:
        return AlreadyRefunded()
    asked = rest if amount is None else amount
    if asked > rest:
        return RefundTooLarge(asked, rest)
    change = _settled(snapshot, request)
    tied = replace(request, refund_of=spend.id)
    if spend.period_seq != change.state.period_seq:
        return _enter(change, tied, Kind.REFUNDED)
    room = max(0, (change.state.quota_limit or 0) - change.state.quota_remaining)
    return _enter(change, tied, Kind.REFUNDED, cost=asked, delta=min(asked, room))


def change_plan(snapshot: Snapshot, request: Request, on_change: OnChange) -> Outcome:
    """Give the user the snapshot's target plan; from or to unlimited every way is a reset.

    Keep takes what was used from the new allowance; prorate adds the difference for the part of the
    period that is still to come. Both go on in the same period, which ends as the new plan says (it is
    counted from now if that would be past), and neither leaves less than 0. To the plan that he has,
    only whose choice it is may change.
    """
    if answer := _answered(snapshot, request):
        return answer
    if (target := snapshot.target) is None:
        return UnknownPlan()
    change = _settled(snapshot, request)
    state, now = change.state, snapshot.now
    moved: dict[str, Any] = {"plan_source": snapshot.target_source}
    if target.name == state.plan:
        if moved["plan_source"] == state.plan_source:
            return change
        return _enter(change, request, Kind.PLAN_CHANGED, **moved)
    ends_at = resets_at(change.rules, state)
    moved |= {
        "plan": target.name,
        "plan_version": target.version,
        "quota_limit": target.allowance,
    }
    change = replace(change, rules=target)
    if on_change == OnChange.RESET or state.quota_limit is None or target.allowance is None:
        delta = (target.allowance or 0) - state.quota_remaining
        moved |= {"last_reset_date": now, "anchor_at": now, "period_seq": state.seq + 1, "refused_at": None}
        return _enter(change, request, Kind.PLAN_CHANGED, delta=delta, **moved)
    if on_change == OnChange.KEEP:
        left = target.allowance - max(0, state.quota_limit - state.quota_remaining)
    else:
        tick = timedelta.resolution  # in integers: a timedelta times 2147483647 would overflow
        length, to_come = (ends_at - state.last_reset_date) // tick, (ends_at - now) // tick
        left = state.quota_remaining + (target.allowance - state.quota_limit) * to_come // length
    if resets_at(target, state) <= now:  # by the new plan it would be over, and refilled at once
        moved["last_reset_date"] = now
    left = min(max(0, left), MAX_UNITS)
    return _enter(change, request, Kind.PLAN_CHANGED, delta=left - state.quota_remaining, **moved)


def follow_clerk(snapshot: Snapshot, request: Request) -> Outcome:
    """Give the user the snapshot's target plan, which is Clerk's word, unless staff chose his plan.

    The period goes on, and what was used counts against the new allowance.
    """
    state, target = snapshot.state, snapshot.target
    if not state or state.deleted_at or not target:
        return change_plan(snapshot, request, OnChange.KEEP)
    is_followed = (state.plan, state.plan_source) == (target.name, snapshot.target_source)
    if is_followed or state.plan_source == PlanSource.STAFF:
        return _unchanged(snapshot, state)  # not even reset: nobody asked for it
    return change_plan(snapshot, request, OnChange.KEEP)


def adjust(snapshot: Snapshot, request: Request, delta: int) -> Outcome:
    """Add `delta` units (negative: take them away) until the next reset."""
    if answer := _answered(snapshot, request):
        return answer
    change = _settled(snapshot, request)
    if change.state.quota_limit is None:
        return AdjustmentOutOfRange("This quota has no limit: there is nothing to adjust.")
    remaining = change.state.quota_remaining
    if not 0 <= remaining + delta <= MAX_UNITS:
        return AdjustmentOutOfRange(
            f"An adjustment by {delta:+d} would leave {remaining + delta}; "
            f"a balance is from 0 to {MAX_UNITS}, and it is {remaining} now."
        )
    return _enter(change, request, Kind.ADJUSTED, delta=delta)


def reset(snapshot: Snapshot, request: Request) -> Outcome:
    """Refill to the plan's allowance, due or not."""
    if answer := _answered(snapshot, request):
        return answer
    return _new_period(_settled(snapshot, request), request)


def delete(snapshot: Snapshot, request: Request) -> Outcome:
    """Close the quota for good. The row stays as a tombstone that no later event brings back."""
    state = snapshot.state
    if state and state.deleted_at:
        return _unchanged(snapshot, state)
    change = _unchanged(snapshot, state) if state else _opened(snapshot, request)
    return _enter(change, request, Kind.DELETED, deleted_at=snapshot.now)


def effective(snapshot: Snapshot) -> Quota:
    """The quota as a request would find it, a tombstone's as it was left; nothing is changed."""
    if snapshot.state and snapshot.state.deleted_at:
        return _unchanged(snapshot, snapshot.state).quota
    return _settled(snapshot, Request(Actor("", ""))).quota


def _answered(snapshot: Snapshot, request: Request) -> Refusal | Replay | None:
    """The answer that stands before any rule of a verb is asked, if there is one."""
    if snapshot.state and snapshot.state.deleted_at:
        return Deleted()
    if (entry := snapshot.entry) is None:
        return None
    if entry.fingerprint != request.fingerprint:
        return KeyReused()
    quota = Quota(
        user_id=entry.user_id,
        plan=snapshot.entry_rules or snapshot.rules,
        quota_limit=entry.quota_limit,
        quota_remaining=entry.balance_after,
        last_reset_date=entry.last_reset_date,
        resets_at=entry.resets_at,
        at=entry.created_at,
    )
    return Replay(entry, quota, standing=effective(snapshot))


def _settled(snapshot: Snapshot, request: Request) -> Change:
    """The quota in the period that holds `now`."""
    state = snapshot.state
    if state is None:
        return _opened(snapshot, request)
    change = _unchanged(snapshot, state)
    if not is_due(snapshot.rules, state, snapshot.now):
        return change
    return _new_period(change, Request(request.actor))


def _unchanged(snapshot: Snapshot, state: State) -> Change:
    return Change(snapshot, state, snapshot.rules)


def _opened(snapshot: Snapshot, request: Request) -> Change:
    now, plan = snapshot.now, snapshot.plan
    unopened = State(
        user_id=snapshot.user_id,
        plan=plan.name,
        plan_source=PlanSource.DEFAULT.value,
        plan_version=plan.version,
        quota_limit=plan.allowance,
        quota_remaining=0,
        last_reset_date=now,
        anchor_at=now,
        period_seq=0,
        refused_at=None,
        seq=0,
        updated_at=now,
        deleted_at=None,
    )
    return _new_period(_unchanged(snapshot, unopened), Request(request.actor), Kind.OPENED)


def _new_period(change: Change, request: Request, kind: Kind = Kind.RESET) -> Change:
    """A period by the plan as it is now. Before its time only a rolling one begins anew."""
    plan, state = change.snapshot.plan, change.state
    begins_at = RESET_POLICIES[plan.reset_policy].begins_at(plan, state, change.snapshot.now)
    return _enter(
        replace(change, rules=plan),
        request,
        kind,
        delta=(plan.allowance or 0) - state.quota_remaining,
        plan_version=plan.version,
        quota_limit=plan.allowance,
        last_reset_date=max(state.last_reset_date, begins_at),
        period_seq=state.seq + 1,
        refused_at=None,
    )


def _enter(
    change: Change, request: Request, kind: Kind, *, cost: int = 0, delta: int = 0, **moves: Any
) -> Change:
    """Return `change` with one entry more, and the state that it leaves."""
    snapshot, before = change.snapshot, change.state
    state = replace(
        before,
        seq=before.seq + 1,
        quota_remaining=before.quota_remaining + delta,
        updated_at=snapshot.now,
        **moves,
    )
    entry = Entry(
        id=snapshot.entry_ids[len(change.entries)],
        user_id=state.user_id,
        seq=state.seq,
        kind=kind.value,
        cost=cost,
        delta=delta,
        plan=state.plan,
        plan_source=state.plan_source,
        plan_version=state.plan_version,
        quota_limit=state.quota_limit,
        balance_after=state.quota_remaining,
        last_reset_date=state.last_reset_date,
        anchor_at=state.anchor_at,
        resets_at=resets_at(change.rules, state),
        period_seq=state.period_seq,
        created_at=snapshot.now,
        actor_kind=request.actor.kind,
        actor_id=request.actor.id,
        act=request.actor.act,
        reason=request.reason,
        action=request.action,
        metadata=request.metadata,
        idempotency_key=request.idempotency_key,
        fingerprint=request.fingerprint,
        refund_of=request.refund_of,
    )
    return replace(change, state=state, entries=(*change.entries, entry))


def rfc3339(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _whole_second(instant: datetime) -> str:
    """Rounded up, so that what is promised for then is true then."""
    return rfc3339(instant + timedelta(microseconds=-instant.microsecond % 1_000_000))

"""The rules of a quota, and nothing else: a snapshot in, an outcome out.

Every verb is one pure function. It takes a `Snapshot` (what the database held at one instant of its
own clock) and returns a `Change` to store, a `Refusal`, or a `Replay` of what was already done.
Nothing here reads a clock, a setting or a database, so each rule can be tested with a table.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, ClassVar, NamedTuple
from uuid import UUID

MAX_UNITS = 2_147_483_647
USER_ID = re.compile(r"[A-Za-z0-9_:.@-]{1,128}")  # use fullmatch: `$` lets a newline through
ACTION_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


class Kind(StrEnum):
    """What an entry of the ledger tells."""

    OPENED = "opened"
    RESET = "reset"
    CONSUMED = "consumed"
    REFUSED = "refused"
    ADJUSTED = "adjusted"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Plan:
    name: str
    allowance: int | None  # units a period; None is unlimited
    reset_policy: str  # a key of RESET_POLICIES
    period: timedelta
    timezone: str
    actions: Mapping[str, int] = field(default_factory=dict)  # named action -> cost


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks: user, staff, webhook or command; `act` is who stands behind an impersonated user."""

    kind: str
    id: str
    act: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """A user's row, but for what Clerk alone says of him (e-mail)."""

    user_id: str
    plan: str
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
    quota_limit: int | None
    balance_after: int
    last_reset_date: datetime
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


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one read of the database found.

    `state` is None when the user has no row yet; `plan` is then the default plan. `entry` is the one
    that the request's idempotency key already made. `entry_ids` are fresh: no change needs more.
    """

    user_id: str
    clock: datetime
    plan: Plan
    state: State | None
    entry: Entry | None
    entry_ids: tuple[UUID, UUID]

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

    def __init__(self, quota: Quota, cost: int) -> None:
        self.quota, self.cost = quota, cost
        asked = f" and {cost} asked" if quota.quota_remaining else ""
        more = "no limit" if quota.plan.allowance is None else f"{quota.plan.allowance} more"
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


class AdjustmentOutOfRange(Refusal):
    code = "adjustment_out_of_range"


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
    """The request was carried out before, by `entry`; nothing is to be stored."""

    entry: Entry
    quota: Quota


@dataclass(frozen=True, slots=True)
class Change:
    """The state to store with its new entries (none: all stays as it is).

    `refusal` is set where the entry to store is the first refusal of a period.
    """

    snapshot: Snapshot
    state: State
    entries: tuple[Entry, ...] = ()
    refusal: Refusal | None = None

    @property
    def quota(self) -> Quota:
        return _quota(self.snapshot, self.state)


Outcome = Change | Refusal | Replay


class ResetPolicy(NamedTuple):
    """When a period is over, and where the period that holds an instant begins."""

    ends_at: Callable[[Plan, State], datetime]
    begins_at: Callable[[Plan, State, datetime], datetime]


RESET_POLICIES = {
    "rolling": ResetPolicy(
        ends_at=lambda plan, state: state.last_reset_date + plan.period,
        begins_at=lambda plan, state, now: now,
    ),
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
        return _answered(snapshot, request) or Change(snapshot, snapshot.state)
    return _opened(snapshot, request)


def consume(snapshot: Snapshot, request: Request, cost: int | None = None) -> Outcome:
    """Spend `cost` units (default: what the plan asks for the action, or 1), all or nothing."""
    if answer := _answered(snapshot, request):
        return answer
    change, plan = _settled(snapshot, request), snapshot.plan
    if request.action and request.action not in plan.actions:
        return UnknownAction(plan, request.action)
    if cost is None:
        cost = plan.actions[request.action] if request.action else 1
    if change.state.quota_limit is None:
        return _enter(change, request, Kind.CONSUMED, cost=cost)
    remaining = change.state.quota_remaining
    if cost <= remaining:
        return _enter(change, request, Kind.CONSUMED, cost=cost, delta=-cost)
    if plan.allowance is not None and cost > plan.allowance:
        return CostExceedsLimit(cost, max(plan.allowance, remaining))
    refusal = Exhausted(change.quota, cost)
    if change.state.refused_at:
        return refusal
    unkeyed = replace(request, idempotency_key=None, fingerprint="")  # a refusal never holds a key
    refused = _enter(change, unkeyed, Kind.REFUSED, cost=cost, refused_at=snapshot.now)
    return replace(refused, refusal=refusal)


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
        return Change(snapshot, state)
    change = Change(snapshot, state) if state else _opened(snapshot, request)
    return _enter(change, request, Kind.DELETED, deleted_at=snapshot.now)


def effective(plan: Plan, state: State, now: datetime) -> Quota:
    """The quota as a request at `now` would find it; nothing is changed."""
    snapshot = Snapshot(state.user_id, now, plan, state, entry=None, entry_ids=(UUID(int=0), UUID(int=0)))
    if state.deleted_at:
        return _quota(snapshot, state)
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
        plan=snapshot.plan,
        quota_limit=entry.quota_limit,
        quota_remaining=entry.balance_after,
        last_reset_date=entry.last_reset_date,
        resets_at=entry.resets_at,
        at=entry.created_at,
    )
    return Replay(entry, quota)


def _settled(snapshot: Snapshot, request: Request) -> Change:
    """The quota in the period that holds `now`."""
    state = snapshot.state
    if state is None:
        return _opened(snapshot, request)
    change = Change(snapshot, state)
    if not is_due(snapshot.plan, state, snapshot.now):
        return change
    return _new_period(change, Request(request.actor))


def _opened(snapshot: Snapshot, request: Request) -> Change:
    now, plan = snapshot.now, snapshot.plan
    unopened = State(
        user_id=snapshot.user_id,
        plan=plan.name,
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
    return _new_period(Change(snapshot, unopened), Request(request.actor), Kind.OPENED)


def _new_period(change: Change, request: Request, kind: Kind = Kind.RESET) -> Change:
    plan, state = change.snapshot.plan, change.state
    return _enter(
        change,
        request,
        kind,
        delta=(plan.allowance or 0) - state.quota_remaining,
        quota_limit=plan.allowance,
        last_reset_date=RESET_POLICIES[plan.reset_policy].begins_at(plan, state, change.snapshot.now),
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
        quota_limit=state.quota_limit,
        balance_after=state.quota_remaining,
        last_reset_date=state.last_reset_date,
        resets_at=resets_at(snapshot.plan, state),
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
    )
    return replace(change, state=state, entries=(*change.entries, entry))


def _quota(snapshot: Snapshot, state: State) -> Quota:
    return Quota(
        user_id=state.user_id,
        plan=snapshot.plan,
        quota_limit=state.quota_limit,
        quota_remaining=state.quota_remaining,
        last_reset_date=state.last_reset_date,
        resets_at=resets_at(snapshot.plan, state),
        at=snapshot.now,
    )


def rfc3339(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _whole_second(instant: datetime) -> str:
    """Rounded up, so that what is promised for then is true then."""
    return rfc3339(instant + timedelta(microseconds=-instant.microsecond % 1_000_000))

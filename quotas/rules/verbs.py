"""The rules of a quota. Each verb is one pure function from a snapshot to an outcome.

A verb takes a `Snapshot` (what the database held at one instant of its own clock) and a `Request`. It returns
a `Change` to store, a `Refusal`, or a `Replay` of an earlier request with the same idempotency key. Nothing
here reads a clock, a setting or a database, so a table of inputs and outcomes is enough to test a rule.
"""

from dataclasses import replace
from datetime import timedelta
from typing import Any

from quotas.rules.outcomes import (
    AdjustmentOutOfRange,
    AlreadyRefunded,
    Change,
    ConsumptionNotFound,
    CostBelowPrice,
    CostExceedsLimit,
    Deleted,
    Exhausted,
    KeyReused,
    Outcome,
    RefundTooLarge,
    Refusal,
    Replay,
    UnknownAction,
    UnknownPlan,
)
from quotas.rules.periods import RESET_POLICIES, is_due, resets_at
from quotas.rules.values import (
    MAX_UNITS,
    Actor,
    Entry,
    EntryKind,
    OnChange,
    PlanSource,
    Quota,
    Request,
    Snapshot,
    State,
)


def current(snapshot: Snapshot, request: Request) -> Outcome:
    """Open the quota if it is missing, reset it if it is due, and change nothing else."""
    return _already_decided(snapshot, request) or _bring_up_to_date(snapshot, request)


def open_missing(snapshot: Snapshot, request: Request) -> Outcome:
    """Open the quota if it is missing; leave an existing one as it is, due or not."""
    if snapshot.state:
        return _already_decided(snapshot, request) or _unchanged(snapshot, snapshot.state)
    return _open(snapshot, request)


def consume(snapshot: Snapshot, request: Request, cost: int | None = None) -> Outcome:
    """Spend `cost` units (default: the plan's price of the action, or 1 without one), all or nothing.

    A user may pay more than the price of an action, but not less. Other actors may pay any cost.
    """
    if decided := _already_decided(snapshot, request):
        return decided
    change = _bring_up_to_date(snapshot, request)
    if request.action and request.action not in change.plan_in_force.actions:
        return UnknownAction(change.plan_in_force, request.action)
    price = change.plan_in_force.actions[request.action] if request.action else 1
    cost = price if cost is None else cost
    if request.action and cost < price and request.actor.kind == "user":
        return CostBelowPrice(request.action, price)
    if change.state.quota_limit is None:
        return _append(change, request, EntryKind.CONSUMED, cost=cost)
    remaining, allowance = change.state.quota_remaining, snapshot.current_plan.allowance
    if cost <= remaining:
        return _append(change, request, EntryKind.CONSUMED, cost=cost, delta=-cost)
    if allowance is not None and cost > allowance:
        return CostExceedsLimit(cost, max(allowance, remaining))
    refusal = Exhausted(change.quota, cost, snapshot.current_plan)
    if change.state.refused_at:
        return refusal
    unkeyed = replace(request, idempotency_key=None, fingerprint="")  # a refusal must not use up the key
    refused = _append(change, unkeyed, EntryKind.REFUSED, cost=cost, refused_at=snapshot.now)
    return replace(refused, refusal=refusal)


def refund(snapshot: Snapshot, request: Request, amount: int | None = None) -> Outcome:
    """Give back `amount` units (default: all that is left) of the snapshot's consumption.

    It never lifts the balance above the allowance, and gives nothing back after the consumption's period.
    """
    if decided := _already_decided(snapshot, request):
        return decided
    spend = snapshot.consumption
    if spend is None or spend.kind != EntryKind.CONSUMED:
        return ConsumptionNotFound()
    rest = spend.cost - snapshot.refunded
    if rest == 0:
        return AlreadyRefunded()
    asked = rest if amount is None else amount
    if asked > rest:
        return RefundTooLarge(asked, rest)
    change = _bring_up_to_date(snapshot, request)
    tied = replace(request, refund_of=spend.id)
    if spend.period_seq != change.state.period_seq:
        return _append(change, tied, EntryKind.REFUNDED)
    room = max(0, (change.state.quota_limit or 0) - change.state.quota_remaining)
    return _append(change, tied, EntryKind.REFUNDED, cost=asked, delta=min(asked, room))


def change_plan(snapshot: Snapshot, request: Request, on_change: OnChange) -> Outcome:
    """Move the user to the snapshot's target plan. From or to an unlimited plan it is always a reset.

    Reset begins a new period with the new allowance. Keep subtracts the units already used from the new
    allowance; prorate adds the difference of the allowances for the rest of the period. Both continue the
    running period and leave at least 0. By the new plan that period may end at another time; if that time is
    past, the period starts now. If the user already has the target plan, only its source may change; with an
    idempotency key an entry is made even if nothing changes.
    """
    if decided := _already_decided(snapshot, request):
        return decided
    if (target := snapshot.target) is None:
        return UnknownPlan()
    change = _bring_up_to_date(snapshot, request)
    state, now = change.state, snapshot.now
    changes: dict[str, Any] = {"plan_source": snapshot.target_source}
    if target.name == state.plan:
        is_same_choice = changes["plan_source"] == state.plan_source
        if is_same_choice and request.idempotency_key is None:  # a key is kept only by an entry
            return change
        return _append(change, request, EntryKind.PLAN_CHANGED, **changes)
    ends_at = change.resets_at
    changes |= {
        "plan": target.name,
        "plan_version": target.version,
        "quota_limit": target.allowance,
    }
    change = replace(change, plan_in_force=target)
    if on_change == OnChange.RESET or state.quota_limit is None or target.allowance is None:
        delta = (target.allowance or 0) - state.quota_remaining
        changes |= {"last_reset_date": now, "anchor_at": now, "period_seq": state.seq + 1, "refused_at": None}
        return _append(change, request, EntryKind.PLAN_CHANGED, delta=delta, **changes)
    if on_change == OnChange.KEEP:
        left = target.allowance - max(0, state.quota_limit - state.quota_remaining)
    else:
        tick = timedelta.resolution  # integers: a timedelta times MAX_UNITS would overflow
        length, to_come = (ends_at - state.last_reset_date) // tick, (ends_at - now) // tick
        left = state.quota_remaining + (target.allowance - state.quota_limit) * to_come // length
    if resets_at(target, state) <= now:  # otherwise the next request would find it due and refill it
        changes["last_reset_date"] = now
    left = min(max(0, left), MAX_UNITS)
    return _append(change, request, EntryKind.PLAN_CHANGED, delta=left - state.quota_remaining, **changes)


def follow_assignments(snapshot: Snapshot, request: Request) -> Outcome:
    """Move the user to the plan that Clerk's assignments lead to (the target), unless staff chose their plan.

    The period continues, and the units already used count against the new allowance.
    """
    state, target = snapshot.state, snapshot.target
    if not state or state.deleted_at or not target:
        return change_plan(snapshot, request, OnChange.KEEP)
    is_followed = (state.plan, state.plan_source) == (target.name, snapshot.target_source)
    if is_followed or state.plan_source == PlanSource.STAFF:
        return _unchanged(snapshot, state)  # without a due reset: no user sent this request
    return change_plan(snapshot, request, OnChange.KEEP)


def adjust(snapshot: Snapshot, request: Request, delta: int) -> Outcome:
    """Add `delta` units, or remove them if it is negative, until the next reset."""
    if decided := _already_decided(snapshot, request):
        return decided
    change = _bring_up_to_date(snapshot, request)
    if change.state.quota_limit is None:
        return AdjustmentOutOfRange("This quota has no limit: there is nothing to adjust.")
    remaining = change.state.quota_remaining
    if not 0 <= remaining + delta <= MAX_UNITS:
        return AdjustmentOutOfRange(
            f"An adjustment by {delta:+d} would leave {remaining + delta}: "
            f"the balance is {remaining}, and must stay from 0 to {MAX_UNITS}."
        )
    return _append(change, request, EntryKind.ADJUSTED, delta=delta)


def reset(snapshot: Snapshot, request: Request) -> Outcome:
    """Refill to the plan's allowance, whether or not the quota is due."""
    if decided := _already_decided(snapshot, request):
        return decided
    return _new_period(_bring_up_to_date(snapshot, request), request)


def delete(snapshot: Snapshot, request: Request) -> Outcome:
    """Close the quota permanently. The row stays as a tombstone, which no later event reopens."""
    state = snapshot.state
    if state and state.deleted_at:
        return _unchanged(snapshot, state)
    change = _unchanged(snapshot, state) if state else _open(snapshot, request)
    return _append(change, request, EntryKind.DELETED, deleted_at=snapshot.now)


def effective(snapshot: Snapshot) -> Quota:
    """Return the quota that a request would find, or the last one of a deleted user. Nothing is stored."""
    if snapshot.state and snapshot.state.deleted_at:
        return _unchanged(snapshot, snapshot.state).quota
    return _bring_up_to_date(snapshot, Request(Actor("", ""))).quota


def _already_decided(snapshot: Snapshot, request: Request) -> Refusal | Replay | None:
    """Return the outcome that every verb has for a deleted user or a used key; None in other cases."""
    if snapshot.state and snapshot.state.deleted_at:
        return Deleted()
    if (entry := snapshot.entry) is None:
        return None
    if entry.fingerprint != request.fingerprint:
        return KeyReused()
    quota = Quota(
        user_id=entry.user_id,
        plan=snapshot.entry_plan or snapshot.plan_in_force,
        quota_limit=entry.quota_limit,
        quota_remaining=entry.balance_after,
        last_reset_date=entry.last_reset_date,
        resets_at=entry.resets_at,
        at=entry.created_at,
    )
    return Replay(entry, quota, quota_now=effective(snapshot))


def _bring_up_to_date(snapshot: Snapshot, request: Request) -> Change:
    """The quota in the period that contains `now`."""
    state = snapshot.state
    if state is None:
        return _open(snapshot, request)
    change = _unchanged(snapshot, state)
    if not is_due(snapshot.plan_in_force, state, snapshot.now):
        return change
    return _new_period(change, Request(request.actor))


def _unchanged(snapshot: Snapshot, state: State) -> Change:
    plan = snapshot.plan_in_force
    return Change(snapshot, state, plan, resets_at(plan, state))


def _open(snapshot: Snapshot, request: Request) -> Change:
    now, plan = snapshot.now, snapshot.current_plan
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
    return _new_period(_unchanged(snapshot, unopened), Request(request.actor), EntryKind.OPENED)


def _new_period(change: Change, request: Request, kind: EntryKind = EntryKind.RESET) -> Change:
    """Begin a period under the current plan version.

    If the running period is not over, a rolling one begins anew at this instant; any other keeps its dates
    and is only refilled.
    """
    plan, state = change.snapshot.current_plan, change.state
    begins_at = RESET_POLICIES[plan.reset_policy].begins_at(plan, state, change.snapshot.now)
    return _append(
        replace(change, plan_in_force=plan),
        request,
        kind,
        delta=(plan.allowance or 0) - state.quota_remaining,
        plan_version=plan.version,
        quota_limit=plan.allowance,
        last_reset_date=max(state.last_reset_date, begins_at),
        period_seq=state.seq + 1,
        refused_at=None,
    )


def _append(
    change: Change, request: Request, kind: EntryKind, *, cost: int = 0, delta: int = 0, **changes: Any
) -> Change:
    """Return `change` with one more entry and the state after it; `changes` are fields of that state."""
    snapshot, before = change.snapshot, change.state
    state = replace(
        before,
        seq=before.seq + 1,
        quota_remaining=before.quota_remaining + delta,
        updated_at=snapshot.now,
        **changes,
    )
    ends_at = resets_at(change.plan_in_force, state)
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
        resets_at=ends_at,
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
    return replace(change, state=state, resets_at=ends_at, entries=(*change.entries, entry))

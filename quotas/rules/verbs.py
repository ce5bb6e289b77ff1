"""The rules of a quota, and nothing else: a snapshot in, an outcome out.

Every verb is one pure function. It takes a `Snapshot` (what the database held at one instant of its
own clock) and returns a `Change` to store, a `Refusal`, or a `Replay` of what was already done.
Nothing here reads a clock, a setting or a database, so each rule can be tested with a table.
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
    """The quota as it stands now: opened if missing, reset if due."""
    return _already_decided(snapshot, request) or _bring_up_to_date(snapshot, request)


def open_missing(snapshot: Snapshot, request: Request) -> Outcome:
    """Make the row if there is none; leave any other as it is."""
    if snapshot.state:
        return _already_decided(snapshot, request) or _unchanged(snapshot, snapshot.state)
    return _open(snapshot, request)


def consume(snapshot: Snapshot, request: Request, cost: int | None = None) -> Outcome:
    """Spend `cost` units (default: what the plan asks for the action, or 1), all or nothing.

    A user may name a higher cost for an action than the plan does, and no lower one.
    """
    if answer := _already_decided(snapshot, request):
        return answer
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
    unkeyed = replace(request, idempotency_key=None, fingerprint="")  # a refusal never holds a key
    refused = _append(change, unkeyed, EntryKind.REFUSED, cost=cost, refused_at=snapshot.now)
    return replace(refused, refusal=refusal)


def refund(snapshot: Snapshot, request: Request, amount: int | None = None) -> Outcome:
    """Give back `amount` units (default: all that is left) of the snapshot's consumption.

    A balance is never lifted above the allowance by it, and a closed period gets nothing back.
    """
    if answer := _already_decided(snapshot, request):
        return answer
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
    """Give the user the snapshot's target plan; from or to unlimited every way is a reset.

    Keep takes what was used from the new allowance; prorate adds the difference for the part of the
    period that is still to come. Both go on in the same period, which ends as the new plan says (it is
    counted from now if that would be past), and neither leaves less than 0. To the plan that he has,
    only whose choice it is may change.
    """
    if answer := _already_decided(snapshot, request):
        return answer
    if (target := snapshot.target) is None:
        return UnknownPlan()
    change = _bring_up_to_date(snapshot, request)
    state, now = change.state, snapshot.now
    moved: dict[str, Any] = {"plan_source": snapshot.target_source}
    if target.name == state.plan:
        if moved["plan_source"] == state.plan_source:
            return change
        return _append(change, request, EntryKind.PLAN_CHANGED, **moved)
    ends_at = change.resets_at
    moved |= {
        "plan": target.name,
        "plan_version": target.version,
        "quota_limit": target.allowance,
    }
    change = replace(change, plan_in_force=target)
    if on_change == OnChange.RESET or state.quota_limit is None or target.allowance is None:
        delta = (target.allowance or 0) - state.quota_remaining
        moved |= {"last_reset_date": now, "anchor_at": now, "period_seq": state.seq + 1, "refused_at": None}
        return _append(change, request, EntryKind.PLAN_CHANGED, delta=delta, **moved)
    if on_change == OnChange.KEEP:
        left = target.allowance - max(0, state.quota_limit - state.quota_remaining)
    else:
        tick = timedelta.resolution  # in integers: a timedelta times 2147483647 would overflow
        length, to_come = (ends_at - state.last_reset_date) // tick, (ends_at - now) // tick
        left = state.quota_remaining + (target.allowance - state.quota_limit) * to_come // length
    if resets_at(target, state) <= now:  # by the new plan it would be over, and refilled at once
        moved["last_reset_date"] = now
    left = min(max(0, left), MAX_UNITS)
    return _append(change, request, EntryKind.PLAN_CHANGED, delta=left - state.quota_remaining, **moved)


def follow_assignments(snapshot: Snapshot, request: Request) -> Outcome:
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
    if answer := _already_decided(snapshot, request):
        return answer
    change = _bring_up_to_date(snapshot, request)
    if change.state.quota_limit is None:
        return AdjustmentOutOfRange("This quota has no limit: there is nothing to adjust.")
    remaining = change.state.quota_remaining
    if not 0 <= remaining + delta <= MAX_UNITS:
        return AdjustmentOutOfRange(
            f"An adjustment by {delta:+d} would leave {remaining + delta}; "
            f"a balance is from 0 to {MAX_UNITS}, and it is {remaining} now."
        )
    return _append(change, request, EntryKind.ADJUSTED, delta=delta)


def reset(snapshot: Snapshot, request: Request) -> Outcome:
    """Refill to the plan's allowance, due or not."""
    if answer := _already_decided(snapshot, request):
        return answer
    return _new_period(_bring_up_to_date(snapshot, request), request)


def delete(snapshot: Snapshot, request: Request) -> Outcome:
    """Close the quota for good. The row stays as a tombstone that no later event brings back."""
    state = snapshot.state
    if state and state.deleted_at:
        return _unchanged(snapshot, state)
    change = _unchanged(snapshot, state) if state else _open(snapshot, request)
    return _append(change, request, EntryKind.DELETED, deleted_at=snapshot.now)


def effective(snapshot: Snapshot) -> Quota:
    """The quota as a request would find it, a tombstone's as it was left; nothing is changed."""
    if snapshot.state and snapshot.state.deleted_at:
        return _unchanged(snapshot, snapshot.state).quota
    return _bring_up_to_date(snapshot, Request(Actor("", ""))).quota


def _already_decided(snapshot: Snapshot, request: Request) -> Refusal | Replay | None:
    """The answer that stands before any rule of a verb is asked, if there is one."""
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
    """The quota in the period that holds `now`."""
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
    """A period by the plan as it is now. Before its time only a rolling one begins anew."""
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
    change: Change, request: Request, kind: EntryKind, *, cost: int = 0, delta: int = 0, **moves: Any
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

"""The rules of a quota. Each verb is one pure function from a snapshot to an outcome.

A verb takes a `Snapshot` (what the database held at one instant of its own clock) and a `Request`. It returns
a `Change` to store, a `Refusal`, or a `Replay` of an earlier request with the same idempotency key. Nothing
here reads a clock, a setting or a database, so a table of inputs and outcomes is enough to test a rule.
"""

from datetime import datetime, timedelta
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
    Forecast,
    KeyReused,
    Outcome,
    RefundTooLarge,
    Refusal,
    Replay,
    UnknownAction,
    UnknownPlan,
    UnknownUser,
)
from quotas.rules.periods import is_due, next_period, period_end
from quotas.rules.values import (
    MAX_UNITS,
    Actor,
    Entry,
    EntryKind,
    ImportedUsage,
    OnChange,
    Plan,
    PlanSource,
    Quota,
    Request,
    Snapshot,
    State,
    remaining,
    rfc3339,
    usage_shown,
)


def current(snapshot: Snapshot, request: Request) -> Outcome:
    """Open the quota if it is missing, reset it if it is due, and change nothing else."""
    return _already_decided(snapshot, request) or _bring_up_to_date(snapshot, request)


def open_missing(snapshot: Snapshot, request: Request) -> Outcome:
    """Open the quota if it is missing; leave an existing one as it is, due or not."""
    if decided := _already_decided(snapshot, request):
        return decided
    return _unchanged(snapshot, snapshot.state) if snapshot.state else _open(snapshot, request)


def import_usage(snapshot: Snapshot, request: Request, usage: ImportedUsage) -> Outcome:
    """Open the quota in the period in which another service left it; leave an existing quota as it is.

    It opens under the snapshot's target, if there is one, as staff's choice.
    """
    if snapshot.state:
        return open_missing(snapshot, request)
    changes: dict[str, Any] = {}
    if target := snapshot.target:
        snapshot = snapshot._replace(current_plan=target, plan_in_force=target)
        changes["plan_source"] = PlanSource.STAFF.value
    change = _open(snapshot, request)
    begin, limit = usage.last_reset_date, change.state.quota_limit
    used, given = usage.used, 0
    if used is None:
        used, given = usage_shown(limit, usage.remaining or 0)
    counts = limit is not None  # what is spent under no limit does not count
    changes |= {
        "period_consumed": used if counts else 0,
        "period_given": given if counts else 0,
        "last_reset_date": begin,
        "resets_at": period_end(snapshot.current_plan, begin, begin),
        "anchor_at": begin,
        "period_seq": change.state.seq + 1,
    }
    return _append(change, request, EntryKind.IMPORTED, cost=used, **changes)


def consume(snapshot: Snapshot, request: Request, cost: int | None = None) -> Outcome:
    """Spend `cost` units (default: the plan's price of the action, or 1 without one), all or nothing.

    A user may pay more than the price of an action, but not less. Other actors may pay any cost.
    """
    return _already_decided(snapshot, request) or _spend(snapshot, request, cost)


def _spend(snapshot: Snapshot, request: Request, cost: int | None) -> Change | Refusal:
    change = _bring_up_to_date(snapshot, request)
    if request.action and request.action not in change.plan_in_force.actions:
        return UnknownAction(change.plan_in_force, request.action)
    price = change.plan_in_force.actions[request.action] if request.action else 1
    cost = price if cost is None else cost
    if request.action and cost < price and request.actor.kind == "user":
        return CostBelowPrice(request.action, price)
    if change.state.quota_limit is None:
        return _append(change, request, EntryKind.CONSUMED, cost=cost)
    left, allowance = change.state.quota_remaining, snapshot.current_plan.allowance
    if cost <= left:
        consumed = change.state.period_consumed + cost
        return _append(change, request, EntryKind.CONSUMED, cost=cost, period_consumed=consumed)
    if allowance is not None and cost > allowance:
        return CostExceedsLimit(cost, max(allowance, left))
    refusal = Exhausted(change.quota, cost, snapshot.current_plan)
    if change.state.refused_at:
        return refusal
    unkeyed = request._replace(idempotency_key=None, fingerprint="")  # a refusal must not use up the key
    refused = _append(change, unkeyed, EntryKind.REFUSED, cost=cost, refused_at=snapshot.now)
    return refused._replace(refusal=refusal)


def forecast(snapshot: Snapshot, request: Request, cost: int | None = None) -> Forecast | Refusal:
    """Return what `consume` would meet. A request that no quota could grant is refused here too."""
    if isinstance(decided := _already_decided(snapshot, request), Refusal):
        return decided
    outcome = _spend(snapshot, request, cost)
    refusal = outcome.refusal if isinstance(outcome, Change) else outcome
    if isinstance(refusal, Exhausted | CostExceedsLimit):
        return Forecast(effective(snapshot), refusal.cost, None, refusal)
    if isinstance(outcome, Change):
        return Forecast(effective(snapshot), outcome.entries[-1].cost, outcome.quota.spendable, None)
    return outcome


def refund(snapshot: Snapshot, request: Request, amount: int | None = None) -> Outcome:
    """Give back `amount` units (default: all that is left) of the snapshot's consumption.

    It gives nothing back after the consumption's period, nor of what was spent under no limit.
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
    tied = request._replace(refund_of=spend.id)
    if spend.seq < change.state.period_seq:
        return _append(change, tied, EntryKind.REFUNDED)
    counted = 0 if spend.quota_limit is None else asked
    consumed = change.state.period_consumed - counted
    return _append(change, tied, EntryKind.REFUNDED, cost=asked, period_consumed=consumed)


def show_consumption(snapshot: Snapshot, request: Request) -> Replay | Refusal:
    """Return what the snapshot's consumption was answered with, as a replay of it is."""
    if isinstance(decided := _already_decided(snapshot, request), Refusal):
        return decided
    spend = snapshot.consumption
    if spend is None or spend.kind != EntryKind.CONSUMED:
        return ConsumptionNotFound()
    return _replay(snapshot, spend, snapshot.consumption_plan, snapshot.refunded)


def change_plan(snapshot: Snapshot, request: Request, on_change: OnChange) -> Outcome:
    """Move the user to the snapshot's target plan.

    Reset begins a new period. Keep and prorate continue the running one: what was consumed and given in it
    still counts. If the user already has the target plan, only its source may change; with an idempotency
    key an entry is made even if nothing changes.
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
    elif on_change == OnChange.RESET:
        end = period_end(target, now, now)
        changes |= {"plan": target.name, "anchor_at": now, **_full_period(target, state, now, end)}
    else:
        if snapshot.usage and snapshot.usage.plan:
            target = snapshot.usage.plan
        changes |= _continued_period(change, target, on_change)
        changes |= {"plan": target.name, "plan_version": target.version}
    return _append(change._replace(plan_in_force=target), request, EntryKind.PLAN_CHANGED, **changes)


def follow_assignments(snapshot: Snapshot, request: Request) -> Outcome:
    """Move the user to the plan that Clerk's assignments lead to (the target), unless staff chose their plan.

    The period continues: what was consumed in it counts against the new allowance.
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
        return AdjustmentOutOfRange(delta, None)
    left = change.state.quota_remaining
    if not 0 <= left + delta <= MAX_UNITS:
        return AdjustmentOutOfRange(delta, left)
    return _append(change, request, EntryKind.ADJUSTED, period_given=change.state.period_given + delta)


def reset(snapshot: Snapshot, request: Request) -> Outcome:
    """Refill to the plan's allowance, whether or not the quota is due.

    If the running period begins in the future, because the database's clock was ahead, the new one begins by
    the clock as it is now, and the entry says so: nothing else moves a row back in time.
    """
    if decided := _already_decided(snapshot, request):
        return decided
    state, now = snapshot.state, snapshot.clock
    if state and state.last_reset_date > now:
        request = request._replace(metadata={"clock_was_ahead": rfc3339(state.last_reset_date)})
        state = state._replace(last_reset_date=now, anchor_at=min(state.anchor_at, now), updated_at=now)
        snapshot = snapshot._replace(state=state)
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
    """Return the outcome that every verb has for an unknown or deleted user, or for a used key."""
    if snapshot.state is None and not request.may_open:
        return UnknownUser()
    if snapshot.state and snapshot.state.deleted_at:
        return Deleted()
    if (entry := snapshot.entry) is None:
        return None
    if entry.fingerprint != request.fingerprint:
        return KeyReused()
    return _replay(snapshot, entry, snapshot.entry_plan, snapshot.entry_refunded)


def _replay(snapshot: Snapshot, entry: Entry, plan: Plan | None, refunded: int) -> Replay:
    """The quota as the entry left it, under this plan version, and as it is now."""
    used, given = usage_shown(
        entry.quota_limit, entry.balance_after, entry.period_consumed, entry.period_given
    )
    quota = Quota(
        user_id=entry.user_id,
        plan=plan or snapshot.plan_in_force,
        quota_limit=entry.quota_limit,
        quota_remaining=entry.balance_after,
        used=used,
        given=given,
        last_reset_date=entry.last_reset_date,
        resets_at=entry.resets_at,
        at=entry.created_at,
    )
    return Replay(entry, quota, effective(snapshot), refunded)


def _bring_up_to_date(snapshot: Snapshot, request: Request) -> Change:
    """The quota in the period that contains `now`."""
    state = snapshot.state
    if state is None:
        return _open(snapshot, request)
    change = _unchanged(snapshot, state)
    if not is_due(state, snapshot.now):
        return change
    return _new_period(change, Request(request.actor))


def _unchanged(snapshot: Snapshot, state: State) -> Change:
    return Change(snapshot, state, snapshot.plan_in_force)


def _open(snapshot: Snapshot, request: Request) -> Change:
    now, plan = snapshot.now, snapshot.current_plan
    unopened = State(
        user_id=snapshot.user_id,
        plan=plan.name,
        plan_source=PlanSource.DEFAULT.value,
        plan_version=plan.version,
        quota_limit=plan.allowance,
        quota_remaining=0,
        period_consumed=0,
        period_given=0,
        last_reset_date=now,
        resets_at=now,
        anchor_at=now,
        period_seq=0,
        refused_at=None,
        left_until=None,
        seq=0,
        usage_seq=0,
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
    begin, end = next_period(plan, change.plan_in_force, state, change.snapshot.now)
    period = _full_period(plan, state, begin, end)
    return _append(change._replace(plan_in_force=plan), request, kind, **period)


def _full_period(plan: Plan, state: State, begin: datetime, end: datetime) -> dict[str, Any]:
    """Return what changes in `state` as a period begins in which nothing was consumed or given."""
    return {
        "plan_version": plan.version,
        "quota_limit": plan.allowance,
        "period_consumed": 0,
        "period_given": 0,
        "last_reset_date": begin,
        "resets_at": end,
        "period_seq": state.seq + 1,
        "refused_at": None,
    }


def _continued_period(change: Change, target: Plan, on_change: OnChange) -> dict[str, Any]:
    """Return what changes in the state as the running period continues under the target.

    All counts that was consumed and given in the period in which the target finds the user. If by the target
    that period is over, it lasts until the target's next one begins: no change of plan refills a quota.
    """
    state, now, usage = change.state, change.snapshot.now, change.snapshot.usage
    period: dict[str, Any] = {"quota_limit": target.allowance}
    if usage:
        period |= {
            "quota_limit": usage.limit if usage.plan else target.allowance,
            "period_seq": usage.period_seq,
            "period_consumed": usage.consumed,
            "period_given": usage.given,
            "last_reset_date": usage.begins_at,
            "refused_at": usage.refused_at,
        }
    begin, end = (usage.begins_at, usage.ends_at) if usage else (state.last_reset_date, None)
    if end is None:
        end = period_end(target, state.anchor_at, begin)
    if end <= now:
        end = period_end(target, state.anchor_at, now)
    if on_change == OnChange.PRORATE and (begin, end) == (state.last_reset_date, state.resets_at):
        period["quota_limit"] = _prorated_limit(change, target)
    known_until = usage.left_until if usage else state.left_until
    left_until = max(known_until or end, end, state.resets_at)
    return {**period, "resets_at": end, "left_until": left_until}


def _prorated_limit(change: Change, target: Plan) -> int | None:
    """Return the limit, moved by the difference of the allowances for the part of the period to come.

    If one of the plans has no limit, there is no difference: return the target's allowance.
    """
    state, allowance = change.state, change.plan_in_force.allowance
    if state.quota_limit is None or allowance is None or target.allowance is None:
        return target.allowance
    tick = timedelta.resolution  # integers: a timedelta times MAX_UNITS would overflow
    length, to_come = (
        (state.resets_at - begin) // tick for begin in (state.last_reset_date, change.snapshot.now)
    )
    return max(0, state.quota_limit + (target.allowance - allowance) * to_come // length)


def _append(change: Change, request: Request, kind: EntryKind, *, cost: int = 0, **changes: Any) -> Change:
    """Return `change` with one more entry and the state after it; `changes` are fields of that state.

    The balance is derived from the other fields, never added to.
    """
    snapshot, before = change.snapshot, change.state
    seq = before.seq + 1
    left = remaining(
        changes.get("quota_limit", before.quota_limit),
        changes.get("period_given", before.period_given),
        changes.get("period_consumed", before.period_consumed),
    )
    state = before._replace(quota_remaining=left, seq=seq, usage_seq=seq, updated_at=snapshot.now, **changes)
    entry = Entry(
        id=snapshot.entry_ids[len(change.entries)],
        user_id=state.user_id,
        seq=state.seq,
        kind=kind.value,
        cost=cost,
        delta=left - before.quota_remaining,
        plan=state.plan,
        plan_source=state.plan_source,
        plan_version=state.plan_version,
        quota_limit=state.quota_limit,
        balance_after=left,
        period_consumed=state.period_consumed,
        period_given=state.period_given,
        last_reset_date=state.last_reset_date,
        anchor_at=state.anchor_at,
        resets_at=state.resets_at,
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
    return change._replace(state=state, entries=(*change.entries, entry))

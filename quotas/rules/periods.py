"""When a period ends, and when the period that contains an instant begins: the reset policies.

The end of a period is computed once, as it begins, and kept in the row: later rules of a time zone do not
move it.
"""

from calendar import monthrange
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from typing import NamedTuple

from quotas.rules.values import NAMED_PERIODS, Plan, Snapshot, State, usage_shown
from quotas.rules.zones import zone

SAME_MIDNIGHT = timedelta(hours=3)  # at most, between the midnights of two versions of a zone's data


class ResetPolicy(NamedTuple):
    """Functions of a plan, the anchor and an instant."""

    ends_at: Callable[[Plan, datetime, datetime], datetime]  # the end of the period that begins then
    begins_at: Callable[[Plan, datetime, datetime], datetime]  # the begin of the period that contains it


def _on_grid(
    index: Callable[[Plan, datetime, datetime], int], boundary: Callable[[Plan, datetime, int], datetime]
) -> ResetPolicy:
    """Return a policy whose periods meet at numbered boundaries. Many missed periods cost no more than one.

    `index` returns the number of a boundary near an instant. It may be off by one (a month's boundary may lie
    later in that month, and clocks are set back), so the neighbours are tried too.
    """

    def ends_at(plan: Plan, anchor: datetime, begin: datetime) -> datetime:
        near = index(plan, anchor, begin)
        ends = (boundary(plan, anchor, number) for number in (near, near + 1, near + 2))
        return next(end for end in ends if end > begin)

    def begins_at(plan: Plan, anchor: datetime, instant: datetime) -> datetime:
        near = index(plan, anchor, instant)
        begins = (boundary(plan, anchor, number) for number in (near + 1, near, near - 1))
        return next(begin for begin in begins if begin <= instant)

    return ResetPolicy(ends_at, begins_at)


def _local_day(plan: Plan, instant: datetime) -> date:
    return instant.astimezone(zone(plan.timezone)).date()


def _midnight(plan: Plan, day: date) -> datetime:
    """Return the first instant of a local day, in UTC. If DST skips midnight, it is the end of the gap."""
    local = zone(plan.timezone)
    wall = datetime.combine(day, time(), local)
    late = wall.astimezone(UTC)
    if late.astimezone(local).replace(tzinfo=None) == wall.replace(tzinfo=None):
        return late
    early = wall.replace(fold=1).astimezone(UTC)  # in a gap: by the offset after it, so before the gap
    while late - early > timedelta.resolution:
        middle = early + (late - early) / 2
        is_there = middle.astimezone(local).replace(tzinfo=None) >= wall.replace(tzinfo=None)
        early, late = (early, middle) if is_there else (middle, late)
    return late


def _month(plan: Plan, anchor: datetime, instant: datetime) -> int:
    day = _local_day(plan, instant)
    return day.year * 12 + day.month - 1


def _day_of_month(plan: Plan, anchor: datetime, number: int) -> datetime:
    """Return the anchor's day in month `number`, or that month's last day if it is shorter.

    It counts from the anchor: a short month does not move the boundaries after it.
    """
    year, month = divmod(number, 12)
    last = monthrange(year, month + 1)[1]
    return _midnight(plan, date(year, month + 1, min(_local_day(plan, anchor).day, last)))


RESET_POLICIES = {
    "rolling": ResetPolicy(
        ends_at=lambda plan, anchor, begin: begin + plan.period,
        begins_at=lambda plan, anchor, instant: instant,
    ),
    "anchored": _on_grid(
        index=lambda plan, anchor, instant: (instant - anchor) // plan.period,
        boundary=lambda plan, anchor, number: anchor + number * plan.period,
    ),
    "daily": _on_grid(
        index=lambda plan, anchor, instant: _local_day(plan, instant).toordinal(),
        boundary=lambda plan, anchor, number: _midnight(plan, date.fromordinal(number)),
    ),
    "weekly": _on_grid(  # day 1 is 1 January of year 1, a Monday
        index=lambda plan, anchor, instant: (_local_day(plan, instant).toordinal() - 1) // 7,
        boundary=lambda plan, anchor, number: _midnight(plan, date.fromordinal(number * 7 + 1)),
    ),
    "monthly": _on_grid(index=_month, boundary=_day_of_month),
}


def period_end(plan: Plan, anchor: datetime, begin: datetime) -> datetime:
    return RESET_POLICIES[plan.reset_policy].ends_at(plan, anchor, begin)


def period_begin(plan: Plan, anchor: datetime, instant: datetime) -> datetime:
    return RESET_POLICIES[plan.reset_policy].begins_at(plan, anchor, instant)


def is_due(state: State, now: datetime) -> bool:
    """Return whether the running period is over. Its end is the first instant of the next one."""
    return now >= state.resets_at


def next_period(plan: Plan, before: Plan, state: State, now: datetime) -> tuple[datetime, datetime]:
    """Return begin and end of the next period under this plan. It begins when the last one ended, or later.

    If that end lies shortly before a midnight of the same calendar, an instance with other data of the time
    zone computed it, and both are the same midnight: then the next period lasts until the one after it.
    """
    due, boundary = is_due(state, now), period_begin(plan, state.anchor_at, now)
    begin = max(state.resets_at if due else state.last_reset_date, boundary)
    end = period_end(plan, state.anchor_at, begin)
    calendar = (plan.reset_policy, plan.timezone)
    is_same = plan.reset_policy in NAMED_PERIODS and calendar == (before.reset_policy, before.timezone)
    if due and is_same and begin > boundary and end - begin <= SAME_MIDNIGHT:
        end = period_end(plan, state.anchor_at, end)
    return begin, end


def as_shown(state: State, plan_in_force: Plan) -> State:
    """Return the state with the end of its period and with the usage that its balance shows, if unknown.

    This is for display only: the store asks the ledger before it changes such a row.
    """
    if state.is_usage_known:
        return state
    consumed, given = usage_shown(state.quota_limit, state.quota_remaining)
    end = period_end(plan_in_force, state.anchor_at, state.last_reset_date)
    return state._replace(period_consumed=consumed, period_given=given, resets_at=end)


class Lookback(NamedTuple):
    """The question to the ledger: in which period does a plan find the user, and what was used in it?

    If the plan was left in a period that has not ended by `now`, that one goes on as it was left. Otherwise
    it is the running period, or if that is due, the one that follows at `next_begin`. But if the plan's own
    period began before that, at `begins_at`, all counts from there; and if another plan was left in a period
    that has not ended by `now`, all counts from the begin of that one, or from `since` if it began earlier.
    A refill that somebody asked for bounds all of this.
    """

    plan: str
    since: datetime
    begins_at: datetime
    now: datetime
    is_due: bool
    next_begin: datetime


def lookback(snapshot: Snapshot) -> Lookback | None:
    """Return what a change to the snapshot's target must know of the ledger; None if the row tells all."""
    state, target, now = snapshot.state, snapshot.target, snapshot.now
    if not state or not target or target.name == state.plan:
        return None
    begins_at, due = period_begin(target, state.anchor_at, now), is_due(state, now)
    following, _ = next_period(snapshot.current_plan, snapshot.plan_in_force, state, now)
    is_left = not state.is_usage_known or (state.left_until is not None and state.left_until > now)
    if not is_left and begins_at >= (following if due else state.last_reset_date):
        return None
    since = min(begins_at, now - target.longest_window)
    return Lookback(target.name, since, begins_at, now, due, following)

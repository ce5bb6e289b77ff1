"""When the running period ends, and when the period that contains an instant begins: the reset policies."""

from calendar import monthrange
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

from quotas.rules.values import Plan, State


class ResetPolicy(NamedTuple):
    ends_at: Callable[[Plan, State], datetime]  # the end of the running period
    begins_at: Callable[[Plan, State, datetime], datetime]  # the begin of the one that contains an instant


def _on_grid(
    index: Callable[[Plan, datetime, datetime], int], boundary: Callable[[Plan, datetime, int], datetime]
) -> ResetPolicy:
    """Return a policy whose periods meet at numbered boundaries. Many missed periods cost no more than one.

    `index` returns the number of a boundary near an instant. It may be off by one (a month's boundary may lie
    later in that month, and clocks are set back), so the neighbours are tried too.
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
    """Return the first instant of a local day, in UTC. If DST skips midnight, it is the end of the gap."""
    zone = ZoneInfo(plan.timezone)
    wall = datetime.combine(day, time(), zone)
    late = wall.astimezone(UTC)
    if late.astimezone(zone).replace(tzinfo=None) == wall.replace(tzinfo=None):
        return late
    early = wall.replace(fold=1).astimezone(UTC)  # in a gap: by the offset after it, so before the gap
    while late - early > timedelta.resolution:
        middle = early + (late - early) / 2
        is_there = middle.astimezone(zone).replace(tzinfo=None) >= wall.replace(tzinfo=None)
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
    "weekly": _on_grid(  # day 1 is 1 January of year 1, a Monday
        index=lambda plan, anchor, instant: (_local_day(plan, instant).toordinal() - 1) // 7,
        boundary=lambda plan, anchor, number: _midnight(plan, date.fromordinal(number * 7 + 1)),
    ),
    "monthly": _on_grid(index=_month, boundary=_day_of_month),
}


def resets_at(plan: Plan, state: State) -> datetime:
    return RESET_POLICIES[plan.reset_policy].ends_at(plan, state)


def is_due(plan: Plan, state: State, now: datetime) -> bool:
    """Return whether the running period is over. Its end is the first instant of the next one."""
    return now >= resets_at(plan, state)

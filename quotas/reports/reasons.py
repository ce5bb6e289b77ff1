"""Why a quota stands as it does, in plain sentences for people."""

from datetime import UTC, datetime, timedelta

from quotas.models import DAY_SECONDS
from quotas.reports.counts import counted
from quotas.reports.history import Explanation
from quotas.rules.values import NAMED_PERIODS, Plan, PlanSource, Quota

CHOSEN_BY = {
    PlanSource.STAFF: ", which staff chose,",
    PlanSource.BILLING: ", from Clerk's billing,",
    PlanSource.METADATA: ", from Clerk's metadata,",
    PlanSource.DEFAULT: "",
}
CALENDAR_PERIODS = {"daily": "day", "weekly": "week", "monthly": "month"}
UNITS_OF_TIME = (("day", DAY_SECONDS), ("hour", 3_600), ("minute", 60), ("second", 1))


def reason(explained: Explanation) -> str:
    """Return what the plan gives, what was used of it, and when the quota resets."""
    quota = explained.quota
    if explained.is_deleted:
        at = _instant(explained.entries[0].created_at)
        return f"This user was deleted at {at}: the quota is closed permanently."
    plan = f"The plan {quota.plan.name}{CHOSEN_BY[PlanSource(explained.plan_source)]}"
    end = _instant(_whole_second(quota.resets_at))
    if quota.quota_limit is None:
        return f"{plan} has no limit, so every spend is granted; its next period begins at {end}."
    gives = f"{plan} gives {counted(quota.quota_limit, 'unit')} {_every(quota.plan)}."
    if explained.is_reset_due:
        due = f"A reset is due, which the next request carries out: {_left(quota)}."
        return f"{gives} {due} If that came now, the period would end at {end}."
    return f"{gives} {_used(quota)}, {_left(quota)}; it resets at {end}."


def _used(quota: Quota) -> str:
    used, given = quota.used, quota.given
    count = f"{used:,} {'was' if used == 1 else 'were'}" if used else "None was"
    parts = [f"{count} used since {_instant(quota.last_reset_date)}"]
    if given:
        parts.append(f"staff {'added' if given > 0 else 'removed'} {abs(given):,}")
    if (over := used - (quota.quota_limit or 0) - given) > 0:
        parts.append(f"{over:,} beyond what there was")
    return ", ".join(parts)


def _left(quota: Quota) -> str:
    left = quota.quota_remaining
    return f"{left:,} {'is' if left == 1 else 'are'} left" if left else "none is left"


def _every(plan: Plan) -> str:
    """Return the plan's period: "every 24 hours", or "each day in Europe/Berlin"."""
    if plan.reset_policy in NAMED_PERIODS:
        return f"each {CALENDAR_PERIODS[plan.reset_policy]} in {plan.timezone}"
    seconds = int(plan.period.total_seconds())
    units = UNITS_OF_TIME if seconds > DAY_SECONDS else UNITS_OF_TIME[1:]  # a day is 24 hours
    unit, size = next((unit, size) for unit, size in units if seconds % size == 0)
    count = seconds // size
    return f"every {unit}" if count == 1 else f"every {counted(count, unit)}"


def _instant(at: datetime) -> str:
    at = at.astimezone(UTC)
    return f"{at:%H:%M:%S} UTC on {at.day} {at:%B %Y}".replace(":00 UTC", " UTC")


def _whole_second(at: datetime) -> datetime:
    """Round up, so that a client that returns then is not too early."""
    return at + timedelta(microseconds=-at.microsecond % 1_000_000)

"""Who has nothing left to spend now.

The row cannot be searched for it: an index on what a spend changes would end PostgreSQL's HOT
updates, and a reset that is due is not in the row. So the ledger names candidates, and policy.py
judges each.
"""

from collections.abc import Iterator
from datetime import datetime
from itertools import count
from typing import NamedTuple
from uuid import UUID

from quotas import policy
from quotas.models import ChallengeQuota, LedgerEntry, Plan, PlanVersion
from quotas.policy import Snapshot, State
from quotas.prune import clock
from quotas.sql import STATE

NO_IDS = (UUID(int=0), UUID(int=0))  # nothing is stored


class Found(NamedTuple):
    """Users who are exhausted now, and whether these are all of them."""

    user_ids: list[str]
    is_all: bool


def exhausted(limit: int) -> Found:
    """Return at most `limit` of the users who can spend nothing now, those who reset soonest first."""
    now = clock()
    plans = {plan.name: plan.rules for plan in Plan.objects.all()}
    versions = {(past.plan_id, past.version): past.rules for past in PlanVersion.objects.all()}
    candidates = _candidates(now, [name for name, plan in plans.items() if plan.allowance == 0], limit + 1)
    are_exhausted = {}
    for state in candidates:
        plan, rules = plans[state.plan], versions[state.plan, state.plan_version]
        snapshot = Snapshot(state.user_id, now, plan, rules, state, None, None, NO_IDS)
        are_exhausted[state.user_id] = policy.effective(snapshot).spendable == 0
    user_ids = [user_id for user_id, is_exhausted in are_exhausted.items() if is_exhausted]
    return Found(user_ids[:limit], len(candidates) <= limit)


def _candidates(now: datetime, empty_plans: list[str], most: int) -> list[State]:
    """Return all who may be exhausted, or at least `most` of them."""
    quotas = ChallengeQuota.objects.filter(deleted_at=None)
    found: list[State] = []
    for entries in _left_nothing(now, most):
        rows = quotas.filter(pk__in=[user_id for user_id, _ in entries]).values_list(*STATE)
        states = {state.user_id: state for state in (State(*row) for row in rows)}
        # Only the newest entry tells what is left.
        found += [states[user] for user, seq in entries if user in states and states[user].seq == seq]
        if len(found) >= most:
            return found
    refill_to_nothing = quotas.filter(plan__in=empty_plans).order_by()
    return [*found, *(State(*row) for row in refill_to_nothing.values_list(*STATE)[:most])]


def _left_nothing(now: datetime, at_once: int) -> Iterator[list[tuple[str, int]]]:
    """Yield user and seq of the entries that left nothing of a period that still runs, some at a time.

    Not joined to the quotas: PostgreSQL might read all of these to find the few.
    """
    entries = LedgerEntry.objects.filter(balance_after=0, quota_limit__isnull=False, resets_at__gt=now)
    ordered = entries.order_by("resets_at", "user_id", "seq").values_list("user_id", "seq")
    for begin in count(step=at_once):
        chunk = list(ordered[begin : begin + at_once])
        if chunk:
            yield chunk
        if len(chunk) < at_once:
            return

"""Who has nothing left to spend now.

The row cannot be searched for it: an index on what a spend changes would end PostgreSQL's HOT
updates, and a reset that is due is not in the row. So the ledger names candidates, and policy.py
judges each.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple

from django.db import connection

from quotas.models import ChallengeQuota, Plan, PlanVersion
from quotas.rules import verbs
from quotas.rules.values import NO_IDS, Snapshot, State
from quotas.store.commit import clock
from quotas.store.sql import STATE_COLUMNS

MAX_EXHAUSTED = 500  # that the console shows, and counts
ROWS_PER_CHUNK = 1_000  # entries, and users, that are judged at once
MAX_CHUNKS = 10  # so that one look is bounded, however many entries are of no account any more

# Parameters: where to go on (resets_at, user id, seq), CHUNK. The entries that left nothing of a period
# that still runs, over their own index. Not joined to the quotas: PostgreSQL might read all of these.
LEFT_NOTHING = """
    SELECT resets_at, user_id, seq FROM ledger_entries
    WHERE balance_after = 0 AND quota_limit IS NOT NULL AND (resets_at, user_id, seq) > (%s, %s, %s)
    ORDER BY resets_at, user_id, seq LIMIT %s
"""


class ExhaustedUsers(NamedTuple):
    """Users who are exhausted now, and whether these are all of them."""

    user_ids: list[str]
    is_all: bool


def exhausted(limit: int) -> ExhaustedUsers:
    """Return at most `limit` of the users who can spend nothing now, those who reset soonest first."""
    now = clock()
    found: dict[str, None] = {}  # in their order, and each once
    is_all = True
    for states in _candidates(now):
        if states is None:
            is_all = False
            continue
        found |= dict.fromkeys(_exhausted_of(states, now))
        if len(found) > limit:
            return ExhaustedUsers(list(found)[:limit], False)
    return ExhaustedUsers(list(found), is_all)


def _exhausted_of(states: list[State], now: datetime) -> Iterator[str]:
    if not states:
        return
    # Read after the states, so that every version that one goes by is there.
    plans = {plan.name: plan.value for plan in Plan.objects.all()}
    versions = {(past.plan_id, past.version): past.value for past in PlanVersion.objects.all()}
    for state in states:
        plan, rules = plans[state.plan], versions[state.plan, state.plan_version]
        snapshot = Snapshot(state.user_id, now, plan, rules, state, None, None, NO_IDS)
        if verbs.effective(snapshot).spendable == 0:
            yield state.user_id


def _candidates(now: datetime) -> Iterator[list[State] | None]:
    """Yield all who may be exhausted, some at a time; None where the rest is left out."""
    quotas = ChallengeQuota.objects.filter(deleted_at=None)
    last: Any = (connection.ops.adapt_datetimefield_value(now), "", 0)
    for _ in range(MAX_CHUNKS):
        entries = _left_nothing(last)
        rows = quotas.filter(pk__in=[user_id for _, user_id, _ in entries]).values_list(*STATE_COLUMNS)
        states = {state.user_id: state for state in (State(*row) for row in rows)}
        # Only the newest entry tells what is left.
        yield [states[user] for _, user, seq in entries if user in states and states[user].seq == seq]
        if len(entries) < ROWS_PER_CHUNK:
            break
        last = entries[-1]
    else:
        yield None
    empty = quotas.filter(plan__in=Plan.objects.filter(allowance=0)).order_by()
    refill_to_nothing = [State(*row) for row in empty.values_list(*STATE_COLUMNS)[: ROWS_PER_CHUNK + 1]]
    yield refill_to_nothing
    if len(refill_to_nothing) > ROWS_PER_CHUNK:
        yield None


def _left_nothing(last: tuple[Any, str, int]) -> list[tuple[Any, str, int]]:
    with connection.cursor() as cursor:
        cursor.execute(LEFT_NOTHING, [*last, ROWS_PER_CHUNK])
        return list(cursor.fetchall())

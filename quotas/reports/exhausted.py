"""Users who have nothing left to spend now.

The quota rows cannot be searched for this: an index on a column that a spend changes would end PostgreSQL's
HOT updates, and a row does not show a reset that is due. So the ledger and the plans name candidates, and
the rules decide for each.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple

from django.db import connection

from quotas.models import ChallengeQuota, Plan, PlanVersion
from quotas.rules import periods, verbs
from quotas.rules.values import NO_IDS, Snapshot, State
from quotas.store.direct import clock
from quotas.store.rows import STATE_COLUMNS

MAX_EXHAUSTED = 500  # shown and counted by the console
ROWS_PER_CHUNK = 1_000  # candidates read at once
MAX_CHUNKS = 10  # bounds one call, however many entries are outdated

# Parameters: the position to continue after (resets_at, user id, seq), ROWS_PER_CHUNK. Entries with balance 0
# in a period that is still running, from an index of their own. Not joined to the quotas: PostgreSQL might
# read every row of that table.
LEFT_NOTHING = """
    SELECT resets_at, user_id, seq FROM ledger_entries
    WHERE balance_after = 0 AND quota_limit IS NOT NULL AND (resets_at, user_id, seq) > (%s, %s, %s)
    ORDER BY resets_at, user_id, seq LIMIT %s
"""


class ExhaustedUsers(NamedTuple):
    """Users who are exhausted now; unless `is_all`, there may be more."""

    user_ids: list[str]
    is_all: bool


def exhausted(limit: int) -> ExhaustedUsers:
    """Return at most `limit` users who can spend nothing now, those who reset soonest first."""
    now = clock()
    found: dict[str, None] = {}  # an ordered set
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
    # Read versions after the states, so that the version of every state is among them.
    plans = {plan.name: plan.value for plan in Plan.objects.all()}
    versions = {(past.plan_id, past.version): past.value for past in PlanVersion.objects.all()}
    for state in states:
        plan, rules = plans[state.plan], versions[state.plan, state.plan_version]
        shown = periods.as_shown(state, rules)
        snapshot = Snapshot(state.user_id, now, plan, rules, shown, None, None, NO_IDS)
        if verbs.effective(snapshot).spendable == 0:
            yield state.user_id


def _candidates(now: datetime) -> Iterator[list[State] | None]:
    """Yield the users who may be exhausted, in chunks, and None where others are left out."""
    quotas = ChallengeQuota.objects.filter(deleted_at=None)
    last: Any = (connection.ops.adapt_datetimefield_value(now), "", 0)
    for _ in range(MAX_CHUNKS):
        entries = _left_nothing(last)
        rows = quotas.filter(pk__in=[user_id for _, user_id, _ in entries]).values_list(*STATE_COLUMNS)
        states = {state.user_id: state for state in (State(*row) for row in rows)}
        # Only a user's newest entry has their current balance.
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

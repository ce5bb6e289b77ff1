"""The statements of each step of steps.py: generators whose statements a driver runs, one after the other."""

from collections.abc import Generator, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple
from uuid import UUID

from uuid_utils.compat import uuid7

from quotas.rules.outcomes import Change
from quotas.rules.periods import Lookback, lookback
from quotas.rules.values import MAX_PERIOD, PlanSource, Snapshot, State, Usage, remaining
from quotas.store import plan_cache, sql
from quotas.store.arrays import array_literals
from quotas.store.errors import NoDefaultPlan
from quotas.store.rows import (
    ENTRY_ARRAYS,
    STATE_COLUMNS,
    SWAP_COLUMNS,
    entry_from,
    entry_parameters,
    plan_from,
    state_from,
    state_parameters,
)
from quotas.store.steps import Attempt, DatabaseStep, DatabaseSteps, Read, Result, SnapshotQuery, Write

MAX_ENTRIES_ALONE = 2  # of a change that has a statement of its own: more are quicker as arrays


class Statement(NamedTuple):
    """Its result is its rows, or their number, or how many rows it wrote."""

    text: str
    parameters: Mapping[str, Any]
    wants_rows: bool = False


Statements = Generator[Statement, Any, Result]


class FreshIds(dict[int, UUID]):
    """The ids of the entries that a decision makes, each made when it is asked for: a read makes none."""

    def __missing__(self, number: int) -> UUID:
        self[number] = fresh = uuid7()
        return fresh


def statements_of(step: DatabaseStep, dialect: str, *, in_transaction: bool = False) -> Statements[Any]:
    """Return the statements whose result is the step's."""
    if isinstance(step, Read):
        return read_snapshot(step.user_id, step.query, dialect, in_transaction=in_transaction)
    if isinstance(step, Write):
        statements = write(step.change, dialect, waits=step.waits)
        return statements if in_transaction or dialect == "postgresql" else _in_transaction(statements)
    return was_written(*step)


def _in_transaction(statements: Statements[Result]) -> Statements[Result]:
    yield Statement(sql.BEGIN, {})
    result = yield from statements
    yield Statement(sql.COMMIT, {})
    return result


def statements_of_all(
    steps: DatabaseSteps[Result], dialect: str, *, in_transaction: bool = False
) -> Statements[Result]:
    """Return the statements of steps that all ask the database, whose result is that of the steps."""
    try:
        step = next(steps)
        while True:
            step = steps.send((yield from statements_of(step, dialect, in_transaction=in_transaction)))
    except StopIteration as stop:
        result: Result = stop.value
        return result


def read_snapshot(
    user_id: str, query: SnapshotQuery, dialect: str, *, in_transaction: bool
) -> Statements[Snapshot]:
    """Return what the verb decides from.

    The row and the ledger may be read by two statements: a write that comes between them also stops ours.
    """
    snapshot = yield from _read_row(user_id, query, dialect, in_transaction=in_transaction)
    if (state := snapshot.state) is None:
        return snapshot
    if not state.is_usage_known:
        snapshot = snapshot._replace(state=(yield from _with_usage(state)))
    if asked := lookback(snapshot):
        snapshot = snapshot._replace(usage=(yield from _read_usage(state, asked)))
    return snapshot


def write(change: Change, dialect: str, *, waits: bool) -> Statements[bool]:
    """Write the change if the row is still as it was read. Only on PostgreSQL it needs no transaction."""
    if change.snapshot.state is None:
        return (yield from insert_rows([change], dialect)) > 0
    parameters = state_parameters(change.state) | {"seq_read": change.snapshot.state.seq}
    if dialect == "postgresql":
        for number, entry in enumerate(change.entries):
            parameters |= entry_parameters(entry, number)
        added: int = yield Statement(sql.compare_and_swap(len(change.entries), waits=waits), parameters)
        return added > 0
    if not (yield Statement(sql.UPDATE_ROW[dialect], parameters)):
        return False
    for entry in change.entries:
        yield Statement(sql.INSERT_ENTRY, entry_parameters(entry))
    return True


def read_snapshots(attempts: Sequence[Attempt]) -> Statements[list[Snapshot]]:
    """Return what each attempt decides from; those whose plan or usage is unknown read alone."""
    found = (yield from _read_together(attempts)) if len(attempts) > 1 else [None] * len(attempts)
    snapshots = []
    for attempt, snapshot in zip(attempts, found, strict=True):
        if snapshot is None or (snapshot.state and not snapshot.state.is_usage_known):
            snapshot = yield from read_snapshot(
                attempt.user_id, attempt.query, "postgresql", in_transaction=attempt.must_lock
            )
        snapshots.append(snapshot)
    return snapshots


def _read_together(attempts: Sequence[Attempt]) -> Statements[Sequence[Snapshot | None]]:
    """Read the snapshots with plans from the cache; one is None if a plan version is not cached."""
    asked = [(attempt.user_id, attempt.query.idempotency_key) for attempt in attempts]
    keyed = any(key is not None for _, key in asked)
    arrays = array_literals({"user_id": "text", "key": "text"}, asked)
    if not keyed:
        del arrays["keys"]
    rows = yield Statement(sql.snapshots_query(keyed=keyed), arrays, wants_rows=True)
    return [
        _with_cached_plans(user_id, row, keyed=keyed) for (user_id, _), row in zip(asked, rows, strict=True)
    ]


def write_changes(changes: Sequence[Change]) -> Statements[set[str]]:
    """Write each change whose row is still as it was read and is not locked; return their users' ids.

    No two changes are of one user, and each is of a user who has a row.
    """
    if len(changes) == 1 and len(changes[0].entries) <= MAX_ENTRIES_ALONE:
        is_written = yield from write(changes[0], "postgresql", waits=False)
        return {changes[0].state.user_id} if is_written else set()
    states = [(*change.state, change.snapshot.state.seq) for change in changes if change.snapshot.state]
    arrays = array_literals(SWAP_COLUMNS, states) | _entry_arrays(changes)
    rows = yield Statement(sql.SWAP_ROWS, arrays, wants_rows=True)
    return {user_id for (user_id,) in rows}


def _entry_arrays(changes: Iterable[Change]) -> dict[str, str]:
    return array_literals(ENTRY_ARRAYS, [entry for change in changes for entry in change.entries])


def was_written(user_id: str, entry_id: UUID) -> Statements[bool]:
    found: int = yield Statement(sql.ENTRY_EXISTS, {"user_id": user_id, "entry_id": entry_id})
    return found > 0


def insert_rows(changes: list[Change], dialect: str) -> Statements[int]:
    """Insert the missing rows with their entries; return how many entries were inserted."""
    if dialect == "postgresql":
        states = [change.state for change in changes]
        added: int = yield Statement(
            sql.OPEN_ROWS, array_literals(STATE_COLUMNS, states) | _entry_arrays(changes)
        )
        return added
    added = 0
    for change in changes:
        if (yield Statement(sql.INSERT_ROW, state_parameters(change.state))):
            for entry in change.entries:
                added += yield Statement(sql.INSERT_ENTRY, entry_parameters(entry))
    return added


def _with_usage(state: State) -> Statements[State]:
    """Return the state with the usage that its ledger tells, because the row does not.

    A release that does not keep it wrote the row. Such a release may run beside this one during a deploy: so
    the row says at which seq its usage was written. The balance stays: what that release gave or took by
    other rules counts as given.
    """
    parameters = {"user_id": state.user_id, "seq": state.seq, "period_seq": state.period_seq}
    [row] = yield Statement(sql.RUNNING_USAGE, parameters, wants_rows=True)
    resets_at, _, _, consumed, given = row
    if remaining(state.quota_limit, given, consumed) != state.quota_remaining:
        given = state.quota_remaining + consumed - (state.quota_limit or 0)
    return state._replace(
        period_consumed=consumed,
        period_given=given,
        resets_at=(end := resets_at or state.last_reset_date),  # without entries it is over
        left_until=end + MAX_PERIOD,
    )


def _read_usage(state: State, asked: Lookback) -> Statements[Usage | None]:
    parameters = {"user_id": state.user_id, "seq": state.seq, **asked._asdict()}
    [found] = yield Statement(sql.USAGE_BY_PLAN, parameters, wants_rows=True)
    row = iter(found)
    begins_at, period_seq, consumed, given, refused_at, left_until, limit, ends_at = islice(row, 8)
    if period_seq is None:
        return None
    plan = plan_from(row)
    return Usage(begins_at, period_seq, consumed, given, refused_at, left_until, plan, limit, ends_at)


def _read_row(
    user_id: str, query: SnapshotQuery, dialect: str, *, in_transaction: bool
) -> Statements[Snapshot]:
    key, include, argument = query
    if not include and not plan_cache.is_empty():
        snapshot = yield from _read_without_plans(user_id, key, dialect)
        if snapshot:
            return snapshot
    keyed = key is not None
    parameters = {"user_id": user_id} | ({"key": key} if keyed else {})
    if argument is not None:
        parameters["argument"] = argument
    [found] = yield Statement(sql.snapshot_query(dialect, include, keyed=keyed), parameters, wants_rows=True)
    row = iter(found)
    clock, newest_id = next(row), next(row)
    plan, in_force, state = plan_from(row), plan_from(row), state_from(row)
    entry, entry_plan, entry_refunded = None, None, 0
    if keyed:
        entry, entry_plan, entry_refunded = entry_from(row), plan_from(row), int(next(row) or 0)
    if plan is None:
        raise NoDefaultPlan
    if not in_transaction:
        plan_cache.remember(newest_id, plan, in_force, entry_plan)
    return Snapshot(
        user_id=user_id,
        clock=clock,
        current_plan=plan,
        plan_in_force=in_force or plan,
        state=state,
        entry=entry,
        entry_plan=entry_plan,
        entry_ids=FreshIds(),
        entry_refunded=entry_refunded,
        consumption=entry_from(row) if include == "consumption" else None,
        consumption_plan=plan_from(row) if include == "consumption" else None,
        refunded=int(next(row)) if include == "consumption" else 0,
        target=plan_from(row) if include in ("target", "clerk") else None,
        target_source=next(row) if include == "clerk" else PlanSource.STAFF.value,
    )


def _read_without_plans(user_id: str, key: str | None, dialect: str) -> Statements[Snapshot | None]:
    """Read the snapshot with plans from the cache; return None if a plan version is not cached."""
    parameters = {"user_id": user_id} if key is None else {"user_id": user_id, "key": key}
    statement = sql.snapshot_query(dialect, keyed=key is not None, without_plans=True)
    [row] = yield Statement(statement, parameters, wants_rows=True)
    return _with_cached_plans(user_id, row, keyed=key is not None)


def _with_cached_plans(user_id: str, found: Iterable[Any], *, keyed: bool) -> Snapshot | None:
    """Return the snapshot of a row that was read without plans; None if a plan version is not cached."""
    row = iter(found)
    clock, newest_id = next(row), next(row)
    known = partial(plan_cache.get, newest_id)
    plan, state = known(next(row), next(row)), state_from(row)
    entry, entry_refunded = (entry_from(row), int(next(row) or 0)) if keyed else (None, 0)
    in_force = known(state.plan, state.plan_version) if state else plan
    entry_plan = known(entry.plan, entry.plan_version) if entry else None
    if not plan or not in_force or (entry and not entry_plan):
        return None
    return Snapshot(user_id, clock, plan, in_force, state, entry, entry_plan, FreshIds(), entry_refunded)

"""Read, decide, write: the loop that stores a decision.

If another request changes the row between read and write, the loop starts again; if the reply to a write is
lost, it finds out whether the write was carried out. A read costs one round trip, a change two. The deciding
function is a parameter: there is no rule here.

The loop is a generator of steps. A driver runs the statement of each step and sends back its result:
`run_steps` on the connection of the calling thread, loop.py on a connection of an event loop.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import datetime
from functools import partial
from itertools import chain, islice
from threading import Lock
from typing import Any, NamedTuple, TypeGuard

from django.db import Error, OperationalError, transaction
from uuid_utils.compat import uuid7

from quotas import metrics
from quotas.rules.outcomes import Change, Outcome
from quotas.rules.periods import Lookback, lookback
from quotas.rules.values import MAX_PERIOD, PlanSource, Snapshot, State, Usage, remaining
from quotas.store import plan_cache, sql
from quotas.store.errors import ConnectionLost, LostRace, NoDefaultPlan, Result, translating_errors
from quotas.store.rows import entry_from, entry_values, plan_from, state_from, state_values
from quotas.store.thread import database, execute, fetch_row, in_transaction, vendor

# Tries before the row is locked, so that a busy row makes progress too. On SQLite the first try only reads; a
# change is then decided again inside BEGIN IMMEDIATE, which locks the database.
UNLOCKED_TRIES = {"postgresql": 4, "sqlite": 1}
MAX_TRIES = 10
# The threads of a process that write to one row wait for each other instead of losing races to each other.
WRITER_LOCKS = [Lock() for _ in range(1_024)]
WRITER_WAIT_SECONDS = 1  # then write anyway: correctness does not depend on these locks

Decide = Callable[[Snapshot], Outcome]


class SnapshotQuery(NamedTuple):
    """What to read besides the user's row; see `snapshot_query` in sql.py."""

    idempotency_key: str | None = None  # as stored
    include: str = ""  # of sql.INCLUDES,
    argument: Any = None  # and its parameter, if it has one


class Step(NamedTuple):
    """A statement. Its result is its one row, or the number of rows that it found or wrote."""

    statement: str
    parameters: Sequence[Any]
    wants_row: bool = False


class NeedsThread(NamedTuple):
    """The next steps wait for a lock in a transaction: an event loop must hand them over to a thread."""


Steps = Generator[Step | NeedsThread, Any, Result]


def run_steps(steps: Steps[Result], error: Exception | None = None) -> Result:
    """Return the result of the steps, run on this thread's connection.

    With `error`, continue after a step that failed with it.
    """
    try:
        step = steps.throw(error) if error else next(steps)
        while True:
            try:
                found = _run_step(step)
            except Error as fault:
                step = steps.throw(fault)
            else:
                step = steps.send(found)
    except StopIteration as stop:
        result: Result = stop.value
        return result
    finally:
        steps.close()  # immediately, whatever happened: they may be inside a transaction


def _run_step(step: Step | NeedsThread) -> Any:
    if isinstance(step, NeedsThread):
        return None
    with translating_errors():
        return (fetch_row if step.wants_row else execute)(step.statement, step.parameters)


def commit(user_id: str, decide: Decide, query: SnapshotQuery) -> Steps[Outcome]:
    """Return the outcome that `decide` makes of the user's snapshot, once it is stored.

    `decide` must be pure: it may be called several times. A change that is returned is stored whole and
    exactly once, even if a connection died before the reply arrived. Raises OperationalError if the database
    cannot be reached or takes no writes: the change may then be stored or not, but never in part or twice.
    """
    unlocked_tries = UNLOCKED_TRIES[vendor()]
    for attempt in range(MAX_TRIES):
        # Assignments change without bumping seq, so compare-and-swap cannot see it: take the row lock first.
        locked = query.include == "clerk" or attempt >= unlocked_tries
        outcome, is_final = yield from _try_once(user_id, decide, query, locked=locked)
        if outcome is not None and is_final:
            return outcome
        if attempt or vendor() == "postgresql":  # SQLite's first try only reads
            metrics.LOST_RACES.inc()
    raise OperationalError("The row was changed by other requests again and again.")


@contextmanager
def one_writer(user_id: str) -> Iterator[None]:
    """Let one thread of this process at a time write to this user's row.

    In a transaction it does not wait: the thread may hold the row's lock, for which the other thread waits.
    """
    lock = WRITER_LOCKS[hash(user_id) % len(WRITER_LOCKS)]
    is_ours = not database().in_atomic_block and lock.acquire(timeout=WRITER_WAIT_SECONDS)
    try:
        yield
    finally:
        if is_ours:
            lock.release()


def open_many(user_ids: Iterable[str], decide: Decide) -> int:
    """Insert the missing rows as `decide` opens them; return how many were inserted."""
    blank = run_steps(_read_snapshot("", SnapshotQuery()))  # no user has this id: a snapshot without a row
    decided = [decide(replace(blank, user_id=user_id, entry_ids=(uuid7(), uuid7()))) for user_id in user_ids]
    changes = [outcome for outcome in decided if isinstance(outcome, Change)]
    return run_steps(_insert_rows(changes)) if changes else 0


def note_profiles(profiles: Iterable[tuple[str, str, datetime]]) -> int:
    """Store each (user id, e-mail, Clerk's time) that is newer than the stored one; return how many were."""
    return sum(execute(sql.NOTE_PROFILE, [email, at, user_id, at]) for user_id, email, at in profiles)


def read_snapshot(user_id: str, query: SnapshotQuery) -> Snapshot:
    """Return the snapshot from which a verb would decide now."""
    return run_steps(_read_snapshot(user_id, query))


def clock() -> datetime:
    """Return the database's clock, which dates the entries."""
    now: datetime = fetch_row(f"SELECT {sql.CLOCK[vendor()]}", [])[0]
    return now


def lock(user_id: str) -> None:
    """Lock the user's row until the transaction ends."""
    if vendor() == "postgresql":  # SQLite's transactions lock the whole database from their start
        execute(sql.LOCK, [user_id])


def note_assignment(user_id: str, source: str, external_id: str, plan: str, updated_at: datetime) -> bool:
    """Store Clerk's plan assignment unless a later one of its item is stored; return whether it was."""
    return execute(sql.NOTE_ASSIGNMENT, [uuid7(), user_id, source, external_id, plan, updated_at]) > 0


def _try_once(
    user_id: str, decide: Decide, query: SnapshotQuery, *, locked: bool
) -> Steps[tuple[Outcome | None, bool]]:
    """Read, decide and write once; return the outcome and whether it is final.

    The outcome is None if a reused connection had died before the read, or if PostgreSQL refused a statement
    because another transaction was first.
    """
    outcome: Outcome | None = None
    if locked:
        yield NeedsThread()
    try:
        with _locked(user_id) if locked else nullcontext():
            outcome = decide((yield from _read_snapshot(user_id, query)))
            if not _has_entries(outcome):
                return outcome, True
            return outcome, (locked or vendor() == "postgresql") and (yield from _write(outcome))
    except ConnectionLost as error:
        if _has_entries(outcome):
            return outcome, (yield from _write_again(outcome))
        if not error.was_reused:
            raise
        return None, False
    except LostRace:  # of a database whose default is not READ COMMITTED; a locked try uses that
        return None, False


@contextmanager
def _locked(user_id: str) -> Iterator[None]:
    with translating_errors(), transaction.atomic():
        lock(user_id)
        yield


def _has_entries(outcome: Outcome | None) -> TypeGuard[Change]:
    return isinstance(outcome, Change) and bool(outcome.entries)


def _write(change: Change) -> Steps[bool]:
    """Write the change if the row is still as it was read; return whether it was written."""
    if change.snapshot.state is None:
        return (yield from _insert_rows([change])) > 0
    state = state_values(change.state)[1:]
    guarded = [*state, state[-1], change.state.user_id, change.snapshot.state.seq]
    entries = [entry_values(entry) for entry in change.entries]
    if vendor() == "postgresql":
        added: int = yield Step(sql.compare_and_swap(len(entries)), [*guarded, *chain(*entries)])
        return added > 0
    if not (yield Step(sql.SQLITE_UPDATE, guarded)):
        return False
    for row in entries:
        yield Step(sql.SQLITE_ENTRY, row)
    return True


def _write_again(change: Change) -> Steps[bool]:
    """Write a change that may have been written already, or may still be under way.

    The same guarded statement waits for the first one and cannot take effect twice. If its guard fails,
    the id of our own entry shows whether the first one succeeded.
    """
    if (yield from _write(change)):
        return True
    found: int = yield Step(sql.ENTRY_EXISTS, [change.state.user_id, change.entries[-1].id])
    return found > 0


def _insert_rows(changes: list[Change]) -> Steps[int]:
    """Insert the missing rows with their entries; return how many entries were inserted."""
    states = [state_values(change.state) for change in changes]
    entries = [[entry_values(entry) for entry in change.entries] for change in changes]
    if vendor() == "postgresql":
        columns = chain(zip(*states, strict=True), zip(*chain(*entries), strict=True))
        added: int = yield Step(sql.OPEN_ROWS, [list(column) for column in columns])
        return added
    added = 0
    for state, rows in zip(states, entries, strict=True):
        if (yield Step(sql.SQLITE_INSERT, state)):
            for row in rows:
                added += yield Step(sql.SQLITE_ENTRY, row)
    return added


def _read_snapshot(user_id: str, query: SnapshotQuery) -> Steps[Snapshot]:
    """Return what the verb decides from.

    The row and the ledger may be read by two statements: a write that comes between them also stops ours.
    """
    snapshot = yield from _read_row(user_id, query)
    if (state := snapshot.state) is None:
        return snapshot
    if not state.is_usage_known:
        snapshot = replace(snapshot, state=(yield from _with_usage(state)))
    if asked := lookback(snapshot):
        snapshot = replace(snapshot, usage=(yield from _read_usage(state, asked)))
    return snapshot


def _with_usage(state: State) -> Steps[State]:
    """Return the state with the usage that its ledger tells, because the row does not.

    A release that does not keep it wrote the row. Such a release may run beside this one during a deploy: so
    the row says at which seq its usage was written. The balance stays: what that release gave or took by
    other rules counts as given.
    """
    found = yield Step(sql.RUNNING_USAGE, [state.seq, state.period_seq, state.user_id], wants_row=True)
    resets_at, _, _, consumed, given = found
    if remaining(state.quota_limit, given, consumed) != state.quota_remaining:
        given = state.quota_remaining + consumed - (state.quota_limit or 0)
    return replace(
        state,
        period_consumed=consumed,
        period_given=given,
        resets_at=(end := resets_at or state.last_reset_date),  # without entries it is over
        left_until=end + MAX_PERIOD,
    )


def _read_usage(state: State, asked: Lookback) -> Steps[Usage | None]:
    parameters = [state.seq, *asked, *[state.user_id] * 4]
    row = iter((yield Step(sql.USAGE_BY_PLAN, parameters, wants_row=True)))
    begins_at, period_seq, consumed, given, refused_at, left_until, limit, ends_at = islice(row, 8)
    if period_seq is None:
        return None
    plan = plan_from(row)
    return Usage(begins_at, period_seq, consumed, given, refused_at, left_until, plan, limit, ends_at)


def _read_row(user_id: str, query: SnapshotQuery) -> Steps[Snapshot]:
    key, include, argument = query
    if not include and not plan_cache.is_empty():
        snapshot = yield from _read_without_plans(user_id, key)
        if snapshot:
            return snapshot
    keyed = key is not None
    parameters = [user_id, *([key] if keyed else []), *([] if argument is None else [argument])]
    row = iter((yield Step(sql.snapshot_query(vendor(), include, keyed=keyed), parameters, wants_row=True)))
    clock, newest_id = next(row), next(row)
    plan, in_force, state = plan_from(row), plan_from(row), state_from(row)
    entry, entry_plan = (entry_from(row), plan_from(row)) if keyed else (None, None)
    if plan is None:
        raise NoDefaultPlan("There is no default plan: mark a plan as the default in the admin.")
    if not in_transaction():
        plan_cache.remember(newest_id, plan, in_force, entry_plan)
    return Snapshot(
        user_id=user_id,
        clock=clock,
        current_plan=plan,
        plan_in_force=in_force or plan,
        state=state,
        entry=entry,
        entry_plan=entry_plan,
        entry_ids=(uuid7(), uuid7()),
        consumption=entry_from(row) if include == "consumption" else None,
        refunded=int(next(row)) if include == "consumption" else 0,
        target=plan_from(row) if include in ("target", "clerk") else None,
        target_source=next(row) if include == "clerk" else PlanSource.STAFF.value,
    )


def _read_without_plans(user_id: str, key: str | None) -> Steps[Snapshot | None]:
    """Read the snapshot with plans from the cache; return None if a plan version is not cached."""
    parameters = [user_id] if key is None else [user_id, key]
    statement = sql.snapshot_query(vendor(), keyed=key is not None, without_plans=True)
    row = iter((yield Step(statement, parameters, wants_row=True)))
    clock, newest_id = next(row), next(row)
    known = partial(plan_cache.get, newest_id)
    plan, state = known(next(row), next(row)), state_from(row)
    entry = None if key is None else entry_from(row)
    in_force = known(state.plan, state.plan_version) if state else plan
    entry_plan = known(entry.plan, entry.plan_version) if entry else None
    if not plan or not in_force or (entry and not entry_plan):
        return None
    return Snapshot(user_id, clock, plan, in_force, state, entry, entry_plan, (uuid7(), uuid7()))

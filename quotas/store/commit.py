"""The loop that makes a decision stick: read, decide, store, and again if another was first.

The only module that knows PostgreSQL and SQLite apart. A read costs one round trip and a change
two. Nothing here knows a rule: the deciding function is handed in.

The loop is written as steps, each a statement that somebody else sends: `perform` by the connection of
its thread, event_loop.py by one that no thread waits for.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import datetime
from itertools import chain
from threading import Lock
from typing import Any, NamedTuple, TypeGuard

from django.db import (
    Error,
    OperationalError,
    transaction,
)
from uuid_utils.compat import uuid7

from quotas import metrics
from quotas.rules.outcomes import Change, Outcome
from quotas.rules.values import PlanSource, Snapshot
from quotas.store import sql
from quotas.store.errors import CutOff, Found, NoDefaultPlan, _watched
from quotas.store.plan_cache import _know, _known_plans
from quotas.store.rows import _entry, _entry_values, _plan, _state, _state_values
from quotas.store.thread import database, fetch, run, vendor

# After so many tries the row is locked, so that a busy row makes progress too. SQLite's first try only
# reads: a change is decided once more inside BEGIN IMMEDIATE, which is its row lock.
FREE_TRIES = {"postgresql": 4, "sqlite": 1}
MOST_TRIES = 10
# Threads of a process that write to one row take turns, so as not to lose races to each other.
TURNS = [Lock() for _ in range(1_024)]
PATIENCE = 1  # seconds; turns spare work, and nothing rests on them

Decide = Callable[[Snapshot], Outcome]


class Look(NamedTuple):
    """What to look for besides the user's row; see the statement `snapshot` in sql.py."""

    key: str | None = None  # a stored idempotency key
    also: str = ""  # of sql.ALSO,
    what: Any = None  # and its parameter, if it takes one


class Step(NamedTuple):
    """A statement, and what comes back of it: its one row, or the number of rows that it found or wrote."""

    statement: str
    parameters: Sequence[Any]
    wants_row: bool = False


class Apart(NamedTuple):
    """The step that asks for a thread: what comes next waits for locks, in a transaction."""


Steps = Generator[Step | Apart, Any, Found]


def perform(steps: Steps[Found], error: Exception | None = None) -> Found:
    """Return what the steps come to, by this thread's connection; begin with an error of a step before."""
    try:
        step = steps.throw(error) if error else next(steps)
        while True:
            try:
                found = _perform(step)
            except Error as fault:
                step = steps.throw(fault)
            else:
                step = steps.send(found)
    except StopIteration as stop:
        result: Found = stop.value
        return result
    finally:
        steps.close()  # at once, whatever happened: they may be within a transaction


def _perform(step: Step | Apart) -> Any:
    if isinstance(step, Apart):
        return None
    with _watched():
        return (fetch if step.wants_row else run)(step.statement, step.parameters)


def carry_out(user_id: str, decide: Decide, look: Look) -> Steps[Outcome]:
    """Return what `decide` makes of the user's snapshot, once that is stored.

    `decide` may be called several times and must be pure. A change is stored whole or not at all,
    and once, even if the connection dies while its answer is awaited. Raises OperationalError when
    the database cannot be reached; only then is it unknown whether the change was stored.
    """
    free_tries = FREE_TRIES[vendor()]
    for attempt in range(MOST_TRIES):
        # Clerk's word may change without a change of the row; who notes it holds the row's lock.
        locked = look.also == "clerk" or attempt >= free_tries
        outcome, is_final = yield from _attempt(user_id, decide, look, locked=locked)
        if outcome is not None and is_final:
            return outcome
        if attempt or vendor() == "postgresql":  # SQLite's first try only reads
            metrics.LOST_RACES.inc()
    raise OperationalError("The row was changed by others again and again.")


@contextmanager
def turn(user_id: str) -> Iterator[None]:
    """Wait for the other threads that write to this user's row. Not in a transaction: it may hold the row."""
    lock = TURNS[hash(user_id) % len(TURNS)]
    is_ours = not database().in_atomic_block and lock.acquire(timeout=PATIENCE)
    try:
        yield
    finally:
        if is_ours:
            lock.release()


def open_many(user_ids: Iterable[str], decide: Decide) -> int:
    """Make the rows of those who have none, as `decide` opens them; return how many were made."""
    blank = perform(_read("", Look()))  # nobody has this id: the snapshot of a missing row
    decided = [decide(replace(blank, user_id=user_id, entry_ids=(uuid7(), uuid7()))) for user_id in user_ids]
    changes = [outcome for outcome in decided if isinstance(outcome, Change)]
    return perform(_open(changes)) if changes else 0


def note_profiles(profiles: Iterable[tuple[str, str, datetime]]) -> int:
    """Note each (user id, e-mail, Clerk's time of it) that is the latest known; return how many were."""
    return sum(run(sql.NOTE_PROFILE, [email, at, user_id, at]) for user_id, email, at in profiles)


def look_up(user_id: str, look: Look) -> Snapshot:
    """Return what a verb would be decided by now."""
    return perform(_read(user_id, look))


def clock() -> datetime:
    """Return the database's clock, by which the entries are dated."""
    now: datetime = fetch(f"SELECT {sql.CLOCK[vendor()]}", [])[0]
    return now


def lock(user_id: str) -> None:
    """Hold off everybody else who would change the user's row, until the transaction ends."""
    if vendor() == "postgresql":  # a transaction of SQLite's holds off everybody from its start
        run(sql.LOCK, [user_id])


def note_assignment(user_id: str, source: str, external_id: str, plan: str, updated_at: datetime) -> bool:
    """Note which plan Clerk says the user has, unless a later word is known; tell whether it was."""
    return run(sql.NOTE_ASSIGNMENT, [uuid7(), user_id, source, external_id, plan, updated_at]) > 0


def _attempt(user_id: str, decide: Decide, look: Look, *, locked: bool) -> Steps[tuple[Outcome | None, bool]]:
    """Read, decide and store once; tell the outcome and whether it stands.

    There is no outcome if the read found that the connection had died.
    """
    outcome: Outcome | None = None
    if locked:
        yield Apart()
    try:
        with _locked(user_id) if locked else nullcontext():
            outcome = decide((yield from _read(user_id, look)))
            if not _has_entries(outcome):
                return outcome, True
            return outcome, (locked or vendor() == "postgresql") and (yield from _store(outcome))
    except CutOff as error:
        if _has_entries(outcome):
            return outcome, (yield from _store_again(outcome))
        if not error.was_kept:
            raise
        return None, False


@contextmanager
def _locked(user_id: str) -> Iterator[None]:
    with _watched(), transaction.atomic():
        lock(user_id)
        yield


def _has_entries(outcome: Outcome | None) -> TypeGuard[Change]:
    return isinstance(outcome, Change) and bool(outcome.entries)


def _store(change: Change) -> Steps[bool]:
    """Write the change if the row is still the one that was read; tell whether it was written."""
    if change.snapshot.state is None:
        return (yield from _open([change])) > 0
    state = _state_values(change.state)[1:]
    guarded = [*state, state[-1], change.state.user_id, change.snapshot.state.seq]
    entries = [_entry_values(entry) for entry in change.entries]
    if vendor() == "postgresql":
        added: int = yield Step(sql.swap(len(entries)), [*guarded, *chain(*entries)])
        return added > 0
    if not (yield Step(sql.SQLITE_UPDATE, guarded)):
        return False
    for row in entries:
        yield Step(sql.SQLITE_ENTRY, row)
    return True


def _store_again(change: Change) -> Steps[bool]:
    """Store a change of which it is unknown whether it was stored, or is still under way.

    The same guarded statement waits for one under way and cannot take effect twice. If the guard
    holds it off, the entry's own id tells whether it was we who came first.
    """
    if (yield from _store(change)):
        return True
    found: int = yield Step(sql.ENTRY_EXISTS, [change.state.user_id, change.entries[-1].id])
    return found > 0


def _open(changes: list[Change]) -> Steps[int]:
    """Make the rows that are missing, with their entries; return how many entries were added."""
    states = [_state_values(change.state) for change in changes]
    entries = [[_entry_values(entry) for entry in change.entries] for change in changes]
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


def _read(user_id: str, look: Look) -> Steps[Snapshot]:
    if _known_plans and not look.also and (snapshot := (yield from _read_lean(user_id, look.key))):
        return snapshot
    keyed = look.key is not None
    parameters = [user_id, *([look.key] if keyed else []), *([] if look.what is None else [look.what])]
    row = iter((yield Step(sql.snapshot(vendor(), look.also, keyed=keyed), parameters, wants_row=True)))
    clock, plan, rules, state = next(row), _plan(row), _plan(row), _state(row)
    entry, entry_rules = (_entry(row), _plan(row)) if keyed else (None, None)
    if plan is None:
        raise NoDefaultPlan("No plan is the default one: mark one as such in the admin.")
    _know(plan, rules, entry_rules)
    return Snapshot(
        user_id=user_id,
        clock=clock,
        plan=plan,
        rules=rules or plan,
        state=state,
        entry=entry,
        entry_rules=entry_rules,
        entry_ids=(uuid7(), uuid7()),
        consumption=_entry(row) if look.also == "consumption" else None,
        refunded=int(next(row)) if look.also == "consumption" else 0,
        target=_plan(row) if look.also in ("target", "clerk") else None,
        target_source=next(row) if look.also == "clerk" else PlanSource.STAFF.value,
    )


def _read_lean(user_id: str, key: str | None) -> Steps[Snapshot | None]:
    """The same without the rules of plans, if all versions are known that it leads to."""
    parameters = [user_id] if key is None else [user_id, key]
    statement = sql.snapshot(vendor(), keyed=key is not None, lean=True)
    row = iter((yield Step(statement, parameters, wants_row=True)))
    clock, plan, state = next(row), _known_plans.get((next(row), next(row))), _state(row)
    entry = None if key is None else _entry(row)
    rules = _known_plans.get((state.plan, state.plan_version)) if state else plan
    entry_rules = _known_plans.get((entry.plan, entry.plan_version)) if entry else None
    if not plan or not rules or (entry and not entry_rules):
        return None
    return Snapshot(user_id, clock, plan, rules, state, entry, entry_rules, (uuid7(), uuid7()))

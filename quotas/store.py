"""The loop that makes a decision stick: read, decide, store, and again if another was first.

The only module that knows PostgreSQL and SQLite apart. A read costs one round trip and a change
two. Nothing here knows a rule: the deciding function is handed in.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields, replace
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import chain, islice
from operator import attrgetter
from threading import Lock
from typing import Any, NamedTuple, TypeGuard, TypeVar
from uuid import UUID

from django.db import InterfaceError, InternalError, OperationalError, connection, transaction
from uuid_utils.compat import uuid7

from quotas import metrics, sql
from quotas.policy import Change, Entry, Outcome, Plan, PlanSource, Snapshot, State
from quotas.statements import database, fetch, run

# After so many tries the row is locked, so that a busy row makes progress too. SQLite's first try only
# reads: a change is decided once more inside BEGIN IMMEDIATE, which is its row lock.
FREE_TRIES = {"postgresql": 2, "sqlite": 1}
MOST_TRIES = 10
# Threads of a process that write to one row take turns, so as not to lose races to each other.
TURNS = [Lock() for _ in range(1_024)]
PATIENCE = 1  # seconds; turns spare work, and nothing rests on them
QUERY_CANCELED, READ_ONLY = "57014", "25006"  # PostgreSQL's SQLSTATEs

Decide = Callable[[Snapshot], Outcome]
Found = TypeVar("Found")

_state_values = attrgetter(*(column.name for column in fields(State)))
_entry_values = attrgetter(*(column.name for column in fields(Entry)))


class NoDefaultPlan(Exception):
    """No plan is marked as the default one, so a user without a row cannot get one."""


class Look(NamedTuple):
    """What to look for besides the user's row; see the statement `snapshot` in sql.py."""

    key: str | None = None  # a stored idempotency key
    also: str = ""  # of sql.ALSO,
    what: Any = None  # and its parameter, if it takes one
    to_write: bool = False  # whether a change is what is meant, and not only what it may come to


def carry_out(user_id: str, decide: Decide, look: Look) -> Outcome:
    """Return what `decide` makes of the user's snapshot, once that is stored.

    `decide` may be called several times and must be pure. A change is stored whole or not at all,
    and once, even if the connection dies while its answer is awaited. Raises OperationalError when
    the database cannot be reached; only then is it unknown whether the change was stored.
    """
    with _turn(user_id) if look.to_write else nullcontext():
        return _carry_out(user_id, decide, look)


@contextmanager
def _turn(user_id: str) -> Iterator[None]:
    """Wait for the other threads that write to this user's row. Not in a transaction: it may hold the row."""
    turn = TURNS[hash(user_id) % len(TURNS)]
    is_ours = not database().in_atomic_block and turn.acquire(timeout=PATIENCE)
    try:
        yield
    finally:
        if is_ours:
            turn.release()


def _carry_out(user_id: str, decide: Decide, look: Look) -> Outcome:
    free_tries = FREE_TRIES[database().vendor]
    for attempt in range(MOST_TRIES):
        # Clerk's word may change without a change of the row; who notes it holds the row's lock.
        locked = look.also == "clerk" or attempt >= free_tries
        outcome, is_final = _attempt(user_id, decide, look, locked=locked)
        if outcome is not None and is_final:
            return outcome
        if attempt or connection.vendor == "postgresql":  # SQLite's first try only reads
            metrics.LOST_RACES.inc()
    raise OperationalError("The row was changed by others again and again.")


def open_many(user_ids: Iterable[str], decide: Decide) -> int:
    """Make the rows of those who have none, as `decide` opens them; return how many were made."""
    blank = _read("", Look())  # nobody has this id: the snapshot of a missing row
    decided = [decide(replace(blank, user_id=user_id, entry_ids=(uuid7(), uuid7()))) for user_id in user_ids]
    changes = [outcome for outcome in decided if isinstance(outcome, Change)]
    return _open(changes) if changes else 0


def note_profiles(profiles: Iterable[tuple[str, str, datetime]]) -> int:
    """Note each (user id, e-mail, Clerk's time of it) that is the latest known; return how many were."""
    return sum(run(sql.NOTE_PROFILE, [email, at, user_id, at]) for user_id, email, at in profiles)


def look_up(user_id: str, look: Look) -> Snapshot:
    """Return what a verb would be decided by now."""
    return _read(user_id, look)


def clock() -> datetime:
    """Return the database's clock, by which the entries are dated."""
    now: datetime = fetch(f"SELECT {sql.CLOCK[database().vendor]}", [])[0]
    return now


def took_too_long(error: OperationalError) -> bool:
    """Tell whether a statement was broken off because its time was over."""
    return _sqlstate(error) == QUERY_CANCELED


def lock(user_id: str) -> None:
    """Hold off everybody else who would change the user's row, until the transaction ends."""
    if connection.vendor == "postgresql":  # a transaction of SQLite's holds off everybody from its start
        run(sql.LOCK, [user_id])


def note_assignment(user_id: str, source: str, external_id: str, plan: str, updated_at: datetime) -> bool:
    """Note which plan Clerk says the user has, unless a later word is known; tell whether it was."""
    return run(sql.NOTE_ASSIGNMENT, [uuid7(), user_id, source, external_id, plan, updated_at]) > 0


def read_surely(read: Callable[[], Found]) -> Found:
    """Return what `read` finds, by a fresh connection if the one that was kept open has died.

    For the first query of a request only: a read can be repeated, a transaction cannot.
    """
    raw = connection.connection
    try:
        return read()
    except (OperationalError, InterfaceError):
        if raw is None or connection.in_atomic_block or not _is_cut_off(raw):
            raise
        connection.close()
        return read()


def _attempt(user_id: str, decide: Decide, look: Look, *, locked: bool) -> tuple[Outcome | None, bool]:
    """Read, decide and store once; tell the outcome and whether it stands.

    There is no outcome if the read found that the connection had died: it is replaced then.
    """
    outcome: Outcome | None = None
    db = database()
    in_outer_transaction = db.in_atomic_block
    was_open = db.connection is not None
    db.ensure_connection()
    raw = db.connection
    try:
        with transaction.atomic() if locked else nullcontext():
            if locked:
                lock(user_id)
            outcome = decide(_read(user_id, look))
            if not _has_entries(outcome):
                return outcome, True
            return outcome, (locked or db.vendor == "postgresql") and _store(outcome)
    except (OperationalError, InterfaceError):
        if in_outer_transaction or not _is_cut_off(raw):
            raise
        db.close()
        if _has_entries(outcome):
            return outcome, _store_again(outcome)
        if not was_open:
            raise
        return None, False
    except InternalError as error:
        if in_outer_transaction or _sqlstate(error) != READ_ONLY:
            raise
        db.close()  # it leads to a standby: the next one may lead to the server that took over
        raise OperationalError("The database takes no writes now.") from error


def _has_entries(outcome: Outcome | None) -> TypeGuard[Change]:
    return isinstance(outcome, Change) and bool(outcome.entries)


def _sqlstate(error: Exception) -> str | None:
    return getattr(error.__cause__, "sqlstate", None)


def _is_cut_off(raw: Any) -> bool:
    """Tell whether this connection has died; leaving a transaction, Django may have replaced it."""
    return raw is not connection.connection or bool(getattr(raw, "closed", False))


def _store(change: Change) -> bool:
    """Write the change if the row is still the one that was read; tell whether it was written."""
    if change.snapshot.state is None:
        return _open([change]) > 0
    state = _state_values(change.state)[1:]
    guarded = [*state, state[-1], change.state.user_id, change.snapshot.state.seq]
    entries = [_entry_values(entry) for entry in change.entries]
    if database().vendor == "postgresql":
        return run(sql.swap(len(entries)), [*guarded, *chain(*entries)]) > 0
    if not run(sql.SQLITE_UPDATE, guarded):
        return False
    return sum(run(sql.SQLITE_ENTRY, row) for row in entries) > 0


def _store_again(change: Change) -> bool:
    """Store a change of which it is unknown whether it was stored, or is still under way.

    The same guarded statement waits for one under way and cannot take effect twice. If the guard
    holds it off, the entry's own id tells whether it was we who came first.
    """
    return _store(change) or run(sql.ENTRY_EXISTS, [change.state.user_id, change.entries[-1].id]) > 0


def _open(changes: list[Change]) -> int:
    """Make the rows that are missing, with their entries; return how many entries were added."""
    states = [_state_values(change.state) for change in changes]
    entries = [[_entry_values(entry) for entry in change.entries] for change in changes]
    if database().vendor == "postgresql":
        columns = chain(zip(*states, strict=True), zip(*chain(*entries), strict=True))
        return run(sql.OPEN_ROWS, [list(column) for column in columns])
    added = 0
    for state, rows in zip(states, entries, strict=True):
        if run(sql.SQLITE_INSERT, state):
            added += sum(run(sql.SQLITE_ENTRY, row) for row in rows)
    return added


def _read(user_id: str, look: Look) -> Snapshot:
    vendor, keyed = database().vendor, look.key is not None
    parameters = [user_id, *([look.key] if keyed else []), *([] if look.what is None else [look.what])]
    row = iter(fetch(sql.snapshot(vendor, look.also, keyed=keyed), parameters))
    clock, plan, rules, state = next(row), _plan(row), _plan(row), _state(row)
    entry, entry_rules = (_entry(row), _plan(row)) if keyed else (None, None)
    if plan is None:
        raise NoDefaultPlan("No plan is the default one: mark one as such in the admin.")
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


def _plan(row: Iterator[Any]) -> Plan | None:
    name, *rules = islice(row, len(sql.PLAN))
    return None if name is None else _rules(name, *rules)


@lru_cache(maxsize=256)  # all users share a few
def _rules(name: str, version: int, allowance: int | None, policy: str, *rest: Any) -> Plan:
    period_seconds, timezone, actions = rest
    period = timedelta(seconds=period_seconds)
    return Plan(name, version, allowance, policy, period, timezone, json.loads(actions))


def _state(row: Iterator[Any]) -> State | None:
    values = list(islice(row, len(sql.STATE)))
    return None if values[0] is None else State(*values)


def _entry(row: Iterator[Any]) -> Entry | None:
    values = dict(zip(sql.ENTRY, islice(row, len(sql.ENTRY)), strict=True))
    if values["id"] is None:
        return None
    for name in ("id", "refund_of"):
        values[name] = UUID(values[name]) if isinstance(values[name], str) else values[name]
    values["metadata"] = values["metadata"] and json.loads(values["metadata"])
    return Entry(**values)

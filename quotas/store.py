"""The loop that makes a decision stick: read, decide, store, and again if another was first.

The only module that knows PostgreSQL and SQLite apart. A read costs one round trip and a change
two. Nothing here knows a rule: the deciding function is handed in.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from itertools import chain, islice
from operator import attrgetter
from typing import Any, NamedTuple, TypeGuard, TypeVar
from uuid import UUID

from django.db import InterfaceError, OperationalError, connection, transaction
from uuid_utils.compat import uuid7

from quotas import sql
from quotas.policy import Change, Entry, Outcome, Plan, PlanSource, Snapshot, State

# After so many tries the row is locked, so that a busy row makes progress too. SQLite's first try only
# reads: a change is decided once more inside BEGIN IMMEDIATE, which is its row lock.
FREE_TRIES = {"postgresql": 2, "sqlite": 1}
MOST_TRIES = 10
QUERY_CANCELED = "57014"  # PostgreSQL's SQLSTATE

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


def carry_out(user_id: str, decide: Decide, look: Look) -> Outcome:
    """Return what `decide` makes of the user's snapshot, once that is stored.

    `decide` may be called several times and must be pure. A change is stored whole or not at all,
    and once, even if the connection dies while its answer is awaited. Raises OperationalError when
    the database cannot be reached; only then is it unknown whether the change was stored.
    """
    for attempt in range(MOST_TRIES):
        # Clerk's word may change without a change of the row; who notes it holds the row's lock.
        locked = look.also == "clerk" or attempt >= FREE_TRIES[connection.vendor]
        outcome, is_final = _attempt(user_id, decide, look, locked=locked)
        if outcome is not None and is_final:
            return outcome
    raise OperationalError("The row was changed by others again and again.")


def open_many(user_ids: Iterable[str], decide: Decide) -> int:
    """Make the rows of those who have none, as `decide` opens them; return how many were made."""
    blank = _read("", Look())  # nobody has this id: the snapshot of a missing row
    decided = [decide(replace(blank, user_id=user_id, entry_ids=(uuid7(), uuid7()))) for user_id in user_ids]
    changes = [outcome for outcome in decided if isinstance(outcome, Change)]
    return _open(changes) if changes else 0


def note_profiles(profiles: Iterable[tuple[str, str, datetime]]) -> int:
    """Note each (user id, e-mail, Clerk's time of it) that is the latest known; return how many were."""
    rows = [_row([email, at, user_id, at]) for user_id, email, at in profiles]
    if not rows:
        return 0
    with connection.cursor() as cursor:
        cursor.executemany(sql.NOTE_PROFILE, rows)
        return int(cursor.rowcount)


def look_up(user_id: str, look: Look) -> Snapshot:
    """Return what a verb would be decided by now."""
    return _read(user_id, look)


def took_too_long(error: OperationalError) -> bool:
    """Tell whether a statement was broken off because its time was over."""
    return getattr(error.__cause__, "sqlstate", None) == QUERY_CANCELED


def lock(user_id: str) -> None:
    """Hold off everybody else who would change the user's row, until the transaction ends."""
    if connection.vendor == "postgresql":  # a transaction of SQLite's holds off everybody from its start
        _run(sql.LOCK, [user_id])


def note_assignment(user_id: str, source: str, external_id: str, plan: str, updated_at: datetime) -> bool:
    """Note which plan Clerk says the user has, unless a later word is known; tell whether it was."""
    return _run(sql.NOTE_ASSIGNMENT, _row([uuid7(), user_id, source, external_id, plan, updated_at])) > 0


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
    in_outer_transaction = connection.in_atomic_block
    was_open = connection.connection is not None
    connection.ensure_connection()
    raw = connection.connection
    try:
        with transaction.atomic() if locked else nullcontext():
            if locked:
                lock(user_id)
            outcome = decide(_read(user_id, look))
            if not _has_entries(outcome):
                return outcome, True
            return outcome, (locked or connection.vendor == "postgresql") and _store(outcome)
    except (OperationalError, InterfaceError):
        if in_outer_transaction or not _is_cut_off(raw):
            raise
        connection.close()
        if _has_entries(outcome):
            return outcome, _store_again(outcome)
        if not was_open:
            raise
        return None, False


def _has_entries(outcome: Outcome | None) -> TypeGuard[Change]:
    return isinstance(outcome, Change) and bool(outcome.entries)


def _is_cut_off(raw: Any) -> bool:
    """Tell whether this connection has died; leaving a transaction, Django may have replaced it."""
    return raw is not connection.connection or bool(getattr(raw, "closed", False))


def _store(change: Change) -> bool:
    """Write the change if the row is still the one that was read; tell whether it was written."""
    if change.snapshot.state is None:
        return _open([change]) > 0
    state = _row(_state_values(change.state)[1:])
    guarded = [*state, state[-1], change.state.user_id, change.snapshot.state.seq]
    entries = [_row(_entry_values(entry)) for entry in change.entries]
    if connection.vendor == "postgresql":
        return _run(sql.swap(len(entries)), [*guarded, *chain(*entries)]) > 0
    if not _run(sql.SQLITE_UPDATE, guarded):
        return False
    return sum(_run(sql.SQLITE_ENTRY, row) for row in entries) > 0


def _store_again(change: Change) -> bool:
    """Store a change of which it is unknown whether it was stored, or is still under way.

    The same guarded statement waits for one under way and cannot take effect twice. If the guard
    holds it off, the entry's own id tells whether it was we who came first.
    """
    return _store(change) or _run(sql.ENTRY_EXISTS, _row([change.entries[-1].id])) > 0


def _open(changes: list[Change]) -> int:
    """Make the rows that are missing, with their entries; return how many entries were added."""
    states = [_row(_state_values(change.state)) for change in changes]
    entries = [[_row(_entry_values(entry)) for entry in change.entries] for change in changes]
    if connection.vendor == "postgresql":
        rows = list(chain(*entries))
        return _run(sql.open_rows(len(states), len(rows)), [*chain(*states), *chain(*rows)])
    added = 0
    for state, rows in zip(states, entries, strict=True):
        if _run(sql.SQLITE_INSERT, state):
            added += sum(_run(sql.SQLITE_ENTRY, row) for row in rows)
    return added


def _run(statement: str, parameters: list[Any]) -> int:
    """Return the number of rows found or written."""
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return int(cursor.rowcount)


def _read(user_id: str, look: Look) -> Snapshot:
    parameters = [user_id, look.key, *([] if look.what is None else [look.what])]
    with connection.cursor() as cursor:
        cursor.execute(sql.snapshot(connection.vendor, look.also), _row(parameters))
        row = iter(cursor.fetchone())
    clock, plan, rules = next(row), _plan(row), _plan(row)
    state, entry, entry_rules = _state(row), _entry(row), _plan(row)
    if plan is None:
        raise NoDefaultPlan("No plan is the default one: mark one as such in the admin.")
    return Snapshot(
        user_id=user_id,
        clock=_instant(clock),
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
    name, version, allowance, reset_policy, period_seconds, timezone, actions = islice(row, len(sql.PLAN))
    if name is None:
        return None
    period = timedelta(seconds=period_seconds)
    return Plan(name, version, allowance, reset_policy, period, timezone, json.loads(actions))


def _state(row: Iterator[Any]) -> State | None:
    values = dict(zip(State.__dataclass_fields__, islice(row, len(sql.STATE)), strict=True))
    if values["user_id"] is None:
        return None
    for name in ("last_reset_date", "anchor_at", "refused_at", "updated_at", "deleted_at"):
        values[name] = _instant(values[name])
    return State(**values)


def _entry(row: Iterator[Any]) -> Entry | None:
    values = dict(zip(Entry.__dataclass_fields__, islice(row, len(sql.ENTRY)), strict=True))
    if values["id"] is None:
        return None
    for name in ("last_reset_date", "anchor_at", "resets_at", "created_at"):
        values[name] = _instant(values[name])
    for name in ("id", "refund_of"):
        values[name] = UUID(values[name]) if isinstance(values[name], str) else values[name]
    values["metadata"] = values["metadata"] and json.loads(values["metadata"])
    return Entry(**values)


def _instant(value: Any) -> Any:
    """SQLite keeps an instant without its zone, which is UTC, and tells its clock as text."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return value.replace(tzinfo=UTC) if value and value.tzinfo is None else value


def _row(values: Iterable[Any]) -> list[Any]:
    """The values as parameters: JSON as text, and SQLite's forms of an instant and a UUID."""
    return [_parameter(value) for value in values]


def _parameter(value: Any) -> Any:
    if isinstance(value, Mapping):
        return json.dumps(value)
    if connection.vendor == "postgresql":
        return value
    if isinstance(value, datetime):
        return connection.ops.adapt_datetimefield_value(value)
    return value.hex if isinstance(value, UUID) else value

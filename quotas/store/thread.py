"""The driver of the calling thread: its steps run on Django's connection of that thread.

On PostgreSQL through psycopg's own cursor, with values in binary and with prepared statements
(DATABASE_PREPARE), because planning the snapshot query takes longer than the rest of a GET. On SQLite through
Django's cursor.
"""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from functools import cache
from typing import Any
from uuid import UUID

import psycopg
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg.pq import Format
from psycopg.types.json import JsonbDumper
from psycopg.types.numeric import Int8Dumper

from quotas.store import sql
from quotas.store.errors import read_with_reconnect, translating_errors
from quotas.store.statements import Statement, Statements, statements_of
from quotas.store.steps import Attempt, InThread, Lock, Result, Step, Steps, Write


def run_steps(steps: Steps[Result]) -> Result:
    """Return the result of the steps, run on this thread's connection."""
    try:
        step = next(steps)
        while True:
            try:
                found = run_step(step)
            except Exception as error:  # noqa: BLE001 - the steps handle it, or raise it
                step = steps.throw(error)
            else:
                step = steps.send(found)
    except StopIteration as stop:
        result: Result = stop.value
        return result
    finally:
        steps.close()  # immediately, whatever happened


def run_step(step: Step) -> Any:
    in_transaction = database().in_atomic_block
    if isinstance(step, InThread):
        if settings.DATABASE_IS_POOLED and not in_transaction:
            # A pooler may lead to a standby by now: let Django check the connection if the function uses it.
            database().close_if_unusable_or_obsolete()
        return read_with_reconnect(step.function)
    if isinstance(step, Attempt):
        with _locked(step.user_id) if step.must_lock else nullcontext():
            return run_steps(step.steps())
    if isinstance(step, Lock):
        with _locked(step.user_id):
            return run_steps(step.steps)
    has_parts = isinstance(step, Write) and dialect() != "postgresql"
    with translating_errors(), transaction.atomic(savepoint=False) if has_parts else nullcontext():
        return run_statements(statements_of(step, dialect(), in_transaction=in_transaction or has_parts))


def run_statements(statements: Statements[Result]) -> Result:
    try:
        statement = next(statements)
        while True:
            statement = statements.send(execute(statement))
    except StopIteration as stop:
        result: Result = stop.value
        return result


def execute(statement: Statement) -> Any:
    """Return the statement's rows, or their number, or how many rows it wrote."""
    db = database()
    if vendor() == "sqlite":
        return _execute_on_sqlite(db, statement)
    db.validate_no_broken_transaction()
    # A prepared statement that is stale (errors.py) would fail the whole transaction.
    prepare = False if db.in_atomic_block else None  # None: once it is used often enough
    with db.wrap_database_errors:
        cursor = _cursor(db).execute(statement.text, statement.parameters, prepare=prepare)
        return cursor.fetchall() if statement.wants_rows else cursor.rowcount


def lock(user_id: str) -> None:
    """Lock the user's row until the transaction ends."""
    if vendor() == "postgresql":  # SQLite's transactions lock the whole database from their start
        execute(Statement(sql.LOCK[dialect()], {"user_id": user_id}))


def database() -> BaseDatabaseWrapper:
    """Return this thread's connection; `django.db.connection` would look it up again for each attribute."""
    return connections[DEFAULT_DB_ALIAS]


@cache
def vendor() -> str:
    """Cached: an event loop has no connection to ask, and Django would make one for each task."""
    return database().vendor


def dialect() -> str:
    """Return which statements to use: sqlite, postgresql, or citus, whose tables are distributed."""
    return "citus" if settings.DATABASE_IS_DISTRIBUTED and vendor() == "postgresql" else vendor()


def binary_cursor(raw: "psycopg.Connection[Any]") -> "psycopg.Cursor[tuple[Any, ...]]":
    cursor: psycopg.Cursor[tuple[Any, ...]] = psycopg.Cursor(raw)
    cursor.format = Format.BINARY
    # If a number's type depended on its size, each size would need a prepared statement of its own.
    cursor.adapters.register_dumper(int, Int8Dumper)
    cursor.adapters.register_dumper(dict, JsonbDumper)
    return cursor


class _ThreadLocal(threading.local):
    cursor: "psycopg.Cursor[tuple[Any, ...]] | None" = None


_local = _ThreadLocal()


def _cursor(db: BaseDatabaseWrapper) -> "psycopg.Cursor[tuple[Any, ...]]":
    """Return this thread's cursor, a new one if Django has replaced a dead connection."""
    db.ensure_connection()
    cursor = _local.cursor
    if cursor is None or cursor.connection is not db.connection:
        cursor = _local.cursor = binary_cursor(db.connection)
    return cursor


@contextmanager
def _locked(user_id: str) -> Iterator[None]:
    with translating_errors(), transaction.atomic():
        lock(user_id)
        yield


def _execute_on_sqlite(db: BaseDatabaseWrapper, statement: Statement) -> Any:
    parameters = {name: _sqlite_value(db, value) for name, value in statement.parameters.items()}
    with db.cursor() as cursor:
        cursor.execute(statement.text, parameters)
        if not statement.wants_rows:
            return cursor.rowcount
        return [[_in_utc(value) for value in row] for row in cursor.fetchall()]


def _in_utc(value: Any) -> Any:
    """Add the time zone, which SQLite does not store."""
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) else value


def _sqlite_value(db: BaseDatabaseWrapper, value: Any) -> Any:
    """Return the value in the form in which SQLite stores JSON, an instant or a UUID."""
    if isinstance(value, Mapping):
        return json.dumps(value)
    if isinstance(value, datetime):
        return db.ops.adapt_datetimefield_value(value)
    return value.hex if isinstance(value, UUID) else value

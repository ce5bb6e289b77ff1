"""How the statements of sql.py are run.

On PostgreSQL by psycopg itself: the server keeps a statement prepared (see DATABASE_PREPARE) and sends
its values in binary. Planning the snapshot anew takes longer than all else that a GET does. On SQLite
they go through Django.
"""

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg.pq import Format
from psycopg.types.json import JsonbDumper
from psycopg.types.numeric import Int8Dumper


class _Kept(threading.local):
    """A thread's cursor. It is good for one connection: Django replaces those that died."""

    cursor: "psycopg.Cursor[tuple[Any, ...]] | None" = None


_kept = _Kept()


def database() -> BaseDatabaseWrapper:
    """This thread's connection, without the detour that `django.db.connection` takes at each attribute."""
    return connections[DEFAULT_DB_ALIAS]


def fetch(statement: str, parameters: Sequence[Any]) -> Sequence[Any]:
    """Return the one row that the statement finds."""
    db = database()
    if db.vendor != "postgresql":
        with db.cursor() as cursor:
            cursor.execute(statement, _adapted(db, parameters))
            return [_in_utc(value) for value in cursor.fetchone()]
    db.ensure_connection()
    with db.wrap_database_errors:
        row = _cursor(db).execute(statement, parameters).fetchone()
    assert row  # noqa: S101 - for mypy: a snapshot always has one
    return row


def run(statement: str, parameters: Sequence[Any]) -> int:
    """Return the number of rows found or written."""
    db = database()
    if db.vendor != "postgresql":
        with db.cursor() as cursor:
            cursor.execute(statement, _adapted(db, parameters))
            return int(cursor.rowcount)
    db.ensure_connection()
    db.validate_no_broken_transaction()
    with db.wrap_database_errors:
        return _cursor(db).execute(statement, parameters).rowcount


def _cursor(db: BaseDatabaseWrapper) -> "psycopg.Cursor[tuple[Any, ...]]":
    raw, cursor = db.connection, _kept.cursor
    if cursor is None or cursor.connection is not raw:
        cursor = _kept.cursor = psycopg.Cursor(raw)
        cursor.format = Format.BINARY
        # A number's type must not depend on its size, or each size would be a statement of its own.
        cursor.adapters.register_dumper(int, Int8Dumper)
        cursor.adapters.register_dumper(dict, JsonbDumper)
    return cursor


def _in_utc(value: Any) -> Any:
    """SQLite keeps an instant without its zone."""
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) else value


def _adapted(db: BaseDatabaseWrapper, values: Iterable[Any]) -> list[Any]:
    return [_sqlite(db, value) for value in values]


def _sqlite(db: BaseDatabaseWrapper, value: Any) -> Any:
    """SQLite's form of JSON, an instant and a UUID."""
    if isinstance(value, Mapping):
        return json.dumps(value)
    if isinstance(value, datetime):
        return db.ops.adapt_datetimefield_value(value)
    return value.hex if isinstance(value, UUID) else value

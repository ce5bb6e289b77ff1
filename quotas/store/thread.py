"""Runs the statements of sql.py on the calling thread's connection.

On PostgreSQL through psycopg itself, with values in binary and with prepared statements (DATABASE_PREPARE),
because planning the snapshot query takes longer than the rest of a GET. On SQLite through Django's cursor.
"""

import json
import threading
from asyncio import _get_running_loop
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, lru_cache
from itertools import count
from typing import Any
from uuid import UUID

import psycopg
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, Format
from psycopg.pq.abc import PGresult
from psycopg.types.json import JsonbDumper
from psycopg.types.numeric import Int8Dumper

Prepared = tuple[str, tuple[int, ...] | None]  # a statement, and the types of its parameters
OK_STATUSES = (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK)
# SQLSTATEs: the prepared statement was deallocated, or a migration changed the type of its result.
STALE_STATEMENT_STATES = ("26000", "0A000")
AUTO_FORMATS = [PyFormat.AUTO] * 100
STATEMENT_NUMBERS = count()


class PreparedSession:
    """One connection to PostgreSQL, and the statements that are prepared on it.

    Up to prepare_threshold uses, a statement goes through psycopg's cursor. Then it is prepared and goes
    through libpq directly, which leaves a third of the work in Python. In a transaction every statement goes
    through the cursor, because psycopg sends the BEGIN.
    """

    def __init__(self, raw: "psycopg.Connection[Any]") -> None:
        self.raw = raw
        self.cursor: psycopg.Cursor[tuple[Any, ...]] = psycopg.Cursor(raw)
        self.cursor.format = Format.BINARY
        # If a number's type depended on its size, each size would need a prepared statement of its own.
        self.cursor.adapters.register_dumper(int, Int8Dumper)
        self.cursor.adapters.register_dumper(dict, JsonbDumper)
        self.transformer = Transformer(self.cursor)
        self.uses: Counter[Prepared] = Counter()
        self.names: dict[Prepared, bytes] = {}

    def row(self, statement: str, parameters: Sequence[Any]) -> Sequence[Any]:
        if (result := self.execute_prepared(statement, parameters)) is None:
            row = self.cursor.execute(statement, parameters).fetchone()
            assert row  # noqa: S101 - for mypy: a snapshot always has one
            return row
        return self.decode_row(result)

    def rows(self, statement: str, parameters: Sequence[Any]) -> int:
        if (result := self.execute_prepared(statement, parameters)) is None:
            return self.cursor.execute(statement, parameters).rowcount
        return result.command_tuples or 0

    def execute_prepared(self, statement: str, parameters: Sequence[Any]) -> PGresult | None:
        """Return the result of the prepared statement; None, with nothing done, if it is not prepared."""
        if self.raw.prepare_threshold is None or not self.raw.autocommit:
            return None
        prepared, values = self.encode(statement, parameters)
        if not self.should_prepare(prepared):
            return None
        if (name := self.names.get(prepared)) is None:
            name = new_statement_name()
            self.check_result(self.raw.pgconn.prepare(name, with_dollar_placeholders(statement), prepared[1]))
            self.names[prepared] = name
        result = self.raw.pgconn.exec_prepared(name, values, self.transformer.formats, Format.BINARY)
        return self.check_result(result)

    def encode(self, statement: str, parameters: Sequence[Any]) -> tuple[Prepared, Any]:
        values = self.transformer.dump_sequence(parameters, AUTO_FORMATS[: len(parameters)])
        return (statement, self.transformer.types), values

    def decode_row(self, result: PGresult) -> Sequence[Any]:
        self.transformer.set_pgresult(result, set_loaders=True, format=Format.BINARY)
        row: Sequence[Any] | None = self.transformer.load_row(0, tuple)
        assert row  # noqa: S101 - as above
        return row

    def should_prepare(self, prepared: Prepared) -> bool:
        """Count a use of the statement; return whether it is used often enough to be prepared."""
        self.uses[prepared] += 1
        return self.raw.prepare_threshold is not None and self.uses[prepared] > self.raw.prepare_threshold

    def check_result(self, result: PGresult) -> PGresult | None:
        """Return the result; None if the prepared statement is stale. Raises psycopg's error if it failed."""
        if result.status in OK_STATUSES:
            return result
        if self.raw.closed:
            raise psycopg.OperationalError("the connection was lost")
        error = error_from_result(result)
        if error.sqlstate not in STALE_STATEMENT_STATES:
            raise error
        self.names.clear()  # after a rollback psycopg may have deallocated all
        self.uses.clear()
        return None


def new_statement_name() -> bytes:
    return b"kept_%d" % next(STATEMENT_NUMBERS)


@lru_cache
def with_dollar_placeholders(statement: str) -> bytes:
    """Replace the placeholders %s by those of PostgreSQL's protocol: $1, $2 and so on."""
    first, *rest = statement.split("%s")
    return "".join([first, *(f"${number}{part}" for number, part in enumerate(rest, start=1))]).encode()


class _ThreadLocal(threading.local):
    session: PreparedSession | None = None


_local = _ThreadLocal()


def database() -> BaseDatabaseWrapper:
    """Return this thread's connection; `django.db.connection` would look it up again for each attribute."""
    return connections[DEFAULT_DB_ALIAS]


def in_transaction() -> bool:
    """Return whether this thread is in a transaction; an event loop's sessions never are."""
    return _get_running_loop() is None and database().in_atomic_block


@cache
def vendor() -> str:
    """Cached: an event loop has no connection to ask, and Django would make one for each task."""
    return database().vendor


def fetch_row(statement: str, parameters: Sequence[Any]) -> Sequence[Any]:
    """Return the one row that the statement finds."""
    db = database()
    if vendor() != "postgresql":
        with db.cursor() as cursor:
            cursor.execute(statement, _sqlite_parameters(db, parameters))
            return [_in_utc(value) for value in cursor.fetchone()]
    with db.wrap_database_errors:
        return _session(db).row(statement, parameters)


def execute(statement: str, parameters: Sequence[Any]) -> int:
    """Return the number of rows found or written."""
    db = database()
    if vendor() != "postgresql":
        with db.cursor() as cursor:
            cursor.execute(statement, _sqlite_parameters(db, parameters))
            return int(cursor.rowcount)
    db.validate_no_broken_transaction()
    with db.wrap_database_errors:
        return _session(db).rows(statement, parameters)


def _session(db: BaseDatabaseWrapper) -> PreparedSession:
    """Return this thread's session, a new one if Django has replaced a dead connection."""
    db.ensure_connection()
    session = _local.session
    if session is None or session.raw is not db.connection:
        session = _local.session = PreparedSession(db.connection)
    return session


def _in_utc(value: Any) -> Any:
    """Add the time zone, which SQLite does not store."""
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) else value


def _sqlite_parameters(db: BaseDatabaseWrapper, values: Iterable[Any]) -> list[Any]:
    return [_sqlite_value(db, value) for value in values]


def _sqlite_value(db: BaseDatabaseWrapper, value: Any) -> Any:
    """Return the value in the form in which SQLite stores JSON, an instant or a UUID."""
    if isinstance(value, Mapping):
        return json.dumps(value)
    if isinstance(value, datetime):
        return db.ops.adapt_datetimefield_value(value)
    return value.hex if isinstance(value, UUID) else value

"""Database errors, classified by how the store and the API react to them."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.db import (
    DEFAULT_DB_ALIAS,
    Error,
    InterfaceError,
    OperationalError,
    connection,
    connections,
)

from quotas.store.steps import Result

QUERY_CANCELED, LOCK_NOT_AVAILABLE, READ_ONLY = "57014", "55P03", "25006"  # PostgreSQL's SQLSTATEs
# Serialization failure and deadlock: the statement or the transaction had no effect.
LOST_RACE_STATES = ("40001", "40P01")
# The prepared statement was deallocated, or a migration changed the type of its result. Only a reused
# connection has prepared statements.
STALE_STATEMENT_STATES = ("26000", "0A000")
CONNECTION_EXCEPTION = "08"  # a class. The session may live: Citus reports a node like this that it lost
INTERNAL_ERROR = "XX000"  # and like this
# The database's encoding lacks a character, as none does in UTF-8: `check --database default` refuses others.
ENCODING_STATES = ("22P05", "22021")
NOT_MIGRATED_STATES = ("42P01", "42703")  # no such table, no such column
NOT_MIGRATED_ON_SQLITE = ("no such table", "no such column", "has no column named")
TAKES_NO_WRITES = "The database takes no writes now."


class NoDefaultPlan(Exception):
    """No plan is marked as the default one, so a user without a row cannot get one."""


class ConnectionLost(OperationalError):
    """The connection died during a statement, or is of no further use.

    `repeats`: how often a read is repeated for it. A new connection may work where one that was open before
    did not; a server that lost one of its nodes is asked once more.
    """

    repeats = sys.maxsize


class LostRace(OperationalError):
    """Another transaction was first, and PostgreSQL refused ours; it had no effect."""


class Overdue(OperationalError):
    """The database did not answer in time. What was sent may be stored or not; it is not sent again."""


@contextmanager
def translating_errors(*, opens: bool = True) -> Iterator[None]:
    """Translate database errors; inside a transaction leave them as they are.

    Unless it opens the connection first, one that is opened meanwhile does not count as lost if it dies.
    """
    db = connections[DEFAULT_DB_ALIAS]
    if db.in_atomic_block:
        yield
        return
    was_reused = db.connection is not None
    if opens:
        db.ensure_connection()
    raw = db.connection
    try:
        yield
    except Error as error:
        is_lost = raw is not None and is_connection_lost(raw)
        raise translate_error(
            error, is_lost=is_lost, was_reused=was_reused, close=db.close
        ) from error.__cause__


def translate_error(
    error: Error, *, is_lost: bool, was_reused: bool = True, close: Callable[[], object]
) -> Error:
    """Return the error that the commit loop reacts to; close a connection that is of no further use."""
    state = sqlstate(error) or ""
    is_stale = was_reused and state in STALE_STATEMENT_STATES
    if is_stale or (is_lost and isinstance(error, OperationalError | InterfaceError)):
        close()
        return _lost(error, repeats=ConnectionLost.repeats if was_reused else 0)
    if state.startswith(CONNECTION_EXCEPTION):
        return _lost(error, repeats=1)
    if state in LOST_RACE_STATES:
        return LostRace(*error.args)
    if state == READ_ONLY:
        close()  # it leads to a standby: a new one may lead to the server that took over
        return OperationalError(TAKES_NO_WRITES)
    return error


def _lost(error: Error, *, repeats: int) -> ConnectionLost:
    lost = ConnectionLost(*error.args)
    lost.repeats = repeats
    return lost


def is_statement_timeout(error: OperationalError) -> bool:
    return sqlstate(error) == QUERY_CANCELED


def is_unavailable(error: Exception) -> bool:
    """Whether the database cannot serve now: away, full, busy, read-only, or one of its nodes is lost."""
    return isinstance(error, OperationalError | InterfaceError) or sqlstate(error) in (
        INTERNAL_ERROR,
        READ_ONLY,
        *ENCODING_STATES,
    )


def is_not_migrated(error: Exception) -> bool:
    """Whether a table or a column is missing: this release runs before its migrations."""
    if isinstance(error, OperationalError):  # SQLite has no states
        return any(words in str(error) for words in NOT_MIGRATED_ON_SQLITE)
    return sqlstate(error) in NOT_MIGRATED_STATES


def read_with_reconnect(read: Callable[[], Result]) -> Result:
    """Return the result of `read`, on a new connection if the reused one has died.

    For the first query of a request only: a read can be repeated, a transaction cannot.
    """
    try:
        with translating_errors(opens=False):  # `read` may need no connection
            return read()
    except ConnectionLost as error:
        if not error.repeats:
            raise
    with translating_errors(opens=False):
        return read()


def sqlstate(error: Exception) -> str | None:
    return getattr(error.__cause__, "sqlstate", None)


def is_connection_lost(raw: Any) -> bool:
    """Whether the connection has died; Django may have replaced it on leaving a transaction."""
    return raw is not connection.connection or bool(getattr(raw, "closed", False))

"""Database errors, classified by how the store and the API react to them."""

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

QUERY_CANCELED, READ_ONLY = "57014", "25006"  # PostgreSQL's SQLSTATEs
# Serialization failure and deadlock: the statement or the transaction had no effect.
LOST_RACE_STATES = ("40001", "40P01")
# The prepared statement was deallocated, or a migration changed the type of its result. Only a reused
# connection has prepared statements.
STALE_STATEMENT_STATES = ("26000", "0A000")


class NoDefaultPlan(Exception):
    """No plan is marked as the default one, so a user without a row cannot get one."""


class ConnectionLost(OperationalError):
    """The connection died during a statement, or is of no further use.

    `was_reused`: it was open before, so a new one may work.
    """

    was_reused = True


class LostRace(OperationalError):
    """Another transaction was first, and PostgreSQL refused ours; it had no effect."""


@contextmanager
def translating_errors() -> Iterator[None]:
    """Translate database errors; inside a transaction leave them as they are."""
    db = connections[DEFAULT_DB_ALIAS]
    if db.in_atomic_block:
        yield
        return
    was_reused = db.connection is not None
    db.ensure_connection()
    raw = db.connection
    try:
        yield
    except Error as error:
        is_lost = is_connection_lost(raw)
        raise translate_error(
            error, is_lost=is_lost, was_reused=was_reused, close=db.close
        ) from error.__cause__


def translate_error(
    error: Error, *, is_lost: bool, was_reused: bool = True, close: Callable[[], object]
) -> Error:
    """Return the error that the commit loop reacts to; close a connection that is of no further use."""
    is_stale = was_reused and sqlstate(error) in STALE_STATEMENT_STATES
    if is_stale or (is_lost and isinstance(error, OperationalError | InterfaceError)):
        close()
        lost = ConnectionLost(*error.args)
        lost.was_reused = was_reused
        return lost
    if sqlstate(error) in LOST_RACE_STATES:
        return LostRace(*error.args)
    if sqlstate(error) == READ_ONLY:
        close()  # it leads to a standby: a new one may lead to the server that took over
        return OperationalError("The database takes no writes now.")
    return error


def is_statement_timeout(error: OperationalError) -> bool:
    return sqlstate(error) == QUERY_CANCELED


def read_with_reconnect(read: Callable[[], Result]) -> Result:
    """Return the result of `read`, on a new connection if the reused one has died.

    For the first query of a request only: a read can be repeated, a transaction cannot.
    """
    raw = connection.connection
    try:
        return read()
    except (OperationalError, InterfaceError):
        if raw is None or connection.in_atomic_block or not is_connection_lost(raw):
            raise
        connection.close()
        return read()


def sqlstate(error: Exception) -> str | None:
    return getattr(error.__cause__, "sqlstate", None)


def is_connection_lost(raw: Any) -> bool:
    """Whether the connection has died; Django may have replaced it on leaving a transaction."""
    return raw is not connection.connection or bool(getattr(raw, "closed", False))

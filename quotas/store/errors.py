"""What goes wrong between us and the database, told apart."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from django.db import (
    DEFAULT_DB_ALIAS,
    Error,
    InterfaceError,
    OperationalError,
    connection,
    connections,
)

QUERY_CANCELED, READ_ONLY = "57014", "25006"  # PostgreSQL's SQLSTATEs

Found = TypeVar("Found")


class NoDefaultPlan(Exception):
    """No plan is marked as the default one, so a user without a row cannot get one."""


class CutOff(OperationalError):
    """The connection died under a statement. `was_kept`: it had been open before, so another may be had."""

    was_kept = True


@contextmanager
def _watched() -> Iterator[None]:
    """Tell apart what goes wrong; within a transaction all is left as it is."""
    db = connections[DEFAULT_DB_ALIAS]
    if db.in_atomic_block:
        yield
        return
    was_kept = db.connection is not None
    db.ensure_connection()
    raw = db.connection
    try:
        yield
    except Error as error:
        is_cut_off = _is_cut_off(raw)
        fault = told_apart(error, is_cut_off=is_cut_off, was_kept=was_kept, close=db.close)
        raise fault from error.__cause__


def told_apart(
    error: Error, *, is_cut_off: bool, was_kept: bool = True, close: Callable[[], object]
) -> Error:
    """Return the error that the steps go by, once a connection that is of no use any more is closed."""
    if is_cut_off and isinstance(error, OperationalError | InterfaceError):
        close()
        cut_off = CutOff(*error.args)
        cut_off.was_kept = was_kept
        return cut_off
    if sqlstate(error) == READ_ONLY:
        close()  # it leads to a standby: the next one may lead to the server that took over
        return OperationalError("The database takes no writes now.")
    return error


def took_too_long(error: OperationalError) -> bool:
    """Tell whether a statement was broken off because its time was over."""
    return sqlstate(error) == QUERY_CANCELED


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


def sqlstate(error: Exception) -> str | None:
    return getattr(error.__cause__, "sqlstate", None)


def _is_cut_off(raw: Any) -> bool:
    """Tell whether this connection has died; leaving a transaction, Django may have replaced it."""
    return raw is not connection.connection or bool(getattr(raw, "closed", False))

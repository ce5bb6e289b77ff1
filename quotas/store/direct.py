"""What the store asks of the database outside the commit loop, on the connection of the calling thread."""

from collections.abc import Iterable
from datetime import datetime
from functools import partial
from typing import Any

from django.db import OperationalError, transaction
from uuid_utils.compat import uuid7

from quotas.rules.outcomes import Change, UnknownPlan
from quotas.rules.values import Snapshot
from quotas.store import sql
from quotas.store.errors import TAKES_NO_WRITES, read_with_reconnect
from quotas.store.statements import FreshIds, Statement, insert_rows
from quotas.store.steps import Decide, Read, SnapshotQuery
from quotas.store.thread import database, dialect, execute, run_statements, run_step, vendor


def read_snapshot(user_id: str, query: SnapshotQuery) -> Snapshot:
    """Return the snapshot from which a verb would decide now."""
    snapshot: Snapshot = read_with_reconnect(partial(run_step, Read(user_id, query)))
    return snapshot


def clock() -> datetime:
    """Return the database's clock, which dates the entries."""
    [row] = execute(Statement(f"SELECT {sql.CLOCK[vendor()]}", {}, wants_rows=True))
    now: datetime = row[0]
    return now


def require_writes() -> None:
    """Raise OperationalError on a standby, or if the database is read-only by default.

    A host may make one read-only whose disk is full.
    """
    if vendor() == "postgresql":
        [row] = execute(Statement("SHOW transaction_read_only", {}, wants_rows=True))
        if row[0] != "off":
            database().close()  # a session keeps what it began with
            raise OperationalError(TAKES_NO_WRITES)


def open_many(user_ids: Iterable[str], decide: Decide, query: SnapshotQuery) -> int:
    """Insert the missing rows as `decide` opens them; return how many were inserted.

    Each must be opened with the same number of entries. Raises UnknownPlan for a target that does not exist.
    """
    blank: Snapshot = run_step(Read("", query))  # no user has this id: a snapshot without a row
    if query.include and not blank.target:
        raise UnknownPlan
    decided = [decide(blank._replace(user_id=user_id, entry_ids=FreshIds())) for user_id in user_ids]
    changes = [outcome for outcome in decided if isinstance(outcome, Change)]
    if not changes:
        return 0
    return run_statements(insert_rows(changes, dialect())) // len(changes[0].entries)


def note_profiles(profiles: Iterable[tuple[str, str, datetime]]) -> int:
    """Store each (user id, e-mail, Clerk's time) that is newer than the stored one; return how many were."""
    return sum(
        _written(sql.NOTE_PROFILE, user_id=user_id, email=email, at=at) for user_id, email, at in profiles
    )


def note_assignment(
    user_id: str, source: str, external_id: str, plan: str, updated_at: datetime, *, is_free: bool
) -> bool:
    """Store Clerk's plan assignment unless a later one of its item is stored; return whether it was."""
    item = {"user_id": user_id, "source": source, "external_id": external_id, "is_free": is_free}
    return _written(sql.NOTE_ASSIGNMENT, id=uuid7(), **item, plan=plan, updated_at=updated_at) > 0


def await_assignments() -> None:
    """Wait until every assignment is committed that did not see the plans that are committed now.

    Their transactions hold a lock of the table, as an insert does, until they end. Raises OperationalError
    after LOCK_SECONDS.
    """
    if vendor() == "postgresql":  # SQLite has one writer at a time
        with transaction.atomic():
            execute(Statement(f"SET LOCAL lock_timeout = '{sql.LOCK_SECONDS}s'", {}))
            execute(Statement("LOCK TABLE plan_assignments IN SHARE MODE", {}))


def _written(text: str, **parameters: Any) -> int:
    rows: int = execute(Statement(text, parameters))
    return rows

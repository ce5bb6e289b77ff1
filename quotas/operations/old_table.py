"""Tables of another app that have the names of ours, and the table of quotas that `--in-place` takes over."""
# ruff: noqa: S608 - the names of tables are constants

import time
from collections.abc import Iterator
from typing import Any

from django.apps import apps
from django.core.management import call_command
from django.db import connection, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.recorder import MigrationRecorder

from quotas.models import ChallengeQuota
from quotas.operations.import_sources import SourceRow, own_rows

TABLE = ChallengeQuota._meta.db_table
KEPT_TABLE = f"{TABLE}_before_quotasite"
MIGRATE_LOCK = 5_117_020_923  # the advisory lock of every migrate; any number that no other program uses
WATCH_SECONDS = 5.0  # in which nobody may write to the table


class CannotTakeOver(Exception):
    """The table cannot be taken over, or not yet; the text names the reason and the next step."""


def foreign_tables(database: BaseDatabaseWrapper) -> list[str]:
    """Return the tables that our migrations would make, but which stand there and are not ours."""
    found = _unrecorded_tables(database)
    if not found or is_migrating(database):  # a migrate records its tables after it has made them
        return []
    return _unrecorded_tables(database)


def is_migrating(database: BaseDatabaseWrapper) -> bool:
    """Whether a migrate is at work, here or elsewhere; SQLite cannot say so."""
    if database.vendor != "postgresql":
        return False
    with database.cursor() as cursor:
        cursor.execute(
            "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted AND "
            "(classid::bigint << 32 | objid::bigint) = %s)",
            [MIGRATE_LOCK],
        )
        return bool(cursor.fetchone()[0])


def _unrecorded_tables(database: BaseDatabaseWrapper) -> list[str]:
    recorder = MigrationRecorder(database)
    migrated = {app for app, _ in recorder.applied_migrations()}
    ours = {
        model._meta.db_table
        for app in apps.get_app_configs()
        if app.label not in migrated
        for model in app.get_models()
    }
    return sorted(ours.intersection(database.introspection.table_names(include_views=True)))


def foreign_tables_fault(database: BaseDatabaseWrapper) -> str:
    """Return what stands in the way of the first migrate, and the ways out; "" if nothing does."""
    if not (tables := foreign_tables(database)):
        return ""
    names = ", ".join(tables)
    if tables == [TABLE]:
        return (
            f"The table {names} of another app stands in this database. If it holds your users' quotas, "
            "`manage.py import_quotas --in-place` keeps it under another name and takes them over "
            "(docs/move-in.md); if not, give Quotasite a database or a schema of its own."
        )
    return (
        f"Tables of another app have the names of ours: {names}. Give Quotasite a database or a schema of "
        "its own, and take your users' quotas over by `manage.py import_quotas --from …` (docs/move-in.md)."
    )


def is_kept() -> bool:
    """Whether an old table stands under its new name."""
    return KEPT_TABLE in connection.introspection.table_names()


def standing() -> str:
    """Return the name under which the old table stands. Raises CannotTakeOver if there is none, or more."""
    foreign = foreign_tables(connection)
    if set(foreign) - {TABLE}:
        raise CannotTakeOver(foreign_tables_fault(connection))
    if is_kept():
        if foreign:
            raise CannotTakeOver(
                f"{KEPT_TABLE} is kept from an earlier run, but there is a new {TABLE}: the old app made it. "
                f"Stop that app, drop or rename the new {TABLE}, and run this again."
            )
        return KEPT_TABLE
    if not foreign:
        raise CannotTakeOver(
            f"There is no table {TABLE} of another app in this database: name its database by --from."
        )
    return TABLE


def rows_left_behind() -> int:
    """Count the users of the kept table, at most a thousand, who have no quota here."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT count(*) FROM (SELECT 1 FROM {KEPT_TABLE} AS k WHERE NOT EXISTS ("
            f"SELECT 1 FROM {TABLE} AS q WHERE q.user_id = k.user_id) LIMIT 1000) AS missing"
        )
        count: int = cursor.fetchone()[0]
        return count


def rows(*, dry_run: bool, despite_sessions: bool) -> Iterator[SourceRow]:
    """Take over the old table, unless it is a dry run, and return its rows. Raises CannotTakeOver."""
    if dry_run:
        return own_rows(standing())
    _take_over(despite_sessions=despite_sessions)
    return own_rows(KEPT_TABLE)


def _take_over(*, despite_sessions: bool) -> None:
    """Rename the old table if nobody writes to it, and make ours. Whatever ends it, the next run goes on."""
    if standing() == TABLE:
        if not despite_sessions:
            _require_nobody_else()
        _require_quiet()
        _rename()
    call_command("migrate", interactive=False, verbosity=0)


def _require_nobody_else() -> None:
    """An app that writes seldom is not noticed, and would then write into our table of the same name."""
    if sessions := "; ".join(_other_sessions()):
        raise CannotTakeOver(
            f"Others are connected to this database: {sessions}. Stop the old app, close what is left of its "
            "pool, and run this again; or with --despite-sessions, if none of these writes to the table."
        )


def _require_quiet() -> None:
    if sessions := "; ".join(_sessions_on_the_table()):
        raise CannotTakeOver(f"{TABLE} is in use by {sessions}: stop the old app, and run this again.")
    before = _contents()
    time.sleep(WATCH_SECONDS)
    if _contents() != before:
        raise CannotTakeOver(f"Somebody writes to {TABLE}: stop the old app, and run this again.")


def _other_sessions() -> Iterator[str]:
    if connection.vendor == "postgresql":
        yield from _sessions("a.datname = current_database() AND a.backend_type = 'client backend'")


def _sessions_on_the_table() -> Iterator[str]:
    if connection.vendor == "postgresql":
        yield from _sessions(
            "EXISTS (SELECT 1 FROM pg_locks AS l WHERE l.pid = a.pid AND l.relation = %s::regclass)", TABLE
        )


def _sessions(condition: str, *parameters: str) -> Iterator[str]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT a.pid, COALESCE(NULLIF(a.application_name, ''), 'unnamed'), "
            "COALESCE(host(a.client_addr), 'this host'), a.state FROM pg_stat_activity AS a "
            f"WHERE a.pid <> pg_backend_pid() AND {condition} ORDER BY a.pid",
            parameters,
        )
        for pid, program, host, state in cursor.fetchall():
            yield f"session {pid} ({program} on {host}, {state})"


def _contents() -> Any:
    """Return what changes with every write to the table."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(
                f"SELECT count(*), sum(hashtext(t.xmin::text || t::text)::bigint) FROM {TABLE} AS t"
            )
        else:
            cursor.execute("PRAGMA data_version")
        return cursor.fetchone()


def _rename() -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET LOCAL lock_timeout = '2s'")
        cursor.execute(f"ALTER TABLE {TABLE} RENAME TO {KEPT_TABLE}")

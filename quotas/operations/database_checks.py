"""Checks of the connection to the database, for `manage.py check`.

Those that query the database run with `--database default`, and before each `migrate`.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Info, Tags, Warning, register
from django.db import DatabaseError, InterfaceError, connection, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from quotas.models import ChallengeQuota, Plan
from quotas.operations import citus, old_table
from quotas.operations.database_faults import database_fault, unapplied_migrations
from quotas.reports.audit import MAX_AHEAD
from quotas.rules import zones
from quotas.rules.values import NAMED_PERIODS
from quotas.store.direct import clock

MAX_CLOCK_DRIFT = timedelta(seconds=2)


@register(Tags.database, deploy=True)
def check_pooling(**kwargs: Any) -> list[CheckMessage]:
    """Find settings that contradict each other about a pooler."""
    return list(_contradictions())


@register(Tags.database)
def check_data(databases: Sequence[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Find old time zone data, quotas dated by a clock that was ahead, and an allowance of no effect."""
    return faults_of_data(databases, _data_faults)


@register(Tags.database)
def check_connection(databases: Sequence[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Refuse a database that cannot be used, and find what only a query shows."""
    if "default" not in (databases or ()):
        return []
    try:
        connection.ensure_connection()
        return list(_database_faults()) if connection.vendor == "postgresql" else []
    except (DatabaseError, InterfaceError) as error:
        return [Error(database_fault(error) or f"The database (DATABASE_URL): {error}", id="quotas.E011")]


@register(Tags.database, deploy=True)
def check_migrations(databases: Sequence[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Count the migrations to come: no fault, because a release checks first and migrates then."""
    return faults_of_data(databases, _missing_migrations)


def faults_of_data(
    databases: Sequence[str] | None, find: Callable[[], Iterator[CheckMessage]]
) -> list[CheckMessage]:
    """Return what `find` finds by queries; nothing if the database was not named, or cannot answer."""
    if "default" not in (databases or ()):
        return []
    try:
        with transaction.atomic():  # before the first migrate there are no tables
            return list(find())
    except DatabaseError:
        return []


def _missing_migrations() -> Iterator[CheckMessage]:
    if missing := unapplied_migrations():
        yield Info(
            f"Migrations that are not applied yet: {len(missing)}, the first is {missing[0]}.",
            hint="Run manage.py migrate.",
            id="quotas.I003",
        )


def _data_faults() -> Iterator[CheckMessage]:
    if fault := old_table.foreign_tables_fault(connection):
        yield Error(fault, id="quotas.E012")
        return
    yield from _move_faults()
    local = Plan.objects.exclude(timezone="UTC").filter(reset_policy__in=NAMED_PERIODS)
    yield from _zone_faults(set(local.values_list("timezone", flat=True)), datetime.now(UTC).date())
    soon = clock() + MAX_AHEAD
    yield from _clock_faults(ChallengeQuota.objects.filter(last_reset_date__gt=soon, deleted_at=None).count())
    yield from _allowance_faults(Plan.objects.filter(is_default=True).first())


def _move_faults() -> Iterator[CheckMessage]:
    if old_table.is_kept() and (users := old_table.rows_left_behind()):
        yield Warning(
            f"Users of {old_table.KEPT_TABLE} who have no quota here, counted up to a thousand: {users}.",
            hint="Run manage.py import_quotas --in-place again. If it leaves them out, correct those rows, "
            "or drop that table.",
            id="quotas.W010",
        )


def _zone_faults(names: set[str], today: date) -> Iterator[CheckMessage]:
    if not names:
        return
    yield Info(f"Local midnights follow the time zone data {zones.VERSION}.", id="quotas.I001")
    if zones.is_old(today):
        yield Warning(
            f"The time zone data {zones.VERSION} is old: where the rules of a zone have changed since, days "
            "end at the wrong hour.",
            hint="Update quotasite, or the package tzdata alone.",
            id="quotas.W007",
        )
    if unknown := sorted(names - zones.NAMES):
        yield Error(
            f"The time zone data {zones.VERSION} has no {', '.join(unknown)}: when a period of such a plan "
            "ends, its users' requests fail.",
            hint="Give the plan another time zone in the admin.",
            id="quotas.E008",
        )


def _clock_faults(ahead: int) -> Iterator[CheckMessage]:
    if ahead:
        yield Warning(
            f"Quotas with a period that begins in the future: {ahead}. The database's clock was ahead, and "
            "they do not reset before that period is over.",
            hint="Reset those that `manage.py audit_ledger` lists, in the admin. Set the clock by NTP.",
            id="quotas.W008",
        )


def _allowance_faults(default: Plan | None) -> Iterator[CheckMessage]:
    if not default or not settings.QUOTA_DEFAULT_ALLOWANCE_IS_SET:
        return
    if default.allowance != settings.QUOTA_DEFAULT_ALLOWANCE:
        has = "no limit" if default.allowance is None else f"an allowance of {default.allowance}"
        yield Info(
            f"QUOTA_DEFAULT_ALLOWANCE is {settings.QUOTA_DEFAULT_ALLOWANCE}, but the default plan has {has}: "
            "the variable counts only when the first migrate creates that plan.",
            hint="Edit the plan in the admin, or unset the variable.",
            id="quotas.I002",
        )


def _contradictions() -> Iterator[CheckMessage]:
    options = connection.settings_dict["OPTIONS"]
    if settings.DATABASE_LOOKS_POOLED and not settings.DATABASE_IS_POOLED:
        yield Warning(
            "DATABASE_URL names a pooler, but DATABASE_POOLED is off: if the pooler is in transaction "
            "mode, cursors and prepared statements fail intermittently.",
            hint="Unset DATABASE_POOLED, unless you know that the pooler is in session mode.",
            id="quotas.W002",
        )
    if not settings.DATABASE_IS_POOLED:
        return
    if options.get("prepare_threshold") is not None:
        yield Warning(
            "Statements are prepared through a pooler, where the next transaction may run in a session "
            "that does not have them.",
            hint="Unset DATABASE_PREPARE, and remove prepare_threshold from DATABASE_URL, unless the pooler "
            "tracks prepared statements, as PgBouncer does from 1.21 on with max_prepared_statements.",
            id="quotas.W003",
        )
    if "options" in options:
        yield Warning(
            "DATABASE_URL has `options`, which PgBouncer refuses when a connection is opened.",
            hint="Remove it, and set the same parameters with ALTER ROLE … SET.",
            id="quotas.W004",
        )


def _database_faults() -> Iterator[CheckMessage]:
    drift = _drift()
    if drift > MAX_CLOCK_DRIFT:
        yield Warning(
            f"This machine's clock and the database's are {drift.total_seconds():.0f} s apart: resets use "
            "the database's, but tokens and deliveries are checked by this machine's, and may be refused.",
            hint="Synchronize both machines by NTP.",
            id="quotas.W005",
        )
    encoding = _query_value(connection, "SHOW server_encoding")
    if encoding != "UTF8":
        yield Error(
            f"The database's encoding is {encoding}: e-mails, reasons and metadata with a character that it "
            "lacks cannot be stored.",
            hint="Restore a dump of it into one of CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0.",
            id="quotas.E009",
        )
    isolation = _query_value(connection, "SHOW default_transaction_isolation")
    if isolation != "read committed":
        yield Warning(
            f"The database's default isolation level is {isolation}: of concurrent spends of one user "
            "PostgreSQL refuses all but one, and each of them is tried again.",
            hint="ALTER ROLE … SET default_transaction_isolation = 'read committed'; or ALTER DATABASE.",
            id="quotas.W006",
        )
    if not settings.DATABASE_IS_DISTRIBUTED and citus.read_schema().places:
        yield Warning(
            "The tables are distributed by Citus, but DATABASE_DISTRIBUTED is not on: each spend is a "
            "two-phase commit, which takes three times the CPU.",
            hint="Set DATABASE_DISTRIBUTED=1.",
            id="quotas.W009",
        )
    if not settings.DATABASE_IS_POOLED and _shares_sessions():
        yield Error(
            "DATABASE_URL leads to a pooler in transaction mode, but DATABASE_POOLED is not on: cursors and "
            "prepared statements would fail intermittently.",
            hint="Set DATABASE_POOLED=on.",
            id="quotas.E007",
        )


def _drift() -> timedelta:
    """Return how far our clock is off the database's, at least: the round trip takes time, too."""
    before = datetime.now(UTC)
    clock: datetime = _query_value(connection, "SELECT clock_timestamp()")
    return max(before - clock, clock - datetime.now(UTC), timedelta())


def _shares_sessions() -> bool:
    """Whether our session changes when another connection takes the one that we have just used."""
    other = connection.copy()
    try:
        session = _query_value(connection, "SELECT pg_backend_pid()")
        other.set_autocommit(False)  # so that it keeps its session
        _query_value(other, "SELECT 1")
        return bool(_query_value(connection, "SELECT pg_backend_pid()") != session)
    finally:
        other.close()


def _query_value(database: BaseDatabaseWrapper, query: str) -> Any:
    with database.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchone()[0]

"""What `manage.py check` says of the way to the database.

What only the database can tell is asked with `--database default`, and by each `migrate`.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.db import DatabaseError, connection
from django.db.backends.base.base import BaseDatabaseWrapper

MAX_CLOCK_DRIFT = timedelta(seconds=2)


@register(Tags.database, deploy=True)
def check_pooling(**kwargs: Any) -> list[CheckMessage]:
    """Find settings that contradict each other about a pooler."""
    return list(_contradictions())


@register(Tags.database)
def check_connection(databases: Sequence[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Ask the database itself, if it can be asked: that it is away is for others to say."""
    if "default" not in (databases or ()) or connection.vendor != "postgresql":
        return []
    try:
        return list(_database_faults())
    except DatabaseError:
        return []


def _contradictions() -> Iterator[CheckMessage]:
    options = connection.settings_dict["OPTIONS"]
    if settings.DATABASE_LOOKS_POOLED and not settings.DATABASE_IS_POOLED:
        yield Warning(
            "DATABASE_URL leads to a pooler, but DATABASE_POOLED is off: if the pooler is in transaction "
            "mode, cursors and prepared statements break now and then.",
            hint="Leave DATABASE_POOLED out, unless you know that the pooler is in session mode.",
            id="quotas.W002",
        )
    if not settings.DATABASE_IS_POOLED:
        return
    if options.get("prepare_threshold") is not None:
        yield Warning(
            "Statements are prepared behind a pooler, where the next request may find itself in a session "
            "that does not know them.",
            hint="Leave DATABASE_PREPARE out, unless the pooler keeps track of them, as PgBouncer does from "
            "1.21 on with max_prepared_statements.",
            id="quotas.W003",
        )
    if "options" in options:
        yield Warning(
            "DATABASE_URL has `options`, which PgBouncer refuses at the start of a connection.",
            hint="Take it off, and set what it sets with ALTER ROLE … SET.",
            id="quotas.W004",
        )


def _database_faults() -> Iterator[CheckMessage]:
    drift = _drift()
    if drift > MAX_CLOCK_DRIFT:
        yield Warning(
            f"This machine's clock and the database's are {drift.total_seconds():.0f} s apart: resets go by "
            "the database's, but tokens and deliveries are judged by this machine's, and may be refused.",
            hint="Let both machines keep time by NTP.",
            id="quotas.W005",
        )
    if not settings.DATABASE_IS_POOLED and _shares_sessions():
        yield Error(
            "There is a pooler in transaction mode in front of the database, and the settings do not say so: "
            "cursors and prepared statements would break now and then.",
            hint="Set DATABASE_POOLED=on.",
            id="quotas.E007",
        )


def _drift() -> timedelta:
    """How far our clock is off the database's, at least: the way there and back takes its time."""
    before = datetime.now(UTC)
    clock: datetime = _query_value(connection, "SELECT clock_timestamp()")
    return max(before - clock, clock - datetime.now(UTC), timedelta())


def _shares_sessions() -> bool:
    """Whether our session changes when somebody else takes the one that we had just now."""
    other = connection.copy()
    try:
        session = _query_value(connection, "SELECT pg_backend_pid()")
        other.set_autocommit(False)  # keeps the session that it gets
        _query_value(other, "SELECT 1")
        return bool(_query_value(connection, "SELECT pg_backend_pid()") != session)
    finally:
        other.close()


def _query_value(database: BaseDatabaseWrapper, question: str) -> Any:
    with database.cursor() as cursor:
        cursor.execute(question)
        return cursor.fetchone()[0]

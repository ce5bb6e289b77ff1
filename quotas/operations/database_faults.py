"""What is wrong with the database, in one line with its fix, for operators."""

import re
from collections.abc import Iterator

from django.conf import settings
from django.core.management.base import CommandError
from django.db import Error, connection
from django.db.migrations.executor import MigrationExecutor

from quotas.store.errors import is_not_migrated, is_unavailable, sqlstate

MAX_LENGTH = 300  # characters of what the database says
PERMISSION_STATES = ("42501", "3F000")  # no privilege; no schema to make tables in
# What the database or its client says, and the fix. A server may speak another language: then there is none.
FIXES = (
    (
        "password authentication failed|no password supplied|role .* does not exist",
        "Correct the user and the password in it; special characters are percent-encoded.",
    ),
    ("resolve host|translate host", "Correct the host in it."),
    ("database .* does not exist", "Create that database, or correct the name at its end."),
    (
        "Connection refused|[Cc]onnection timed out|connection timeout|No route|unreachable|No such file",
        "Start the server, or correct the host and the port in it.",
    ),
    ("schema", "Its owner must GRANT CREATE, USAGE ON SCHEMA public TO the user in it."),
    ("permission denied|must be owner", "Use the user who owns the tables."),
    ("SSL|certificate|sslmode|channel binding", "Correct sslmode, sslrootcert or channel_binding in it."),
    (
        "too many|connection slots",
        "Stop what holds its connections, or lower LANE_CONNECTIONS and WEB_THREADS.",
    ),
    ("configuration parameter|connection option|bad value", "Correct the options behind its question mark."),
    ("unable to open database file", "Its folder must exist, and this user must be able to write there."),
)

NO_DATABASE_URL = (
    "DATABASE_URL is not set, so this is the SQLite file in the project. The demo has a database of its own, "
    "and prints a service key for it."
)


def database_fault(error: BaseException) -> str:
    """Return what is wrong with the database, with the fix, in one line; "" if the error is a bug."""
    return next(filter(None, map(_fault, _database_errors(error))), "")


def _fault(error: Error) -> str:
    said = _in_one_line(error)
    if is_not_migrated(error):
        rest = "" if settings.DATABASE_URL_IS_SET else f" {NO_DATABASE_URL}"
        return f"The database (DATABASE_URL) lacks migrations ({said}): run manage.py migrate.{rest}"
    if is_unavailable(error) or sqlstate(error) in PERMISSION_STATES or not connection.connection:
        return f"The database (DATABASE_URL) cannot be used: {said}. {_fix(said)}".rstrip()
    return ""


def unapplied_migrations() -> list[str]:
    executor = MigrationExecutor(connection)
    plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    return [f"{migration.app_label}.{migration.name}" for migration, _ in plan]


def _database_errors(error: BaseException | None) -> Iterator[Error]:
    """Yield the database errors that led to this one; commands of Django wrap some."""
    while error is not None:
        if isinstance(error, Error):
            yield error
        is_wrapped = isinstance(error, CommandError | Error)  # also without `raise … from`
        error = error.__cause__ or (error.__context__ if is_wrapped else None)


def _in_one_line(error: Error) -> str:
    said = re.sub(r"^connection (failed|is bad): ", "", str(error).strip())
    said = re.sub(r"\n(LINE \d|\tIs the server running|DETAIL:|HINT:).*", "", said, flags=re.DOTALL)
    return " ".join(said.split())[:MAX_LENGTH].rstrip(".")


def _fix(said: str) -> str:
    return next((fix for pattern, fix in FIXES if re.search(pattern, said)), "")

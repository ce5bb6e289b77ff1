"""Millions of users for a bench: copies of one user, whose ledger the verbs have written.

`BulkLoad` turns off everything that keeps data safe while a server is filled, and turns it on again before
anything is measured.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from django.db import connection, transaction

from tests.tools.overheard import ENTRIES, QUOTAS, copying
from tests.tools.postgres import Server

BULK_LOAD_SETTINGS = {
    "autovacuum": "off",
    "checkpoint_timeout": "1h",
    "full_page_writes": "off",
    "max_wal_senders": "0",
    "max_wal_size": "16GB",
    "wal_level": "minimal",  # skips the WAL of a table that is truncated and filled in one transaction
}


class BulkLoad:
    """Runs a server without durability inside a `with` block, and with the defaults after it."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def __enter__(self) -> Self:
        for name, value in BULK_LOAD_SETTINGS.items():
            run(f"ALTER SYSTEM SET {name} = '{value}'")
        self._restart(fsync=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        run("ALTER SYSTEM RESET ALL")
        self._restart(fsync=True)

    def _restart(self, *, fsync: bool) -> None:
        connection.close()
        self.server.fsync = fsync
        self.server.restart()


def run(statement: str, values: Any = None) -> list[Any]:
    """Run a statement and return its rows."""
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return cursor.fetchall() if cursor.description else []


def use(database: str) -> None:
    """Continue with another database of the server."""
    connection.close()
    connection.settings_dict["NAME"] = database


def multiply(users: int) -> float:
    """Replace the existing user with so many copies; return the seconds that it took.

    The entries are inserted as over time: the first of every user before the second of any.
    """
    began = time.monotonic()
    with transaction.atomic():
        run("SET LOCAL maintenance_work_mem = '1GB'")
        for table, order in ((QUOTAS, "user_id"), (ENTRIES, "seq, user_id")):
            run(f"CREATE TEMP TABLE played ON COMMIT DROP AS TABLE {table}")
            with without_indexes(table):
                run(f"TRUNCATE {table}")
                for place in range(run("SELECT COUNT(*) FROM played")[0][0]):
                    one = f"(SELECT * FROM played ORDER BY {order} OFFSET {place} LIMIT 1) AS original"
                    copy(table, one, users)
            run("DROP TABLE played")
    run(f"VACUUM (ANALYZE) {QUOTAS}, {ENTRIES}")
    return time.monotonic() - began


def copy(table: str, source: str, times: int, **changed: str) -> None:
    """Insert so many copies of each row of `source`; `changed` as in `copying`."""
    columns = [name for (name,) in run(COLUMNS, [table])]
    run(f"INSERT INTO {table} ({', '.join(columns)}) {copying(columns, source, **changed)}", [1, times])


COLUMNS = "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"
CONSTRAINTS = """
    SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE conrelid = %s::regclass AND contype IN ('p', 'u', 'f') ORDER BY contype DESC
"""
INDEXES = """
    SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index
    WHERE indrelid = %s::regclass AND NOT EXISTS (SELECT 1 FROM pg_constraint WHERE conindid = indexrelid)
"""


@contextmanager
def without_indexes(table: str) -> Iterator[None]:
    """Drop the table's indexes and constraints, and create them again after the block."""
    constraints, indexes = run(CONSTRAINTS, [table]), run(INDEXES, [table])
    for name, _ in constraints:
        run(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
    for name, _ in indexes:
        run(f"DROP INDEX {name}")
    yield
    for _, definition in indexes:
        run(definition)
    for name, definition in constraints:
        run(f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition}")


def sizes() -> Iterator[str]:
    """Yield a line with the size of each table and of each index."""
    for table in (QUOTAS, ENTRIES):
        rows = run(f"SELECT COUNT(*) FROM {table}")[0][0]
        heap, indexes = run(
            f"SELECT pg_size_pretty(pg_table_size('{table}')), pg_size_pretty(pg_indexes_size('{table}'))"
        )[0]
        yield f"{rows:>12,} rows of {table}: {heap}, and {indexes} of indexes"
        for name, size in run(
            "SELECT indexrelid::regclass::text, pg_size_pretty(pg_relation_size(indexrelid)) FROM pg_index "
            f"WHERE indrelid = '{table}'::regclass ORDER BY pg_relation_size(indexrelid) DESC"
        ):
            yield f"{'':>12} {name}: {size}"

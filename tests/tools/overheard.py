"""Capture the statements that verbs send, copy rows into large tables, and read PostgreSQL's query plans.

For tests of query plans and for benches. The statements are captured while a verb runs, so they are always
the current ones.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, NamedTuple

import psycopg
from psycopg.types.json import JsonbDumper

QUOTAS, ENTRIES, WORDS = GROWING = "challenge_quotas", "ledger_entries", "plan_assignments"

# For copied rows: user ids that grow with time and are as long as Clerk's; unique values where a constraint
# requires them.
USER = "'user_' || lpad({number}::text, 27, '0')"
COPIED = {
    "user_id": USER.format(number="copy"),
    "email": "md5(copy::text) || '@example.com'",
    "id": "md5(id::text || copy)::uuid",
    "refund_of": "md5(refund_of::text || copy)::uuid",
    "idempotency_key": "idempotency_key || copy",
}

_names = count(1)


class Sent(NamedTuple):
    """A statement with its parameters, as psycopg got it."""

    text: str
    values: tuple[Any, ...]


class Scan(NamedTuple):
    """How a query plan reads a growing table, and how much it read when it ran."""

    kind: str
    table: str
    index: str
    rows: float  # including those that a filter removed
    blocks: int


@contextmanager
def overheard() -> Iterator[list[Sent]]:
    """Collect the statements on growing tables that psycopg's cursors of any class send within the block."""
    sent: list[Sent] = []
    execute, executemany = psycopg.Cursor.execute, psycopg.Cursor.executemany

    def note(query: Any, values: Any) -> None:
        text = query.decode() if isinstance(query, bytes) else str(query)
        if any(table in text for table in GROWING):
            sent.append(
                in_order(text, values) if isinstance(values, Mapping) else Sent(text, tuple(values or ()))
            )

    def recording_execute(self: Any, query: Any, params: Any = None, **options: Any) -> Any:
        note(query, params)
        return execute(self, query, params, **options)

    def recording_executemany(self: Any, query: Any, params_seq: Any, **options: Any) -> None:
        rows = list(params_seq)
        for values in rows:
            note(query, values)
        executemany(self, query, rows, **options)

    psycopg.Cursor.execute, psycopg.Cursor.executemany = recording_execute, recording_executemany
    try:
        yield sent
    finally:
        psycopg.Cursor.execute, psycopg.Cursor.executemany = execute, executemany


def in_order(text: str, values: Mapping[str, Any]) -> Sent:
    """Return the statement with PostgreSQL's own placeholders instead of named ones."""
    names: list[str] = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", text)))
    return Sent(
        text % {name: f"${names.index(name) + 1}" for name in names}, tuple(values[name] for name in names)
    )


def numbered(text: str) -> str:
    """Return the text with PostgreSQL's own placeholders: $1 for the first %s."""
    numbers = count(1)
    return re.sub(r"%[s%]", lambda match: "%" if match[0] == "%%" else f"${next(numbers)}", text)


def copying(columns: Sequence[str], source: str, **changed: str) -> str:
    """Return a SELECT that copies the rows of `source` once for each number between its two parameters.

    Each copy is another user's; `changed` gives the other values that differ, as SQL over the row and `copy`.
    """
    values = ", ".join((COPIED | changed).get(name, name) for name in columns)
    return f"SELECT {values} FROM {source}, generate_series(%s, %s) AS copy"


def explained(connection: psycopg.Connection[Any], sent: Sent, *, generic: bool) -> dict[str, Any]:
    """Prepare and run the statement, and return its plan with what it read. Needs a transaction.

    `generic` selects the plan for all values that a prepared statement may get, else the plan for these.
    """
    name = f"explained_{next(_names)}"
    placeholders = ", ".join(["%s"] * len(sent.values))
    mode = "generic" if generic else "custom"
    with psycopg.ClientCursor(connection) as cursor:
        cursor.adapters.register_dumper(dict, JsonbDumper)
        cursor.execute(f"SET LOCAL plan_cache_mode = force_{mode}_plan")
        cursor.execute(f"PREPARE {name} AS {numbered(sent.text)}")
        cursor.execute(
            f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) EXECUTE {name} ({placeholders})",
            sent.values,
        )
        plan: dict[str, Any] = cursor.fetchone()[0][0]["Plan"]
        cursor.execute(f"DEALLOCATE {name}")
    return plan


def scans(node: dict[str, Any]) -> Iterator[Scan]:
    """Yield each scan of a growing table in the plan."""
    if node.get("Relation Name") in GROWING and node["Node Type"] != "ModifyTable":
        read = ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck")
        yield Scan(
            node["Node Type"],
            node["Relation Name"],
            node.get("Index Name", ""),
            sum(node.get(name, 0) for name in read) * node["Actual Loops"],
            blocks(node),
        )
    for inner in node.get("Plans", []):
        yield from scans(inner)


def blocks(node: dict[str, Any]) -> int:
    """Return the blocks that the node and all nodes below it used, cached or read."""
    return sum(node[f"{of} {how} Blocks"] for of in ("Shared", "Local") for how in ("Hit", "Read"))

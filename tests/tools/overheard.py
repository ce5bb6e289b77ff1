"""The statements of the verbs: what each sends, a crowd to send it among, and how PostgreSQL answers it.

For tests of plans and for benches. The statements are overheard while a verb runs, so that they are
those of today, whatever their text.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, NamedTuple

import psycopg
from psycopg.types.json import JsonbDumper

QUOTAS, ENTRIES, WORDS = GROWING = "challenge_quotas", "ledger_entries", "plan_assignments"

# Of a copy: ids that grow in time, as Clerk's do, and as long; and all that must be unique made so.
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
    """How a plan reads a table that grows, and what it read of it when it ran."""

    kind: str
    table: str
    index: str
    rows: float  # those included that a filter threw away
    blocks: int


@contextmanager
def overheard() -> Iterator[list[Sent]]:
    """Collect what is sent inside about the tables that grow, by psycopg's cursors of any kind."""
    sent: list[Sent] = []
    execute, executemany = psycopg.Cursor.execute, psycopg.Cursor.executemany

    def note(query: Any, values: Any) -> None:
        text = query.decode() if isinstance(query, bytes) else str(query)
        if any(table in text for table in GROWING):
            sent.append(Sent(text, tuple(values or ())))

    def execute_heard(self: Any, query: Any, params: Any = None, **options: Any) -> Any:
        note(query, params)
        return execute(self, query, params, **options)

    def executemany_heard(self: Any, query: Any, params_seq: Any, **options: Any) -> None:
        rows = list(params_seq)
        for values in rows:
            note(query, values)
        executemany(self, query, rows, **options)

    psycopg.Cursor.execute, psycopg.Cursor.executemany = execute_heard, executemany_heard
    try:
        yield sent
    finally:
        psycopg.Cursor.execute, psycopg.Cursor.executemany = execute, executemany


def numbered(text: str) -> str:
    """The text with PostgreSQL's own parameters: $1 for the first %s."""
    numbers = count(1)
    return re.sub(r"%[s%]", lambda found: "%" if found[0] == "%%" else f"${next(numbers)}", text)


def copying(columns: Sequence[str], source: str, **changed: str) -> str:
    """A SELECT that copies the rows of `source` once for each number between its two parameters.

    A copy is another user's; `changed` tells what else differs, as SQL over the row and `copy`.
    """
    wanted = ", ".join((COPIED | changed).get(name, name) for name in columns)
    return f"SELECT {wanted} FROM {source}, generate_series(%s, %s) AS copy"


def explained(connection: psycopg.Connection[Any], sent: Sent, *, generic: bool) -> dict[str, Any]:
    """Prepare and run the statement, and return its plan with what it read; call it in a transaction.

    `generic` is the one plan for all values that a prepared statement may get, not that for these.
    """
    name = f"explained_{next(_names)}"
    holes = ", ".join(["%s"] * len(sent.values))
    mode = "generic" if generic else "custom"
    with psycopg.ClientCursor(connection) as cursor:
        cursor.adapters.register_dumper(dict, JsonbDumper)
        cursor.execute(f"SET LOCAL plan_cache_mode = force_{mode}_plan")
        cursor.execute(f"PREPARE {name} AS {numbered(sent.text)}")
        cursor.execute(
            f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) EXECUTE {name} ({holes})",
            sent.values,
        )
        plan: dict[str, Any] = cursor.fetchone()[0][0]["Plan"]
        cursor.execute(f"DEALLOCATE {name}")
    return plan


def scans(node: dict[str, Any]) -> Iterator[Scan]:
    """How the plan reads the tables that grow."""
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
    """The blocks that were touched by it and what is below it, wherever they were."""
    return sum(node[f"{of} {how} Blocks"] for of in ("Shared", "Local") for how in ("Hit", "Read"))

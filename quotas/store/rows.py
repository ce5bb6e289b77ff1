"""The columns of the store's statements, and conversion between their rows and the values of the rules."""

import json
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from functools import cache, lru_cache
from itertools import islice
from typing import Any, get_args, get_origin, get_type_hints
from uuid import UUID

from quotas.rules.values import Entry, Plan, State

SQL_TYPES = {
    str: "text",
    int: "bigint",
    datetime: "timestamptz",
    timedelta: "bigint",  # seconds
    UUID: "uuid",
    Mapping: "jsonb",
}


def columns_of(kind: type, **renamed: str) -> dict[str, str]:
    """Return the column of each field of a named tuple, and its type; some columns have another name.

    Raises TypeError for a field whose type no column has.
    """
    return {renamed.get(name, name): _sql_type(annotated) for name, annotated in get_type_hints(kind).items()}


def _sql_type(annotated: Any) -> str:
    for part in (annotated, *get_args(annotated)):  # X | None has the type of X
        if sql_type := SQL_TYPES.get(get_origin(part) or part):
            return sql_type
    raise TypeError(f"No column has the type {annotated}: add it to SQL_TYPES.")


STATE_COLUMNS = columns_of(State, plan="plan_id")
PLAN_COLUMNS = columns_of(Plan, period="period_seconds")
ENTRY_COLUMNS = columns_of(Entry)
SWAP_COLUMNS = STATE_COLUMNS | {"seq_read": "bigint"}  # of a change that is written only to this seq


def state_parameters(state: State) -> dict[str, Any]:
    return dict(zip(STATE_COLUMNS, state, strict=True))


@cache
def entry_names(number: int) -> tuple[str, ...]:
    """Return the names of the parameters of one of the entries that a statement inserts."""
    return tuple(f"entry_{number}_{column}" for column in ENTRY_COLUMNS)


ENTRY_ARRAYS = dict(zip(entry_names(0), ENTRY_COLUMNS.values(), strict=True))


def entry_parameters(entry: Entry, number: int = 0) -> dict[str, Any]:
    return dict(zip(entry_names(number), entry, strict=True))


def state_from(row: Iterator[Any]) -> State | None:
    """Take the columns of a quota's row off the front of `row`; None if they are NULL."""
    values = list(islice(row, len(STATE_COLUMNS)))
    return None if values[0] is None else State(*values)


def plan_from(row: Iterator[Any]) -> Plan | None:
    """The same for a plan or a plan version."""
    name, *rules = islice(row, len(PLAN_COLUMNS))
    return None if name is None else _cached_plan(name, *rules)


def entry_from(row: Iterator[Any]) -> Entry | None:
    """The same for a ledger entry."""
    values = dict(zip(ENTRY_COLUMNS, islice(row, len(ENTRY_COLUMNS)), strict=True))
    if values["id"] is None:
        return None
    for name in ("id", "refund_of"):
        values[name] = UUID(values[name]) if isinstance(values[name], str) else values[name]
    values["metadata"] = values["metadata"] and json.loads(values["metadata"])
    return Entry(**values)


@lru_cache(maxsize=256)  # all users share a few plans
def _cached_plan(name: str, version: int, allowance: int | None, policy: str, *rest: Any) -> Plan:
    period_seconds, timezone, actions = rest
    period = timedelta(seconds=period_seconds)
    return Plan(name, version, allowance, policy, period, timezone, json.loads(actions))

"""The columns of the store's statements, and conversion between their rows and the values of the rules."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from datetime import timedelta
from functools import cache, lru_cache
from itertools import islice
from operator import attrgetter
from typing import Any
from uuid import UUID

from quotas.rules.values import Entry, Plan, State


def columns_of(kind: type, table: Mapping[str, str]) -> dict[str, str]:
    """Return the type of each column. `table` gives each field's type, after the column if its name differs.

    Raises TypeError unless the table has exactly the fields of the dataclass `kind`, in their order.
    """
    names = [field.name for field in fields(kind)]
    if names != [*table]:
        wrong = set(names) ^ set(table) or "their order"
        raise TypeError(f"The columns in {__name__} and the fields of {kind.__name__} differ: {wrong}.")
    words = [[field, *text.split()] for field, text in table.items()]
    return {column: sql_type for *_, column, sql_type in words}


STATE_COLUMNS = columns_of(
    State,
    {
        "user_id": "text",
        "plan": "plan_id text",
        "plan_source": "text",
        "plan_version": "bigint",
        "quota_limit": "bigint",
        "quota_remaining": "bigint",
        "period_consumed": "bigint",
        "period_given": "bigint",
        "last_reset_date": "timestamptz",
        "resets_at": "timestamptz",
        "anchor_at": "timestamptz",
        "period_seq": "bigint",
        "refused_at": "timestamptz",
        "left_until": "timestamptz",
        "seq": "bigint",
        "usage_seq": "bigint",
        "updated_at": "timestamptz",
        "deleted_at": "timestamptz",
    },
)
PLAN_COLUMNS = columns_of(
    Plan,
    {
        "name": "text",
        "version": "bigint",
        "allowance": "bigint",
        "reset_policy": "text",
        "period": "period_seconds bigint",
        "timezone": "text",
        "actions": "jsonb",
    },
)
ENTRY_COLUMNS = columns_of(
    Entry,
    {
        "id": "uuid",
        "user_id": "text",
        "seq": "bigint",
        "kind": "text",
        "cost": "bigint",
        "delta": "bigint",
        "plan": "text",
        "plan_source": "text",
        "plan_version": "bigint",
        "quota_limit": "bigint",
        "balance_after": "bigint",
        "period_consumed": "bigint",
        "period_given": "bigint",
        "last_reset_date": "timestamptz",
        "anchor_at": "timestamptz",
        "resets_at": "timestamptz",
        "period_seq": "bigint",
        "created_at": "timestamptz",
        "actor_kind": "text",
        "actor_id": "text",
        "act": "text",
        "reason": "text",
        "action": "text",
        "metadata": "jsonb",
        "idempotency_key": "text",
        "fingerprint": "text",
        "refund_of": "uuid",
    },
)

state_values, entry_values = (attrgetter(*(field.name for field in fields(kind))) for kind in (State, Entry))


def state_parameters(state: State) -> dict[str, Any]:
    return dict(zip(STATE_COLUMNS, state_values(state), strict=True))


@cache
def entry_names(number: int) -> tuple[str, ...]:
    """Return the names of the parameters of one of the entries that a statement inserts."""
    return tuple(f"entry_{number}_{column}" for column in ENTRY_COLUMNS)


def entry_parameters(entry: Entry, number: int = 0) -> dict[str, Any]:
    return dict(zip(entry_names(number), entry_values(entry), strict=True))


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

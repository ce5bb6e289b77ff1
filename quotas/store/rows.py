"""Conversion between the rows of sql.py's statements and the values of the rules."""

import json
from collections.abc import Iterator
from dataclasses import fields
from datetime import timedelta
from functools import lru_cache
from itertools import islice
from operator import attrgetter
from typing import Any
from uuid import UUID

from quotas.rules.values import Entry, Plan, State

STATE_FIELDS, PLAN_FIELDS, ENTRY_FIELDS = (
    tuple(field.name for field in fields(kind)) for kind in (State, Plan, Entry)
)

state_values = attrgetter(*STATE_FIELDS)
entry_values = attrgetter(*ENTRY_FIELDS)


def state_from(row: Iterator[Any]) -> State | None:
    """Take the columns of a quota's row off the front of `row`; None if they are NULL."""
    values = list(islice(row, len(STATE_FIELDS)))
    return None if values[0] is None else State(*values)


def plan_from(row: Iterator[Any]) -> Plan | None:
    """The same for a plan or a plan version."""
    name, *rules = islice(row, len(PLAN_FIELDS))
    return None if name is None else _cached_plan(name, *rules)


def entry_from(row: Iterator[Any]) -> Entry | None:
    """The same for a ledger entry."""
    values = dict(zip(ENTRY_FIELDS, islice(row, len(ENTRY_FIELDS)), strict=True))
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

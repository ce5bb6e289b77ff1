"""From a row of the statements in sql.py to values of the rules, and back."""

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
from quotas.store import sql

_state_values = attrgetter(*(column.name for column in fields(State)))
_entry_values = attrgetter(*(column.name for column in fields(Entry)))


def _plan(row: Iterator[Any]) -> Plan | None:
    name, *rules = islice(row, len(sql.PLAN))
    return None if name is None else _rules(name, *rules)


@lru_cache(maxsize=256)  # all users share a few
def _rules(name: str, version: int, allowance: int | None, policy: str, *rest: Any) -> Plan:
    period_seconds, timezone, actions = rest
    period = timedelta(seconds=period_seconds)
    return Plan(name, version, allowance, policy, period, timezone, json.loads(actions))


def _state(row: Iterator[Any]) -> State | None:
    values = list(islice(row, len(sql.STATE)))
    return None if values[0] is None else State(*values)


def _entry(row: Iterator[Any]) -> Entry | None:
    values = dict(zip(sql.ENTRY, islice(row, len(sql.ENTRY)), strict=True))
    if values["id"] is None:
        return None
    for name in ("id", "refund_of"):
        values[name] = UUID(values[name]) if isinstance(values[name], str) else values[name]
    values["metadata"] = values["metadata"] and json.loads(values["metadata"])
    return Entry(**values)

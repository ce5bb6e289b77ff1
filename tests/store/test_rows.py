"""The columns of the statements are the fields of the values."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from django.db import connection

from quotas.store.arrays import array_literals
from quotas.store.rows import columns_of

pytestmark = pytest.mark.once


class Example(NamedTuple):
    first: int
    second: str | None
    third: Mapping[str, int] | None
    fourth: datetime


class Odd(NamedTuple):
    first: complex


def test_a_column_has_the_name_of_its_field_unless_it_has_another() -> None:
    columns = {"first": "bigint", "last": "text", "third": "jsonb", "fourth": "timestamptz"}
    assert columns_of(Example, second="last") == columns


def test_a_field_that_no_column_can_hold_is_refused() -> None:
    with pytest.raises(TypeError, match="complex"):
        columns_of(Odd)


ODD_TEXTS = ["", "null", "NULL", '"', "\\", '\\"', "\\n", "{a,b}", " a ", "é \u2028 \U0001f600"]
ODD_TEXTS += ["line\nline", "\t\x01\x7f"]
INSTANTS = [datetime(2026, 1, 31, 23, 59, 59, 999_999, tzinfo=UTC), datetime.max.replace(tzinfo=UTC)]
VALUES: dict[str, list[Any]] = {
    "text": [*ODD_TEXTS, None],
    "bigint": [0, -1, 2**63 - 1, -(2**63), None],
    "timestamptz": [*INSTANTS, None],
    "uuid": [UUID(int=0), UUID(int=2**128 - 1), None],
    "jsonb": [*({text: [text, 1.5, None, {}]} for text in ODD_TEXTS), {}, None],
}


@pytest.mark.postgres
@pytest.mark.django_db
@pytest.mark.parametrize("kind", VALUES)
def test_an_array_has_the_values_that_it_was_made_of(kind: str) -> None:
    literals = array_literals({"column": kind}, [[value] for value in VALUES[kind]])
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT value FROM unnest(%(columns)s::{kind}[]) AS value", literals)
        found = [value for (value,) in cursor.fetchall()]
    if kind == "jsonb":  # which Django leaves as text
        found = [value and json.loads(value) for value in found]
    assert found == VALUES[kind]

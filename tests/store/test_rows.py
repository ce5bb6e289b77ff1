"""The columns of the statements are the fields of the values."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import pytest

from quotas.store.rows import columns_of

pytestmark = pytest.mark.once


@dataclass
class Example:
    first: int
    second: str | None
    third: Mapping[str, int] | None
    fourth: datetime


@dataclass
class Odd:
    first: complex


def test_a_column_has_the_name_of_its_field_unless_it_has_another() -> None:
    columns = {"first": "bigint", "last": "text", "third": "jsonb", "fourth": "timestamptz"}
    assert columns_of(Example, second="last") == columns


def test_a_field_that_no_column_can_hold_is_refused() -> None:
    with pytest.raises(TypeError, match="complex"):
        columns_of(Odd)

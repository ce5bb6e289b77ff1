"""The columns of the statements and the fields of the values are the same."""

from dataclasses import dataclass

import pytest

from quotas.store.rows import columns_of

pytestmark = pytest.mark.once


@dataclass
class Pair:
    first: int
    second: str


def test_a_column_has_the_name_of_its_field_unless_it_has_another() -> None:
    assert columns_of(Pair, {"first": "bigint", "second": "last text"}) == {"first": "bigint", "last": "text"}


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        ({"first": "bigint"}, "fields of Pair differ: {'second'}"),
        ({"first": "bigint", "second": "text", "third": "text"}, "{'third'}"),
        ({"second": "text", "first": "bigint"}, "their order"),
    ],
)
def test_a_table_that_differs_from_the_fields_is_refused(table: dict[str, str], fault: str) -> None:
    with pytest.raises(TypeError, match=fault):
        columns_of(Pair, table)

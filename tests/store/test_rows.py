"""The columns of the statements and the fields of the values, which rows.py matches by their order."""

from collections.abc import Iterable

import pytest

from quotas.store import rows, sql

pytestmark = pytest.mark.once
RENAMED = {"plan_id": "plan", "period_seconds": "period"}  # columns whose fields have other names


@pytest.mark.parametrize(
    ("columns", "fields"),
    [
        (sql.STATE_COLUMNS, rows.STATE_FIELDS),
        (sql.PLAN_COLUMNS, rows.PLAN_FIELDS),
        (sql.ENTRY_COLUMNS, rows.ENTRY_FIELDS),
    ],
    ids=["state", "plan", "entry"],
)
def test_the_columns_are_in_the_order_of_the_fields(columns: Iterable[str], fields: tuple[str, ...]) -> None:
    assert tuple(RENAMED.get(column, column) for column in columns) == fields

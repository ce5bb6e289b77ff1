"""The models and their manager: what they refuse before they ask the database, and how a row is shown."""

from datetime import UTC, datetime

import pytest
from django.db.models import Model

from quotas.models import ChallengeQuota, HourlyTotal, Plan, PlanAssignment, PlanVersion
from tests.conftest import STAFF

pytestmark = pytest.mark.once
QUOTAS = ChallengeQuota.objects


@pytest.mark.parametrize("change", ["save", "delete"])
def test_a_quota_is_only_changed_by_the_verbs_of_its_manager(change: str) -> None:
    with pytest.raises(TypeError, match="manager"):
        getattr(ChallengeQuota(user_id="user_1"), change)()


@pytest.mark.parametrize("user_id", ["", "user 1", "u" * 129])
def test_an_impossible_user_id_is_refused(user_id: str) -> None:
    with pytest.raises(ValueError, match="1 to 128 characters"):
        QUOTAS.consume(user_id)


@pytest.mark.parametrize("cost", [0, -1, 2**31])
def test_an_impossible_number_of_units_is_refused(cost: int) -> None:
    with pytest.raises(ValueError, match="from 1 to 2147483647"):
        QUOTAS.consume("user_1", cost)


@pytest.mark.parametrize("reason", ["", "r" * 201])
def test_an_adjustment_needs_a_reason_of_1_to_200_characters(reason: str) -> None:
    with pytest.raises(ValueError, match="reason of 1 to 200"):
        QUOTAS.adjust("user_1", 1, reason=reason, actor=STAFF)


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (PlanVersion(plan=Plan(name="pro"), version=3), "pro 3"),
        (PlanAssignment(user_id="user_1", source="billing", plan=""), "user_1 billing none"),
        (
            HourlyTotal(hour=datetime(2026, 3, 1, 7, tzinfo=UTC), spent=5, refused=2),
            "2026-03-01 07:00: 5 spent, 2 refused",
        ),
    ],
)
def test_a_row_is_shown_with_what_identifies_it(row: Model, name: str) -> None:
    assert str(row) == name

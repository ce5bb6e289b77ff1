"""Users who wait for a plan: Clerk assigned it before it existed here, and they get it once it does."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from quotas.models import ChallengeQuota, LedgerEntry, Plan
from quotas.reports import waiting
from quotas.reports.waiting import (
    give_plans,
    sentences,
    shown_name,
    waiting_among,
    waiting_for_ours,
    waiting_for_unknown,
)
from quotas.rules.values import Actor
from tests.conftest import STAFF
from tests.tools.ledger import assert_sound

pytestmark = pytest.mark.django_db
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
CLERK = Actor("webhook", "clerk")
COMMAND = Actor("command", "a test")


def assign(
    user_id: str, plan: str, source: str = "metadata", *, item: str = "", is_free: bool = False
) -> None:
    at = NOON + timedelta(seconds=len(item))
    ChallengeQuota.objects.assign_plan(
        user_id, source, plan, external_id=item, is_free=is_free, updated_at=at, actor=CLERK
    )


def add(plan: str, allowance: int = 100) -> None:
    Plan(name=plan, allowance=allowance).save()


def counted() -> dict[str, int]:
    return {found.plan: found.users for found in (*waiting_for_ours(), *waiting_for_unknown())}


def plan_of(user_id: str) -> tuple[str, str]:
    row = ChallengeQuota.objects.get(pk=user_id)
    return row.plan_id, row.plan_source


def test_users_wait_for_a_plan_before_it_exists_and_after_it_was_added_until_they_get_it() -> None:
    for number in range(3):
        assign(f"user_{number}", "pro")
    assert [tuple(found) for found in waiting_for_unknown()] == [("pro", 3, False)]
    add("pro")
    assert waiting_for_unknown() == []
    assert [tuple(found) for found in waiting_for_ours()] == [("pro", 3, True)]
    assert sum(give_plans(COMMAND)) == 3
    assert counted() == {}
    assert plan_of("user_1") == ("pro", "metadata")


def test_what_was_used_counts_and_the_entry_names_who_gave_the_plan_and_why() -> None:
    assign("user_1", "pro")
    ChallengeQuota.objects.consume("user_1", 15)
    add("pro")
    assert sum(give_plans(COMMAND)) == 1
    assert ChallengeQuota.objects.get().quota_remaining == 85
    entry = LedgerEntry.objects.get(kind="plan_changed")
    assert (entry.actor_kind, entry.reason) == ("command", "waited for this plan")
    assert_sound("user_1")


def test_to_give_again_changes_nothing() -> None:
    assign("user_1", "pro")
    add("pro")
    assert [sum(give_plans(COMMAND)) for _ in range(2)] == [1, 0]
    assert LedgerEntry.objects.count() == 2


def test_nobody_waits_whose_plan_staff_chose() -> None:
    assign("user_1", "pro")
    ChallengeQuota.objects.change_plan("user_1", "free", actor=STAFF)
    assert counted() == {}
    add("pro")
    assert (counted(), sum(give_plans(COMMAND))) == ({}, 0)
    assert plan_of("user_1") == ("free", "staff")


def test_no_deleted_user_waits() -> None:
    assign("user_1", "pro")
    ChallengeQuota.objects.delete("user_1", actor=CLERK)
    assert counted() == {}
    add("pro")
    assert (counted(), sum(give_plans(COMMAND))) == ({}, 0)


def test_the_free_item_of_each_sign_up_lets_nobody_wait_until_its_plan_exists() -> None:
    assign("user_1", "free_user", "billing", item="a", is_free=True)
    assert counted() == {}
    add("free_user")
    assert counted() == {"free_user": 1}
    assert sum(give_plans(COMMAND)) == 1


def test_a_free_item_does_not_hide_whom_the_metadata_let_wait() -> None:
    assign("user_1", "gold")
    assign("user_1", "free_user", "billing", item="a", is_free=True)
    assert counted() == {"gold": 1}


def test_who_pays_for_an_unknown_plan_waits_though_the_metadata_gave_another_one() -> None:
    add("beta")
    assign("user_1", "beta")
    assign("user_1", "gold", "billing", item="a")
    assert plan_of("user_1") == ("beta", "metadata")
    assert counted() == {"gold": 1}


def test_an_assignment_that_would_not_count_lets_nobody_wait() -> None:
    add("team")
    assign("user_1", "team", "billing", item="a")
    assign("user_1", "pro")
    assert counted() == {}
    add("pro")
    assert (counted(), sum(give_plans(COMMAND))) == ({}, 0)
    assert plan_of("user_1") == ("team", "billing")


def test_only_the_users_of_one_plan_can_be_given_it() -> None:
    assign("user_1", "pro")
    assign("user_2", "team")
    add("pro")
    add("team")
    assert [found.users for found in waiting_for_ours("pro")] == [1]
    assert sum(give_plans(COMMAND, "pro")) == 1
    assert counted() == {"team": 1}


def test_pages_read_on_where_one_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "USERS_PER_PAGE", 2)
    for number in range(5):
        assign(f"user_{number}", "pro")
    ChallengeQuota.objects.change_plan("user_2", "free", actor=STAFF)
    add("pro")
    assert [*give_plans(COMMAND)] == [True] * 4
    assert counted() == {}


def test_what_was_given_stays_if_the_rest_is_left_for_later() -> None:
    for number in range(5):
        assign(f"user_{number}", "pro")
    add("pro")
    assert next(give_plans(COMMAND))
    assert counted() == {"pro": 4}
    assert sum(give_plans(COMMAND)) == 4


def test_who_waits_is_known_of_some_users_too() -> None:
    add("pro")
    assign("user_1", "gold")
    assign("user_2", "pro")
    assign("user_3", "gold")
    assert waiting_among(["user_1", "user_2"]) == {"user_1": "gold"}
    assert waiting_among([]) == {}


def test_of_many_unknown_plans_those_of_the_most_users_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "MAX_PLANS_LISTED", 2)
    for number, plan in enumerate(["c", "b", "a", "b"]):
        assign(f"user_{number}", plan)
    assert [sentence.partition(":")[0] for sentence in sentences(waiting_for_unknown())] == [
        "no plan b",
        "no plan a",
        "and 1 more plan",
    ]


def test_a_count_that_stops_says_that_there_are_more() -> None:
    for number in range(3):
        assign(f"user_{number}", "pro")
    assert [str(found.users) for found in waiting_for_unknown(most=2)] == ["more than 2"]
    assert [str(found.users) for found in waiting_for_unknown(most=3)] == ["3"]


def test_the_counts_cost_one_query_each(make_quota: Callable[..., ChallengeQuota]) -> None:
    with CaptureQueriesContext(connection) as captured:
        assert (waiting_for_ours(), waiting_for_unknown()) == ([], [])
    assert len(captured) == 2


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("pro", "pro"),
        ("Pro plan", "'Pro plan'"),
        ("\x1b[2J<b>", r"'\x1b[2J<b>'"),
        ("x" * 128, repr("x" * 40) + "…"),
    ],
)
def test_an_unknown_name_is_shown_safely_and_briefly(name: str, shown: str) -> None:
    assert shown_name(name) == shown

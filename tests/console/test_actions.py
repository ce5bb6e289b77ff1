"""Staff actions on many users, and plan changes: previewed by the rules, applied once, reported briefly."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from quotas.console import quotas
from quotas.models import ChallengeQuota, LedgerEntry, Plan
from tests.conftest import STAFF
from tests.tools.ledger import forget_usage
from tests.tools.staff import ACTING, LIST, PAGE, SCRIPT, confirm, send, sign_in, text

pytestmark = pytest.mark.django_db
Make = Callable[..., ChallengeQuota]
Shift = Callable[[str, timedelta], None]


@pytest.fixture
def staff() -> Client:
    return sign_in(*ACTING)


@pytest.fixture
def pro(db: None) -> Plan:
    plan = Plan(name="pro", allowance=50)
    plan.save()
    return plan


def plan_of(user_id: str = "user_1") -> tuple[str, int]:
    quota = ChallengeQuota.objects.get(pk=user_id)
    return quota.plan_id, quota.quota_remaining


@pytest.mark.parametrize(
    ("on_change", "limit", "left"), [("keep", 50, 42), ("reset", 50, 50), ("prorate", 34, 26)]
)
def test_a_change_of_plan_is_shown_before_it_is_made_and_is_made_so(
    staff: Client, make_quota: Make, shift: Shift, pro: Plan, on_change: str, limit: int, left: int
) -> None:
    make_quota(remaining=12)
    shift(
        "user_1", timedelta(hours=12)
    )  # a little more has passed by then: 14.99… of the 30 new units are added
    form = {"plan": "pro", "on_change": on_change, "reason": "an upgrade", "token": uuid4()}
    shown = text(send(staff, "change_plan", "user_1", **form))
    assert "Change plan to pro" in shown
    assert shown.index("12 of 20") < shown.index(f"{left} of {limit}")
    assert plan_of() == ("free", 12)
    done = text(send(staff, "change_plan", "user_1", **form, confirmed="1"))
    assert f"The plan of user_1 is pro: now {left} of {limit}." in done
    assert plan_of() == ("pro", left)
    entry = LedgerEntry.objects.latest("seq")
    assert (entry.kind, entry.reason, entry.actor_id) == ("plan_changed", "an upgrade", "alice")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ({"plan": ""}, "This field is required."),
        ({"plan": "gold"}, " is not one of the available choices."),
        ({"plan": SCRIPT}, " is not one of the available choices."),
        ({"on_change": ""}, "This field is required."),
        ({"on_change": "double"}, "double is not one of the available choices."),
        ({"reason": ""}, "This field is required."),
    ],
)
def test_a_change_of_plan_needs_a_plan_a_way_and_a_reason(
    staff: Client, make_quota: Make, pro: Plan, data: dict[str, str], why: str
) -> None:
    make_quota()
    page = confirm(staff, "change_plan", "user_1", **{"plan": "pro", "on_change": "keep", **data})
    assert why in page
    assert SCRIPT not in page
    assert plan_of() == ("free", 20)
    assert ChallengeQuota.objects.get().plan_source == "default"


def test_a_change_of_plan_of_several_users_says_how_many_have_it_now(
    staff: Client, make_quota: Make, pro: Plan
) -> None:
    users = ("user_1", "user_2")
    for user_id in users:
        make_quota(user_id)
    page = confirm(staff, "change_plan", *users, plan="pro", on_change="keep")
    assert "2 users have the plan pro." in page
    assert [plan_of(user_id) for user_id in users] == [("pro", 50)] * 2


def test_a_change_of_plan_that_is_sent_twice_is_made_once(staff: Client, make_quota: Make, pro: Plan) -> None:
    make_quota()
    form = {"plan": "pro", "on_change": "reset", "token": uuid4()}
    confirm(staff, "change_plan", "user_1", **form)
    ChallengeQuota.objects.consume("user_1", 5)
    assert "nothing was done again" in confirm(staff, "change_plan", "user_1", **form)
    assert plan_of() == ("pro", 45)


def test_who_has_the_plan_already_has_it_by_staffs_choice_from_then_on(
    staff: Client, make_quota: Make
) -> None:
    make_quota(remaining=3)
    seq = ChallengeQuota.objects.get().seq
    for times in (1, 2):  # each form has a key, which an entry keeps
        done = confirm(staff, "change_plan", "user_1", plan="free", on_change="reset")
        assert "The plan of user_1 is free: now 3 of 20." in done
        quota = ChallengeQuota.objects.get()
        assert (quota.seq, quota.plan_source) == (seq + times, "staff")
    assert "free, chosen by staff" in text(staff.get(PAGE))


def test_the_choice_is_given_back_to_clerk_with_a_preview(staff: Client, make_quota: Make, pro: Plan) -> None:
    make_quota(remaining=3)
    at = datetime(2026, 1, 1, tzinfo=UTC)
    confirm(staff, "change_plan", "user_1", plan="free", on_change="keep")
    ChallengeQuota.objects.assign_plan("user_1", "billing", "pro", updated_at=at, actor=STAFF)
    assert plan_of() == ("free", 3)
    form = {"plan": "*", "on_change": "keep", "reason": "their own again", "token": uuid4()}
    shown = text(send(staff, "change_plan", "user_1", **form))
    assert "Change plan to Clerk’s assignment" in shown
    assert "33 of 50" in shown
    assert plan_of() == ("free", 3)
    assert "The plan of user_1 is pro: now 33 of 50." in confirm(staff, "change_plan", "user_1", **form)
    assert plan_of() == ("pro", 33)
    assert "pro, from Clerk’s billing" in text(staff.get(PAGE))


def test_the_page_of_a_quota_offers_a_change_of_plan_to_who_may(staff: Client, make_quota: Make) -> None:
    make_quota()
    assert 'value="change_plan"' in text(staff.get(PAGE))


def test_who_may_act_may_not_therefore_change_plans(make_quota: Make, pro: Plan) -> None:
    make_quota()
    client = sign_in("view_challengequota", "change_challengequota")
    assert 'value="change_plan"' not in text(client.get(LIST)) + text(client.get(PAGE))
    confirm(client, "change_plan", "user_1", plan="pro", on_change="reset")
    assert plan_of() == ("free", 20)


def test_a_change_of_plan_asks_for_its_permission_itself(
    make_quota: Make, pro: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_quota()
    client = sign_in("view_challengequota", "change_challengequota")
    everything = quotas.QuotaAdmin._get_base_actions
    monkeypatch.setattr(
        quotas.QuotaAdmin, "_filter_actions_by_permissions", lambda self, *_: everything(self)
    )
    assert "403" in confirm(client, "change_plan", "user_1", plan="pro", on_change="reset")
    assert plan_of() == ("free", 20)


def test_many_refusals_are_told_in_short(
    staff: Client, make_quota: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = [f"user_{number}" for number in range(6)]
    for number, user_id in enumerate(users):
        make_quota(user_id, remaining=20 if number == 5 else 0)
    monkeypatch.setattr(quotas, "MAX_REFUSALS_SHOWN", 2)
    page = confirm(staff, "adjust", *users, delta="-1")
    assert re.findall(r"Not done for (\w+):", page) == ["user_0", "user_1"]
    assert "Not done for 3 more users." in page
    assert "Adjusted user_5: now 19 of 20." in page


def test_a_preview_costs_as_many_queries_for_many_users_as_for_one(staff: Client, make_quota: Make) -> None:
    def queries(*users: str) -> int:
        with CaptureQueriesContext(connection) as captured:
            assert "After" in text(send(staff, "reset_now", *users))
        return len(captured)

    users = [f"user_{number}" for number in range(8)]
    for user_id in users:
        make_quota(user_id)
    make_quota("user_8", allowance=30)  # so that the others keep an old version of the plan
    few = queries(users[0])
    assert queries(*users) == few


def test_500_users_are_done_in_one_form(staff: Client, make_quota: Make) -> None:
    users = [f"user_{number:03}" for number in range(500)]
    for user_id in users:
        ChallengeQuota.objects.current(user_id)
    assert "Adjusted 500 users." in confirm(staff, "adjust", *users, delta="1")
    assert ChallengeQuota.objects.filter(quota_remaining=21).count() == 500


def test_no_act_is_done_without_the_token_of_the_session(make_quota: Make) -> None:
    make_quota(remaining=3)
    client = sign_in(*ACTING)
    client.handler.enforce_csrf_checks = True
    assert "403" in confirm(client, "reset_now", "user_1")
    assert plan_of() == ("free", 3)


def test_the_preview_of_a_row_of_the_release_before_is_what_will_be_done(
    staff: Client, make_quota: Make, pro: Plan
) -> None:
    """Its balance does not show that more was used than the plan gives: the ledger does."""
    make_quota()
    ChallengeQuota.objects.change_plan("user_1", "pro", actor=STAFF)
    ChallengeQuota.objects.consume("user_1", 45)
    ChallengeQuota.objects.change_plan("user_1", "free", actor=STAFF)
    forget_usage()
    form = {"delta": 10, "reason": "a gift", "token": uuid4()}
    shown = text(send(staff, "adjust", "user_1", **form))
    assert "10 of 20" not in shown
    send(staff, "adjust", "user_1", **form, confirmed="1")
    assert plan_of() == ("free", 0)

"""The page of a quota: what the user can spend now and why, the check of a spend, the last 30 days."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.test import Client

from quotas.models import ChallengeQuota, LedgerEntry, Plan
from quotas.rules.outcomes import Exhausted
from quotas.rules.values import Actor
from tests.conftest import STAFF
from tests.tools.staff import LIST, PAGE, SCRIPT, sign_in, text

pytestmark = pytest.mark.django_db
Make = Callable[..., ChallengeQuota]
Shift = Callable[[str, timedelta], None]


@pytest.fixture
def viewer() -> Client:
    return sign_in("view_challengequota", "view_ledgerentry")


def check_spend(client: Client, spend: object) -> str:
    return text(client.get(PAGE, {"spend": spend}))


@pytest.mark.parametrize(
    ("remaining", "allowance", "why"),
    [
        (None, 20, "The plan free gives 20 per period; used so far: 0."),
        (17, 20, "The plan free gives 20 per period; used so far: 0; removed by staff: 3."),
        (1200, 1000, "The plan free gives 1,000 per period; used so far: 0; added by staff: 200."),
        (None, None, "The plan free has no limit."),
    ],
)
def test_the_page_says_why(
    viewer: Client, make_quota: Make, remaining: int | None, allowance: int | None, why: str
) -> None:
    make_quota(remaining=remaining, allowance=allowance)
    assert why in text(viewer.get(PAGE))


def test_the_page_says_how_much_was_used_beyond_a_smaller_plan(viewer: Client, make_quota: Make) -> None:
    make_quota()
    ChallengeQuota.objects.consume("user_1", 18)
    Plan(name="tiny", allowance=5).save()
    ChallengeQuota.objects.change_plan("user_1", "tiny", actor=STAFF)
    ChallengeQuota.objects.adjust("user_1", 3, reason="a gift", actor=STAFF)
    why = (
        "The plan tiny gives 5 per period; used so far: 18; added by staff: 3; "
        "so 10 were used beyond it, and units that are added cover these first."
    )
    assert why in text(viewer.get(PAGE))


def test_the_page_says_that_a_reset_is_due(viewer: Client, make_quota: Make, shift: Shift) -> None:
    make_quota(remaining=0)
    assert "The last period is over" not in text(viewer.get(PAGE))
    shift("user_1", timedelta(hours=24))
    page = text(viewer.get(PAGE))
    assert "The last period is over" in page
    assert "20 of 20" in page


def test_the_page_says_since_when_the_user_is_refused(viewer: Client, make_quota: Make, shift: Shift) -> None:
    make_quota(remaining=0)
    assert "First refused" not in text(viewer.get(PAGE))
    with pytest.raises(Exhausted):
        ChallengeQuota.objects.consume("user_1", 1)
    assert "First refused" in text(viewer.get(PAGE))
    shift("user_1", timedelta(hours=24))
    assert "First refused" not in text(viewer.get(PAGE))


def test_the_page_says_what_an_edited_plan_will_bring(viewer: Client, make_quota: Make) -> None:
    make_quota(allowance=20)
    Plan(name="free", allowance=5, is_default=True).save()
    page = text(viewer.get(PAGE))
    assert "20; 5 from the next reset" in page
    assert "version 1; version 2 from the next reset" in page


@pytest.mark.parametrize(
    ("spend", "answer"),
    [
        (12, "Yes. Left afterwards: 0."),
        (5, "Yes. Left afterwards: 7."),
        (13, "No. Quota exhausted: 12 of 20 left and 13 needed, 20 more at "),
        (21, "No. A cost of 21 can never be paid: at most 20 can be spent at once."),
        (0, "Ensure this value is greater than or equal to 1."),
        (2**31, "Ensure this value is less than or equal to 2147483647."),
        ("", "This field is required."),
        (SCRIPT, "Enter a whole number."),
    ],
)
def test_the_page_tells_what_a_spend_would_meet(
    viewer: Client, make_quota: Make, spend: object, answer: str
) -> None:
    make_quota(remaining=12)
    page = check_spend(viewer, spend)
    assert answer in page
    assert SCRIPT not in page


def test_a_spend_after_the_reset_that_is_due_is_told_as_it_will_be(
    viewer: Client, make_quota: Make, shift: Shift
) -> None:
    make_quota(remaining=0)
    shift("user_1", timedelta(hours=24))
    assert "Yes. Left afterwards: 19." in check_spend(viewer, 1)


def test_a_spend_of_an_unlimited_quota_is_always_paid(viewer: Client, make_quota: Make) -> None:
    make_quota(allowance=None)
    assert "Yes. Left afterwards: no limit." in check_spend(viewer, 2**31 - 1)


def test_asking_spends_nothing_and_writes_nothing(viewer: Client, make_quota: Make, shift: Shift) -> None:
    make_quota(remaining=12)
    shift("user_1", timedelta(hours=24))
    before = (ChallengeQuota.objects.values().get(), LedgerEntry.objects.count())
    for spend in (1, 13, 21):
        check_spend(viewer, spend)
    assert (ChallengeQuota.objects.values().get(), LedgerEntry.objects.count()) == before


def test_a_tombstone_is_not_asked(viewer: Client, make_quota: Make) -> None:
    make_quota()
    ChallengeQuota.objects.delete("user_1", actor=Actor("webhook", "clerk"))
    page = check_spend(viewer, 1)
    assert "Can the user spend" not in page
    assert "closed permanently" in page


def test_the_page_draws_the_users_own_days(viewer: Client, make_quota: Make) -> None:
    make_quota("user_1")
    make_quota("user_2")
    ChallengeQuota.objects.consume("user_1", 3)
    ChallengeQuota.objects.consume("user_2", 9)
    page = text(viewer.get(PAGE))
    assert "3 spent, 0 refused</title>" in page
    assert "9 spent" not in page


def test_the_page_leads_to_the_whole_ledger_who_may_read_it(viewer: Client, make_quota: Make) -> None:
    make_quota()
    page = text(viewer.get(PAGE))
    assert "?q=user_1" in page
    assert f"{LIST}user_5F1/ledger.csv" in page


@pytest.mark.parametrize(
    ("remaining", "found"),
    [(0, ["user_1"]), (1, [])],
)
def test_the_list_can_be_filtered_by_who_is_exhausted_now(
    viewer: Client, make_quota: Make, shift: Shift, remaining: int, found: list[str]
) -> None:
    make_quota("user_1")
    make_quota("user_2")
    if remaining < 20:
        ChallengeQuota.objects.consume("user_1", 20 - remaining)
    page = text(viewer.get(LIST, {"state": "exhausted"}))
    assert [user_id for user_id in ("user_1", "user_2") if f">{user_id}</a>" in page] == found
    shift("user_1", timedelta(hours=24))
    assert ">user_1</a>" not in text(viewer.get(LIST, {"state": "exhausted"}))


def test_the_list_says_when_it_does_not_show_all_who_are_exhausted(
    viewer: Client, make_quota: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        make_quota(f"user_{number}")
        ChallengeQuota.objects.consume(f"user_{number}", 20)
    assert "there may be more" not in text(viewer.get(LIST, {"state": "exhausted"}))
    monkeypatch.setattr("quotas.console.quotas.MAX_EXHAUSTED", 2)
    page = text(viewer.get(LIST, {"state": "exhausted"}))
    assert "These are the 2 exhausted users that reset soonest; there may be more." in page
    assert "2 quotas" in page

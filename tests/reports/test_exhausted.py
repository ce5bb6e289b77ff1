"""Users who are exhausted now: the ledger names candidates, and the rules decide."""

import contextlib
import random
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db import connection

from quotas.models import ChallengeQuota, Plan
from quotas.reports.exhausted import exhausted
from quotas.reports.users import UserFilter, users_page
from quotas.rules import outcomes
from quotas.rules.values import Actor, OnChange
from quotas.store.direct import clock

pytestmark = pytest.mark.django_db
Make = Callable[..., ChallengeQuota]
Shift = Callable[[str, timedelta], None]
STAFF = Actor("staff", "a test")


def found() -> list[str]:
    return sorted(exhausted(100).user_ids)


def listed() -> list[str]:
    page = users_page(UserFilter(is_exhausted=True), after="", limit=100)
    return [row.pk for row, _ in page.users]


def by_the_rules() -> list[str]:
    """The same, computed for each quota."""
    now = clock()
    quotas = ChallengeQuota.objects.filter(deleted_at=None).select_related("plan")
    return sorted(quota.pk for quota in quotas if quota.effective(now).spendable == 0)


def test_who_spent_the_last_unit_is_exhausted(make_quota: Make) -> None:
    make_quota(remaining=1)
    assert found() == []
    ChallengeQuota.objects.consume("user_1")
    assert found() == ["user_1"]


def test_a_refusal_changes_nothing_about_it(make_quota: Make) -> None:
    make_quota(remaining=0)
    with pytest.raises(outcomes.Exhausted):
        ChallengeQuota.objects.consume("user_1")
    assert found() == ["user_1"]


def test_who_is_due_is_not_exhausted(make_quota: Make, shift: Shift) -> None:
    make_quota(remaining=0)
    shift("user_1", timedelta(hours=24))
    assert found() == by_the_rules() == []


def test_who_has_no_limit_is_not_exhausted(make_quota: Make) -> None:
    make_quota(allowance=None)
    ChallengeQuota.objects.consume("user_1", 5)
    assert found() == by_the_rules() == []


def test_who_gets_nothing_is_exhausted_even_when_due(make_quota: Make, shift: Shift) -> None:
    make_quota(allowance=0)
    assert found() == ["user_1"]
    shift("user_1", timedelta(hours=24))
    assert found() == by_the_rules() == ["user_1"]


def test_who_got_something_from_staff_is_not_exhausted(make_quota: Make) -> None:
    make_quota("user_1", remaining=0)
    make_quota("user_2", allowance=0)
    for user_id in ("user_1", "user_2"):
        ChallengeQuota.objects.adjust(user_id, 3, reason="a kind word", actor=STAFF)
    assert found() == by_the_rules() == []


def test_who_is_deleted_is_not_exhausted(make_quota: Make) -> None:
    make_quota(remaining=0)
    ChallengeQuota.objects.delete("user_1", actor=STAFF)
    assert found() == by_the_rules() == []


def test_who_has_more_under_an_old_version_of_a_plan_is_not_exhausted(make_quota: Make) -> None:
    make_quota("user_1", allowance=20, remaining=5)
    make_quota("user_2", allowance=0)  # from now on the plan gives nothing
    assert found() == by_the_rules() == ["user_2"]


def test_after_any_acts_the_ledger_names_whom_the_rules_name(make_quota: Make, shift: Shift) -> None:
    chance = random.Random(20)
    for name, allowance in [("small", 2), ("none", 0), ("endless", None), ("long", 3)]:
        Plan(name=name, allowance=allowance, period_seconds=86_400 * (9 if name == "long" else 1)).save()
    quotas, users = ChallengeQuota.objects, [f"user_{number}" for number in range(12)]
    for user_id in users:
        make_quota(user_id, allowance=4)
    actions: list[Callable[[str], object]] = [
        *[quotas.consume] * 8,
        lambda user_id: quotas.adjust(user_id, chance.choice((-1, 2)), reason="a test", actor=STAFF),
        lambda user_id: quotas.reset(user_id, reason="a test", actor=STAFF),
        lambda user_id: quotas.change_plan(
            user_id,
            chance.choice(("free", "small", "none", "endless", "long")),
            chance.choice(list(OnChange)),
            actor=STAFF,
        ),
        lambda user_id: shift(user_id, timedelta(hours=chance.choice((1, 12, 24)))),
    ]
    sizes = set()
    for step in range(240):
        with contextlib.suppress(outcomes.Refusal):
            chance.choice(actions)(chance.choice(users))
        if step % 8 == 0:
            assert found() == listed() == by_the_rules()
            sizes.add(len(found()))
    assert len(sizes) > 3  # there were users to find


def test_those_who_reset_soonest_are_named_and_that_there_are_more(make_quota: Make, shift: Shift) -> None:
    for number in range(4):
        make_quota(f"user_{number}", remaining=0)
        shift(f"user_{number}", timedelta(hours=number))
    assert exhausted(3) == (["user_3", "user_2", "user_1"], False)
    assert exhausted(4) == (["user_3", "user_2", "user_1", "user_0"], True)


def test_entries_of_the_past_are_no_reason_to_say_that_there_may_be_more(
    make_quota: Make, shift: Shift
) -> None:
    for number in range(4):
        make_quota(f"user_{number}", remaining=0)
    for number in range(2):
        ChallengeQuota.objects.reset(f"user_{number}", reason="a kind word", actor=STAFF)
        shift(f"user_{number + 2}", timedelta(hours=24))
    assert exhausted(1) == ([], True)


def test_entries_of_the_past_hide_nobody(make_quota: Make, shift: Shift) -> None:
    for number in range(5):
        make_quota(f"user_{number}", remaining=0)
        shift(f"user_{number}", timedelta(hours=12 - number))
    for number in range(4):  # their resets would have been the next
        ChallengeQuota.objects.adjust(f"user_{number}", 1, reason="a kind word", actor=STAFF)
    assert exhausted(1) == (["user_4"], True)


def test_each_is_counted_once_and_none_who_is_not_exhausted(make_quota: Make) -> None:
    """The ledger names them, and so does their plan, which gives nothing."""
    for user_id in ("user_1", "user_2"):
        make_quota(user_id, allowance=0)
    assert exhausted(2).is_all
    for user_id in ("user_1", "user_2"):
        ChallengeQuota.objects.adjust(user_id, 5, reason="a kind word", actor=STAFF)
    assert exhausted(1) == ([], True)


def test_a_look_is_bounded_and_says_so(make_quota: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quotas.reports.exhausted.ROWS_PER_CHUNK", 2)
    for number in range(5):
        make_quota(f"user_{number}", remaining=0)
    assert len(exhausted(9).user_ids) == 5
    monkeypatch.setattr("quotas.reports.exhausted.MAX_CHUNKS", 2)
    assert (len(exhausted(9).user_ids), exhausted(9).is_all) == (4, False)


@pytest.mark.postgres
def test_a_spend_leaves_every_index_alone(make_quota: Make) -> None:
    """PostgreSQL calls such an update HOT; one index on what a spend changes would end it."""

    def updates(kind: str) -> int:
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT pg_stat_get_xact_tuples_{kind}('challenge_quotas'::regclass)")
            return int(cursor.fetchone()[0])

    make_quota()
    every, hot = updates("updated"), updates("hot_updated")
    for _ in range(21):  # the last is refused
        with contextlib.suppress(outcomes.Exhausted):
            ChallengeQuota.objects.consume("user_1")
    assert updates("updated") - every == updates("hot_updated") - hot == 21

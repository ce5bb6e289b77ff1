"""Changes of a user's plan, and edits of a plan: what is left, and when they take effect."""

import math
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from fractions import Fraction

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connection, transaction
from hypothesis import given
from hypothesis import strategies as st

from quotas.models import ChallengeQuota, LedgerEntry, Plan, PlanVersion
from quotas.rules import outcomes, values, verbs
from quotas.rules.outcomes import Change, KeyReused, UnknownPlan
from quotas.rules.values import MAX_UNITS, OnChange, State
from quotasite.demo.tour import shift
from tests.conftest import STAFF, USER
from tests.rules.test_verbs import DAY, FREE, NOON, TICK, UNLIMITED, at, changed, state_with
from tests.rules.test_verbs import STAFF as BY_STAFF
from tests.tools.ledger import assert_sound

PRO = FREE._replace(name="pro", allowance=100, version=4)
HALF_A_DAY = DAY / 2
each_way = pytest.mark.parametrize("on_change", OnChange)


def change_to(
    allowance: int | None,
    on_change: OnChange,
    state: State,
    now: datetime = NOON,
    plan: values.Plan = FREE,
    name: str = "pro",
) -> Change:
    """Change to a plan that differs in its allowance only."""
    target = plan._replace(name=name, version=4, allowance=allowance)
    return changed(verbs.change_plan(at(now, state, plan, target=target), BY_STAFF, on_change))


# Keep


@pytest.mark.parametrize(
    ("limit", "remaining", "allowance", "left"),
    [
        (20, 3, 100, 83),
        (20, 20, 100, 100),
        (20, 0, 20, 0),
        (20, 3, 17, 0),
        (20, 3, 18, 1),
        (20, 3, 10, 0),  # more was used than the new plan gives
        (20, 3, 0, 0),
        (20, 30, 50, 60),  # what staff gave stays
        (20, 0, MAX_UNITS, MAX_UNITS - 20),
    ],
)
def test_keep_takes_what_was_used_from_the_new_allowance(
    limit: int, remaining: int, allowance: int, left: int
) -> None:
    change = change_to(allowance, OnChange.KEEP, state_with(remaining, limit))
    assert (change.state.quota_remaining, change.state.quota_limit) == (left, allowance)
    assert change.entries[-1].delta == left - remaining


# Prorate


@pytest.mark.parametrize(
    ("remaining", "allowance", "after", "limit", "left"),
    [
        (10, 100, 0 * DAY, 100, 90),
        (10, 100, HALF_A_DAY, 60, 50),
        (10, 100, DAY * 3 / 4, 40, 30),
        (10, 100, DAY - TICK, 20, 10),
        (3, 21, HALF_A_DAY, 20, 3),  # floor(0.5)
        (3, 22, HALF_A_DAY, 21, 4),
        (10, 19, HALF_A_DAY, 19, 9),  # floor(-0.5)
        (10, 18, HALF_A_DAY, 19, 9),
        (10, 17, HALF_A_DAY, 18, 8),  # floor(-1.5)
        (10, 19, DAY - TICK, 19, 9),  # floor of hardly less than 0
        (10, 20, HALF_A_DAY, 20, 10),
        (3, 0, HALF_A_DAY, 10, 0),  # 17 were used of what are 10 now
        (0, 0, DAY - TICK, 19, 0),
        (30, 40, HALF_A_DAY, 30, 40),  # what staff gave stays
        (0, 23, DAY / 3, 22, 2),  # exactly 2: two thirds of 3
        (0, 23, DAY / 3 + TICK, 21, 1),
    ],
)
def test_prorate_moves_the_limit_by_the_difference_for_the_part_that_is_to_come(
    remaining: int, allowance: int, after: timedelta, limit: int, left: int
) -> None:
    change = change_to(allowance, OnChange.PRORATE, state_with(remaining), NOON + after)
    assert (change.state.quota_limit, change.state.quota_remaining) == (limit, left)
    assert change.entries[-1].delta == left - remaining


def test_a_prorated_limit_follows_the_plans_over_the_period() -> None:
    """Half a day 1000, a quarter 20 and a quarter 500 are 630; back and forth at one instant is nothing."""
    big, small = FREE._replace(allowance=1000), FREE._replace(allowance=20)
    noon, late = NOON + HALF_A_DAY, NOON + DAY * 3 / 4
    moved = change_to(20, OnChange.PRORATE, state_with(1000, 1000), noon, big).state
    assert moved.quota_limit == 510
    assert change_to(500, OnChange.PRORATE, moved, late, small, "half").state.quota_limit == 630
    assert change_to(1000, OnChange.PRORATE, moved, noon, small, "big").state.quota_limit == 1000


def test_between_periods_of_other_ends_prorate_is_keep() -> None:
    """A part of a day says nothing of a month: 23 hours of a large day would give a month of it."""
    monthly = PRO._replace(allowance=20, reset_policy="monthly")
    before = state_with(700, 1000, plan="big")
    moves = at(NOON + DAY - DAY / 24, before, FREE._replace(name="big", allowance=1000), target=monthly)
    after = changed(verbs.change_plan(moves, BY_STAFF, OnChange.PRORATE)).state
    assert (after.quota_limit, after.quota_remaining, after.period_consumed) == (20, 0, 300)


def test_a_day_of_23_hours_is_prorated_by_its_23_hours() -> None:
    berlin = FREE._replace(reset_policy="daily", timezone="Europe/Berlin")
    midnight = datetime.fromisoformat("2026-03-28T23:00:00+00:00")
    end = midnight + timedelta(hours=23)
    state = state_with(0, last_reset_date=midnight, resets_at=end, anchor_at=midnight, updated_at=midnight)
    change = change_to(43, OnChange.PRORATE, state, midnight + timedelta(hours=11), berlin)
    assert change.state.quota_remaining == 12  # 23 × 12 ÷ 23


@given(
    old=st.integers(0, MAX_UNITS),
    new=st.integers(0, MAX_UNITS),
    remaining=st.integers(0, MAX_UNITS),
    microseconds=st.integers(0, 86_400_000_000 - 1),
)
def test_a_prorated_balance_is_exact_and_in_range(
    old: int, new: int, remaining: int, microseconds: int
) -> None:
    now, plan = NOON + timedelta(microseconds=microseconds), FREE._replace(allowance=old)
    change = change_to(new, OnChange.PRORATE, state_with(remaining, old), now, plan)
    to_come = Fraction(86_400_000_000 - microseconds, 86_400_000_000)
    exact = remaining + math.floor((new - old) * to_come)
    assert change.state.quota_remaining == min(max(0, exact), MAX_UNITS)


def test_the_longest_period_and_the_largest_allowance_are_prorated_exactly() -> None:
    slow = FREE._replace(allowance=0, period=3_660 * DAY)
    state = state_with(0, 0, resets_at=NOON + slow.period)
    change = change_to(MAX_UNITS, OnChange.PRORATE, state, NOON + 1_220 * DAY, slow)
    assert change.state.quota_remaining == MAX_UNITS * 2 // 3


def test_a_prorated_balance_stays_within_the_range() -> None:
    change = change_to(MAX_UNITS, OnChange.PRORATE, state_with(MAX_UNITS - 1), NOON + HALF_A_DAY)
    assert change.state.quota_remaining == MAX_UNITS


# Keep and prorate continue the running period, reset begins a new one


@pytest.mark.parametrize("on_change", [OnChange.KEEP, OnChange.PRORATE])
def test_the_period_goes_on(on_change: OnChange) -> None:
    before = state_with(0, refused_at=NOON)
    after = change_to(100, on_change, before, NOON + HALF_A_DAY).state
    kept = ("last_reset_date", "anchor_at", "period_seq", "refused_at")
    assert [getattr(after, name) for name in kept] == [getattr(before, name) for name in kept]
    assert (after.plan, after.plan_version) == ("pro", 4)


@pytest.mark.parametrize("on_change", [OnChange.KEEP, OnChange.PRORATE])
def test_a_period_that_the_new_plan_would_have_ended_is_counted_from_now(on_change: OnChange) -> None:
    """Otherwise the next request would refill it: a free reset with each change back and forth."""
    monthly, daily = FREE._replace(reset_policy="monthly"), PRO._replace(allowance=20)
    now, state = NOON + 20 * DAY, state_with(0, resets_at=NOON + 31 * DAY)
    change = changed(verbs.change_plan(at(now, state, monthly, target=daily), BY_STAFF, on_change))
    assert (change.state.quota_remaining, change.state.period_seq) == (0, 1)
    assert change.quota.resets_at == now + DAY


def test_reset_gives_the_new_allowance_and_begins_a_period() -> None:
    now = NOON + HALF_A_DAY
    change = change_to(100, OnChange.RESET, state_with(30, refused_at=NOON), now)
    after = change.state
    assert (after.quota_remaining, after.quota_limit, after.refused_at) == (100, 100, None)
    assert (after.last_reset_date, after.anchor_at, after.period_seq) == (now, now, after.seq)
    assert change.quota.resets_at == change.entries[-1].resets_at == now + DAY


def test_a_month_is_counted_from_a_change_with_reset() -> None:
    monthly = PRO._replace(reset_policy="monthly")
    now = NOON + 14 * DAY  # the 15th
    moves = at(
        now,
        state_with(3, resets_at=NOON.replace(month=4, hour=0)),
        FREE._replace(reset_policy="monthly"),
        target=monthly,
    )
    by_reset = changed(verbs.change_plan(moves, BY_STAFF, OnChange.RESET))
    by_keep = changed(verbs.change_plan(moves, BY_STAFF, OnChange.KEEP))
    assert (by_reset.quota.resets_at.day, by_keep.quota.resets_at.day) == (15, 1)


def test_a_reset_by_staff_leaves_a_grid_period_that_a_change_of_plan_began() -> None:
    """The day began at midnight, this period at noon: it is refilled, and its begin does not move back."""
    daily = FREE._replace(reset_policy="daily")
    change = changed(verbs.reset(at(NOON + timedelta(hours=3), state_with(3), daily), BY_STAFF))
    assert change.state.last_reset_date == NOON


@pytest.mark.parametrize("on_change", [OnChange.KEEP, OnChange.PRORATE])
def test_from_unlimited_what_was_consumed_before_counts_and_what_was_spent_there_does_not(
    on_change: OnChange,
) -> None:
    now = NOON + HALF_A_DAY
    before = change_to(None, on_change, state_with(3), now).state
    assert (before.quota_limit, before.quota_remaining, before.period_consumed) == (None, 0, 17)
    spent = changed(verbs.consume(at(now, before, UNLIMITED), BY_STAFF, 5_000)).state
    assert (spent.quota_remaining, spent.period_consumed) == (0, 17)
    after = change_to(100, on_change, spent, now, UNLIMITED, "free").state
    assert (after.quota_limit, after.quota_remaining, after.period_seq) == (100, 83, 1)
    assert (after.last_reset_date, after.resets_at) == (NOON, NOON + DAY)


@pytest.mark.parametrize(("allowance", "other"), [(None, 20), (100, None)])
def test_from_and_to_unlimited_reset_begins_a_period(allowance: int | None, other: int | None) -> None:
    now = NOON + HALF_A_DAY
    state, plan = state_with(0, other), FREE._replace(allowance=other)
    after = change_to(allowance, OnChange.RESET, state, now, plan).state
    assert (after.quota_limit, after.quota_remaining, after.period_consumed) == (allowance, allowance or 0, 0)
    assert (after.last_reset_date, after.anchor_at, after.period_seq) == (now, now, 8)


@each_way
def test_the_plan_a_user_has_changes_nothing(on_change: OnChange) -> None:
    again = at(NOON + HALF_A_DAY, state_with(3), target=FREE)
    again = again._replace(target_source="default")
    change = changed(verbs.change_plan(again, BY_STAFF, on_change))
    assert (change.entries, change.state) == ((), again.state)


@each_way
def test_a_key_is_kept_even_where_nothing_changes(on_change: OnChange) -> None:
    again = at(NOON + HALF_A_DAY, state_with(3), target=FREE)._replace(target_source="default")
    change = changed(
        verbs.change_plan(again, BY_STAFF._replace(idempotency_key="k", fingerprint="f"), on_change)
    )
    [entry] = change.entries
    assert (entry.idempotency_key, entry.kind, entry.delta) == ("k", "plan_changed", 0)
    assert change.state == again.state._replace(seq=entry.seq, usage_seq=entry.seq, updated_at=again.now)


@each_way
def test_the_plan_a_user_has_by_anothers_choice_changes_only_whose_choice_it_is(on_change: OnChange) -> None:
    again = at(NOON + HALF_A_DAY, state_with(3), target=FREE)
    change = changed(verbs.change_plan(again, BY_STAFF, on_change))
    assert again.state
    seq = again.state.seq + 1
    assert change.state == again.state._replace(
        plan_source="staff", seq=seq, usage_seq=seq, updated_at=again.now
    )
    assert (change.entries[-1].kind, change.entries[-1].delta) == ("plan_changed", 0)


@pytest.mark.parametrize(
    ("on_change", "left"), [(OnChange.KEEP, 100), (OnChange.PRORATE, 100), (OnChange.RESET, 100)]
)
def test_a_due_quota_is_reset_by_its_old_plan_first(on_change: OnChange, left: int) -> None:
    change = change_to(100, on_change, state_with(3), NOON + 2 * DAY)
    assert [(entry.kind, entry.plan, entry.balance_after) for entry in change.entries] == [
        ("reset", "free", 20),
        ("plan_changed", "pro", left),
    ]


@each_way
def test_a_missing_row_is_opened_under_the_default_plan_first(on_change: OnChange) -> None:
    change = changed(verbs.change_plan(at(NOON, None, target=PRO), BY_STAFF, on_change))
    assert [entry.kind for entry in change.entries] == ["opened", "plan_changed"]
    assert change.state.quota_remaining == 100


# On the database


@pytest.fixture
def pro(db: None) -> Plan:
    plan = Plan(name="pro", allowance=100)
    plan.save()
    return plan


def change(plan: str | None, on_change: OnChange = OnChange.KEEP, key: str | None = None) -> values.Quota:
    changing = ChallengeQuota.objects.change_plan(
        USER, plan, on_change, actor=STAFF, reason="a test", key=key
    )
    return changing.quota


def kinds() -> list[str]:
    return list(LedgerEntry.objects.filter(user_id=USER).order_by("seq").values_list("kind", flat=True))


@pytest.mark.parametrize(
    ("on_change", "limit", "left"),
    [(OnChange.KEEP, 100, 83), (OnChange.RESET, 100, 100), (OnChange.PRORATE, 60, 43)],
)
def test_each_way_on_the_database(pro: Plan, on_change: OnChange, limit: int, left: int) -> None:
    ChallengeQuota.objects.consume(USER, 17)
    shift(USER, timedelta(hours=11, minutes=50))  # 80 × 12⅙ ÷ 24 is a bit above 40
    assert change("pro", on_change).quota_remaining == left
    row = ChallengeQuota.objects.get(pk=USER)
    assert (row.plan_id, row.quota_limit, row.quota_remaining) == ("pro", limit, left)
    assert_sound(USER)


def test_a_change_of_plan_is_one_entry(pro: Plan) -> None:
    ChallengeQuota.objects.consume(USER, 17)
    change("pro")
    entry = LedgerEntry.objects.get(user_id=USER, kind="plan_changed")
    assert (entry.delta, entry.balance_after, entry.plan, entry.quota_limit) == (80, 83, "pro", 100)
    assert (entry.reason, entry.actor_kind, entry.seq) == ("a test", "staff", 3)
    assert kinds() == ["opened", "consumed", "plan_changed"]


def test_the_plan_that_a_user_has_by_default_becomes_staffs_choice_and_nothing_else_changes(
    pro: Plan,
) -> None:
    ChallengeQuota.objects.consume(USER, 17)
    assert change("free", OnChange.RESET).quota_remaining == 3
    entry = LedgerEntry.objects.get(kind="plan_changed")
    assert (entry.delta, entry.balance_after, entry.plan, entry.plan_source) == (0, 3, "free", "staff")
    assert ChallengeQuota.objects.get(pk=USER).plan_source == "staff"
    assert_sound(USER)


def test_the_same_choice_again_writes_nothing(pro: Plan) -> None:
    change("pro")
    assert change("pro", OnChange.RESET).quota_remaining == 100
    assert kinds() == ["opened", "plan_changed"]


def test_a_key_changes_the_plan_once(pro: Plan) -> None:
    ChallengeQuota.objects.consume(USER, 17)
    done = change("pro", OnChange.RESET, key="k")
    ChallengeQuota.objects.consume(USER, 60)
    assert change("pro", OnChange.RESET, key="k") == done
    assert ChallengeQuota.objects.get(pk=USER).quota_remaining == 40


@pytest.mark.parametrize(("plan", "on_change"), [("free", OnChange.KEEP), ("pro", OnChange.RESET)])
def test_a_key_of_another_change_is_refused(pro: Plan, plan: str, on_change: OnChange) -> None:
    change("pro", OnChange.KEEP, key="k")
    with pytest.raises(KeyReused):
        change(plan, on_change, key="k")


def test_an_unknown_plan_is_refused_and_stores_nothing(pro: Plan) -> None:
    with pytest.raises(UnknownPlan):
        change("gold")
    assert not ChallengeQuota.objects.exists()
    assert not LedgerEntry.objects.exists()


def test_an_archived_plan_cannot_be_chosen_anew(pro: Plan) -> None:
    Plan.objects.archive("pro")
    with pytest.raises(UnknownPlan):
        change("pro")
    assert not ChallengeQuota.objects.exists()


def test_who_has_an_archived_plan_keeps_it_and_may_be_given_it_again(pro: Plan) -> None:
    change("pro")
    Plan.objects.archive("pro")
    ChallengeQuota.objects.consume(USER, 60)
    shift(USER, timedelta(days=2))
    assert ChallengeQuota.objects.current(USER).quota_remaining == 100
    assert change("pro", OnChange.RESET).plan.name == "pro"
    change("free")
    with pytest.raises(UnknownPlan):
        change("pro")
    assert_sound(USER)


def test_the_retry_of_a_choice_is_answered_after_the_plan_was_archived(pro: Plan) -> None:
    done = change("pro", key="k")
    change("free")
    Plan.objects.archive("pro")
    assert change("pro", key="k") == done


def test_the_default_plan_cannot_be_archived_nor_an_archived_one_become_the_default(pro: Plan) -> None:
    with pytest.raises(ValidationError, match="The plan free is the default: choose another"):
        Plan.objects.archive("free")
    Plan.objects.archive("pro")
    with pytest.raises(ValidationError, match="The plan pro is archived: unarchive it"):
        Plan.objects.choose_default("pro")
    with pytest.raises(IntegrityError, match="plans_default_not_archived"), transaction.atomic():
        Plan.objects.filter(name="free").update(is_archived=True)
    Plan.objects.archive("pro", is_archived=False)
    Plan.objects.choose_default("pro")
    assert Plan.objects.get(is_default=True).name == "pro"


def test_no_plan_is_the_default_one(pro: Plan) -> None:
    change("pro")
    assert change(None).quota_limit == 20
    assert ChallengeQuota.objects.get(pk=USER).plan_id == "free"


def test_a_deleted_users_plan_is_not_changed(pro: Plan) -> None:
    ChallengeQuota.objects.delete(USER, actor=STAFF)
    with pytest.raises(outcomes.Deleted):
        change("pro")


# Versions


def versions(plan: Plan) -> list[tuple[int, int | None]]:
    return list(plan.versions.order_by("version").values_list("version", "allowance"))


def test_a_new_plan_has_a_first_version(pro: Plan) -> None:
    assert versions(pro) == [(1, 100)]


def test_a_save_without_a_change_of_rules_adds_no_version(pro: Plan) -> None:
    pro.save()
    Plan.objects.get(pk="pro").save()
    Plan.objects.filter(is_default=True).update(is_default=False)
    pro.is_default = True
    pro.save()
    assert versions(pro) == [(1, 100)]


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        ("allowance", None),
        ("allowance", 0),
        ("reset_policy", "monthly"),
        ("period_seconds", 3_600),
        ("timezone", "Europe/Berlin"),
        ("actions", {"generate": 2}),
    ],
)
def test_a_change_of_any_rule_adds_one(pro: Plan, rule: str, value: object) -> None:
    setattr(pro, rule, value)
    pro.save()
    assert pro.version == Plan.objects.get(pk="pro").version == 2
    stored = PlanVersion.objects.filter(plan=pro).order_by("version")
    assert [getattr(version, rule) == value for version in stored] == [False, True]


def test_a_change_back_is_a_version_of_its_own(pro: Plan) -> None:
    for allowance in (50, 100):
        pro.allowance = allowance
        pro.save()
    assert versions(pro) == [(1, 100), (2, 50), (3, 100)]


def test_a_plan_that_was_read_long_ago_is_saved_as_the_newest_version(pro: Plan) -> None:
    stale = Plan.objects.get(pk="pro")
    pro.allowance = 50
    pro.save()
    stale.allowance = 70
    stale.save()
    assert versions(pro) == [(1, 100), (2, 50), (3, 70)]
    assert Plan.objects.get(pk="pro").version == 3


def test_a_save_of_some_fields_tells_the_plan_its_version_too(pro: Plan) -> None:
    pro.allowance = 50
    pro.save(update_fields=["allowance"])
    assert (versions(pro), Plan.objects.get(pk="pro").version) == ([(1, 100), (2, 50)], 2)


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True, serialized_rollback=True)
def test_two_edits_at_once_are_two_versions() -> None:
    def edit(allowance: int) -> None:
        plan = Plan.objects.get(is_default=True)
        plan.allowance = allowance
        plan.save()

    def edit_in_a_thread() -> None:
        try:
            edit(70)
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as thread:
        with transaction.atomic():
            edit(50)
            second = thread.submit(edit_in_a_thread)
            time.sleep(0.2)  # it waits until the first edit has ended
        second.result()
    assert versions(Plan.objects.get(is_default=True)) == [(1, 20), (2, 50), (3, 70)]


def test_an_edited_plan_takes_effect_at_the_users_next_reset(db: None) -> None:
    """Its allowance and its period: the plan is hourly now, but the running period lasts a day."""
    ChallengeQuota.objects.consume(USER, 17)
    plan = Plan.objects.get(is_default=True)
    plan.allowance, plan.period_seconds = 50, 3_600
    plan.save()
    shift(USER, timedelta(hours=23))
    running = ChallengeQuota.objects.current(USER)
    assert (running.quota_remaining, running.plan.version) == (3, 1)
    shift(USER, timedelta(hours=1))
    renewed = ChallengeQuota.objects.current(USER)
    assert (renewed.quota_remaining, renewed.plan.version) == (50, 2)
    assert renewed.resets_at - renewed.last_reset_date == timedelta(hours=1)


def test_a_user_who_comes_after_the_edit_gets_the_new_version_at_once(db: None) -> None:
    plan = Plan.objects.get(is_default=True)
    plan.allowance = 50
    plan.save()
    assert ChallengeQuota.objects.current(USER).quota_limit == 50
    assert ChallengeQuota.objects.get(pk=USER).plan_version == 2


def test_a_change_of_plan_takes_the_other_plans_newest_version(pro: Plan) -> None:
    ChallengeQuota.objects.current(USER)
    pro.allowance = 60
    pro.save()
    assert change("pro").quota_limit == 60
    assert ChallengeQuota.objects.get(pk=USER).plan_version == 2

"""Refunds: each belongs to one spend, gives back no more than its cost, and nothing in a later period."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from uuid import UUID, uuid4

import pytest
from django.db import connection

from quotas.models import ChallengeQuota, LedgerEntry, Plan
from quotas.rules import outcomes, values, verbs
from quotas.rules.outcomes import AlreadyRefunded, ConsumptionNotFound, KeyReused, RefundTooLarge
from quotas.rules.values import Entry, OnChange
from quotas.store.manager import Receipt
from quotasite.demo.tour import shift
from tests.conftest import STAFF, USER
from tests.rules.test_verbs import DAY, FREE, NOON, UNLIMITED, at, changed, state_with
from tests.rules.test_verbs import STAFF as BY_STAFF
from tests.rules.test_verbs import USER as SPENDER
from tests.store import test_round_trips
from tests.tools.ledger import assert_sound
from tests.tools.wire import Wire

wire = test_round_trips.wire


def spend_of(cost: int, plan: values.Plan = FREE) -> Entry:
    """A spend in the period that began with entry 1, which is the period of `state_with`."""
    snapshot = at(NOON, state_with(20, plan.allowance, seq=6), plan)
    return changed(verbs.consume(snapshot, SPENDER, cost)).entries[-1]


# By the rules


@pytest.mark.parametrize(
    ("cost", "refunded", "requested", "consumed", "given", "left"),
    [
        (5, 0, None, 5, 0, 20),
        (5, 0, 5, 5, 0, 20),
        (5, 0, 2, 5, 0, 17),
        (5, 2, None, 3, 0, 20),
        (5, 2, 3, 3, 0, 20),
        (5, 4, 1, 10, 0, 11),
        (20, 0, None, 20, 0, 20),
        (5, 0, None, 5, 3, 23),  # what staff gave stays
        (5, 0, None, 5, 30, 50),
        (5, 0, None, 15, -5, 5),
        (5, 0, None, 22, 0, 3),  # 2 more than the limit were consumed, under another plan
        (5, 0, None, 26, 0, 0),
    ],
)
def test_what_was_spent_is_given_back_and_what_staff_gave_stays(
    cost: int, refunded: int, requested: int | None, consumed: int, given: int, left: int
) -> None:
    remaining = max(0, 20 + given - consumed)
    before = state_with(remaining, period_consumed=consumed, period_given=given)
    snapshot = at(NOON, before, consumption=spend_of(cost), refunded=refunded)
    change = changed(verbs.refund(snapshot, BY_STAFF, requested))
    entry = change.entries[-1]
    assert (change.state.quota_remaining, entry.delta, entry.amount) == (
        left,
        left - remaining,
        left - remaining,
    )
    assert (entry.cost, entry.is_period_closed) == (requested or cost - refunded, False)
    assert entry.refund_of == snapshot.consumption.id


@pytest.mark.parametrize(("cost", "refunded", "requested"), [(5, 0, 6), (5, 2, 4), (5, 4, 2), (1, 0, 20)])
def test_more_than_is_left_of_the_spend_is_too_large(cost: int, refunded: int, requested: int) -> None:
    snapshot = at(NOON, state_with(10), consumption=spend_of(cost), refunded=refunded)
    assert isinstance(verbs.refund(snapshot, BY_STAFF, requested), RefundTooLarge)


@pytest.mark.parametrize("requested", [None, 1])
def test_a_spend_of_which_nothing_is_left_was_refunded_already(requested: int | None) -> None:
    snapshot = at(NOON, state_with(10), consumption=spend_of(5), refunded=5)
    assert isinstance(verbs.refund(snapshot, BY_STAFF, requested), AlreadyRefunded)


def test_a_spend_that_was_never_made_is_not_found() -> None:
    assert isinstance(verbs.refund(at(NOON, state_with(10)), BY_STAFF), ConsumptionNotFound)


@pytest.mark.parametrize("kind", [kind for kind in values.EntryKind if kind != values.EntryKind.CONSUMED])
def test_an_entry_of_another_kind_is_no_spend(kind: values.EntryKind) -> None:
    other = spend_of(5)._replace(kind=kind.value)
    snapshot = at(NOON, state_with(10), consumption=other)
    assert isinstance(verbs.refund(snapshot, BY_STAFF), ConsumptionNotFound)


def test_a_closed_period_gets_nothing_and_the_entry_says_so() -> None:
    snapshot = at(NOON, state_with(10, period_seq=8, seq=8), consumption=spend_of(5))
    entry = changed(verbs.refund(snapshot, BY_STAFF)).entries[-1]
    assert (entry.amount, entry.delta, entry.cost, entry.is_period_closed) == (0, 0, 0, True)


def test_a_refund_at_the_very_end_of_the_period_comes_too_late() -> None:
    change = changed(verbs.refund(at(NOON + DAY, state_with(3), consumption=spend_of(5)), BY_STAFF))
    assert [entry.kind for entry in change.entries] == ["reset", "refunded"]
    assert (change.entries[-1].is_period_closed, change.state.quota_remaining) == (True, 20)


def test_periods_are_told_apart_by_their_number_though_their_dates_are_the_same() -> None:
    """A reset by staff does not move the begin of a daily period."""
    daily = FREE._replace(reset_policy="daily")
    spend = spend_of(5)
    renewed = changed(verbs.reset(at(NOON, state_with(15), daily), BY_STAFF)).state
    assert renewed.last_reset_date == spend.last_reset_date
    entry = changed(verbs.refund(at(NOON, renewed, daily, consumption=spend), BY_STAFF)).entries[-1]
    assert entry.is_period_closed


@pytest.mark.parametrize(("requested", "amount"), [(None, 500), (200, 200)])
def test_an_unlimited_quota_is_given_the_units_on_paper(requested: int | None, amount: int) -> None:
    snapshot = at(NOON, state_with(0, None), UNLIMITED, consumption=spend_of(500, UNLIMITED))
    change = changed(verbs.refund(snapshot, BY_STAFF, requested))
    assert (change.entries[-1].delta, change.entries[-1].amount) == (0, amount)
    assert change.state.quota_remaining == 0


def test_an_unlimited_spend_is_refunded_once_as_well() -> None:
    spend = spend_of(500, UNLIMITED)
    snapshot = at(NOON, state_with(0, None), UNLIMITED, consumption=spend, refunded=500)
    assert isinstance(verbs.refund(snapshot, BY_STAFF), AlreadyRefunded)


# On the database


def spend(cost: int, user_id: str = USER) -> UUID:
    return ChallengeQuota.objects.consume(user_id, cost).entry.id


def refund(
    consumption: UUID, amount: int | None = None, user_id: str = USER, key: str | None = None
) -> Receipt:
    return ChallengeQuota.objects.refund(
        user_id, consumption, amount, reason="it failed", actor=STAFF, key=key
    )


def remaining(user_id: str = USER) -> int:
    return ChallengeQuota.objects.get(pk=user_id).quota_remaining


def entries(kind: str) -> int:
    return LedgerEntry.objects.filter(kind=kind).count()


def test_a_spend_is_given_back_whole(db: None) -> None:
    spent = spend(5)
    given = refund(spent)
    assert (given.entry.amount, given.quota.quota_remaining, remaining()) == (5, 20, 20)
    stored = LedgerEntry.objects.get(kind="refunded")
    assert (stored.delta, stored.refund_of, stored.reason) == (5, spent, "it failed")
    assert_sound(USER)


def test_a_spend_is_given_back_part_by_part(db: None) -> None:
    spent = spend(5)
    assert [refund(spent, amount).quota.quota_remaining for amount in (2, 1, None)] == [17, 18, 20]
    with pytest.raises(AlreadyRefunded):
        refund(spent)
    assert_sound(USER)


def test_no_part_may_be_larger_than_the_rest(db: None) -> None:
    spent = spend(5)
    refund(spent, 3)
    with pytest.raises(RefundTooLarge):
        refund(spent, 3)
    assert (remaining(), entries("refunded")) == (18, 1)


def test_one_spend_leaves_another_to_be_refunded(db: None) -> None:
    first, second = spend(5), spend(5)
    refund(first)
    assert refund(second).entry.amount == 5


def test_what_a_smaller_plan_cut_off_counts_as_asked_back(db: None) -> None:
    """Otherwise those units could be refunded again under a larger plan."""
    for name, allowance in (("tiny", 1), ("pro", 100)):
        Plan(name=name, allowance=allowance).save()
    spent = spend(5)
    ChallengeQuota.objects.change_plan(USER, "tiny", actor=STAFF)
    assert (refund(spent, 4).entry.amount, remaining()) == (0, 0)
    ChallengeQuota.objects.change_plan(USER, "pro", actor=STAFF)
    assert remaining() == 99
    with pytest.raises(RefundTooLarge):
        refund(spent, 4)
    assert (refund(spent).entry.amount, remaining()) == (1, 100)


def test_another_users_spend_is_not_found(db: None) -> None:
    spent = spend(5, "user_2")
    spend(5)
    with pytest.raises(ConsumptionNotFound):
        refund(spent)
    assert (remaining(), remaining("user_2"), entries("refunded")) == (15, 15, 0)


def test_an_entry_that_is_no_spend_is_not_found(db: None) -> None:
    given = refund(spend(5), 2)
    opened = LedgerEntry.objects.get(kind="opened")
    for entry_id in (given.entry.id, opened.id, uuid4()):
        with pytest.raises(ConsumptionNotFound):
            refund(entry_id)


def test_a_stranger_is_not_found_and_no_row_is_made(db: None) -> None:
    with pytest.raises(ConsumptionNotFound):
        refund(uuid4())
    assert not ChallengeQuota.objects.exists()


@pytest.mark.parametrize("lapse", ["a day", "a reset by staff", "a change of plan"])
def test_a_spend_of_a_closed_period_is_worth_nothing(db: None, lapse: str) -> None:
    spent = spend(15)
    match lapse:
        case "a day":
            shift(USER, DAY)
        case "a reset by staff":
            ChallengeQuota.objects.reset(USER, reason="a test", actor=STAFF)
        case _:
            Plan(name="pro", allowance=20).save()
            ChallengeQuota.objects.change_plan(USER, "pro", OnChange.RESET, actor=STAFF)
    spend(4)
    late = refund(spent)
    assert (late.entry.amount, late.entry.is_period_closed, remaining()) == (0, True, 16)
    assert_sound(USER)


def test_a_spend_from_before_a_change_that_keeps_the_period_is_given_back(db: None) -> None:
    spent = spend(15)
    Plan(name="pro", allowance=100).save()
    ChallengeQuota.objects.change_plan(USER, "pro", OnChange.KEEP, actor=STAFF)
    assert refund(spent).quota.quota_remaining == 100


def test_a_refund_leaves_what_staff_gave(db: None) -> None:
    spent = spend(5)
    ChallengeQuota.objects.adjust(USER, 3, reason="a gift", actor=STAFF)
    assert (refund(spent).entry.amount, remaining()) == (5, 23)


def test_what_was_spent_under_no_limit_gives_no_units_back(db: None) -> None:
    """It took none: the refund is on paper, whatever plan comes later."""
    Plan(name="unlimited", allowance=None).save()
    spend(3)
    ChallengeQuota.objects.change_plan(USER, "unlimited", actor=STAFF)
    spent = spend(500)
    ChallengeQuota.objects.change_plan(USER, "free", actor=STAFF)
    given = refund(spent)
    assert (given.entry.amount, given.entry.cost, given.entry.is_period_closed) == (0, 500, False)
    assert remaining() == 17


def test_what_was_spent_before_is_given_back_under_no_limit_too(db: None) -> None:
    Plan(name="unlimited", allowance=None).save()
    spent = spend(3)
    ChallengeQuota.objects.change_plan(USER, "unlimited", actor=STAFF)
    assert (refund(spent).entry.amount, remaining()) == (3, 0)
    ChallengeQuota.objects.change_plan(USER, "free", actor=STAFF)
    assert remaining() == 20


def test_an_unlimited_quota_counts_its_refunds(make_quota: Callable[..., ChallengeQuota]) -> None:
    make_quota(allowance=None)
    spent = spend(500)
    assert refund(spent, 200).entry.amount == 200
    with pytest.raises(RefundTooLarge):
        refund(spent, 301)
    assert refund(spent).entry.amount == 300


def test_a_key_gives_back_once(db: None) -> None:
    spent = spend(5)
    first, again = refund(spent, 2, key="k"), refund(spent, 2, key="k")
    assert (first.is_replay, again.is_replay, again.entry) == (False, True, first.entry)
    assert (remaining(), entries("refunded")) == (17, 1)


def test_a_replay_tells_of_a_closed_period_what_was_told_first(db: None) -> None:
    spent = spend(5)
    refund(spent, 2, key="k")
    shift(USER, DAY)
    again = refund(spent, 2, key="k")
    assert (again.entry.amount, again.entry.is_period_closed) == (2, False)


def test_a_key_of_another_refund_is_refused(db: None) -> None:
    first, second = spend(5), spend(5)
    refund(first, 2, key="k")
    for consumption, amount in [(first, 3), (second, 2), (first, None)]:
        with pytest.raises(KeyReused):
            refund(consumption, amount, key="k")


def test_a_refund_that_was_refused_holds_no_key(db: None) -> None:
    spent = spend(5)
    with pytest.raises(RefundTooLarge):
        refund(spent, 6, key="k")
    assert refund(spent, 5, key="k").entry.amount == 5


def test_a_deleted_user_gets_nothing_back(db: None) -> None:
    spent = spend(5)
    ChallengeQuota.objects.delete(USER, actor=STAFF)
    with pytest.raises(outcomes.Deleted):
        refund(spent)


# All at once

on_postgres = [pytest.mark.postgres, pytest.mark.django_db(transaction=True, serialized_rollback=True)]
THREADS = 16


def granted(refund_once: Callable[[], Receipt]) -> list[int]:
    """Let 16 threads begin at the same moment; return the amounts of those that were not refused."""
    start = Barrier(THREADS)

    def act() -> int | None:
        try:
            start.wait()
            return refund_once().entry.amount
        except (AlreadyRefunded, RefundTooLarge):
            return None
        finally:
            connection.close()

    with ThreadPoolExecutor(THREADS) as threads:
        amounts = [future.result() for future in [threads.submit(act) for _ in range(THREADS)]]
    return [amount for amount in amounts if amount is not None]


class TestAtOnce:
    pytestmark = on_postgres

    def test_16_refunds_of_one_spend_give_back_its_cost_once(self) -> None:
        spend(3)
        spent = spend(10)
        assert granted(lambda: refund(spent)) == [10]
        assert remaining() == 17
        assert_sound(USER)

    def test_16_parts_of_one_spend_give_back_no_more_than_its_cost(self) -> None:
        spend(3)
        spent = spend(10)
        assert granted(lambda: refund(spent, 3)) == [3, 3, 3]
        assert remaining() == 16
        assert_sound(USER)

    def test_16_refunds_with_one_key_are_one(self) -> None:
        spent = spend(10)
        assert granted(lambda: refund(spent, 4, key="k")) == [4] * THREADS
        assert (remaining(), entries("refunded")) == (14, 1)


# Round trips


@pytest.mark.parametrize("verb", ["refund", "adjust", "reset", "change_plan"])
class TestRoundTrips:
    pytestmark = on_postgres

    @pytest.fixture
    def trips(self, wire: Wire, verb: str) -> Callable[[], int]:
        Plan(name="pro", allowance=100).save()
        spent = spend(5)
        attempts: dict[str, Callable[[], object]] = {
            "refund": lambda: refund(spent, 2, key="k"),
            "adjust": lambda: ChallengeQuota.objects.adjust(USER, 5, reason="r", actor=STAFF, key="k"),
            "reset": lambda: ChallengeQuota.objects.reset(USER, reason="r", actor=STAFF, key="k"),
            "change_plan": lambda: ChallengeQuota.objects.change_plan(USER, "pro", actor=STAFF, key="k"),
        }

        def count() -> int:
            wire.reset()
            attempts[verb]()
            return wire.round_trips

        return count

    def test_a_change_takes_two_and_its_replay_one(self, trips: Callable[[], int]) -> None:
        assert (trips(), trips()) == (2, 1)

    def test_a_change_of_a_quota_that_is_due_takes_two(self, trips: Callable[[], int]) -> None:
        shift(USER, timedelta(hours=25))
        assert trips() == 2

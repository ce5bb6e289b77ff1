"""What was used in a running period, as the rows and the ledger keep it: on the database."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db.models import F

from quotas.models import ChallengeQuota, LedgerEntry, Plan
from quotas.rules.outcomes import Exhausted
from quotas.rules.values import OnChange, Quota
from quotasite.demo.tour import shift
from tests.conftest import STAFF, USER
from tests.tools.ledger import assert_sound, forget_usage

pytestmark = pytest.mark.django_db
quotas = ChallengeQuota.objects
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.fixture(autouse=True)
def _plans() -> None:
    for name, rules in {
        "pro": {"allowance": 100},
        "brief": {"allowance": 5, "period_seconds": 2},
        "long": {"allowance": 300, "period_seconds": 30 * 86_400},
        "monthly": {"allowance": 400, "reset_policy": "monthly"},
        "unlimited": {"allowance": None},
    }.items():
        Plan(name=name, **rules).save()


def change(*names: str, pause: timedelta = timedelta(0)) -> Quota:
    for name in names:
        shift(USER, pause)
        quota = quotas.change_plan(USER, name, OnChange.KEEP, actor=STAFF).quota
    return quota


def figures(quota: Quota) -> tuple[int, int, int]:
    return quota.quota_remaining, quota.used, quota.given


def row() -> ChallengeQuota:
    return quotas.get(pk=USER)


# Periods that plans were left in


def test_a_plan_left_and_taken_again_remembers_what_was_used() -> None:
    change("pro")
    for _ in range(5):
        quotas.consume(USER, 90 if row().quota_remaining == 100 else 1)
        change("free", "pro", "unlimited", "pro")
    assert figures(quotas.current(USER)) == (6, 94, 0)
    assert_sound(USER)


def test_a_short_plan_on_the_way_gives_nothing_and_the_first_period_goes_on() -> None:
    began = change("long")
    quotas.consume(USER, 250)
    quotas.adjust(USER, 40, reason="a gift", actor=STAFF)
    change("brief")
    shift(USER, timedelta(seconds=3))
    quotas.consume(USER, 5)
    change("long", pause=timedelta(seconds=3))
    quota = quotas.current(USER)
    assert figures(quota) == (300 + 40 - 255, 255, 40)
    assert quota.resets_at == began.resets_at - timedelta(seconds=6)
    assert row().period_seq == 1
    assert_sound(USER)


def test_a_refund_reaches_what_was_spent_before_a_short_plan() -> None:
    change("long")
    spend = quotas.consume(USER, 250).entry
    change("brief")
    shift(USER, timedelta(seconds=3))
    assert quotas.refund(USER, spend.id, 10, reason="late", actor=STAFF).entry.is_period_closed
    change("long", pause=timedelta(seconds=3))
    refund = quotas.refund(USER, spend.id, 50, reason="in time", actor=STAFF)
    assert (refund.entry.amount, figures(refund.quota)) == (50, (100, 200, 0))
    assert_sound(USER)


def test_a_month_counts_the_days_before_a_refill_by_staff_bounds_it() -> None:
    for _ in range(4):
        quotas.consume(USER, 10)
        shift(USER, DAY)
    assert figures(change("monthly")) == (360, 40, 0)
    change("free")
    quotas.reset(USER, reason="a test", actor=STAFF)
    quotas.consume(USER, 3)
    assert figures(change("monthly")) == (397, 3, 0)
    assert_sound(USER)


def test_a_month_that_was_in_use_counts_against_a_plan_of_30_days() -> None:
    for _ in range(8):
        quotas.consume(USER, 20)
        shift(USER, DAY)
    quotas.consume(USER, 20)
    change("monthly")
    quotas.consume(USER, 220)
    assert figures(change("long")) == (0, 400, 0)
    assert_sound(USER)


def test_a_period_goes_on_after_a_reset_that_mended_a_clock() -> None:
    change("long")
    shift(USER, -40 * DAY)  # as if the clock had been ahead
    quotas.reset(USER, reason="the clock was ahead", actor=STAFF)
    quotas.consume(USER, 250)
    change("brief", "long", pause=timedelta(seconds=3))
    assert figures(quotas.current(USER)) == (50, 250, 0)


def test_a_period_in_which_nothing_was_spent_counts_after_such_a_reset_too() -> None:
    """Its begin is that of the last period that began, and not the latest that there ever was."""
    Plan(name="longer", allowance=200, period_seconds=45 * 86_400).save()
    quotas.current(USER)
    shift(USER, -40 * DAY)
    quotas.reset(USER, reason="the clock was ahead", actor=STAFF)
    quotas.consume(USER, 10)
    change("long")
    change("brief", pause=2 * DAY)
    change("longer", pause=timedelta(seconds=3))
    assert figures(quotas.current(USER)) == (190, 10, 0)


def test_an_edited_plan_that_is_taken_again_goes_on_under_its_version() -> None:
    """An edit takes effect at the next reset, whichever way the user came back."""
    change("pro")
    quotas.consume(USER, 90)
    pro = Plan.objects.get(pk="pro")
    pro.allowance = 200
    pro.save()
    change("free", "pro")
    assert (figures(quotas.current(USER)), row().plan_version, row().quota_limit) == ((10, 90, 0), 1, 100)
    shift(USER, DAY)
    assert (figures(quotas.current(USER)), row().plan_version) == ((200, 0, 0), 2)


def test_a_prorated_limit_is_there_again_after_a_way_round() -> None:
    quotas.current(USER)
    shift(USER, DAY / 2)
    limit = quotas.change_plan(USER, "pro", OnChange.PRORATE, actor=STAFF).quota.quota_limit
    assert limit == 59  # of 20 and 100, half a day each, and some milliseconds
    change("free", "unlimited", "pro")
    assert row().quota_limit == limit


def test_the_first_refusal_of_a_period_that_goes_on_stays_the_first() -> None:
    change("long")
    quotas.consume(USER, 300)
    refused = refuse()
    change("brief", "long", pause=timedelta(seconds=3))
    assert refuse() == refused


def refuse() -> int:
    with pytest.raises(Exhausted):
        quotas.consume(USER)
    return LedgerEntry.objects.filter(kind="refused").count()


# Rows and entries of a release that kept the balance only


def as_written_before(*, seq_is_newer: bool) -> None:
    """Let a release without the usage be the last to write: it leaves the new columns as they are."""
    if not seq_is_newer:
        forget_usage()
        return
    newest = row().entries.latest("seq")
    LedgerEntry.objects.filter(pk=newest.pk).update(period_consumed=None, period_given=None)
    stale = {"usage_seq": F("seq") - 1, "period_consumed": 1, "resets_at": F("resets_at") + DAY}
    quotas.filter(pk=USER).update(**stale)


Spent = Callable[[], object]
each_age = pytest.mark.parametrize("seq_is_newer", [False, True], ids=["never kept", "kept once"])


@each_age
@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (lambda: None, (11, 9, 0)),
        (lambda: quotas.adjust(USER, 5, reason="a gift", actor=STAFF), (16, 9, 5)),
        (lambda: quotas.adjust(USER, -5, reason="a test", actor=STAFF), (6, 9, -5)),
        (lambda: quotas.consume(USER, 11), (0, 20, 0)),
    ],
    ids=["spent", "given", "taken", "empty"],
)
def test_such_a_row_is_known_from_its_ledger(act: Spent, expected: object, seq_is_newer: bool) -> None:
    first = quotas.consume(USER, 10).entry
    quotas.refund(USER, first.id, 1, reason="a test", actor=STAFF)
    act()
    before = row()
    as_written_before(seq_is_newer=seq_is_newer)
    quota = quotas.current(USER)
    assert (figures(quota), quota.resets_at) == (expected, before.resets_at)
    quotas.adjust(USER, 1, reason="a test", actor=STAFF)
    after = row()
    remaining, used, given = expected  # type: ignore[misc]
    assert (after.quota_remaining, after.period_consumed, after.period_given) == (
        remaining + 1,
        used,
        given + 1,
    )
    assert (after.usage_seq, after.resets_at) == (after.seq, before.resets_at)
    assert_sound(USER)


def test_what_such_a_release_gave_by_its_own_rules_stays_until_the_next_change_of_plan() -> None:
    """It gave all of a plan anew after a change: that balance does not fall because of an update."""
    change("pro")
    quotas.consume(USER, 90)
    as_written_before(seq_is_newer=False)
    quotas.filter(pk=USER).update(quota_remaining=98)
    LedgerEntry.objects.filter(seq=3).update(balance_after=98)
    assert figures(quotas.consume(USER, 8).quota) == (90, 98, 88)
    assert figures(change("free", "pro")) == (2, 98, 0)


def test_a_period_that_was_left_under_such_a_release_goes_on() -> None:
    change("long")
    quotas.consume(USER, 250)
    change("free")
    shift(USER, 2 * DAY)
    quotas.current(USER)
    as_written_before(seq_is_newer=False)
    quotas.consume(USER, 1)
    shift(USER, DAY)
    assert figures(change("long")) == (49, 251, 0)


def test_a_due_row_of_such_a_release_is_reset_when_it_was_due_by_its_entries() -> None:
    quotas.consume(USER, 10)
    as_written_before(seq_is_newer=False)
    shift(USER, DAY - HOUR)
    assert figures(quotas.current(USER)) == (10, 10, 0)
    shift(USER, HOUR)
    assert figures(quotas.current(USER)) == (20, 0, 0)
    assert_sound(USER)


def test_a_row_without_a_ledger_answers() -> None:
    """It is a fault that the audit reports; its quota is treated as due."""
    quotas.consume(USER, 10)
    as_written_before(seq_is_newer=False)
    LedgerEntry.objects.all().delete()
    assert figures(quotas.current(USER)) == (20, 0, 0)

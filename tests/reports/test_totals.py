"""Daily totals: derived from the ledger when they are viewed, and never written by a spend."""

import itertools
from collections.abc import Callable
from datetime import datetime, timedelta
from threading import Barrier, Thread
from uuid import UUID

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from quotas.models import ChallengeQuota, HourlyTotal, LedgerEntry
from quotas.reports import totals
from quotas.reports.totals import DAY, HOUR, Day
from quotas.rules.values import Actor
from quotas.store.direct import clock

pytestmark = pytest.mark.django_db
Make = Callable[..., ChallengeQuota]
SERVICE = Actor("service", "a test")


@pytest.fixture(autouse=True)
def noon(monkeypatch: pytest.MonkeyPatch) -> datetime:
    """Set the clock that the totals use to ten past twelve today."""
    now = clock().replace(hour=12, minute=10, second=0, microsecond=0)
    monkeypatch.setattr(totals, "clock", lambda: now)
    monkeypatch.setattr(totals, "BUDGET", 60.0)  # however busy this machine is
    return now


def spend(instant: datetime, cost: int = 1, user_id: str = "user_1", kind: str = "consumed") -> None:
    """Put an entry into the ledger as of another time, which its id has too."""
    ChallengeQuota.objects.consume(user_id, 1)
    newest = LedgerEntry.objects.filter(user_id=user_id).order_by("-seq")[0]
    dated = UUID(int=(int(instant.timestamp() * 1000) << 80) + newest.id.int % (1 << 80))
    LedgerEntry.objects.filter(pk=newest.pk).update(id=dated, created_at=instant, cost=cost, kind=kind)


def day(found: list[Day], ago: int) -> tuple[int, int]:
    """What was spent and refused on the day `ago` days ago."""
    return found[-1 - ago].spent, found[-1 - ago].refused


@pytest.fixture
def unlimited(make_quota: Make) -> None:
    for user_id in ("user_1", "user_2"):
        make_quota(user_id, allowance=None)


def test_a_day_is_what_all_users_spent_in_it(unlimited: None, noon: datetime) -> None:
    midnight = noon.replace(hour=0, minute=0)
    spend(midnight - DAY, 3)
    spend(midnight - timedelta(microseconds=1), 5, "user_2")
    spend(midnight, 7)
    found = totals.days_of_everyone().days
    assert [day(found, ago) for ago in (0, 1, 2)] == [(7, 0), (8, 0), (0, 0)]
    assert found[-1].date == noon.date()


def test_thirty_days_are_told_with_the_empty_ones(noon: datetime) -> None:
    found = totals.days_of_everyone()
    assert [day.date for day in found.days] == [noon.date() - n * DAY for n in reversed(range(30))]
    assert {(day.spent, day.refused) for day in found.days} == {(0, 0)}


@pytest.mark.parametrize("after", [timedelta(0), timedelta(minutes=3), timedelta(minutes=7)])
def test_a_day_begins_at_midnight_to_the_microsecond(
    unlimited: None, noon: datetime, monkeypatch: pytest.MonkeyPatch, after: timedelta
) -> None:
    midnight = noon.replace(hour=0, minute=0)
    spend(midnight - HOUR / 2, 3)
    spend(midnight, 4)
    monkeypatch.setattr(totals, "clock", lambda: midnight + after)
    found = totals.days_of_everyone().days
    assert (len(found), day(found, 0), day(found, 1)) == (30, (4, 0), (3, 0))


def test_what_was_refused_is_counted_and_not_summed(unlimited: None, noon: datetime) -> None:
    for user_id in ("user_1", "user_2"):
        spend(noon - DAY, 9, user_id, kind="refused")
    assert day(totals.days_of_everyone().days, 1) == (0, 2)


def test_a_refund_leaves_what_was_spent(make_quota: Make) -> None:
    make_quota()
    receipt = ChallengeQuota.objects.consume("user_1", 4)
    ChallengeQuota.objects.refund("user_1", receipt.entry.id, reason="it failed", actor=SERVICE)
    assert [day.spent for day in totals.days_of_user("user_1")][-1] == 4


def test_a_spend_writes_no_total(make_quota: Make) -> None:
    make_quota()
    with CaptureQueriesContext(connection) as captured:
        ChallengeQuota.objects.consume("user_1", 1)
    assert not any("hourly_totals" in query["sql"] for query in captured)


def test_hours_that_are_over_are_read_once(unlimited: None, noon: datetime) -> None:
    spend(noon - DAY, 3)
    assert day(totals.days_of_everyone().days, 1) == (3, 0)
    assert HourlyTotal.objects.count() == 29 * 24 + 12
    with CaptureQueriesContext(connection) as captured:
        assert day(totals.days_of_everyone().days, 1) == (3, 0)
    assert len(captured) == 2  # the stored hours, and the ledger since then


def test_today_is_told_up_to_now(unlimited: None, noon: datetime) -> None:
    spend(noon - 2 * HOUR, 3)
    assert day(totals.days_of_everyone().days, 0) == (3, 0)
    spend(noon, 4)
    assert day(totals.days_of_everyone().days, 0) == (7, 0)


def test_an_hour_is_kept_only_when_it_has_settled(
    unlimited: None, noon: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    just_over = noon.replace(minute=4)
    monkeypatch.setattr(totals, "clock", lambda: just_over)
    totals.days_of_everyone()
    spend(noon - timedelta(minutes=20), 6)  # decided before twelve, and committed only now
    assert day(totals.days_of_everyone().days, 0) == (6, 0)
    monkeypatch.setattr(totals, "clock", lambda: noon)
    assert day(totals.days_of_everyone().days, 0) == (6, 0)
    assert HourlyTotal.objects.get(hour=noon.replace(hour=11, minute=0)).spent == 6


def test_what_is_pruned_stays_in_the_totals(unlimited: None, noon: datetime) -> None:
    spend(noon - DAY, 3)
    totals.days_of_everyone()
    LedgerEntry.objects.all().delete()
    assert day(totals.days_of_everyone().days, 1) == (3, 0)


def test_one_look_sums_so_much_and_says_how_far_it_is(
    unlimited: None, noon: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(totals, "BUDGET", 0.0)
    found = totals.days_of_everyone()
    assert (found.days, found.asked, found.is_complete) == ([], 30, False)
    monkeypatch.setattr(totals, "BUDGET", 60.0)
    assert totals.days_of_everyone().is_complete


def test_the_newest_days_come_first(unlimited: None, noon: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    spend(noon - DAY, 3)
    monkeypatch.setattr(totals, "MAX_HOURS_PER_QUERY", 1)
    ticks = itertools.count()  # one at each reading of the clock, twice in a step
    monkeypatch.setattr(totals.time, "monotonic", lambda: float(next(ticks)))
    monkeypatch.setattr(totals, "BUDGET", 81.0)
    found = totals.days_of_everyone()
    assert HourlyTotal.objects.count() == 40  # twelve of today, yesterday, and four
    assert (len(found.days), day(found.days, 1)) == (2, (3, 0))
    assert totals.days_of_everyone().days[-2:] == found.days


def test_what_lies_between_known_hours_is_summed_without_counting_them_twice(
    unlimited: None, noon: datetime
) -> None:
    spend(noon - 2 * DAY, 3)
    totals.days_of_everyone()
    HourlyTotal.objects.filter(hour__in=[noon.replace(minute=0) - n * HOUR for n in (2, 30, 60)]).delete()
    stored = set(HourlyTotal.objects.values_list("hour", flat=True))
    HourlyTotal.objects.filter(hour__in=stored).update(spent=1)
    found = totals.days_of_everyone()
    assert found.is_complete
    assert day(found.days, 5) == (24, 0)


def test_a_clock_that_is_off_by_some_minutes_loses_no_entry(unlimited: None, noon: datetime) -> None:
    for minutes in (-14, 14):
        spend(noon - 3 * HOUR, 1)
        newest = LedgerEntry.objects.order_by("-seq").filter(user_id="user_1")[0]
        off = int((noon - 3 * HOUR + timedelta(minutes=minutes)).timestamp() * 1000)
        dated = UUID(int=(off << 80) + newest.id.int % (1 << 80))
        LedgerEntry.objects.filter(pk=newest.pk).update(id=dated)
    assert day(totals.days_of_everyone().days, 0) == (2, 0)


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True, serialized_rollback=True)
def test_two_who_look_at_once_count_nothing_twice(make_quota: Make, noon: datetime) -> None:
    make_quota("user_1", allowance=None)
    spend(noon - DAY, 3)
    start, found = Barrier(4), []

    def view() -> None:
        start.wait()
        found.append(day(totals.days_of_everyone().days, 1))
        connection.close()

    threads = [Thread(target=view) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(3, 0)] * 4
    assert HourlyTotal.objects.count() == 29 * 24 + 12


def test_a_user_has_days_of_their_own(unlimited: None, noon: datetime) -> None:
    spend(noon - DAY, 3)
    spend(noon - DAY, 5, "user_2")
    spend(noon - 40 * DAY, 7)
    found = totals.days_of_user("user_1")
    assert (len(found), day(found, 0), day(found, 1), found[-1].date) == (30, (0, 0), (3, 0), noon.date())
    assert sum(day.spent for day in found) == 3


def test_a_user_without_a_quota_has_empty_days() -> None:
    assert {(day.spent, day.refused) for day in totals.days_of_user("nobody")} == {(0, 0)}


def test_of_a_users_many_entries_the_newest_are_looked_at_and_only_whole_days_told(
    unlimited: None, noon: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    for ago in (9, 8, 2, 2, 1):
        spend(noon - ago * DAY)
    monkeypatch.setattr(totals, "MAX_ENTRIES_READ", 2)  # the older one is of the day before yesterday
    assert [(day.date, day.spent) for day in totals.days_of_user("user_1")] == [
        (noon.date() - DAY, 1),
        (noon.date(), 0),
    ]


def test_who_meets_the_limit_most_often_comes_first(unlimited: None, noon: datetime) -> None:
    for user_id, ago in [("user_1", 1), ("user_2", 1), ("user_2", 2), ("user_1", 8), ("user_1", 9)]:
        spend(noon - ago * DAY, 1, user_id, kind="refused")
    spend(noon, 1, "user_1")
    found = totals.most_refused()
    assert found.users == [("user_2", 2), ("user_1", 1)]
    assert found.since == noon - 7 * DAY


def test_of_many_refusals_the_newest_are_looked_at(
    unlimited: None, noon: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(totals, "MAX_REFUSALS_READ", 2)
    for user_id, ago in [("user_1", 1), ("user_2", 2), ("user_2", 3)]:
        spend(noon - ago * DAY, 1, user_id, kind="refused")
    assert totals.most_refused() == ([("user_1", 1), ("user_2", 1)], noon - 2 * DAY)


@pytest.mark.postgres
def test_many_users_are_estimated_and_the_deleted_left_out(
    make_quota: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        make_quota(f"user_{number}")
    ChallengeQuota.objects.delete("user_5", actor=SERVICE)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE challenge_quotas")
    assert totals.estimated_users() is None
    monkeypatch.setattr(totals, "MAX_USERS_COUNTED", 4)
    assert str(totals.estimated_users()) == "about 5"

"""When a period ends and when the next one begins: every reset policy, by calendar and clock."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise

import pytest
from django.db import connection, transaction
from hypothesis import given
from hypothesis import strategies as st

from quotas.models import ChallengeQuota
from quotas.rules import periods, verbs, zones
from quotas.rules.outcomes import Exhausted
from quotas.rules.periods import RESET_POLICIES
from quotas.rules.values import Plan, State
from tests.rules.test_verbs import DAY, FREE, NOON, STAFF, TICK, USER, at, changed, state_with

pytestmark = pytest.mark.once
HOUR = timedelta(hours=1)
ON_A_GRID = [name for name in RESET_POLICIES if name != "rolling"]


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def plan_of(reset_policy: str, zone: str = "UTC", period: timedelta = DAY) -> Plan:
    return FREE._replace(reset_policy=reset_policy, timezone=zone, period=period)


def begun(plan: Plan, last: datetime, anchor: datetime | None = None) -> State:
    """A quota with 3 of 20 left, in a period of the plan that began at `last`."""
    end = ends(plan, last, anchor)
    return state_with(3, last_reset_date=last, resets_at=end, anchor_at=anchor or last, updated_at=last)


def ends(plan: Plan, last: datetime, anchor: datetime | None = None) -> datetime:
    return periods.period_end(plan, anchor or last, last)


def begins(plan: Plan, now: datetime, anchor: datetime) -> datetime:
    """Return the begin of the period that a request at `now` finds, long after the last one."""
    state = begun(plan, anchor - 400 * DAY, anchor)
    return changed(verbs.current(at(now, state, plan), USER)).state.last_reset_date


def successive(plan: Plan, first: datetime) -> Iterator[datetime]:
    """Yield the ends of successive periods, each begun by a request at the end of the last."""
    state = begun(plan, first)
    while True:
        state = changed(verbs.current(at(state.resets_at, state, plan), USER)).state
        yield state.last_reset_date


def take(count: int, ends: Iterator[datetime]) -> list[str]:
    return [next(ends).isoformat(" ", "minutes").removesuffix("+00:00") for _ in range(count)]


# Boundaries

ENDS = [  # NOON is on Sunday, 1 March 2026
    ("rolling", "UTC", "2026-03-02 12:00"),
    ("anchored", "UTC", "2026-03-02 12:00"),
    ("daily", "UTC", "2026-03-02 00:00"),
    ("daily", "Europe/Berlin", "2026-03-01 23:00"),
    ("daily", "Asia/Kathmandu", "2026-03-01 18:15"),
    ("weekly", "UTC", "2026-03-02 00:00"),
    ("weekly", "America/New_York", "2026-03-02 05:00"),
    ("weekly", "Pacific/Kiritimati", "2026-03-08 10:00"),  # Monday there, for two hours
    ("monthly", "UTC", "2026-04-01 00:00"),
    ("monthly", "Europe/Berlin", "2026-03-31 22:00"),
    ("monthly", "Pacific/Kiritimati", "2026-04-01 10:00"),  # on the 2nd there
]
each_end = pytest.mark.parametrize(("reset_policy", "zone", "end"), ENDS)


@each_end
def test_a_period_ends_where_its_policy_says(reset_policy: str, zone: str, end: str) -> None:
    assert ends(plan_of(reset_policy, zone), NOON) == utc(end)


@each_end
@pytest.mark.parametrize(("late", "remaining"), [(-TICK, 3), (0 * TICK, 20), (TICK, 20)])
def test_a_quota_is_full_again_from_that_very_microsecond(
    reset_policy: str, zone: str, end: str, late: timedelta, remaining: int
) -> None:
    change = changed(
        verbs.current(
            at(utc(end) + late, begun(plan_of(reset_policy, zone), NOON), plan_of(reset_policy, zone)), USER
        )
    )
    assert change.state.quota_remaining == remaining


@each_end
def test_only_a_rolling_period_begins_with_the_request_that_found_the_last_one_over(
    reset_policy: str, zone: str, end: str
) -> None:
    late = changed(
        verbs.current(
            at(utc(end) + TICK, begun(plan_of(reset_policy, zone), NOON), plan_of(reset_policy, zone)), USER
        )
    )
    delay = late.state.last_reset_date - utc(end)
    assert delay == (TICK if reset_policy == "rolling" else 0 * TICK)


def test_a_week_begins_on_monday() -> None:
    following = successive(plan_of("weekly"), NOON)
    assert take(3, following) == ["2026-03-02 00:00", "2026-03-09 00:00", "2026-03-16 00:00"]


def test_an_anchored_period_keeps_its_hour_over_years_however_rarely_one_asks() -> None:
    plan = plan_of("anchored")
    assert begins(plan, utc("2036-06-01 11:59:59.999999"), NOON) == utc("2036-05-31 12:00")
    assert begins(plan, utc("2036-06-01 12:00"), NOON) == utc("2036-06-01 12:00")


def test_an_anchored_period_of_an_odd_length_is_exact_to_the_microsecond() -> None:
    plan, anchor = plan_of("anchored", period=timedelta(seconds=86_399)), NOON + TICK
    assert begins(plan, anchor + 1_000_000 * plan.period, anchor) == anchor + 1_000_000 * plan.period
    assert begins(plan, anchor + 1_000_000 * plan.period - TICK, anchor) == anchor + 999_999 * plan.period


# Months

A_YEARS_ENDS = "02-28 03-31 04-30 05-31 06-30 07-31 08-31 09-30 10-31 11-30"


def test_a_month_from_the_31st_ends_on_the_last_day_of_each_and_is_never_chained() -> None:
    following = successive(plan_of("monthly"), utc("2026-01-31 12:00"))
    assert " ".join(end[5:10] for end in take(10, following)) == A_YEARS_ENDS


@pytest.mark.parametrize(
    ("first", "following"),
    [
        ("2028-01-31", ["2028-02-29", "2028-03-31"]),
        ("2028-02-29", ["2028-03-29", "2028-04-29"]),
        ("2026-01-30", ["2026-02-28", "2026-03-30"]),
        ("2028-01-30", ["2028-02-29", "2028-03-30"]),
        ("2026-01-28", ["2026-02-28", "2026-03-28"]),
        ("2026-11-30", ["2026-12-30", "2027-01-30", "2027-02-28", "2027-03-30"]),
        ("2099-12-31", ["2100-01-31", "2100-02-28", "2100-03-31"]),  # no leap year
    ],
)
def test_a_month_is_clamped_to_the_days_it_has(first: str, following: list[str]) -> None:
    found = take(len(following), successive(plan_of("monthly"), utc(f"{first} 09:30")))
    assert found == [f"{day} 00:00" for day in following]


def test_the_day_of_the_month_is_that_of_the_anchor_where_the_plan_is_at_home() -> None:
    late_on_the_31st_in_utc = utc("2026-01-31 23:30")
    assert ends(plan_of("monthly", "Europe/Berlin"), late_on_the_31st_in_utc) == utc("2026-02-28 23:00")


def test_after_missed_months_the_day_is_still_the_anchors() -> None:
    assert begins(plan_of("monthly"), utc("2027-03-30 23:59"), utc("2026-01-31 12:00")) == utc("2027-02-28")
    assert begins(plan_of("monthly"), utc("2027-03-31 00:00"), utc("2026-01-31 12:00")) == utc("2027-03-31")


# Days that are not 24 hours long


@pytest.mark.parametrize(
    ("zone", "first", "hours"),
    [
        ("Europe/Berlin", "2026-03-28 23:00", 23),
        ("Europe/Berlin", "2026-10-24 22:00", 25),
        ("America/New_York", "2026-03-08 05:00", 23),
        ("America/New_York", "2026-11-01 04:00", 25),
        ("Australia/Lord_Howe", "2026-10-03 13:30", 23.5),
        ("Europe/Berlin", "2026-03-29 22:00", 24),
    ],
)
def test_a_local_day_lasts_as_long_as_its_clocks_say(zone: str, first: str, hours: float) -> None:
    assert ends(plan_of("daily", zone), utc(first)) - utc(first) == hours * HOUR


def test_an_anchored_day_is_24_hours_also_where_the_clocks_change() -> None:
    last = utc("2026-03-28 23:00")
    assert ends(plan_of("anchored", "Europe/Berlin"), last) - last == 24 * HOUR


def test_a_week_in_which_the_clocks_change_ends_at_local_midnight() -> None:
    monday = utc("2026-03-22 23:00")
    assert ends(plan_of("weekly", "Europe/Berlin"), monday) - monday == 7 * DAY - HOUR


SKIPPED = [  # zone, the day before it, the first instant of a day that has no midnight
    ("America/Havana", "2026-03-07 12:00", "2026-03-08 05:00"),
    ("Africa/Cairo", "2026-04-23 12:00", "2026-04-23 22:00"),
    ("Asia/Beirut", "2026-03-28 12:00", "2026-03-28 22:00"),
    ("America/Sao_Paulo", "2018-11-03 12:00", "2018-11-04 03:00"),
    ("America/Toronto", "1919-03-30 12:00", "1919-03-31 04:30"),  # 23:30 was followed by 00:30
]


@pytest.mark.parametrize(("zone", "before", "first"), SKIPPED)
def test_a_midnight_that_is_skipped_is_the_first_instant_after_it(zone: str, before: str, first: str) -> None:
    plan = plan_of("daily", zone)
    assert ends(plan, utc(before)) == utc(first)
    assert begins(plan, utc(first), utc(before)) == utc(first)
    assert begins(plan, utc(first) - TICK, utc(before)) < utc(first)
    assert ends(plan, utc(first)) > utc(first) + 22 * HOUR


@pytest.mark.parametrize(("zone", "before", "first"), SKIPPED)
def test_a_month_may_begin_at_a_midnight_that_is_skipped(zone: str, before: str, first: str) -> None:
    anchor = utc(first) - 365 * DAY
    local = utc(first).astimezone(zones.zone(zone)).date()
    anchor = datetime.combine(anchor.date().replace(day=local.day), time(12), zones.zone(zone)).astimezone(
        UTC
    )
    assert begins(plan_of("monthly", zone), utc(first), anchor) == utc(first)


def test_a_day_that_never_was_is_no_period() -> None:
    """Samoa went from Thursday, 29 December 2011, to Saturday."""
    following = successive(plan_of("daily", "Pacific/Apia"), utc("2011-12-29 10:00"))
    assert take(3, following) == ["2011-12-30 10:00", "2011-12-31 10:00", "2012-01-01 10:00"]


def test_a_month_that_begins_on_a_day_that_never_was_begins_with_the_day_after() -> None:
    following = successive(plan_of("monthly", "Pacific/Apia"), utc("2011-11-30 12:00"))
    assert take(2, following) == ["2011-12-30 10:00", "2012-01-29 10:00"]  # 14 hours east


@pytest.mark.parametrize(
    ("zone", "midnight", "set_back", "end"),
    [
        ("America/St_Johns", "2006-10-29 02:30", "2006-10-29 02:31", "2006-10-30 03:30"),  # 00:01, then 23:01
        ("America/Havana", "2024-11-03 04:00", "2024-11-03 05:00", "2024-11-04 05:00"),  # 01:00, then 00:00
        ("America/Sao_Paulo", "2018-02-18 03:00", "2018-02-18 03:01", "2018-02-19 03:00"),  # 24:00: 23:00
    ],
)
def test_a_clock_that_is_set_back_over_midnight_begins_the_day_once(
    zone: str, midnight: str, set_back: str, end: str
) -> None:
    plan = plan_of("daily", zone)
    for now in (utc(midnight), utc(set_back), utc(set_back) + 2 * HOUR, utc(end) - TICK):
        assert begins(plan, now, utc(midnight)) == utc(midnight)
    assert ends(plan, utc(midnight)) == utc(end)


# Many missed periods, and a clock that steps back


@pytest.mark.parametrize("reset_policy", RESET_POLICIES)
def test_8000_years_of_missed_periods_cost_as_little_as_one(
    reset_policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most nine midnights: three each to see that it is due, to find the begin, and to find the end."""
    computed: list[date] = []
    midnight = periods._midnight
    monkeypatch.setattr(periods, "_midnight", lambda plan, day: computed.append(day) or midnight(plan, day))
    plan = plan_of(reset_policy, "Europe/Berlin", period=timedelta(seconds=1))
    change = changed(
        verbs.current(at(utc("9990-07-01 12:00"), begun(plan, utc("1970-01-31 12:00")), plan), USER)
    )
    assert change.state.quota_remaining == 20
    assert len(change.entries) == 1
    assert len(computed) <= 9


@pytest.mark.parametrize("reset_policy", RESET_POLICIES)
@pytest.mark.parametrize("back", [TICK, HOUR, 40 * DAY, 5_000 * DAY])
def test_a_clock_that_steps_back_resets_nothing(reset_policy: str, back: timedelta) -> None:
    change = changed(
        verbs.current(at(NOON - back, begun(plan_of(reset_policy), NOON), plan_of(reset_policy)), USER)
    )
    assert (change.entries, change.state.quota_remaining) == ((), 3)


@pytest.mark.postgres
@pytest.mark.django_db
def test_the_databases_clock_goes_on_within_a_transaction() -> None:
    """now() is the time at which the transaction began, which is stale after a lock wait."""
    with transaction.atomic(), connection.cursor() as cursor:
        first = ChallengeQuota.objects.consume("user_1").entry.created_at
        cursor.execute("SELECT pg_sleep(0.02)")
        assert ChallengeQuota.objects.consume("user_1").entry.created_at - first >= timedelta(milliseconds=20)


# Staff


@pytest.mark.parametrize("reset_policy", RESET_POLICIES)
def test_a_reset_by_staff_refills_and_begins_anew_only_what_is_rolling(reset_policy: str) -> None:
    now = NOON + 5 * HOUR
    change = changed(verbs.reset(at(now, begun(plan_of(reset_policy), NOON), plan_of(reset_policy)), STAFF))
    assert (change.state.quota_remaining, change.state.period_seq, change.state.anchor_at) == (20, 8, NOON)
    assert change.state.last_reset_date == (now if reset_policy == "rolling" else NOON)
    assert [entry.kind for entry in change.entries] == ["reset"]


@pytest.mark.parametrize("reset_policy", ON_A_GRID)
def test_a_reset_by_staff_does_not_move_the_end_of_the_period(reset_policy: str) -> None:
    plan = plan_of(reset_policy)
    change = changed(verbs.reset(at(NOON + 5 * HOUR, begun(plan, NOON), plan), STAFF))
    assert change.quota.resets_at == ends(plan, NOON)


def test_a_reset_by_staff_of_a_quota_that_is_due_is_two() -> None:
    change = changed(verbs.reset(at(NOON + DAY, begun(FREE, NOON)), STAFF))
    assert [(entry.kind, entry.reason) for entry in change.entries] == [("reset", ""), ("reset", "a gift")]


def test_an_edit_to_short_periods_skips_none() -> None:
    """The end lies before a boundary of the new grid: that is no midnight of other zone data."""
    hourly = FREE._replace(version=2, reset_policy="anchored", period=HOUR)
    state = state_with(3, anchor_at=NOON - HOUR / 2)
    change = changed(verbs.current(at(NOON + DAY, state, hourly, in_force=FREE), USER))
    assert (change.state.last_reset_date, change.state.resets_at) == (NOON + DAY, NOON + DAY + HOUR / 2)


# A clock that was ahead

AHEAD = NOON + 3 * DAY


@pytest.mark.parametrize("reset_policy", RESET_POLICIES)
def test_a_reset_by_staff_brings_a_period_of_the_future_back(reset_policy: str) -> None:
    plan = plan_of(reset_policy)
    change = changed(verbs.reset(at(NOON, begun(plan, AHEAD), plan), STAFF))
    [entry] = change.entries
    assert (entry.kind, entry.reason, entry.created_at) == ("reset", "a gift", NOON)
    assert entry.metadata == {"clock_was_ahead": "2026-03-04T12:00:00.000000Z"}
    assert (change.state.last_reset_date, change.state.anchor_at, change.state.updated_at) == (
        NOON,
        NOON,
        NOON,
    )
    assert (change.state.quota_remaining, change.state.resets_at) == (20, ends(plan, NOON))


def test_a_reset_by_staff_keeps_an_anchor_of_the_past() -> None:
    plan = plan_of("monthly")
    state = begun(plan, AHEAD, anchor=NOON - 40 * DAY)
    assert changed(verbs.reset(at(NOON, state, plan), STAFF)).state.anchor_at == NOON - 40 * DAY


def test_a_clock_that_stepped_back_within_the_period_is_no_such_case() -> None:
    state = state_with(3, updated_at=NOON + HOUR)
    entry = changed(verbs.reset(at(NOON + TICK, state), STAFF)).entries[-1]
    assert (entry.created_at, entry.metadata) == (NOON + HOUR, None)


def test_the_seconds_to_the_reset_are_of_the_true_clock() -> None:
    """By the row's own time they would never fall, until the clock has passed it."""
    refused = changed(verbs.consume(at(NOON, begun(FREE, AHEAD)), USER, 5)).refusal
    assert isinstance(refused, Exhausted)
    assert refused.quota.seconds_to_reset == 4 * 86_400


# A plan that was edited


def test_a_period_ends_by_the_rules_it_began_under() -> None:
    """The plan is daily now, but this period began under its monthly version."""
    daily, monthly = plan_of("daily")._replace(version=2, allowance=5), plan_of("monthly")
    waits = changed(verbs.current(at(NOON + 20 * DAY, begun(monthly, NOON), daily, in_force=monthly), USER))
    assert (waits.entries, waits.quota.resets_at) == ((), utc("2026-04-01"))


def test_a_plan_that_now_has_longer_periods_does_not_hold_up_the_running_one() -> None:
    monthly, daily = plan_of("monthly")._replace(version=2, allowance=500), plan_of("daily")
    change = changed(verbs.current(at(utc("2026-03-02"), begun(daily, NOON), monthly, in_force=daily), USER))
    assert (change.state.plan_version, change.state.quota_remaining) == (2, 500)
    assert change.quota.resets_at == change.entries[-1].resets_at == utc("2026-04-01")


def test_a_spend_costs_what_the_running_periods_version_says() -> None:
    dearer = FREE._replace(version=2, actions={"generate": 7})
    generate = USER._replace(action="generate")
    running = changed(verbs.consume(at(NOON, begun(FREE, NOON), dearer, in_force=FREE), generate))
    assert (running.entries[-1].cost, running.entries[-1].plan_version) == (3, 1)
    later = changed(verbs.consume(at(NOON + DAY, begun(FREE, NOON), dearer, in_force=FREE), generate))
    assert (later.entries[-1].cost, later.entries[-1].plan_version) == (7, 2)


# For any policy, zone and instant

zone_names = st.sampled_from(sorted(zones.NAMES))
first, last = datetime(1970, 1, 2), datetime(2100, 1, 1)  # noqa: DTZ001 - the zone is drawn separately
instants = st.datetimes(first, last, timezones=st.just(UTC))


@st.composite
def near_midnight(draw: st.DrawFn, zone: str) -> datetime:
    """An instant close to a local midnight, where errors are likeliest."""
    day = draw(st.dates(first.date(), last.date()))
    away = draw(st.just(0) | st.integers(-7_200_000_000, 7_200_000_000))
    return datetime.combine(day, time(), zones.zone(zone)).astimezone(UTC) + away * TICK


@st.composite
def plans_and_instants(draw: st.DrawFn) -> tuple[Plan, datetime, datetime]:
    """A plan, an anchor, and an instant."""
    zone = draw(zone_names)
    length = timedelta(seconds=draw(st.integers(1, 3_660 * 86_400)))
    plan = plan_of(draw(st.sampled_from(list(RESET_POLICIES))), zone, length)
    return plan, draw(instants), draw(instants | near_midnight(zone))


@given(plans_and_instants())
def test_an_instant_lies_in_the_period_that_begins_for_it(drawn: tuple[Plan, datetime, datetime]) -> None:
    plan, anchor, now = drawn
    begin = RESET_POLICIES[plan.reset_policy].begins_at(plan, anchor, now)
    assert begin <= now < ends(plan, begin, anchor)


@given(plans_and_instants())
def test_periods_follow_one_another_without_a_gap(drawn: tuple[Plan, datetime, datetime]) -> None:
    plan, anchor, now = drawn
    if plan.reset_policy != "rolling":
        begin = RESET_POLICIES[plan.reset_policy].begins_at(plan, anchor, now)
        assert ends(plan, begin - TICK, anchor) == begin


@given(plans_and_instants())
def test_ends_rise(drawn: tuple[Plan, datetime, datetime]) -> None:
    plan, anchor, now = drawn
    walked = [now]
    for _ in range(4):
        walked.append(ends(plan, walked[-1], anchor))
    assert all(earlier < later for earlier, later in pairwise(walked))


@given(plans_and_instants())
def test_a_quota_is_due_exactly_from_the_end_on(drawn: tuple[Plan, datetime, datetime]) -> None:
    plan, anchor, now = drawn
    state = begun(plan, now, anchor)
    end = state.resets_at
    assert [periods.is_due(state, end + late) for late in (-TICK, 0 * TICK, TICK)] == [
        False,
        True,
        True,
    ]

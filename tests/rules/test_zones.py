"""Time zones: the data of the locked package, and instances that have different versions of it.

Vancouver keeps its summer time for good from 2026 on. An instance with older data sets the clocks back in
November 2026, and takes midnight to be an hour later.
"""

import io
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo, reset_tzpath

import pytest
from django.core.exceptions import ValidationError

from quotas.models import validate_timezone
from quotas.rules import periods, verbs, zones
from quotas.rules.values import OnChange, Plan
from tests.rules.test_verbs import STAFF, USER, at, changed

pytestmark = pytest.mark.once
HOUR, DAY, TICK = timedelta(hours=1), timedelta(days=1), timedelta(microseconds=1)
VANCOUVER = "America/Vancouver"
PLAN = Plan("daily", 1, 20, "daily", DAY, VANCOUVER)
AUTUMN = datetime(2026, 11, 29, 12, tzinfo=UTC)


def by_rule(rule: str, name: str, seconds: int) -> ZoneInfo:
    """Return a zone by a rule in POSIX form: a TZif file (RFC 9636) of one type and a footer."""
    counts = struct.pack(">6l", 0, 0, 0, 0, 1, len(name) + 1)
    block = b"TZif2" + bytes(15) + counts + struct.pack(">lBB", seconds, 0, 0) + name.encode() + b"\0"
    return ZoneInfo.from_file(io.BytesIO(block + block + b"\n" + rule.encode() + b"\n"), key=VANCOUVER)


OLD = by_rule("PST8PDT,M3.2.0,M11.1.0", "PST", -8 * 3_600)


@contextmanager
def instance(*, is_old: bool) -> Iterator[None]:
    """Decide as an instance with older data, or with that of the package."""
    with pytest.MonkeyPatch.context() as patch:
        if is_old:
            patch.setattr(periods, "zone", lambda name: OLD)
        yield


def resets_of_a_fleet(plan: Plan, start: datetime, days: int, seed: int) -> list[datetime]:
    """Let either of two instances ask, each quarter of an hour; return when the quota was reset."""
    chance, state, resets = random.Random(seed), None, []
    for quarter in range(days * 96):
        now = start + quarter * HOUR / 4
        with instance(is_old=chance.random() < 0.5):
            change = changed(verbs.current(at(now, state, plan), USER))
        if state and change.entries:
            resets.append(now)
        state = change.state
    return resets


def test_the_two_versions_differ_by_an_hour() -> None:
    """Otherwise the tests below would prove nothing."""
    ends = []
    for is_old in (True, False):
        with instance(is_old=is_old):
            ends.append(periods.period_end(PLAN, AUTUMN, AUTUMN))
    assert ends == [datetime(2026, 11, 30, 8, tzinfo=UTC), datetime(2026, 11, 30, 7, tzinfo=UTC)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("policy", "days", "expected"), [("daily", 20, 20), ("weekly", 70, 10), ("monthly", 200, 6)]
)
def test_a_quota_is_reset_once_a_period_whichever_instance_is_asked(
    policy: str, days: int, expected: int, seed: int
) -> None:
    plan = Plan(policy, 1, 20, policy, DAY, VANCOUVER)
    resets = resets_of_a_fleet(plan, AUTUMN, days, seed)
    assert len(resets) == expected
    least = {"daily": 22 * HOUR, "weekly": 6 * DAY, "monthly": 27 * DAY}[policy]
    assert all(later - earlier > least for earlier, later in pairwise(resets))


@pytest.mark.parametrize("is_old", [True, False])
def test_a_running_period_ends_when_it_was_said_to_end(is_old: bool) -> None:
    with instance(is_old=not is_old):
        state = changed(verbs.current(at(AUTUMN, None, PLAN), USER)).state
    with instance(is_old=is_old):
        before = changed(verbs.current(at(state.resets_at - TICK, state, PLAN), USER))
        after = changed(verbs.current(at(state.resets_at, state, PLAN), USER))
    assert (len(before.entries), len(after.entries)) == (0, 1)


@pytest.mark.parametrize("is_old", [True, False])
def test_a_change_of_plan_between_the_two_midnights_refills_nothing(is_old: bool) -> None:
    other = Plan("pro", 1, 50, "daily", DAY, VANCOUVER)
    with instance(is_old=not is_old):
        state = changed(verbs.consume(at(AUTUMN, None, PLAN), USER, 20)).state
    with instance(is_old=is_old):
        now = datetime(2026, 11, 30, 6, 59, tzinfo=UTC)
        change = changed(verbs.change_plan(at(now, state, PLAN, target=other), STAFF, OnChange.KEEP))
    assert (change.state.quota_remaining, change.state.period_consumed) == (30, 20)


# The package


def test_the_files_of_the_machine_are_not_read() -> None:
    """With no folder to search, `zoneinfo` falls back to the package: both must give the same zones."""
    reset_tzpath(to=())
    try:
        ZoneInfo.clear_cache()
        for name in sorted(zones.NAMES):
            for year in (1999, 2026, 2027, 2040):
                for month in (1, 7, 12):
                    instant = datetime(year, month, 15, tzinfo=UTC)
                    theirs = instant.astimezone(ZoneInfo(name)).utcoffset()
                    assert instant.astimezone(zones.zone(name)).utcoffset() == theirs
    finally:
        reset_tzpath()
        ZoneInfo.clear_cache()


def test_the_rules_of_2026_are_in_the_package() -> None:
    winter = datetime(2026, 12, 1, tzinfo=UTC)
    assert winter.astimezone(zones.zone(VANCOUVER)).utcoffset() == -7 * HOUR


@pytest.mark.parametrize(
    "name", ["", "Europe", "europe/berlin", "../zones", "/etc/localtime", "Europe/Berlin/"]
)
def test_no_other_name_is_a_zone(name: str) -> None:
    with pytest.raises(KeyError):
        zones.zone(name)
    with pytest.raises(ValidationError, match="Europe/Berlin"):
        validate_timezone(name)


@pytest.mark.parametrize(
    ("version", "today", "is_old"),
    [
        ("2025.2", date(2026, 3, 31), False),
        ("2025.2", date(2026, 4, 1), True),
        ("2026.6", date(2026, 11, 29), False),
        ("2026.6", date(2027, 4, 1), True),
        ("2024.1.post1", date(2026, 1, 1), True),
    ],
)
def test_the_data_is_old_after_a_quarter_of_another_year(
    monkeypatch: pytest.MonkeyPatch, version: str, today: date, is_old: bool
) -> None:
    monkeypatch.setattr(zones, "VERSION", version)
    assert zones.is_old(today) is is_old

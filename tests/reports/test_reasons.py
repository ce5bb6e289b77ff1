"""Why a quota stands as it does, in plain sentences."""

from datetime import UTC, datetime, timedelta

import pytest

from quotas.models import ChallengeQuota, Plan
from quotas.reports.history import Explanation, explain
from quotas.reports.reasons import reason
from quotas.rules import values
from quotas.rules.outcomes import Forecast
from quotas.rules.values import OnChange, Quota
from tests.conftest import STAFF, USER

BEGAN = datetime(2026, 9, 24, 8, tzinfo=UTC)
DAY = timedelta(days=1)
FREE = values.Plan("free", 1, 20, "rolling", DAY, "UTC")


def of(
    plan: values.Plan = FREE,
    *,
    used: int = 18,
    given: int = 0,
    source: str = "default",
    is_due: bool = False,
    began: datetime = BEGAN,
) -> str:
    left = values.remaining(plan.allowance, given, used)
    quota = Quota(USER, plan, plan.allowance, left, used, given, began, began + DAY, began)
    return reason(Explanation(quota, source, False, is_due, [], Forecast(quota, 1, None, None)))


def test_it_says_what_the_plan_gives_what_was_used_and_when_it_resets() -> None:
    assert of() == (
        "The plan free gives 20 units every 24 hours. 18 were used since 08:00 UTC on 24 September 2026, "
        "2 are left; it resets at 08:00 UTC on 25 September 2026."
    )


@pytest.mark.parametrize(
    ("used", "given", "words"),
    [
        (0, 0, "None was used since 08:00 UTC on 24 September 2026, 20 are left; "),
        (1, 0, "1 was used since 08:00 UTC on 24 September 2026, 19 are left; "),
        (19, 0, "19 were used since 08:00 UTC on 24 September 2026, 1 is left; "),
        (20, 0, "20 were used since 08:00 UTC on 24 September 2026, none is left; "),
        (20, 10, "20 were used since 08:00 UTC on 24 September 2026, staff added 10, 10 are left; "),
        (5, -3, "5 were used since 08:00 UTC on 24 September 2026, staff removed 3, 12 are left; "),
        (25, 0, "25 were used since 08:00 UTC on 24 September 2026, 5 beyond what there was, none is left; "),
        (25, 3, ", staff added 3, 2 beyond what there was, none is left; "),
    ],
)
def test_it_says_who_used_added_and_removed(used: int, given: int, words: str) -> None:
    assert words in of(used=used, given=given)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("default", "The plan free gives 20 units"),
        ("staff", "The plan free, which staff chose, gives 20 units"),
        ("billing", "The plan free, from Clerk's billing, gives 20 units"),
        ("metadata", "The plan free, from Clerk's metadata, gives 20 units"),
    ],
)
def test_it_says_where_the_plan_comes_from(source: str, words: str) -> None:
    assert of(source=source).startswith(words)


@pytest.mark.parametrize(
    ("policy", "seconds", "words"),
    [
        ("rolling", 1, "every second."),
        ("rolling", 90, "every 90 seconds."),
        ("rolling", 5_400, "every 90 minutes."),
        ("anchored", 3_600, "every hour."),
        ("anchored", 86_400, "every 24 hours."),
        ("rolling", 129_600, "every 36 hours."),
        ("rolling", 604_800, "every 7 days."),
        ("daily", 5, "each day in Europe/Berlin."),
        ("weekly", 5, "each week in Europe/Berlin."),
        ("monthly", 5, "each month in Europe/Berlin."),
    ],
)
def test_it_names_the_period(policy: str, seconds: int, words: str) -> None:
    plan = values.Plan("p", 1, 1, policy, timedelta(seconds=seconds), "Europe/Berlin")
    assert f"The plan p gives 1 unit {words} " in of(plan, used=0)


def test_the_reset_is_not_named_too_early() -> None:
    words = of(began=BEGAN + timedelta(microseconds=1))
    assert "since 08:00 UTC on 24 September 2026" in words
    assert words.endswith("it resets at 08:00:01 UTC on 25 September 2026.")


def test_a_reset_that_is_due_is_named() -> None:
    assert of(used=0, is_due=True) == (
        "The plan free gives 20 units every 24 hours. A reset is due, which the next request carries out: "
        "20 are left. If that came now, the period would end at 08:00 UTC on 25 September 2026."
    )


def test_without_a_limit_nothing_was_used_of_it() -> None:
    assert of(FREE._replace(name="pro", allowance=None)) == (
        "The plan pro has no limit, so every spend is granted; its next period begins at 08:00 UTC on "
        "25 September 2026."
    )


@pytest.mark.django_db
def test_the_sentence_is_that_of_the_ledger() -> None:
    Plan(name="pro", allowance=50).save()
    quotas = ChallengeQuota.objects
    quotas.consume(USER, 18)
    quotas.change_plan(USER, "pro", OnChange.KEEP, actor=STAFF)
    quotas.adjust(USER, 5, reason="a test", actor=STAFF)
    words = reason(explain(USER, None, 1))
    assert words.startswith(
        "The plan pro, which staff chose, gives 50 units every 24 hours. 18 were used since "
    )
    assert ", staff added 5, 37 are left; it resets at " in words


@pytest.mark.django_db
def test_of_a_deleted_user_it_says_only_that() -> None:
    ChallengeQuota.objects.current(USER)
    ChallengeQuota.objects.delete(USER, actor=STAFF)
    words = reason(explain(USER, None, 1))
    assert words.startswith("This user was deleted at ")
    assert words.endswith(": the quota is closed permanently.")

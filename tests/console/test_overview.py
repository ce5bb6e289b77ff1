"""The overview, its chart, and the limits on every GET of the admin."""

import re
from collections.abc import Callable
from datetime import date
from uuid import uuid4

import psycopg
import pytest
from django.contrib import admin
from django.db import connection
from django.http import HttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext

from quotas.console.charts import daily_bars
from quotas.models import ChallengeQuota, LedgerEntry
from quotas.reports import totals
from quotas.reports.totals import Day
from quotas.rules import outcomes, values
from quotasite.staff import site
from tests.tools.site import url_of_the_test_database
from tests.tools.staff import LIST, sign_in, text

Make = Callable[..., ChallengeQuota]
INDEX = "/admin/"
SLOW = "SELECT pg_sleep(10)"


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(totals, "BUDGET", 60.0)  # however busy this machine is


@pytest.fixture
def staff(db: None) -> Client:
    return sign_in("view_challengequota", "view_ledgerentry")


def tile(page: str, name: str) -> str:
    """Return the figure on the tile of this name."""
    found = re.search(f"<dt>{name}</dt><dd>(.*?)</dd>", page)
    assert found, f"no tile {name}"
    return re.sub("<.*?>", "", found[1])


def spend_all(user_id: str) -> None:
    ChallengeQuota.objects.consume(user_id, 20)
    with pytest.raises(outcomes.Exhausted):
        ChallengeQuota.objects.consume(user_id)


def test_the_overview_tells_how_many_there_are_and_what_happened_today(
    staff: Client, make_quota: Make
) -> None:
    for number in range(3):
        make_quota(f"user_{number}")
    spend_all("user_0")
    ChallengeQuota.objects.consume("user_1", 5)
    ChallengeQuota.objects.delete("user_2", actor=values.Actor("webhook", "clerk"))
    page = text(staff.get(INDEX))
    names = ("Users", "Exhausted now", "Spent today", "Refused today")
    assert [tile(page, name) for name in names] == ["2", "1", "25", "1"]
    assert page.count('<g class="day">') == 30


def test_the_overview_names_who_hits_the_limit(staff: Client, make_quota: Make) -> None:
    make_quota()
    assert "No user was refused since" in text(staff.get(INDEX))
    spend_all("user_1")
    assert re.search(r'user_5F1/change/">user_1</a></th><td class="number">1</td>', text(staff.get(INDEX)))


def test_more_exhausted_users_than_are_counted_are_said_to_be_more(
    staff: Client, make_quota: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        make_quota(f"user_{number}", remaining=0)
    monkeypatch.setattr(site, "MAX_EXHAUSTED", 1)
    assert tile(text(staff.get(INDEX)), "Exhausted now") == "more than 1"


def test_days_that_are_not_summed_yet_are_not_shown_as_empty(
    staff: Client, make_quota: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(totals, "BUDGET", 0.0)
    page = text(staff.get(INDEX))
    assert "of 30 days are summed so far. Reload this page" in page
    assert page.count('<g class="day">') < 30
    monkeypatch.setattr(totals, "BUDGET", 60.0)
    assert "are summed so far" not in text(staff.get(INDEX))


@pytest.mark.parametrize("codename", ["view_challengequota", "view_ledgerentry", "view_webhookevent"])
def test_the_figures_are_for_those_who_may_see_quotas_and_ledger(db: None, codename: str) -> None:
    answer = sign_in(codename).get(INDEX)
    assert answer.status_code == 200
    assert "Spent today" not in text(answer)


def test_the_overview_costs_as_many_queries_for_many_users_as_for_one(
    staff: Client, make_quota: Make
) -> None:
    def queries() -> int:
        staff.get(INDEX)
        with CaptureQueriesContext(connection) as captured:
            staff.get(INDEX)
        return len(captured)

    make_quota("user_0")
    spend_all("user_0")
    few = queries()
    for number in range(1, 6):
        make_quota(f"user_{number}")
        spend_all(f"user_{number}")
    assert queries() == few


DAYS = [Day(date(2026, 11, 11), 170, 0), Day(date(2026, 11, 12), 340, 3), Day(date(2026, 11, 13), 1, 0)]


def test_each_day_of_the_chart_has_its_figures_as_a_title() -> None:
    assert re.findall("<title>(.*?)</title>", daily_bars(DAYS)) == [
        "11 Nov: 170 spent, 0 refused",
        "12 Nov: 340 spent, 3 refused",
        "13 Nov: 1 spent, 0 refused",
    ]


def test_a_bar_is_as_tall_as_its_figure_and_the_least_can_be_seen() -> None:
    heights = {
        kind: [int(height) for height in re.findall(f'class="{kind}" .*?height="(\\d+)"', daily_bars(DAYS))]
        for kind in ("spent", "refused")
    }
    assert heights == {"spent": [50, 100, 2], "refused": [0, 40, 0]}


def test_the_chart_is_there_for_those_who_cannot_see_it() -> None:
    chart = daily_bars(DAYS)
    assert 'role="img" aria-label="Spent and refused per day from 11 Nov to 13 Nov' in chart
    assert '<time datetime="2026-11-12">12 Nov</time></th><td>340</td><td>3</td>' in chart


def test_the_chart_needs_no_style_that_a_strict_policy_forbids() -> None:
    assert not re.search("style|<script| on[a-z]+=", daily_bars(DAYS))


@pytest.mark.parametrize("days", [[], [Day(date(2026, 11, 11), 0, 0)]])
def test_a_chart_of_nothing_can_be_drawn(days: list[Day]) -> None:
    assert daily_bars(days)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit a page's statements to half a second."""
    monkeypatch.setattr(site, "STATEMENT_SECONDS", 0.5)


def ask_slowly(*_: object, **__: object) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute(SLOW)
    return HttpResponse()


@pytest.mark.postgres
@pytest.mark.parametrize("part", ["get_queryset", "state"])  # in the view, during rendering
def test_a_page_that_takes_too_long_is_broken_off_and_says_so(
    staff: Client, make_quota: Make, slow: None, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    make_quota()
    monkeypatch.setattr(admin.site._registry[ChallengeQuota], part, ask_slowly)
    answer = staff.get(LIST)
    assert answer.status_code == 503
    assert "longer than 0.5 seconds" in text(answer)


@pytest.mark.postgres
def test_without_its_figures_the_first_page_is_still_there(
    staff: Client, slow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site, "exhausted", ask_slowly)
    answer = staff.get(INDEX)
    assert answer.status_code == 200
    page = text(answer)
    assert "The overview took too long" in page
    assert "/admin/quotas/challengequota/" in page


def statements(view: Callable[[], object]) -> str:
    with CaptureQueriesContext(connection) as captured:
        view()
    return "\n".join(query["sql"] for query in captured)


@pytest.mark.postgres
def test_only_looking_is_bounded(make_quota: Make) -> None:
    make_quota()
    staff = sign_in("view_challengequota", "change_challengequota")
    assert "statement_timeout" in statements(lambda: staff.get(LIST))
    sent = {
        "action": "reset_now",
        "_selected_action": "user_1",
        "confirmed": "1",
        "reason": "x",
        "token": uuid4(),
    }
    acted = statements(lambda: staff.post(LIST, sent))
    assert LedgerEntry.objects.filter(kind="reset").exists()
    assert "statement_timeout" not in acted
    assert "statement_timeout" in statements(lambda: staff.head(LIST))


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True, serialized_rollback=True)
def test_the_bound_ends_with_the_page() -> None:
    assert sign_in("view_challengequota").get(LIST).status_code == 200
    with connection.cursor() as cursor:
        cursor.execute("SHOW statement_timeout")
        assert cursor.fetchone() == ("0",)


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True, serialized_rollback=True)
def test_a_connection_that_died_meanwhile_is_replaced() -> None:
    staff = sign_in("view_challengequota", "view_ledgerentry")
    for path in (INDEX, LIST):
        with (
            psycopg.connect(url_of_the_test_database(), autocommit=True) as other,
            connection.cursor() as ours,
        ):
            ours.execute("SELECT pg_backend_pid()")
            other.execute("SELECT pg_terminate_backend(%s, 5000)", ours.fetchone())
        assert staff.get(path).status_code == 200

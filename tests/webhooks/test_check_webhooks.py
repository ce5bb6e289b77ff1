"""`check_webhooks`: who opened the quotas, which deliveries came or were refused, and what to do."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection
from django.http import HttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext
from pytest_django import Settings

from quotas.models import ChallengeQuota
from quotas.rules.values import Actor
from tests import ROOT
from tests.tools.staff import sign_in, text
from tests.webhooks.test_webhook import CREATED, FOREIGN_SECRET
from webhooks import arrivals, refusals, views
from webhooks.causes import CAUSES
from webhooks.models import DeliveryRefusals, WebhookEvent

pytestmark = pytest.mark.django_db
Deliver = Callable[..., HttpResponse]
HOUR = timedelta(hours=1)


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Count anew, and let the test say when a process may write again."""
    clock = Clock()
    monkeypatch.setattr(refusals, "monotonic", clock)
    monkeypatch.setattr(views, "REFUSALS", refusals.RefusalCounter())
    return clock


def report(*options: str) -> tuple[str, str]:
    """Return what is printed, and the error: "" if nothing is wrong."""
    out = StringIO()
    try:
        call_command("check_webhooks", *options, stdout=out)
    except CommandError as error:
        return out.getvalue(), str(error)
    return out.getvalue(), ""


def be_away() -> None:
    raise OperationalError("away")


def counts() -> dict[str, int]:
    return dict(DeliveryRefusals.objects.values_list("reason", "times"))


def test_a_service_whose_deliveries_arrive_is_in_order(deliver: Deliver) -> None:
    deliver(*CREATED)
    ChallengeQuota.objects.open_missing("user_2", actor=Actor("command", "import_quotas"))
    WebhookEvent.objects.update(handled_at=datetime.now(UTC) - 26 * HOUR)
    printed, error = report()
    assert error == ""
    assert re.search(r"1  A delivery from Clerk\n", printed)
    assert re.search(r"1  An import \(import_quotas\)\n", printed)
    assert "Refused deliveries in the last 7 days: none\n" in printed
    assert printed.endswith("UTC, 1 d 2 h ago\n")


def test_missed_deliveries_are_a_fault_with_all_causes(shift: Callable[[str, timedelta], None]) -> None:
    ChallengeQuota.objects.current("user_1")
    shift("user_1", HOUR)
    printed, error = report()
    assert error == "No delivery from Clerk has arrived, but first requests opened quotas: 1."
    assert "Last verified delivery: none in the inbox" in printed
    assert printed.count("\nCause  ") == len(CAUSES)
    assert "see  failed attempts in the dashboard, then a success\n  do   nothing: Clerk repeats" in printed


REFUSED: dict[str, dict[str, Any]] = {
    "signature": {"secret": FOREIGN_SECRET},
    "timestamp": {"timestamp": 1_700_000_000},
    "headers": {"Svix_Signature": ""},
    "malformed": {"body": b"[]"},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_refused_delivery_is_counted_by_its_reason(deliver: Deliver, reason: str) -> None:
    assert deliver(*CREATED, **REFUSED[reason]).status_code == 400
    assert counts() == {reason: 1}


def test_a_delivery_that_not_configured_can_verify_is_counted(deliver: Deliver, settings: Settings) -> None:
    settings.CLERK_WEBHOOK_SIGNING_SECRET = []
    assert deliver(*CREATED).status_code == 503
    assert counts() == {"not_configured": 1}
    assert "CLERK_WEBHOOK_SIGNING_SECRET holds no usable secret." in report()[1]


def test_each_reason_has_its_words() -> None:
    assert arrivals.REASONS.keys() == {*REFUSED, "not_configured"}


def test_refusals_are_a_fault_until_a_delivery_arrives(deliver: Deliver) -> None:
    deliver(*CREATED, **REFUSED["signature"])
    printed, error = report()
    assert re.search(r"1  The signature does not match CLERK_WEBHOOK_SIGNING_SECRET; last 20", printed)
    assert error.startswith("Deliveries were refused, and none has arrived: The signature does not match")
    deliver(*CREATED)
    assert report()[1] == ""


def test_what_strangers_send_is_shown_and_no_fault(deliver: Deliver) -> None:
    deliver(*CREATED, **REFUSED["headers"])
    printed, error = report()
    assert "1  Svix's headers are missing" in printed
    assert error == ""


def test_a_stranger_makes_one_write_in_ten_seconds_and_nothing_is_lost(
    deliver: Deliver, clock: Clock
) -> None:
    with CaptureQueriesContext(connection) as queries:
        for _ in range(50):
            deliver(*CREATED, **REFUSED["headers"])
        clock.now += 9.9
        deliver(*CREATED, **REFUSED["headers"])
    assert len(queries) == 1
    clock.now += 0.2
    deliver(*CREATED, **REFUSED["headers"])
    assert counts() == {"headers": 52}


def test_a_refusal_needs_no_database(deliver: Deliver, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(connection, "cursor", be_away)
        assert deliver(*CREATED, **REFUSED["headers"]).status_code == 400
    clock.now += 10
    deliver(*CREATED, **REFUSED["headers"])
    assert counts() == {"headers": 2}


def test_nothing_of_a_request_is_kept() -> None:
    columns = {field.name for field in DeliveryRefusals._meta.fields}
    assert columns == {"id", "day", "reason", "times", "last_at"}


def test_old_refusals_are_not_counted(deliver: Deliver) -> None:
    deliver(*CREATED, **REFUSED["signature"])
    old = datetime.now(UTC) - timedelta(days=8)
    DeliveryRefusals.objects.update(day=old.date(), last_at=old)
    assert report()[1] == ""


def test_programs_get_one_object(deliver: Deliver) -> None:
    deliver(*CREATED)
    deliver(*CREATED, **REFUSED["malformed"])
    printed, _ = report("--json")
    figures = json.loads(printed)
    assert figures["opened"] == {**dict.fromkeys(arrivals.OPENED_BY, 0), "webhook": 1}
    assert figures["refused"]["malformed"]["times"] == 1
    assert figures["last_delivery_age_seconds"] == 0
    assert figures["faults"] == []


def test_the_overview_shows_the_same(deliver: Deliver) -> None:
    deliver(*CREATED, **REFUSED["signature"])
    page = text(sign_in("view_challengequota", "view_ledgerentry").get("/admin/"))
    assert "Deliveries were refused, and none has arrived: The signature does not match" in page
    assert re.search(r"The signature does not match .*?UTC</th><td class=\"number\">1</td>", page)


def test_the_metrics_know_the_last_delivery_after_a_restart(
    deliver: Deliver, client: Client, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.METRICS_TOKEN = "a token for the tests alone"

    def scraped() -> float:
        headers = {"Authorization": f"Bearer {settings.METRICS_TOKEN}"}
        page = client.get("/metrics", headers=headers).content.decode()
        return float(re.findall(r"^quotasite_webhook_last_delivery_timestamp_seconds (\S+)$", page, re.M)[0])

    assert scraped() == 0
    deliver(*CREATED)
    at = WebhookEvent.objects.get().handled_at.timestamp()
    assert scraped() == pytest.approx(at, abs=0.01)
    monkeypatch.setattr("quotasite.observing.probes.last_delivery", be_away)
    assert scraped() == pytest.approx(at, abs=0.01)


def test_the_page_has_the_commands_table() -> None:
    page = (ROOT / "docs" / "clerk.md").read_text().partition("## When deliveries do not arrive")[2]
    table = page.partition("\n## ")[0].replace("`", "")
    rows = [tuple(cell.strip() for cell in row.split("|")[1:-1]) for row in re.findall(r"^\|.*", table, re.M)]
    assert rows[2:] == [*CAUSES]  # after the head and the line below it

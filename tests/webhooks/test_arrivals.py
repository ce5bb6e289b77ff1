"""Whether Clerk's deliveries arrive: the safety net of the first request must not hide that none do."""

import re
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.core.checks import run_checks
from django.http import HttpResponse
from django.test import Client

from quotas.models import ChallengeQuota
from quotas.rules.values import Actor
from tests.tools.staff import sign_in, text
from tests.webhooks.test_webhook import CREATED
from webhooks.arrivals import OPENED_BY, Arrivals
from webhooks.models import WebhookEvent

pytestmark = pytest.mark.django_db
Shift = Callable[[str, timedelta], None]
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
BACKFILL = Actor("command", "backfill_quotas")


def warnings() -> list[str]:
    found = run_checks(databases=["default"])
    return [message.msg for message in found if message.id == "webhooks.W001"]


def open_by_a_request(user_id: str, ago: timedelta, shift: Shift) -> None:
    ChallengeQuota.objects.current(user_id)
    shift(user_id, ago)


@pytest.fixture
def staff() -> Client:
    return sign_in("view_challengequota", "view_ledgerentry")


def test_quotas_are_counted_by_who_opened_them(
    deliver: Callable[..., HttpResponse], shift: Shift, staff: Client
) -> None:
    deliver(*CREATED)
    ChallengeQuota.objects.current("user_5")
    ChallengeQuota.objects.current("user_2", actor=Actor("service", "api"))
    ChallengeQuota.objects.open_missing("user_3", actor=BACKFILL)
    ChallengeQuota.objects.open_missing("user_6", actor=Actor("command", "import_quotas"))
    ChallengeQuota.objects.open_missing("user_7", actor=Actor("command", "another"))
    open_by_a_request("user_4", 8 * DAY, shift)
    assert Arrivals.now().opened == dict.fromkeys(OPENED_BY, 1)
    page = text(staff.get("/admin/"))
    rows = re.findall(r'<th scope="row">(\w+(?: \w+)?).*?</th><td class="number">(\d+)</td>', page)
    labels = ("A delivery", "The user", "A server", "The backfill", "An import", "Staff")
    assert rows == [(label, "1") for label in labels]
    assert "Clerk's last delivery was handled on" in page


def test_first_requests_without_any_delivery_are_a_warning(shift: Shift, staff: Client) -> None:
    assert "The inbox holds no delivery from Clerk." in text(staff.get("/admin/"))
    assert warnings() == []
    open_by_a_request("user_1", HOUR, shift)
    fault = "No delivery from Clerk has arrived, but first requests opened quotas: 1."
    assert warnings() == [fault]
    assert fault in text(staff.get("/admin/"))


def test_first_requests_since_the_last_delivery_are_a_warning(
    deliver: Callable[..., HttpResponse], shift: Shift
) -> None:
    deliver(*CREATED)
    event = WebhookEvent.objects.get()
    event.handled_at -= 2 * DAY
    event.save()
    open_by_a_request("user_5", 3 * DAY, shift)
    assert warnings() == []
    open_by_a_request("user_2", DAY, shift)
    open_by_a_request("user_3", HOUR, shift)
    since = f"{event.handled_at:%Y-%m-%d %H:%M} UTC"
    assert warnings() == [
        f"No delivery from Clerk has arrived since {since}, but first requests opened quotas: 2."
    ]


def test_a_delivery_that_may_be_on_its_way_is_not_missed() -> None:
    ChallengeQuota.objects.current("user_1")
    assert warnings() == []


def test_a_backfill_needs_no_delivery(shift: Shift) -> None:
    ChallengeQuota.objects.open_missing("user_1", actor=BACKFILL)
    shift("user_1", HOUR)
    assert warnings() == []

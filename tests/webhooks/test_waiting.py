"""Users with a plan of Clerk's that did not exist here, from the backfill to a report without drift."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from pytest_django import Settings

from quotas.models import ChallengeQuota, LedgerEntry
from quotas.reports import audit
from tests.tools.clerk_api import ClerkAPI, make_user
from tests.tools.staff import sign_in

pytestmark = pytest.mark.django_db
USERS = 300


@pytest.fixture
def clerk(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[ClerkAPI]:
    """Clerk with 300 users: the metadata of 240 of them name the plan pro."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    settings.CLERK_PLAN_METADATA_KEY = "plan"
    metadata = [{} if number % 5 == 0 else {"plan": "pro"} for number in range(USERS)]
    with ClerkAPI([make_user(number, public_metadata=data) for number, data in enumerate(metadata)]) as api:
        settings.CLERK_API_URL, settings.CLERK_SECRET_KEY = api.url, api.key
        yield api


def run(*command: str) -> str:
    """Return what a command prints, to both outputs, and its error."""
    printed, error = io.StringIO(), ""
    try:
        call_command(*command, stdout=printed, stderr=printed)
    except CommandError as failure:
        error = str(failure)
    return printed.getvalue() + error


def by_command(folder: Path) -> None:
    (folder / "plans.toml").write_text("[plans.pro]\nallowance = 100\n")
    assert "240 of 240 users who waited for a plan have it now." in run(
        "apply_plans", str(folder / "plans.toml")
    )


def in_the_admin(_: Path) -> None:
    staff = sign_in(is_superuser=True)
    rules = {"name": "pro", "allowance": "100", "reset_policy": "rolling", "period_seconds": "24 h"}
    added = staff.post("/admin/quotas/plan/add/", {**rules, "timezone": "UTC"}, follow=True)
    assert "240 users wait for this plan" in added.content.decode()
    given = staff.post("/admin/quotas/plan/pro/give/", follow=True)
    assert "240 users have the plan pro now." in given.content.decode()


@pytest.mark.parametrize("add_the_plan", [by_command, in_the_admin])
def test_all_who_wait_get_their_plan_once_it_is_added(
    clerk: ClerkAPI, tmp_path: Path, add_the_plan: Callable[[Path], None]
) -> None:
    printed = run("backfill_quotas")
    assert "plans 240" in printed
    assert "no plan pro: 240 users wait for it; add it with apply_plans or in the admin" in printed
    assert ChallengeQuota.objects.filter(plan="free").count() == USERS
    assert "waiting 240" in run("report_drift")
    add_the_plan(tmp_path)
    assert ChallengeQuota.objects.filter(plan="pro", plan_source="metadata").count() == 240
    assert "0 drifts" in run("report_drift")
    assert "wait" not in run("backfill_quotas")
    assert not LedgerEntry.objects.filter(kind="reset").exists()
    assert list(audit.faults(None)) == []

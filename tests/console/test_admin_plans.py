"""Plans in the console: added, never deleted, and saved only after a preview of the affected users."""

import re
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.test import Client

from quotas.models import ChallengeQuota, Plan
from quotas.reports import counts, plan_edits
from quotas.rules.values import Actor
from tests.tools.staff import SCRIPT, sign_in, text

pytestmark = pytest.mark.django_db
Make = Callable[..., ChallengeQuota]
Shift = Callable[[str, timedelta], None]

FREE = "/admin/quotas/plan/free/change/"
RULES = {
    "allowance": "20",
    "reset_policy": "rolling",
    "period_seconds": "86400",
    "timezone": "UTC",
    "actions": "{}",
    "is_public": "on",
}


@pytest.fixture
def root() -> Client:
    return sign_in(is_superuser=True)


def edit(client: Client, **data: str) -> str:
    return text(client.post(FREE, {**RULES, **data}, follow=True))


def table(page: str) -> dict[str, list[int]]:
    """The preview's figures of each state: now, after saving, and if used units counted."""
    lines = re.findall(r'class="chip (\w+)">.*?((?:<td class="number">\d+</td>)+)', page)
    return {state: [int(figure) for figure in re.findall(r">(\d+)<", cells)] for state, cells in lines}


def test_new_rules_are_shown_before_they_are_saved(root: Client, make_quota: Make) -> None:
    make_quota("user_1", remaining=12)
    make_quota("user_2")
    shown = edit(root, allowance="5")
    assert "2 users have this plan" in shown
    assert "Every user of the plan was evaluated." in shown
    assert re.search(r"allowance</th><td>20</td><td>→ 5<", shown)
    assert Plan.objects.get().allowance == 20
    saved = edit(root, allowance="5", confirmed="1")
    assert "was changed successfully" in saved
    assert (Plan.objects.get().allowance, Plan.objects.get().version) == (5, 2)


def test_what_the_preview_asks_to_confirm_saves_what_was_typed(root: Client, make_quota: Make) -> None:
    make_quota()
    typed = {"allowance": "", "reset_policy": "daily", "timezone": "Europe/Berlin", "actions": '{"go": 2}'}
    shown = edit(root, **typed)
    hidden = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', shown))
    del hidden["csrfmiddlewaretoken"]
    root.post(FREE, {name: value.replace("&quot;", '"') for name, value in hidden.items()})
    plan = Plan.objects.get()
    assert (plan.allowance, plan.reset_policy, plan.timezone) == (None, "daily", "Europe/Berlin")
    assert (plan.actions, plan.is_public, plan.is_default) == ({"go": 2}, True, True)


def test_the_preview_judges_by_the_rules(root: Client, make_quota: Make, shift: Shift) -> None:
    for number, used in enumerate([0, 4, 5, 20], start=1):
        make_quota(f"user_{number}", remaining=20 - used)
    make_quota("user_5", remaining=20)
    shift("user_5", timedelta(days=2))  # due: the next request begins a period by the new rules
    assert table(edit(root, allowance="5")) == {
        "healthy": [4, 4, 2],
        "low": [0, 0, 1],
        "exhausted": [1, 1, 2],
    }
    assert table(edit(root, allowance="0")) == {
        "healthy": [4, 3, 0],
        "low": [0, 0, 0],
        "exhausted": [1, 2, 5],
    }
    assert table(edit(root, allowance=""))["healthy"] == [4, 4, 5]


def test_a_preview_of_many_says_that_it_is_a_sample(
    root: Client, make_quota: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        make_quota(f"user_{number}")
    monkeypatch.setattr(plan_edits, "MAX_JUDGED", 2)
    monkeypatch.setattr(counts, "MAX_COUNTED", 3)
    shown = edit(root, allowance="5")
    assert "more than 3 users have this plan" in shown
    assert "Only 2 of them were evaluated" in shown
    assert table(shown)["healthy"] == [2, 2, 2]


def test_deleted_users_and_those_of_other_plans_are_not_touched(root: Client, make_quota: Make) -> None:
    Plan(name="pro", allowance=50).save()
    for number in (1, 2, 3):
        make_quota(f"user_{number}")
    ChallengeQuota.objects.delete("user_1", actor=Actor("webhook", "clerk"))
    ChallengeQuota.objects.change_plan("user_2", "pro", actor=Actor("staff", "bob"))
    assert "1 user has this plan" in edit(root, allowance="5")


def test_what_touches_no_rule_is_saved_at_once(root: Client) -> None:
    root.post(FREE, {name: value for name, value in RULES.items() if name != "is_public"})
    assert not Plan.objects.get().is_public
    assert Plan.objects.get().version == 1


def test_a_plan_that_is_filled_in_wrongly_is_not_previewed(root: Client, make_quota: Make) -> None:
    make_quota()
    shown = edit(root, allowance="-1", actions=SCRIPT)
    assert "Please correct the errors below." in shown
    assert "Affected users" not in shown
    assert SCRIPT not in shown


def test_who_may_only_look_at_plans_gets_no_preview_and_saves_nothing(make_quota: Make) -> None:
    make_quota()
    viewer = sign_in("view_plan")
    assert viewer.post(FREE, {**RULES, "allowance": "5"}).status_code == 403
    assert viewer.post(FREE, {**RULES, "allowance": "5", "confirmed": "1"}).status_code == 403
    assert Plan.objects.get().allowance == 20


def test_the_page_of_a_plan_shows_its_versions(root: Client, make_quota: Make) -> None:
    make_quota(allowance=20)
    make_quota(allowance=None)
    page = text(root.get(FREE))
    assert re.findall(r'<th scope="row" class="number">(\d)</th>', page) == ["2", "1"]
    assert page.index("unlimited</td>") < page.index(">20</td>")


def test_a_plan_without_actions_is_saved_with_none(root: Client) -> None:
    assert "take effect at each user’s next reset" in text(root.get(FREE))
    edit(root, allowance="30", actions="", confirmed="1")
    plan = Plan.objects.get()
    assert (plan.allowance, plan.actions, plan.is_default) == (30, {}, True)


def test_a_plan_can_be_added_but_not_as_the_default_and_never_deleted(root: Client) -> None:
    pro = {"name": "pro", "reset_policy": "rolling", "period_seconds": "3600", "timezone": "UTC"}
    root.post("/admin/quotas/plan/add/", {**pro, "actions": '{"generate": 2}', "is_default": "on"})
    plan = Plan.objects.get(name="pro")
    assert (plan.allowance, plan.actions, plan.is_default) == (None, {"generate": 2}, False)
    assert "unlimited" in text(root.get("/admin/quotas/plan/"))
    assert root.post("/admin/quotas/plan/pro/delete/", {"post": "yes"}).status_code == 403


def test_the_list_of_plans_leads_to_the_users_of_each(root: Client, make_quota: Make) -> None:
    make_quota()
    link = re.search(r'href="(/admin/quotas/challengequota/\?[^"]+)"', text(root.get("/admin/quotas/plan/")))
    assert link
    assert "1 quota" in text(root.get(link[1]))

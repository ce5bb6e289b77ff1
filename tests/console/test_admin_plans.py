"""Plans in the console: added, never deleted, and saved only after a preview of the affected users."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from quotas.console import plan_acts
from quotas.models import ChallengeQuota, LedgerEntry, Plan, PlanVersion
from quotas.reports import counts, plan_edits
from quotas.rules.durations import duration_in_words
from quotas.rules.values import Actor
from tests.tools.staff import SCRIPT, confirm, sign_in, text

pytestmark = pytest.mark.django_db
Make = Callable[..., ChallengeQuota]
Shift = Callable[[str, timedelta], None]

FREE = "/admin/quotas/plan/free/change/"
RULES = {
    "allowance": "20",
    "reset_policy": "rolling",
    "period_seconds": "24 h",
    "timezone": "UTC",
    "is_public": "on",
}


@pytest.fixture
def root() -> Client:
    return sign_in(is_superuser=True)


def edit(client: Client, **data: str | list[str]) -> str:
    return text(client.post(FREE, {**RULES, **data}, follow=True))


def table(page: str) -> dict[str, list[int]]:
    """The preview's figures of each state: now, after saving, and if used units counted."""
    lines = re.findall(r'class="chip (\w+)">.*?((?:<td class="number">\d+</td>)+)', page)
    return {state: [int(figure) for figure in re.findall(r">(\d+)<", cells)] for state, cells in lines}


def test_a_save_does_not_count_the_users_who_wait(root: Client) -> None:
    with CaptureQueriesContext(connection) as captured:
        saved = root.post(FREE, {**RULES, "allowance": "50", "confirmed": "1"})
    assert (saved.status_code, Plan.objects.get().allowance) == (302, 50)
    assert [query["sql"] for query in captured if "plan_assignments" in query["sql"]] == []


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
    rows = {"actions_name": ["go", "", "stop"], "actions_cost": ["2", "", "1"]}
    shown = edit(
        root, allowance="", reset_policy="daily", period_seconds="90 min", timezone="Europe/Berlin", **rows
    )
    hidden: dict[str, list[str]] = {}
    for name, value in re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', shown):
        hidden.setdefault(name, []).append(value)
    root.post(FREE, hidden)
    plan = Plan.objects.get()
    assert (plan.allowance, plan.reset_policy, plan.timezone) == (None, "daily", "Europe/Berlin")
    assert (plan.actions, plan.period_seconds) == ({"go": 2, "stop": 1}, 5_400)
    assert (plan.is_public, plan.is_default) == (True, True)


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
    shown = edit(root, allowance="-1", actions_name=SCRIPT)
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
    edit(root, allowance="30", actions_name="", actions_cost="", confirmed="1")
    plan = Plan.objects.get()
    assert (plan.allowance, plan.actions, plan.is_default) == (30, {}, True)


def test_a_plan_can_be_added_but_not_as_the_default_and_never_deleted(root: Client) -> None:
    pro = {"name": "pro", "reset_policy": "rolling", "period_seconds": "1 h", "timezone": "UTC"}
    actions = {"actions_name": "generate", "actions_cost": "2"}
    root.post("/admin/quotas/plan/add/", {**pro, **actions, "is_default": "on", "is_archived": "on"})
    plan = Plan.objects.get(name="pro")
    assert (plan.allowance, plan.actions, plan.is_default) == (None, {"generate": 2}, False)
    assert not plan.is_archived
    assert "unlimited" in text(root.get("/admin/quotas/plan/"))
    assert root.post("/admin/quotas/plan/pro/delete/", {"post": "yes"}).status_code == 403


def test_the_list_of_plans_leads_to_the_users_of_each(root: Client, make_quota: Make) -> None:
    make_quota()
    link = re.search(r'href="(/admin/quotas/challengequota/\?[^"]+)"', text(root.get("/admin/quotas/plan/")))
    assert link
    assert "1 quota" in text(root.get(link[1]))


# Rules as people write them


@pytest.mark.parametrize(
    ("typed", "seconds"),
    [
        ("24 h", 86_400),
        ("7d", 604_800),
        ("30 min", 1_800),
        ("90 s", 90),
        ("1 d 12 h", 129_600),
    ],
)
def test_a_period_is_typed_in_words(root: Client, typed: str, seconds: int) -> None:
    edit(root, period_seconds=typed, confirmed="1")
    assert Plan.objects.get().period_seconds == seconds
    assert f'value="{duration_in_words(seconds)}"' in text(root.get(FREE))


@pytest.mark.parametrize(
    "typed", ["", "24", "a day", "1 w", "0 s", "3661 d", "-5", "1.5 h", "9" * 5_000, "24 h!"]
)
def test_a_period_that_is_none_is_refused_with_examples(root: Client, typed: str) -> None:
    page = edit(root, period_seconds=typed, confirmed="1")
    assert "Write a period of 1 s to 3660 d, such as 24 h, 7 d, 30 min or 90 s." in page
    assert PlanVersion.objects.count() == 1


def test_a_bad_row_of_an_action_is_named_with_the_fix_and_all_rows_stay_as_typed(root: Client) -> None:
    names, costs = ["go", "to draw", "", "paint", "go"], ["2", "1", "4", "none", "3"]
    page = edit(root, actions_name=names, actions_cost=costs)
    for fault in (
        "Row 2, &#x27;to draw&#x27;: the name must have 1 to 64 of the characters",
        "Row 3, &#x27;&#x27;: the name must have",
        "Row 4, &#x27;paint&#x27;: the cost must be a whole number from 1 to 2147483647.",
        "Row 5, &#x27;go&#x27;: row 1 has this name already: remove one of them.",
    ):
        assert fault in page
    shown = re.findall(r'name="actions_(name|cost)" value="([^"]*)"', page)
    assert [value for kind, value in shown if kind == "name"] == [*names, "", "", ""]
    assert [value for kind, value in shown if kind == "cost"] == [*costs, "", "", ""]
    assert PlanVersion.objects.count() == 1


def test_an_action_is_removed_by_emptying_its_row(root: Client) -> None:
    edit(root, actions_name=["go", "stop"], actions_cost=["2", "1"], confirmed="1")
    assert Plan.objects.get().actions == {"go": 2, "stop": 1}
    shown = edit(root, actions_name=["", "stop"], actions_cost=["", "1"])
    assert "<td>go 2, stop 1</td><td>→ stop 1</td>" in shown
    edit(root, actions_name=["", "stop"], actions_cost=["", "1"], confirmed="1")
    assert Plan.objects.get().actions == {"stop": 1}


def test_more_actions_than_the_form_can_take_are_refused(root: Client) -> None:
    names = [f"action_{number}" for number in range(201)]
    assert "at most 200 actions" in edit(root, actions_name=names, actions_cost=["1"] * 201)


def test_who_may_only_look_reads_a_plan_in_words() -> None:
    page = text(sign_in("view_plan").get(FREE))
    assert re.search(r'<div class="readonly">1 d</div>', page)
    assert "Make it the default" not in page


# The default, and the archive


def act(client: Client, name: str, plan: str = "pro") -> str:
    return text(client.post(f"/admin/quotas/plan/{plan}/{name}/", follow=True))


@pytest.fixture
def pro() -> Plan:
    Plan(name="pro", allowance=100).save()
    return Plan.objects.get(name="pro")


def default_plans() -> list[str]:
    return [*Plan.objects.filter(is_default=True).values_list("name", flat=True)]


def test_the_default_is_chosen_after_a_look_at_what_changes(
    root: Client, pro: Plan, make_quota: Make
) -> None:
    make_quota()
    shown = text(root.get("/admin/quotas/plan/pro/default/"))
    assert re.search(r">free</th><td>default</td><td>yes</td><td>→ no<", shown)
    assert re.search(r">pro</th><td>default</td><td>no</td><td>→ yes<", shown)
    assert "1 user has free, and keep it." in shown
    assert default_plans() == ["free"]
    assert "The plan pro is the default now." in act(root, "default")
    assert default_plans() == ["pro"]
    assert ChallengeQuota.objects.current("user_new").plan.name == "pro"
    assert ChallengeQuota.objects.current("user_1").plan.name == "free"


def test_a_plan_is_archived_after_a_look_at_whom_it_touches_and_back(root: Client, pro: Plan) -> None:
    ChallengeQuota.objects.change_plan("user_1", "pro", actor=Actor("staff", "bob"))
    assert "1 user has this plan, and keep it." in text(root.get("/admin/quotas/plan/pro/archive/"))
    assert "The plan pro is archived." in act(root, "archive")
    assert Plan.objects.get(name="pro").is_archived
    page = text(root.get("/admin/quotas/plan/"))
    assert '<span class="chip deleted">archived</span>' in page
    assert ">pro</option>" not in confirm(root, "change_plan", "user_1")
    assert "is not archived any more" in act(root, "unarchive")
    assert not Plan.objects.get(name="pro").is_archived


@pytest.mark.parametrize(
    ("plan", "name", "why"),
    [
        ("free", "archive", "The plan free is the default: choose another default before you archive it."),
        ("old", "default", "The plan old is archived: unarchive it before it is the default."),
    ],
)
def test_an_act_that_is_not_possible_says_why_and_changes_nothing(
    root: Client, plan: str, name: str, why: str
) -> None:
    Plan(name="old", allowance=1, is_archived=True).save()
    page = text(root.get(f"/admin/quotas/plan/{plan}/{name}/"))
    assert "is the default" in page or "it is archived" in page
    assert 'method="post" class="confirm"' not in page
    assert why in act(root, name, plan)
    assert (default_plans(), Plan.objects.get(name="old").is_archived) == (["free"], True)


def test_only_who_may_change_plans_may_act_on_them(pro: Plan) -> None:
    viewer = sign_in("view_plan")
    for name in ("default", "archive", "unarchive", "give"):
        path = f"/admin/quotas/plan/pro/{name}/"
        assert viewer.get(path).status_code == viewer.post(path).status_code == 403
    assert default_plans() == ["free"]


def test_a_plan_that_is_not_there_has_no_acts(root: Client) -> None:
    assert root.get("/admin/quotas/plan/gold/archive/").status_code == 404
    assert root.post("/admin/quotas/plan/gold/archive/").status_code == 404


def test_the_history_of_a_plan_names_its_acts(root: Client, pro: Plan) -> None:
    act(root, "archive")
    assert "The plan pro is archived." in text(root.get("/admin/quotas/plan/pro/history/"))


def test_an_edit_leaves_what_another_request_changed_meanwhile(
    root: Client, pro: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Plan.save

    def choose_first(plan: Plan, **options: object) -> None:
        monkeypatch.setattr(Plan, "save", save)
        Plan.objects.choose_default("pro")
        Plan.objects.archive("free")
        plan.save(**options)

    monkeypatch.setattr(Plan, "save", choose_first)
    edit(root, allowance="5", confirmed="1")
    free = Plan.objects.get(name="free")
    assert (free.allowance, free.is_default, free.is_archived) == (5, False, True)
    assert default_plans() == ["pro"]


# Users who wait for a plan


def let_wait(plan: str, *user_ids: str) -> None:
    for user_id in user_ids:
        at = datetime(2026, 1, 1, tzinfo=UTC)
        ChallengeQuota.objects.assign_plan(
            user_id, "metadata", plan, updated_at=at, actor=Actor("webhook", "clerk")
        )


def add(client: Client, plan: str) -> str:
    data = {**RULES, "name": plan, "allowance": "100"}
    return text(client.post("/admin/quotas/plan/add/", data, follow=True))


def test_a_new_plan_is_given_to_who_waits_for_it_after_a_confirmation(root: Client) -> None:
    let_wait("pro", "user_1", "user_2")
    page = add(root, "pro")
    assert "was added successfully" in page
    assert "2 users wait for this plan: Clerk assigned it before it existed here." in page
    assert not ChallengeQuota.objects.filter(plan="pro").exists()
    assert "2 users have the plan pro now." in act(root, "give")
    assert ChallengeQuota.objects.filter(plan="pro", plan_source="metadata").count() == 2
    entry = LedgerEntry.objects.filter(kind="plan_changed").first()
    assert entry
    assert (entry.actor_kind, entry.actor_id) == ("staff", "alice")
    assert "0 users have the plan pro now." in act(root, "give")
    assert "No user waits for this plan." in text(root.get("/admin/quotas/plan/pro/give/"))


def test_a_plan_that_nobody_waits_for_is_added_as_ever(root: Client) -> None:
    assert "Give" not in add(root, "pro")


def test_what_takes_too_long_is_continued_by_the_next_request(
    root: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_wait("pro", "user_1", "user_2", "user_3")
    add(root, "pro")
    monkeypatch.setattr(plan_acts, "GIVE_SECONDS", -1)
    page = act(root, "give")
    assert "1 user has the plan pro now." in page
    assert "Others still wait" in page
    assert "2 users wait for this plan" in page


@pytest.mark.parametrize("path", ["/admin/quotas/plan/", FREE, "/admin/quotas/plan/add/"])
def test_each_page_of_plans_lists_who_waits_and_for_what(root: Client, path: str) -> None:
    let_wait("gold", "user_1", "user_2")
    let_wait(SCRIPT, "user_3")
    let_wait("p" * 128, "user_4")
    page = text(root.get(path))
    assert re.search(r"gold: 2 users wait for it, but there is no such plan. <a href=.*\?name=gold", page)
    assert SCRIPT not in page
    assert "p" * 41 not in page
    assert "?name=pp" not in page


def test_a_plan_that_was_added_earlier_leads_to_those_who_wait_for_it(root: Client) -> None:
    let_wait("pro", "user_1")
    Plan(name="pro", allowance=100).save()
    link = '<a href="/admin/quotas/plan/pro/give/"'
    for path in (FREE, "/admin/quotas/plan/"):
        assert f"pro: 1 user waits for it. {link}" in text(root.get(path))


def test_only_so_many_plans_are_listed(root: Client) -> None:
    for number in range(22):
        let_wait(f"plan_{number}", f"user_{number}")
    page = text(root.get("/admin/quotas/plan/"))
    assert page.count("but there is no such plan") == 20
    assert "and 2 more plans" in page
    assert "?name=plan_1" in text(root.get("/admin/quotas/plan/"))


def test_the_link_to_add_a_plan_fills_in_its_name(root: Client) -> None:
    assert 'name="name" value="gold"' in text(root.get("/admin/quotas/plan/add/?name=gold"))


@pytest.mark.postgres
def test_a_page_works_without_the_count_if_that_takes_too_long(
    root: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sleep(**_: object) -> list[object]:
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL statement_timeout = '10ms'")
            cursor.execute("SELECT pg_sleep(1)")
        return []

    monkeypatch.setattr(plan_acts, "waiting_for_ours", sleep)
    page = text(root.get("/admin/quotas/plan/"))
    assert "were not counted: it took too long" in page
    assert ">free</a>" in page

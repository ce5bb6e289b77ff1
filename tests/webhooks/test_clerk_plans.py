"""The plan of a user: chosen by staff, else assigned by Clerk's billing or metadata, else the default."""

import json
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, datetime, timedelta
from itertools import permutations

import pytest
from django.db import connection

from quotas.models import ChallengeQuota, LedgerEntry, Plan, PlanAssignment
from quotas.reports.waiting import waiting_for_unknown
from quotas.rules.values import Actor
from quotas.store import thread
from quotas.store.steps import Attempt, Read, Write
from tests.conftest import STAFF, USER
from tests.tools.ledger import assert_sound
from tests.webhooks.test_webhook import DELETED, NOON, assert_handled, user
from webhooks.handlers import apply
from webhooks.models import WebhookEvent

pytestmark = pytest.mark.django_db
MINUTE = 60_000  # milliseconds


@pytest.fixture(autouse=True)
def _plans(db, settings):
    settings.CLERK_PLAN_METADATA_KEY = "plan"
    for name, allowance in (("pro", 100), ("team", 500), ("beta", 50)):
        Plan.objects.create(name=name, allowance=allowance)


def item(what, name="A", plan="pro", at=NOON, payer=USER, amount=2_000, **changes):
    """Return an event of a subscription item: active, canceled or ended."""
    return f"subscriptionItem.{what}", {
        "object": "subscription_item",
        "id": f"csub_item_{name}",
        "status": what,
        "plan": plan and {"object": "commerce_plan", "slug": plan, "name": plan.title(), "amount": amount},
        "payer": {"object": "commerce_payer", "user_id": payer, "organization_id": "" if payer else "org_1"},
        "period_end": at + 30 * 86_400_000,
        "updated_at": at,
    } | changes


def metadata(value, at=NOON):
    return "user.updated", user(updated_at=at, public_metadata={"plan": value, "department": "sales"})


def plan():
    row = ChallengeQuota.objects.get(pk=USER)
    return row.plan_id, row.plan_source


def kinds():
    return list(LedgerEntry.objects.order_by("seq").values_list("kind", flat=True))


def choose(name):
    ChallengeQuota.objects.change_plan(USER, name, actor=STAFF, reason="a promise")


# What each assignment does


def test_an_active_item_gives_its_plan(deliver):
    assert_handled(deliver(*item("active")), "success")
    quota = ChallengeQuota.objects.get()
    assert (plan(), quota.quota_remaining) == (("pro", "billing"), 100)
    entry = LedgerEntry.objects.get(kind="plan_changed")
    assert (entry.actor_kind, entry.reason, entry.plan_source) == (
        "webhook",
        "subscriptionItem.active",
        "billing",
    )
    assert_sound(USER)


def test_what_was_used_counts_against_the_new_allowance(deliver, make_quota):
    make_quota(remaining=3)
    deliver(*item("active"))
    assert ChallengeQuota.objects.get().quota_remaining == 83
    deliver(*item("ended", at=NOON + MINUTE))
    assert ChallengeQuota.objects.get().quota_remaining == 3


WAYS_ROUND = {
    "ended and bought again": [
        item("ended", at=NOON + MINUTE),
        item("active", name="B", at=NOON + 2 * MINUTE),
    ],
    "a card that fails and recovers": [
        item("pastDue", at=NOON + MINUTE),
        item("ended", at=NOON + 2 * MINUTE),
        item("active", at=NOON + 3 * MINUTE),
    ],
    "a slug that is unknown for a moment": [
        item("updated", plan="prooo", status="active", at=NOON + MINUTE),
        item("updated", status="active", at=NOON + 2 * MINUTE),
    ],
    "a smaller plan by metadata between": [
        metadata("beta", at=NOON + MINUTE),
        item("ended", at=NOON + 2 * MINUTE),
        item("active", name="B", at=NOON + 3 * MINUTE),
    ],
    "no limit between": [
        item("active", name="B", plan="unlimited", at=NOON + MINUTE),
        item("ended", name="B", plan="unlimited", at=NOON + 2 * MINUTE),
    ],
}


@pytest.mark.parametrize("way", WAYS_ROUND.values(), ids=WAYS_ROUND)
def test_no_way_round_that_clerk_tells_of_refills_a_quota(deliver, way):
    Plan.objects.create(name="unlimited", allowance=None)
    deliver(*item("active"))
    for turn in range(3):
        ChallengeQuota.objects.consume(USER, 30)
        for kind, data in way:
            deliver(kind, data | {"updated_at": data["updated_at"] + turn * 10 * MINUTE})
    quota = ChallengeQuota.objects.get()
    assert (quota.plan_id, quota.quota_remaining, quota.period_consumed) == ("pro", 10, 90)
    assert_sound(USER)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_deliveries_in_any_order_lead_to_one_balance(deliver, order):
    """A start and an end of items, and a spend before: the same plan and the same balance."""
    ChallengeQuota.objects.consume(USER, 15)
    events = [
        item("active", name="A", plan="pro", at=NOON),
        item("active", name="B", plan="beta", at=NOON + MINUTE),
        item("ended", name="A", plan="pro", at=NOON + 2 * MINUTE),
    ]
    for number in order:
        deliver(*events[number])
    quota = ChallengeQuota.objects.get()
    assert (quota.plan_id, quota.quota_remaining, quota.period_consumed) == ("beta", 35, 15)


def test_what_staff_gave_stays_through_what_clerk_tells(deliver):
    deliver(*item("active"))
    ChallengeQuota.objects.consume(USER, 90)
    ChallengeQuota.objects.adjust(USER, -5, reason="a test", actor=STAFF)
    ChallengeQuota.objects.adjust(USER, 50, reason="a gift", actor=STAFF)
    deliver(*item("ended", at=NOON + MINUTE))
    deliver(*item("active", name="B", at=NOON + 2 * MINUTE))
    assert ChallengeQuota.objects.get().quota_remaining == 100 - 90 - 5 + 50


def test_an_item_that_ended_gives_back_the_default_plan(deliver):
    deliver(*item("active"))
    assert_handled(deliver(*item("ended", at=NOON + MINUTE)), "success")
    assert plan() == ("free", "default")


def test_a_canceled_item_keeps_its_plan_until_it_ends(deliver):
    deliver(*item("active"))
    assert_handled(deliver(*item("canceled", at=NOON + MINUTE)), "success")
    assert plan() == ("pro", "billing")
    deliver(*item("ended", at=NOON + 2 * MINUTE))
    assert plan() == ("free", "default")


@pytest.mark.parametrize("what", ["active", "canceled", "ended"])
def test_an_organizations_item_is_ignored_and_recorded(deliver, what):
    assert_handled(deliver(*item(what, payer="")), "ignored")
    event = WebhookEvent.objects.get()
    assert (event.note, event.external_id) == ("an organization pays, not a user", "csub_item_A")
    assert not ChallengeQuota.objects.exists()


@pytest.mark.parametrize("what", ["active", "ended"])
def test_an_item_may_end_without_a_plan_but_not_begin_without_one(deliver, what):
    deliver(*item("active"))
    assert_handled(
        deliver(*item(what, plan=None, at=NOON + MINUTE)), "ignored" if what == "active" else "success"
    )
    assert plan() == (("pro", "billing") if what == "active" else ("free", "default"))


@pytest.mark.parametrize(
    "changes",
    [
        {"id": None},
        {"id": "a b"},
        {"payer": None},
        {"payer": {"user_id": "u\x00"}},
        {"payer": {"user_id": 7}},
    ],
    ids=str,
)
def test_an_odd_item_is_ignored_with_the_reason(deliver, changes):
    assert_handled(deliver(*item("active", **changes)), "ignored")
    assert WebhookEvent.objects.get().note
    assert not ChallengeQuota.objects.exists()


def test_an_item_without_any_time_is_ignored(deliver):
    body = {"type": "subscriptionItem.active", "data": item("active", updated_at=None)[1]}
    assert_handled(deliver(body=json.dumps(body).encode()), "ignored")
    assert not ChallengeQuota.objects.exists()


def test_the_metadata_gives_its_plan_and_takes_it_away(deliver):
    assert_handled(deliver(*metadata("beta")), "success")
    assert plan() == ("beta", "metadata")
    deliver(*metadata(None, at=NOON + MINUTE))
    assert plan() == ("free", "default")


@pytest.mark.parametrize("value", [None, 7, "", ["pro"], {"slug": "pro"}, "p\x00", "p" * 129])
def test_metadata_that_names_no_slug_is_none(deliver, value):
    assert_handled(deliver(*metadata(value)), "success")
    assert plan() == ("free", "default")
    assert not PlanAssignment.objects.exists()


def test_without_the_setting_no_metadata_is_read(deliver, settings):
    settings.CLERK_PLAN_METADATA_KEY = ""
    deliver(*metadata("beta"))
    assert plan() == ("free", "default")
    assert WebhookEvent.objects.get().plan is None


def test_a_setting_that_is_off_takes_no_plan_away(deliver, settings):
    deliver(*metadata("beta"))
    settings.CLERK_PLAN_METADATA_KEY = ""
    assert_handled(deliver(*metadata(None, at=NOON + MINUTE)), "success")
    assert plan() == ("beta", "metadata")


def test_unsafe_metadata_is_never_read(deliver):
    deliver("user.updated", user(unsafe_metadata={"plan": "pro"}, private_metadata={"plan": "pro"}))
    assert plan() == ("free", "default")


def test_a_deleted_user_gets_no_plan(deliver):
    deliver("user.deleted", DELETED)
    assert_handled(deliver(*item("active")), "ignored")
    assert not PlanAssignment.objects.exists()
    assert kinds() == ["opened", "deleted"]


def test_an_assignment_of_the_plan_that_they_have_already_resets_no_quota_that_is_due(deliver, shift):
    deliver(*item("active"))
    ChallengeQuota.objects.consume(USER, 30)
    shift(USER, timedelta(days=2))
    deliver(*item("active", at=NOON + MINUTE))
    assert kinds() == ["opened", "plan_changed", "consumed"]


# Which source takes precedence

ASSIGNMENTS = {
    "staff": lambda deliver: choose("team"),
    "billing": lambda deliver: deliver(*item("active")),
    "metadata": lambda deliver: deliver(*metadata("beta")),
}
PLANS = {"staff": "team", "billing": "pro", "metadata": "beta"}


@pytest.mark.parametrize("order", list(permutations(ASSIGNMENTS)), ids=" ".join)
def test_the_top_source_counts_in_any_order(deliver, order):
    ranks = list(ASSIGNMENTS)
    for count, source in enumerate(order, start=1):
        ASSIGNMENTS[source](deliver)
        highest = min(order[:count], key=ranks.index)
        assert plan() == (PLANS[highest], highest)
    assert_sound(USER)


@pytest.mark.parametrize("slug", ["free", "free_user"])
@pytest.mark.parametrize("is_first", [True, False], ids=["before", "after"])
def test_the_free_item_of_each_sign_up_takes_no_plan_away(deliver, slug, is_first):
    free = item("active", "free", slug, at=NOON + MINUTE, amount=0)
    for event in [free, metadata("beta")] if is_first else [metadata("beta"), free]:
        assert_handled(deliver(*event), "success")
    assert plan() == ("beta", "metadata")
    assert not WebhookEvent.objects.exclude(note="").exists()
    deliver(*item("active", "paid"))
    assert plan() == ("pro", "billing")
    deliver(*item("ended", "paid", at=NOON + 2 * MINUTE))
    assert plan() == ("beta", "metadata")
    deliver(*metadata(None, at=NOON + MINUTE))
    assert plan() == ("free", "billing" if slug == "free" else "default")
    assert_sound(USER)


def test_a_free_item_of_a_plan_of_ours_gives_it(deliver):
    deliver(*metadata("beta"))
    deliver(*item("active", plan="team", amount=0))
    assert plan() == ("team", "billing")


@pytest.mark.parametrize(
    ("status", "slug", "expected"),
    [
        ("active", "team", ("team", "billing")),
        ("canceled", "team", ("team", "billing")),
        ("past_due", "team", ("team", "billing")),
        ("ended", "team", ("free", "default")),
        ("expired", "team", ("free", "default")),
        ("abandoned", "team", ("free", "default")),
        ("upcoming", "team", ("pro", "billing")),
        ("incomplete", "team", ("pro", "billing")),
        ("active", None, ("pro", "billing")),
        ("a status of tomorrow", "team", ("pro", "billing")),
    ],
)
def test_an_item_that_was_changed_in_place_is_followed_by_its_status(deliver, status, slug, expected):
    deliver(*item("active"))
    assert_handled(deliver(*item("updated", plan=slug, at=NOON + MINUTE, status=status)), "success")
    assert plan() == expected
    assert_sound(USER)


def test_a_change_in_place_that_comes_late_changes_nothing(deliver):
    deliver(*item("active", plan="team", at=NOON + MINUTE))
    assert_handled(deliver(*item("updated", status="active")), "ignored")
    assert plan() == ("team", "billing")


def test_a_payment_that_is_past_due_keeps_the_plan(deliver):
    deliver(*item("active"))
    assert_handled(deliver(*item("pastDue", at=NOON + MINUTE)), "success")
    assert plan() == ("pro", "billing")
    assert "past due" in WebhookEvent.objects.get(type="subscriptionItem.pastDue").note


@pytest.mark.parametrize(
    ("name", "note"),
    [
        (" beta", "there is no plan ' beta', so this gives none: did you mean beta?"),
        ("Beta", "there is no plan Beta, so this gives none: did you mean beta?"),
        ("beta plan", "there is no plan beta plan, so this gives none: add it"),
    ],
)
def test_a_plan_that_metadata_misspell_is_named(deliver, name, note):
    assert_handled(deliver(*metadata(name)), "success")
    event = WebhookEvent.objects.get()
    assert (event.status, event.note[: len(note)]) == ("warning", note)
    assert plan() == ("free", "default")


def test_when_staff_give_the_choice_back_clerks_assignment_counts_at_once(deliver):
    choose("team")
    deliver(*item("active"))
    deliver(*metadata("beta"))
    choose(None)
    assert plan() == ("pro", "billing")
    deliver(*item("ended", at=NOON + MINUTE))
    assert plan() == ("beta", "metadata")
    deliver(*metadata(None, at=NOON + MINUTE))
    assert plan() == ("free", "default")
    assert_sound(USER)


def test_what_staff_chose_is_not_moved_by_clerk(deliver):
    choose("team")
    before = ChallengeQuota.objects.values("plan_id", "quota_limit", "seq").get()
    for event in (item("active"), metadata("beta"), item("ended", at=NOON + MINUTE)):
        assert_handled(deliver(*event), "success")
    assert ChallengeQuota.objects.values("plan_id", "quota_limit", "seq").get() == before


def test_the_service_api_gives_the_choice_back_too(deliver):
    deliver(*item("active"))
    choose("team")
    actor = Actor("service", "a test")
    assert ChallengeQuota.objects.change_plan(USER, None, actor=actor).quota.plan.name == "pro"


# In any order, any number of times

UPGRADE = {
    "active A": item("active", "A", "pro", NOON),
    "active B": item("active", "B", "team", NOON + MINUTE),
    "ended A": item("ended", "A", "pro", NOON + 2 * MINUTE),
}
DOWN_AGAIN = {**UPGRADE, "ended B": item("ended", "B", "team", NOON + 3 * MINUTE)}


@pytest.mark.parametrize("repeat", [1, 2])
@pytest.mark.parametrize("order", list(permutations(UPGRADE)), ids=", ".join)
def test_an_upgrade_ends_in_the_new_plan_in_any_order(deliver, order, repeat):
    for name in order:
        for _ in range(repeat):
            deliver(*UPGRADE[name])
    assert plan() == ("team", "billing")


@pytest.mark.parametrize("order", list(permutations(DOWN_AGAIN)), ids=", ".join)
def test_items_that_all_ended_leave_the_default_plan_in_any_order(deliver, order):
    for name in order:
        deliver(*DOWN_AGAIN[name])
    assert plan() == ("free", "default")
    assert_sound(USER)


@pytest.mark.parametrize("order", list(permutations(["on", "off"])))
def test_of_two_assignments_of_one_instant_the_end_counts(deliver, order):
    events = {"on": item("active"), "off": item("ended")}
    for name in order:
        deliver(*events[name])
    assert plan() == ("free", "default")


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_newest_metadata_counts_in_any_order(deliver, order):
    events = [metadata("pro"), metadata("beta", NOON + MINUTE), metadata(None, NOON + 2 * MINUTE)]
    for place in order:
        deliver(*events[place])
    assert plan() == ("free", "default")


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_a_deletion_is_final_in_any_order(deliver, order):
    events = [item("active"), metadata("beta"), item("ended", at=NOON + MINUTE), ("user.deleted", DELETED)]
    for place in order:
        assert deliver(*events[place]).status_code == 200
    assert ChallengeQuota.objects.get().deleted_at
    assert kinds()[-1] == "deleted"
    assert_sound(USER)


# A plan that is not there


def test_an_unknown_plan_is_the_default_one_with_a_warning(deliver, caplog):
    assert_handled(deliver(*item("active", plan="gold"), svix_id="msg_gold"), "success")
    assert plan() == ("free", "default")
    event = WebhookEvent.objects.get(pk="msg_gold")
    assert event.status == "warning"
    assert "there is no plan gold, so this gives none" in event.note
    assert "msg_gold (subscriptionItem.active): there is no plan gold" in caplog.text


def test_a_duplicate_of_an_event_with_a_warning_is_a_success_too(deliver):
    for _ in range(2):
        assert_handled(deliver(*item("active", plan="gold"), svix_id="msg_gold"), "success")


def test_an_unknown_plan_is_taken_up_by_the_next_assignment_once_it_is_there(deliver):
    deliver(*item("active", plan="gold"))
    Plan.objects.create(name="gold", allowance=7)
    deliver(*item("active", plan="gold", at=NOON + MINUTE))
    assert plan() == ("gold", "billing")


def test_an_unknown_plan_of_a_long_name_is_warned_of_too(deliver):
    assert_handled(deliver(*item("active", plan="g" * 128)), "success")
    assert WebhookEvent.objects.get().status == "warning"


def test_clerk_assigns_an_archived_plan_all_the_same(deliver):
    """Whoever pays for a plan gets it."""
    for name in ("pro", "beta"):
        Plan.objects.archive(name)
    deliver(*metadata("beta"))
    assert plan() == ("beta", "metadata")
    deliver(*item("active"))
    assert plan() == ("pro", "billing")
    assert_sound(USER)


def test_the_free_item_of_a_sign_up_lets_nobody_wait_for_its_plan_also_when_it_is_applied_again(deliver):
    deliver(*item("active", plan="free_user", amount=0))
    apply(WebhookEvent.objects.get())  # the inbox does not store the amount
    assert waiting_for_unknown() == []
    deliver(*item("updated", plan="gold", status="active", at=NOON + MINUTE))
    assert [(found.plan, found.users) for found in waiting_for_unknown()] == [("gold", 1)]


# The verb alone


def assign(plan, at=0, source="billing", external_id="item"):
    updated_at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=at)
    return ChallengeQuota.objects.assign_plan(
        USER, source, plan, external_id=external_id, updated_at=updated_at, actor=STAFF
    )


def test_a_late_assignment_is_not_noted_and_changes_nothing():
    assert assign("pro", at=5)
    assert not assign("team", at=4)
    assert plan() == ("pro", "billing")


def test_the_same_assignment_again_follows_again():
    assert assign("gold")
    Plan.objects.create(name="gold", allowance=7)
    assert assign("gold")
    assert plan() == ("gold", "billing")


def test_metadata_are_read_anew_at_the_same_time_after_the_setting_was_mended():
    assign("", source="metadata", external_id="")
    assert assign("pro", source="metadata", external_id="")
    assert plan() == ("pro", "metadata")


def test_of_two_items_the_later_assignment_counts():
    assert assign("pro", at=5, external_id="item_1")
    assert assign("team", at=4, external_id="item_2")
    assert plan() == ("pro", "billing")


def test_another_users_items_do_not_count(make_quota):
    make_quota("user_2")
    assign("pro")
    assert ChallengeQuota.objects.get(pk="user_2").plan_id == "free"
    actor = Actor("service", "a test")
    assert ChallengeQuota.objects.change_plan("user_2", None, actor=actor).quota.plan.name == "free"


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True, serialized_rollback=True)
def test_an_assignment_that_comes_while_staff_give_the_choice_back_is_waited_for(step_in):
    """While staff's choice applies, an assignment does not change the row: compare-and-swap would miss it."""

    def end_the_item():
        try:
            assign("", at=2)
        finally:
            connection.close()

    assign("pro", at=1)
    choose("team")
    with ThreadPoolExecutor(1) as thread:
        step_in(lambda: wait([thread.submit(end_the_item)], timeout=0.5), include="clerk")
        choose(None)
    assert plan() == ("free", "default")
    assert_sound(USER)


def test_a_missing_row_is_opened_before_it_is_locked(monkeypatch):
    steps, run_step = [], thread.run_step

    def note_and_run(step):
        steps.append(step)
        return run_step(step)

    monkeypatch.setattr(thread, "run_step", note_and_run)
    choose(None)
    assert [type(step) for step in steps[:4]] == [Attempt, Read, Write, Attempt]
    assert [step.must_lock for step in steps if isinstance(step, Attempt)] == [False, True]

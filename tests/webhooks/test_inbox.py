"""The inbox: failures can be seen; handled events can be found, applied again, and removed."""

import io
import json
from datetime import UTC, datetime, timedelta

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from prometheus_client import REGISTRY

from quotas.models import ChallengeQuota, Plan
from quotas.store.manager import QuotaManager
from tests.conftest import STAFF, USER
from tests.webhooks.test_clerk_plans import MINUTE, item, metadata
from tests.webhooks.test_webhook import CREATED, DELETED, LATEST, NOON, UPDATED, assert_handled
from webhooks.handlers import HANDLERS
from webhooks.models import DeliveryRefusals, WebhookEvent

pytestmark = pytest.mark.django_db
LIST = "/admin/webhooks/webhookevent/"


def counted(event_type, outcome):
    labels = {"type": event_type, "outcome": outcome}
    return REGISTRY.get_sample_value("quotasite_webhook_deliveries_total", labels) or 0


@pytest.fixture(autouse=True)
def _over_plain_http(settings):
    settings.SECURE_SSL_REDIRECT = False


@pytest.fixture
def again(admin_client):
    """Apply events of the inbox again, as staff do, and return the messages shown to them."""

    def apply(*ids):
        form = {"action": "apply_again", "_selected_action": ids}
        answer = admin_client.post(reverse("admin:webhooks_webhookevent_changelist"), form, follow=True)
        return [str(message) for message in answer.context["messages"]]

    return apply


# What failed


def fail(event):
    raise RuntimeError("a fault of ours")


def test_an_event_that_failed_is_logged_with_its_id_and_counted(deliver, monkeypatch, caplog):
    before = counted("user.created", "failed")
    monkeypatch.setitem(HANDLERS, "user.created", fail)
    answer = deliver(*CREATED, svix_id="msg_1")
    assert (answer.status_code, answer.json()["code"]) == (500, "server_error")
    assert "Delivery msg_1 (user.created) failed; Clerk will send it again" in caplog.text
    assert counted("user.created", "failed") == before + 1
    assert not WebhookEvent.objects.exists()


def test_what_became_of_each_delivery_is_counted(deliver):
    names = [("user.created", "success"), ("user.created", "ignored"), ("other", "ignored")]
    before = [counted(*name) for name in names]
    deliver("user.created", LATEST[1])
    deliver(*CREATED)
    deliver("session.created", {})
    assert [counted(*name) for name in names] == [count + 1 for count in before]


def test_a_forged_delivery_is_counted_apart_and_never_by_what_it_claims(deliver):
    before = counted("unverified", "refused")
    deliver("user.created\n# HELP", {}, Svix_Signature="v1,AAAA")
    assert counted("unverified", "refused") == before + 1


# Another instance's


def envelope(instance_id):
    body = {"type": CREATED[0], "data": CREATED[1], "instance_id": instance_id}
    return json.dumps(body).encode()


def test_a_delivery_of_another_instance_is_ignored_and_recorded(deliver, settings):
    settings.CLERK_INSTANCE_ID = "ins_ours"
    assert_handled(deliver(body=envelope("ins_theirs"), svix_id="msg_1"), "ignored")
    event = WebhookEvent.objects.get()
    assert (event.user_id, event.email, "another instance" in event.note) == ("", "", True)
    assert not ChallengeQuota.objects.exists()


@pytest.mark.parametrize(
    ("configured", "sent"),
    [("", "ins_theirs"), ("ins_ours", "ins_ours"), ("ins_ours", None), ("ins_ours", 7)],
)
def test_any_other_delivery_counts(deliver, settings, configured, sent):
    settings.CLERK_INSTANCE_ID = configured
    assert_handled(deliver(body=envelope(sent)), "success")


# What is stored


@pytest.mark.parametrize("event", [CREATED, item("active"), metadata("beta")], ids=lambda event: event[0])
def test_what_a_handler_reads_is_kept_and_nothing_else(deliver, settings, event):
    settings.CLERK_PLAN_METADATA_KEY = "plan"
    deliver(*event)
    stored = str(WebhookEvent.objects.values().get())
    for unread in ("John", "15555550100", "sales", "cpayer", "commerce", "other@example.com"):
        assert unread not in stored


def test_the_email_of_an_event_that_is_late_is_not_kept(deliver):
    deliver(*LATEST)
    deliver(*UPDATED, svix_id="msg_late")
    assert WebhookEvent.objects.get(pk="msg_late").email == ""


def test_no_email_outlives_a_deletion_that_steps_in(deliver, monkeypatch):
    """The deletion comes between the read of the row and its lock: on PostgreSQL only, so it is simulated."""
    open_missing = ChallengeQuota.objects.open_missing

    def open_and_delete(quotas, user_id, **given):
        open_missing(user_id, **given)
        quotas.delete(user_id, actor=STAFF)

    monkeypatch.setattr(QuotaManager, "open_missing", open_and_delete)
    assert_handled(deliver(*CREATED), "ignored")
    event = WebhookEvent.objects.get()
    assert (event.email, event.note) == ("", "the user is deleted")


# Applied again


def test_an_event_is_applied_again_after_its_plan_was_added(deliver, again):
    deliver(*item("active", plan="gold"), svix_id="msg_1")
    Plan.objects.create(name="gold", allowance=7)
    assert again("msg_1") == ["Applied again: 1 success."]
    assert ChallengeQuota.objects.get().plan_id == "gold"
    event = WebhookEvent.objects.get()
    assert (event.status, event.note) == ("success", "")


def test_metadata_is_applied_again_too(deliver, again, settings):
    settings.CLERK_PLAN_METADATA_KEY = "plan"
    deliver(*metadata("gold"), svix_id="msg_1")
    assert WebhookEvent.objects.get().status == "warning"
    Plan.objects.create(name="gold", allowance=7)
    again("msg_1")
    quota = ChallengeQuota.objects.get()
    assert (quota.plan_id, quota.plan_source, quota.email) == ("gold", "metadata", "first@example.com")


def test_an_event_that_is_stale_by_now_changes_nothing_when_applied_again(deliver, again):
    Plan.objects.create(name="pro", allowance=100)
    deliver(*CREATED, svix_id="msg_1")
    deliver(*item("active"), svix_id="msg_2")
    deliver(*LATEST)
    deliver(*item("ended", at=NOON + MINUTE))
    before = ChallengeQuota.objects.values().get()
    assert again("msg_1", "msg_2") == ["Applied again: 2 ignored."]
    assert ChallengeQuota.objects.values().get() == before
    assert not WebhookEvent.objects.filter(pk="msg_1").exclude(email="").exists()


def test_nothing_brings_a_deleted_user_back(deliver, again):
    deliver(*CREATED, svix_id="msg_1")
    deliver("user.deleted", DELETED)
    assert again("msg_1") == ["Applied again: 1 ignored."]
    assert ChallengeQuota.objects.get().email == ""
    assert WebhookEvent.objects.get(pk="msg_1").note == "the user is deleted"


def test_events_that_were_ignored_can_be_applied_again_without_harm(deliver, again):
    deliver("session.created", {}, svix_id="msg_1")
    deliver("user.created", {"id": "user 1"}, svix_id="msg_2")
    deliver(*item("active", payer=""), svix_id="msg_3")
    assert again("msg_1", "msg_2", "msg_3") == ["Applied again: 3 ignored."]
    assert not ChallengeQuota.objects.exists()


def test_an_event_whose_metadata_were_not_read_takes_no_plan_away(deliver, again, settings):
    deliver(*metadata("gold"), svix_id="msg_1")
    settings.CLERK_PLAN_METADATA_KEY = "plan"
    Plan.objects.create(name="gold", allowance=7)
    deliver(*metadata("gold"))
    again("msg_1")
    assert ChallengeQuota.objects.get().plan_id == "gold"


def test_why_an_event_was_ignored_outlives_a_second_try(deliver, again, settings):
    settings.CLERK_INSTANCE_ID = "ins_us"
    deliver(body=envelope("ins_theirs"), svix_id="msg_1")
    deliver("user.created", {"id": "user 1"}, svix_id="msg_2")
    before = list(WebhookEvent.objects.order_by("pk").values_list("note", flat=True))
    again("msg_1", "msg_2")
    assert list(WebhookEvent.objects.order_by("pk").values_list("note", flat=True)) == before


def test_too_many_at_once_are_refused_before_the_first(deliver, again, monkeypatch):
    monkeypatch.setattr("webhooks.admin.MAX_EVENTS_PER_ACTION", 1)
    for svix_id in ("msg_1", "msg_2"):
        deliver(*item("active", plan="gold"), svix_id=svix_id)
    Plan.objects.create(name="gold", allowance=7)
    assert again("msg_1", "msg_2") == ["At most 1 events at a time: nothing was done."]
    assert ChallengeQuota.objects.get().plan_id == "free"


def test_only_who_may_change_events_can_apply_them(deliver, client, django_user_model):
    deliver(*item("active", plan="gold"), svix_id="msg_1")
    viewer = django_user_model.objects.create_user("viewer", password="x", is_staff=True)
    viewer.user_permissions.set(viewer.user_permissions.model.objects.filter(codename="view_webhookevent"))
    client.force_login(viewer)
    assert client.get(LIST).status_code == 200
    client.post(LIST, {"action": "apply_again", "_selected_action": ["msg_1"]})
    assert WebhookEvent.objects.get().status == "warning"
    assert client.get(LIST).content.count(b"apply_again") == 0


# Found


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("q=user_1", {"msg_1", "msg_2"}),
        ("q=user_2", {"msg_3"}),
        ("q=msg_2", {"msg_2"}),
        ("type=subscriptionItem.active", {"msg_2"}),
        ("type=user.created&q=user_1", {"msg_1"}),
        ("status__exact=warning", {"msg_2"}),
        ("type=other", {"msg_4"}),
    ],
)
def test_events_are_found_by_user_type_and_status(deliver, admin_client, query, found):
    deliver(*CREATED, svix_id="msg_1")
    deliver(*item("active", plan="gold"), svix_id="msg_2")
    deliver("user.created", CREATED[1] | {"id": "user_2"}, svix_id="msg_3")
    deliver("session.created", {}, svix_id="msg_4")
    answer = admin_client.get(f"{LIST}?{query}")
    assert {event.pk for event in answer.context["cl"].result_list} == found


# Removed


def prune(*options):
    out = io.StringIO()
    call_command("prune_inbox", *options, stdout=out)
    return out.getvalue()


def age(svix_id, days):
    WebhookEvent.objects.filter(pk=svix_id).update(handled_at=datetime.now(UTC) - timedelta(days=days))


def test_old_deliveries_are_removed_and_young_ones_stay(deliver):
    for name, days in (("msg_1", 31), ("msg_2", 29)):
        deliver(*CREATED, svix_id=name)
        age(name, days)
    assert prune("--older-than", "30", "--dry-run") == "would remove 1 deliveries\n"
    assert WebhookEvent.objects.count() == 2
    assert prune("--older-than", "30") == "removed 1 deliveries\n"
    assert WebhookEvent.objects.get().pk == "msg_2"


def test_old_refusals_are_removed_too(db):
    for days in (31, 29):
        at = datetime.now(UTC) - timedelta(days=days)
        DeliveryRefusals.objects.create(day=at.date(), reason="signature", times=1, last_at=at)
    prune("--older-than", "30", "--dry-run")
    assert DeliveryRefusals.objects.count() == 2
    prune("--older-than", "30")
    assert DeliveryRefusals.objects.get().day == at.date()


def test_many_go_batch_by_batch(deliver, monkeypatch):
    monkeypatch.setattr("webhooks.management.commands.prune_inbox.ROWS_PER_DELETE", 2)
    for n in range(5):
        deliver("session.created", {}, svix_id=f"msg_{n}")
        age(f"msg_{n}", 40)
    with CaptureQueriesContext(connection) as queries:
        assert prune("--older-than", "30") == "removed 5 deliveries\n"
    assert sum(query["sql"].startswith('DELETE FROM "webhook_events"') for query in queries) == 3


def test_an_event_that_was_forgotten_and_comes_again_changes_nothing(deliver):
    deliver(*CREATED, svix_id="msg_1")
    deliver(*LATEST, svix_id="msg_2")
    age("msg_1", 40)
    before = ChallengeQuota.objects.values().get()
    prune("--older-than", "30")
    assert_handled(deliver(*CREATED, svix_id="msg_1"), "ignored")
    assert ChallengeQuota.objects.values().get() == before
    assert WebhookEvent.objects.get(pk="msg_1").user_id == USER


@pytest.mark.parametrize("days", ["6", "0", "soon", "99999999999"])
def test_a_cut_that_is_too_young_or_none_is_refused(days):
    with pytest.raises(CommandError):
        prune("--older-than", days)

"""Clerk's deliveries: at least once, in no order, and one state in the end."""

import base64
import time
from datetime import timedelta
from itertools import permutations

import pytest

from quotas.models import ChallengeQuota, LedgerEntry
from tests.conftest import USER, WEBHOOK_SECRET
from webhooks.handlers import HANDLERS, user_saved
from webhooks.models import WebhookEvent

pytestmark = pytest.mark.django_db
SECOND_SECRET = "whsec_" + base64.b64encode(b"the second secret of the webhook").decode()
FOREIGN_SECRET = "whsec_" + base64.b64encode(b"the secret of somebody else ....").decode()
NOON = 1_716_883_200_000  # milliseconds


def user(email="first@example.com", updated_at=NOON, **changes):
    """What user.created and user.updated say of a user, as far as it matters."""
    return {
        "object": "user",
        "id": USER,
        "first_name": "John",
        "public_metadata": {},
        "private_metadata": None,
        "primary_email_address_id": "idn_2",
        "email_addresses": [
            {"id": "idn_1", "object": "email_address", "email_address": "other@example.com"},
            {"id": "idn_2", "object": "email_address", "email_address": email},
        ],
        "phone_numbers": [{"id": "idn_3", "phone_number": "+15555550100"}],
        "banned": False,
        "created_at": NOON,
        "updated_at": updated_at,
    } | changes


DELETED = {"object": "user", "id": USER, "deleted": True, "external_id": None}
CREATED = ("user.created", user("created@example.com", NOON))
UPDATED = ("user.updated", user("updated@example.com", NOON + 60_000))
LATEST = ("user.updated", user("latest@example.com", NOON + 120_000))


def email():
    return ChallengeQuota.objects.get(pk=USER).email


def kinds():
    return list(LedgerEntry.objects.order_by("seq").values_list("kind", flat=True))


def assert_handled(answer, status):
    assert (answer.status_code, answer.json()) == (200, {"status": status})


def assert_nothing_stored():
    assert (WebhookEvent.objects.count(), ChallengeQuota.objects.count()) == (0, 0)


# What an event does


@pytest.mark.parametrize("event_type", ["user.created", "user.updated"])
def test_a_users_event_opens_his_quota_with_the_primary_email(deliver, event_type):
    assert_handled(deliver(event_type, user("me@example.com")), "success")
    quota = ChallengeQuota.objects.get()
    assert (quota.user_id, quota.email, quota.quota_remaining) == (USER, "me@example.com", 20)
    entry = LedgerEntry.objects.get()
    assert (entry.kind, entry.actor_kind, entry.actor_id) == ("opened", "webhook", "clerk")


def test_a_user_without_an_email_gets_a_quota_too(deliver):
    assert_handled(deliver("user.created", user(email_addresses=[])), "success")
    assert email() == ""


def test_an_event_leaves_the_balance_as_it_is(deliver, make_quota):
    make_quota(remaining=3)
    assert_handled(deliver("user.updated", user("me@example.com")), "success")
    quota = ChallengeQuota.objects.get()
    assert (quota.quota_remaining, quota.email) == (3, "me@example.com")
    assert kinds() == ["opened", "adjusted"]


def test_an_event_resets_no_quota_that_is_due(deliver, make_quota, shift):
    make_quota(remaining=3)
    shift(USER, timedelta(days=2))
    before = ChallengeQuota.objects.get().last_reset_date
    assert_handled(deliver("user.updated", user()), "success")
    quota = ChallengeQuota.objects.get()
    assert (quota.quota_remaining, quota.last_reset_date) == (3, before)


def test_the_inbox_keeps_what_was_read_and_no_more(deliver):
    deliver("user.created", user("me@example.com"), svix_id="msg_1", timestamp=int(time.time()))
    event = WebhookEvent.objects.values().get()
    assert (event["svix_id"], event["type"], event["user_id"]) == ("msg_1", "user.created", USER)
    assert (event["email"], event["status"]) == ("me@example.com", "success")
    assert "15555550100" not in str(event)
    assert "John" not in str(event)


def test_a_deleted_user_is_gone_for_the_api_and_his_email_forgotten(deliver, api):
    deliver(*CREATED)
    assert_handled(deliver("user.deleted", DELETED), "success")
    quota = ChallengeQuota.objects.get()
    assert (quota.email, quota.deleted_at is None) == ("", False)
    assert not WebhookEvent.objects.exclude(email="").exists()
    assert api.quota().status_code == 410


def test_a_second_deletion_changes_nothing(deliver):
    deliver("user.deleted", DELETED)
    before = ChallengeQuota.objects.values().get()
    assert_handled(deliver("user.deleted", DELETED), "success")
    assert ChallengeQuota.objects.values().get() == before
    assert kinds() == ["opened", "deleted"]


def test_one_who_is_deleted_before_he_was_created_stays_deleted(deliver, api):
    assert_handled(deliver("user.deleted", DELETED), "success")
    assert_handled(deliver(*CREATED), "ignored")
    assert (email(), kinds()) == ("", ["opened", "deleted"])
    assert api.quota().status_code == 410


def test_a_deletion_takes_nobody_else_along(deliver):
    deliver("user.created", user("other@example.com", id="user_2"))
    deliver("user.deleted", DELETED)
    other = ChallengeQuota.objects.get(pk="user_2")
    assert (other.email, other.deleted_at) == ("other@example.com", None)
    assert WebhookEvent.objects.get(user_id="user_2").email == "other@example.com"


# In any order, any number of times


@pytest.mark.parametrize("order", list(permutations([CREATED, UPDATED, LATEST])))
def test_the_newest_email_wins_in_any_order(deliver, order):
    for event in order:
        deliver(*event)
    assert email() == "latest@example.com"
    assert kinds() == ["opened"]


def test_an_older_version_of_a_user_is_ignored(deliver):
    deliver(*LATEST)
    assert_handled(deliver(*UPDATED), "ignored")
    assert email() == "latest@example.com"


def test_a_user_without_an_instant_is_ordered_by_the_events_own(deliver):
    now = int(time.time())
    deliver("user.updated", user("later@example.com", updated_at=None), timestamp=now)
    assert_handled(deliver("user.updated", user("sooner@example.com", None), timestamp=now - 60), "ignored")
    assert email() == "later@example.com"


FOUR = {
    "msg_created": CREATED,
    "msg_updated": UPDATED,
    "msg_latest": LATEST,
    "msg_deleted": ("user.deleted", DELETED),
}


@pytest.mark.parametrize("repeat", ["once", "each twice", "all twice"])
@pytest.mark.parametrize("order", list(permutations(FOUR)), ids=lambda ids: " ".join(ids).replace("msg_", ""))
def test_every_order_of_four_events_ends_in_one_state(deliver, order, repeat):
    again = 2 if repeat == "each twice" else 1
    for svix_id in [*order, *(order if repeat == "all twice" else ())]:
        for _ in range(again):
            assert deliver(*FOUR[svix_id], svix_id=svix_id).status_code == 200
    quota = ChallengeQuota.objects.get()
    assert (quota.user_id, quota.email, quota.quota_remaining, quota.seq) == (USER, "", 20, 2)
    assert quota.deleted_at is not None
    assert kinds() == ["opened", "deleted"]
    inbox = WebhookEvent.objects.order_by("svix_id").values_list("svix_id", "email")
    assert list(inbox) == [(svix_id, "") for svix_id in sorted(FOUR)]


@pytest.mark.parametrize("event", [CREATED, ("user.deleted", DELETED), ("session.created", {})])
def test_a_duplicate_is_answered_the_same_and_changes_nothing(deliver, event):
    def state():
        return [
            list(rows.values())
            for rows in (ChallengeQuota.objects, LedgerEntry.objects, WebhookEvent.objects)
        ]

    first = deliver(*event, svix_id="msg_1").json()
    before = state()
    assert_handled(deliver(*event, svix_id="msg_1"), first["status"])
    assert state() == before


def test_the_duplicate_of_an_event_that_is_stale_by_now_changes_nothing(deliver):
    deliver(*CREATED, svix_id="msg_1")
    deliver(*LATEST, svix_id="msg_2")
    assert_handled(deliver(*CREATED, svix_id="msg_1"), "success")
    assert email() == "latest@example.com"


# Who may send


@pytest.mark.parametrize("secret", [WEBHOOK_SECRET, SECOND_SECRET])
def test_either_of_two_secrets_is_good(deliver, settings, secret):
    settings.CLERK_WEBHOOK_SIGNING_SECRET = [WEBHOOK_SECRET, SECOND_SECRET]
    assert_handled(deliver(*CREATED, secret=secret), "success")


def test_an_event_that_comes_under_both_secrets_counts_once(deliver, settings):
    settings.CLERK_WEBHOOK_SIGNING_SECRET = [WEBHOOK_SECRET, SECOND_SECRET]
    for secret in (WEBHOOK_SECRET, SECOND_SECRET):
        assert_handled(deliver(*CREATED, secret=secret, svix_id="msg_1"), "success")
    assert (WebhookEvent.objects.count(), kinds()) == (1, ["opened"])


FORGED = {
    "another's secret": {"secret": FOREIGN_SECRET},
    "too old": {"timestamp": int(time.time()) - 3_600},
    "too new": {"timestamp": int(time.time()) + 3_600},
    "another id": {"Svix_Id": "msg_2"},
    "another time": {"Svix_Timestamp": str(int(time.time()) - 7)},
    "no id": {"Svix_Id": ""},
    "no time": {"Svix_Timestamp": ""},
    "no signature": {"Svix_Signature": ""},
    "garbage": {"Svix_Signature": "garbage"},
    "bad base64": {"Svix_Signature": "v1,A"},
    "not ASCII": {"Svix_Signature": "v1,é"},
    "time not a number": {"Svix_Timestamp": "soon"},
    "20,000 signatures": {"Svix_Signature": "v1,AAAA " * 20_000},
    "not UTF-8": {"body": b'{"type":"user.created","data":{"id":"\xff"}}'},
    "not JSON": {"body": b"type=user.created"},
    "an array": {"body": b"[]"},
    "60 KB of brackets": {"body": b"[" * 60_000},
    "an id that cannot be kept": {"svix_id": "msg_\x00"},
    "a long id": {"svix_id": "m" * 129},
}


@pytest.mark.parametrize("name", FORGED)
def test_a_delivery_that_is_not_clerks_is_refused_and_nothing_stored(deliver, name):
    answer = deliver(*CREATED, **FORGED[name])
    assert (answer.status_code, answer["Content-Type"]) == (400, "application/problem+json")
    assert answer.json()["code"] == "delivery_refused"
    assert_nothing_stored()


def test_a_forged_duplicate_of_a_known_event_is_refused_too(deliver):
    deliver(*CREATED, svix_id="msg_1")
    assert deliver(*CREATED, svix_id="msg_1", secret=FOREIGN_SECRET).status_code == 400


def test_without_a_secret_a_delivery_is_to_come_again_later(deliver, settings):
    settings.CLERK_WEBHOOK_SIGNING_SECRET = []
    answer = deliver(*CREATED)
    assert (answer.status_code, answer.json()["code"]) == (503, "webhook_not_configured")
    assert int(answer["Retry-After"]) > 0
    assert_nothing_stored()


@pytest.mark.parametrize("path", ["/webhooks/clerk", "/webhooks/clerk/"])
def test_a_delivery_is_taken_with_and_without_a_slash(deliver, path):
    assert_handled(deliver(*CREATED, path=path), "success")


@pytest.mark.parametrize("method", ["get", "put", "delete"])
def test_a_delivery_comes_by_post_alone(api, method):
    answer = api.send(method.upper(), "/webhooks/clerk", b"{}")
    assert (answer.status_code, answer["Allow"]) == (405, "POST")
    assert answer["Content-Type"] == "application/problem+json"


def test_a_body_above_the_cap_is_refused_unread(deliver):
    answer = deliver(body=b"{}", Content_Length=str(1024 * 1024 + 1))
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


def test_a_body_of_the_cap_is_taken(deliver):
    body = b'{"type":"user.created","data":{"id":"user_1"}}'.ljust(1024 * 1024)
    assert_handled(deliver(body=body), "success")


def test_a_delivery_in_chunks_is_refused(deliver):
    answer = deliver(*CREATED, Transfer_Encoding="chunked")
    assert (answer.status_code, answer.json()["code"]) == (411, "length_required")
    assert_nothing_stored()


# What is not for us

PAYER = {"object": "commerce_payer", "id": "cpayer_1", "user_id": USER, "organization_id": ""}
ITEM = {"object": "subscription_item", "id": "csub_item_1", "status": "active", "plan": {"slug": "pro"}}
NOT_FOR_US = {
    "an organization": ("organization.created", {"object": "organization", "id": "org_1"}),
    "a session": ("session.created", {"object": "session", "id": "sess_1", "user_id": USER}),
    "a user's payment": ("subscriptionItem.upcoming", ITEM | {"payer": PAYER}),
    "an organization's payment": (
        "subscriptionItem.active",
        ITEM | {"payer": PAYER | {"user_id": "", "organization_id": "org_1"}},
    ),
    "a payment for no plan": (
        "subscriptionItem.ended",
        ITEM | {"plan": None, "payer": PAYER | {"user_id": ""}},
    ),
    "a name of ours": ("__init__", user()),
    "no type": (None, user()),
    "a long type": ("t" * 129, user()),
    "a type that cannot be kept": ("user.\x00", user()),
}


@pytest.mark.parametrize("name", NOT_FOR_US)
def test_an_event_that_is_not_for_us_is_ignored_and_recorded(deliver, name):
    assert_handled(deliver(*NOT_FOR_US[name]), "ignored")
    assert list(WebhookEvent.objects.values_list("status", "user_id", "email")) == [("ignored", "", "")]
    assert ChallengeQuota.objects.count() == 0


ODD = {
    "U+0000 in the e-mail": ("user.created", user("a\x00@example.com")),
    "half a surrogate pair in the e-mail": ("user.created", user("\ud83d@example.com")),
    "a long e-mail": ("user.created", user("a" * 321)),
    "no id": ("user.created", user(id=None)),
    "U+0000 in the id": ("user.updated", user(id="user_\x00")),
    "a long id": ("user.updated", user(id="u" * 129)),
    "a deletion without an id": ("user.deleted", {"object": "user", "deleted": True}),
    "a deletion of an odd id": ("user.deleted", {"id": "user 1", "deleted": True}),
    "a deletion without data": ("user.deleted", None),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_user_is_ignored_with_the_reason(deliver, name):
    assert_handled(deliver(*ODD[name]), "ignored")
    assert WebhookEvent.objects.get().note
    assert ChallengeQuota.objects.count() == 0


def test_what_is_odd_in_members_that_nobody_reads_does_no_harm(deliver):
    data = user("me@example.com", first_name="\x00", public_metadata={"a\x00": "\ud83d"})
    assert_handled(deliver("user.created", data), "success")
    assert email() == "me@example.com"


# When we fail


def test_a_handler_that_fails_leaves_nothing_and_the_event_may_come_again(deliver, monkeypatch):
    def save_and_fail(delivery, event):
        user_saved(delivery, event)
        raise RuntimeError("a fault of ours")

    with monkeypatch.context() as patch:
        patch.setitem(HANDLERS, "user.created", save_and_fail)
        answer = deliver(*CREATED, svix_id="msg_1")
    assert (answer.status_code, answer["Content-Type"]) == (500, "application/problem+json")
    assert_nothing_stored()
    assert_handled(deliver(*CREATED, svix_id="msg_1"), "success")
    assert email() == "created@example.com"

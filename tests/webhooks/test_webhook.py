"""Clerk's deliveries: at least once, in any order, with one state in the end."""

import base64
import gzip
import hmac
import time
from datetime import timedelta
from itertools import permutations

import pytest
import time_machine

from quotas.models import ChallengeQuota, LedgerEntry
from tests.conftest import USER, WEBHOOK_SECRET, to_json
from webhooks.handlers import HANDLERS, user_saved
from webhooks.models import WebhookEvent

pytestmark = pytest.mark.django_db
SECOND_SECRET = "whsec_" + base64.b64encode(b"the second secret of the webhook").decode()
FOREIGN_SECRET = "whsec_" + base64.b64encode(b"the secret of another site ......").decode()
NOON = 1_716_883_200_000  # milliseconds
DAY = 86_400  # seconds


def user(email="first@example.com", updated_at=NOON, **changes):
    """Return the data of user.created and user.updated, as far as they matter."""
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
    for rows in (WebhookEvent.objects, ChallengeQuota.objects, LedgerEntry.objects):
        assert not rows.exists()


def stored(models=(ChallengeQuota, LedgerEntry, WebhookEvent)):
    return [list(model.objects.order_by("pk").values()) for model in models]


def envelope(event_type, data):
    return to_json({"object": "event", "type": event_type, "timestamp": NOON, "data": data}).encode()


# What an event does


@pytest.mark.parametrize("event_type", ["user.created", "user.updated"])
def test_a_users_event_opens_their_quota_with_the_primary_email(deliver, event_type):
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


def test_a_deleted_user_is_gone_for_the_api_and_their_email_forgotten(deliver, api):
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


def test_one_who_is_deleted_before_they_were_created_stays_deleted(deliver, api):
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
    first = deliver(*event, svix_id="msg_1").json()
    before = stored()
    assert_handled(deliver(*event, svix_id="msg_1"), first["status"])
    assert stored() == before


def test_the_duplicate_of_an_event_that_is_stale_by_now_changes_nothing(deliver):
    deliver(*CREATED, svix_id="msg_1")
    deliver(*LATEST, svix_id="msg_2")
    assert_handled(deliver(*CREATED, svix_id="msg_1"), "success")
    assert email() == "latest@example.com"


def months_later():
    """Advance Clerk's clock and ours by half a year, not the database's, which no rule of deliveries uses."""
    return time_machine.travel(time.time() + 180 * DAY)


def test_a_replay_months_later_is_signed_afresh_and_answered_as_a_duplicate(deliver):
    deliver(body=envelope(*CREATED), svix_id="msg_1")
    deliver(body=envelope(*LATEST), svix_id="msg_2")
    before = stored()
    with months_later():
        assert_handled(deliver(body=envelope(*CREATED), svix_id="msg_1"), "success")
    assert stored() == before


def test_a_delivery_that_was_kept_for_months_is_refused(deliver):
    at = now()
    with months_later():
        assert deliver(body=envelope(*CREATED), timestamp=at).status_code == 400
    assert_nothing_stored()


@pytest.mark.parametrize("event", [CREATED, UPDATED, LATEST])
def test_an_old_event_under_another_id_changes_nothing(deliver, api, event):
    for known in (CREATED, UPDATED, LATEST):
        deliver(*known)
    api.consume({"cost": 5})
    WebhookEvent.objects.all().delete()  # as after pruning, when no id is stored any more
    before = stored([ChallengeQuota, LedgerEntry])
    with months_later():
        answer = deliver(body=envelope(*event))
    assert answer.status_code == 200
    assert event is LATEST or answer.json()["status"] == "ignored"
    assert stored([ChallengeQuota, LedgerEntry]) == before


def test_an_old_event_brings_nobody_back_who_was_deleted(deliver, api):
    deliver(*CREATED)
    deliver("user.deleted", DELETED)
    WebhookEvent.objects.all().delete()
    before = stored([ChallengeQuota, LedgerEntry])
    with months_later():
        assert_handled(deliver(body=envelope(*LATEST)), "ignored")
        assert api.quota().status_code == 410
    assert stored([ChallengeQuota, LedgerEntry]) == before


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


def now():
    return int(time.time())


def v1(text, key=None, digest="sha256"):
    """Sign as Svix documents it, except for the key and the digest."""
    mac = hmac.digest(KEY if key is None else key, text, digest)
    return f"v1,{base64.b64encode(mac).decode()}"


def bearing(sign):
    """Return a delivery of BODY, with the signature that `sign` returns for the text to be signed."""
    at = now()
    signature = sign(f"msg_1.{at}.".encode() + BODY)
    return {"body": BODY, "svix_id": "msg_1", "timestamp": at, "Svix_Signature": signature}


KEY = base64.b64decode(WEBHOOK_SECRET.removeprefix("whsec_"))
BODY = b'{"type":"user.created","data":{"id":"user_1"}}'
MIB = 1024 * 1024

# Changes to a good delivery, made within the test because signatures expire.
FORGED = {
    # the signer
    "another's secret": lambda: {"secret": FOREIGN_SECRET},
    "the secret's text for a key": lambda: bearing(lambda text: v1(text, WEBHOOK_SECRET.encode())),
    "an empty key": lambda: bearing(lambda text: v1(text, b"")),
    "SHA-1": lambda: bearing(lambda text: v1(text, digest="sha1")),
    "half of the signature": lambda: bearing(lambda text: v1(text)[:23] + "=="),
    "the signature of the body alone": lambda: bearing(lambda text: v1(BODY)),
    # the time
    "too old": lambda: {"timestamp": now() - 301},
    "too new": lambda: {"timestamp": now() + 310},
    "another time": lambda: {"Svix_Timestamp": str(now() - 7)},
    "a time in milliseconds": lambda: {"timestamp": now() * 1_000},
    "a time that is no number": lambda: {"Svix_Timestamp": "soon"},
    "a time that is NaN": lambda: {"Svix_Timestamp": "NaN"},
    "an endless time": lambda: {"Svix_Timestamp": "1e999"},
    "a time of 5,000 digits": lambda: {"Svix_Timestamp": "1" * 5_000},
    # the content
    "another id": lambda: {"Svix_Id": "msg_2"},
    "an id that cannot be kept": lambda: {"svix_id": "msg_\x00"},
    "a long id": lambda: {"svix_id": "m" * 129},
    "a changed body": lambda: bearing(lambda text: v1(text.replace(b"user_1", b"user_2"))),
    "a body cut short": lambda: bearing(lambda text: v1(text + b"}")),
    # the headers
    "no id": lambda: {"Svix_Id": ""},
    "no time": lambda: {"Svix_Timestamp": ""},
    "no signature": lambda: {"Svix_Signature": ""},
    "the names of Standard Webhooks alone": lambda: {
        **bearing(v1),
        "Webhook_Id": "msg_1",
        "Webhook_Timestamp": str(now()),
        "Webhook_Signature": bearing(v1)["Svix_Signature"],
        "Svix_Id": "",
        "Svix_Timestamp": "",
        "Svix_Signature": "",
    },
    "two ids, joined as WSGI does": lambda: bearing(v1) | {"Svix_Id": "msg_1,msg_1"},
    "two times, joined as WSGI does": lambda: {"Svix_Timestamp": f"{now()},{now()}"},
    "two signatures, joined as WSGI does": lambda: bearing(lambda text: f"v1,AAAA,{v1(text)}"),
    "garbage": lambda: {"Svix_Signature": "garbage"},
    "commas": lambda: {"Svix_Signature": "v1,,,"},
    "an empty signature": lambda: {"Svix_Signature": "v1,"},
    "bad base64": lambda: {"Svix_Signature": "v1,A"},
    "hexadecimal": lambda: {"Svix_Signature": "v1," + "ab" * 32},
    "not ASCII": lambda: {"Svix_Signature": "v1,é"},
    "another version": lambda: bearing(lambda text: v1(text).replace("v1,", "v2,")),
    "no version": lambda: bearing(lambda text: v1(text).removeprefix("v1,")),
    "20,000 signatures": lambda: {"Svix_Signature": "v1,AAAA " * 20_000},
    "20,000 signatures, the last one good": lambda: bearing(lambda text: "v1,AAAA " * 20_000 + v1(text)),
    # the body, with a valid signature
    "an empty body": lambda: {"body": b""},
    "not UTF-8": lambda: {"body": b'{"type":"user.created","data":{"id":"\xff"}}'},
    "UTF-16": lambda: {"body": BODY.decode().encode("utf-16")},
    "gzip": lambda: {"body": gzip.compress(BODY), "Content_Encoding": "gzip"},
    "not JSON": lambda: {"body": b"type=user.created"},
    "two objects": lambda: {"body": BODY + BODY},
    "an array": lambda: {"body": b"[]"},
    "null": lambda: {"body": b"null"},
    "60 KB of brackets": lambda: {"body": b"[" * 60_000},
    "deep data": lambda: {"body": BODY[:-2] + b',"a":' + b"[" * 99_999 + b"]" * 99_999 + b"}}"},
    "a number of 5,000 digits": lambda: {"body": b'{"timestamp":' + b"9" * 5_000 + b"}"},
    # the size
    "oversize": lambda: {"body": BODY.ljust(MIB + 1)},
    "oversize by its Content-Length": lambda: {"Content_Length": str(MIB + 1)},
    "in chunks": lambda: {"Transfer_Encoding": "chunked"},
    "a length that is no number": lambda: {"Content_Length": "ten"},
    "a length below zero": lambda: {"Content_Length": "-1"},
    "two lengths, joined as WSGI does": lambda: {"Content_Length": "46,46"},
}
BY_SIZE = {
    "oversize": (413, "body_too_large"),
    "oversize by its Content-Length": (413, "body_too_large"),
    "in chunks": (411, "length_required"),
    "a length that is no number": (400, "malformed_length"),
    "a length below zero": (400, "malformed_length"),
    "two lengths, joined as WSGI does": (400, "malformed_length"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_delivery_that_is_not_clerks_is_refused_and_nothing_stored(deliver, name):
    answer = deliver(*CREATED, **FORGED[name]())
    assert (answer.status_code, answer.json()["code"]) == BY_SIZE.get(name, (400, "delivery_refused"))
    assert answer["Content-Type"] == "application/problem+json"
    assert_nothing_stored()


def test_what_the_forgeries_change_is_good_as_it_is(deliver):
    assert_handled(deliver(**bearing(v1)), "success")


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


def test_a_body_of_the_cap_is_taken(deliver):
    assert_handled(deliver(body=BODY.ljust(MIB)), "success")


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


UNUSABLE = {
    "U+0000 in the e-mail": ("user.created", user("a\x00@example.com")),
    "half a surrogate pair in the e-mail": ("user.created", user("\ud83d@example.com")),
    "a long e-mail": ("user.created", user("a" * 321)),
    "no id": ("user.created", user(id=None)),
    "U+0000 in the id": ("user.updated", user(id="user_\x00")),
    "a long id": ("user.updated", user(id="u" * 129)),
    "a deletion without an id": ("user.deleted", {"object": "user", "deleted": True}),
    "a deletion of an unusable id": ("user.deleted", {"id": "user 1", "deleted": True}),
    "a deletion without data": ("user.deleted", None),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_odd_user_is_ignored_with_the_reason(deliver, name):
    assert_handled(deliver(*UNUSABLE[name]), "ignored")
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

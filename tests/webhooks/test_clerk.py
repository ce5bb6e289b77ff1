"""Clerk's wire format: which deliveries are accepted, and how its users are read."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import chain

import pytest
import time_machine
from pytest_django import Settings

from tests.tools.clerk_api import ClerkAPI, make_user, make_users
from webhooks.clerk.backend_api import ClerkError, count_users, walk_users
from webhooks.clerk.deliveries import DeliveryRefused, secret_fault, verify_delivery
from webhooks.clerk.payloads import ClerkUser, NotConfigured, UnusablePayload, read_user

pytestmark = pytest.mark.once

SECRET = "whsec_" + base64.b64encode(b"the test's own signing secret #1").decode()
SECOND = "whsec_" + base64.b64encode(b"the test's own signing secret #2").decode()
ID = "msg_2oCtm5jZTPVdqUe3fa3uAnYdrj8"
INSTANT = datetime(2026, 9, 24, 8, tzinfo=UTC)
NOW = int(INSTANT.timestamp())
BODY = json.dumps({"object": "event", "type": "user.created", "data": {"id": "user_é"}}).encode()

Headers = dict[str, str]
Sent = tuple[bytes, Headers]


def signed(body: bytes = BODY, *, secret: str = SECRET, id: str = ID, at: int = NOW) -> Sent:
    """Sign as Svix documents it, independently of its library."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    mac = hmac.new(key, f"{id}.{at}.".encode() + body, hashlib.sha256).digest()
    signature = f"v1,{base64.b64encode(mac).decode()}"
    return body, {"svix-id": id, "svix-timestamp": str(at), "svix-signature": signature}


def with_header(name: str, value: str) -> Callable[[], Sent]:
    return lambda: (BODY, signed()[1] | {name: value})


@pytest.fixture
def _secrets(settings: Settings) -> Iterator[None]:
    settings.CLERK_WEBHOOK_SIGNING_SECRET = [SECRET, SECOND]
    with time_machine.travel(INSTANT, tick=False):
        yield


@pytest.fixture
def clerk(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[ClerkAPI]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ClerkAPI() as api:
        settings.CLERK_API_URL, settings.CLERK_SECRET_KEY = api.url, api.key
        yield api


ATTACKS: dict[str, tuple[Callable[[], Sent], str]] = {
    "forged": (lambda: signed(secret="whsec_" + base64.b64encode(b"x" * 32).decode()), "any of the 2"),
    "too old": (lambda: signed(at=NOW - 301), "five minutes"),
    "too new": (lambda: signed(at=NOW + 301), "five minutes"),
    "moved in time": (with_header("svix-timestamp", str(NOW + 1)), "does not match"),
    "no time": (with_header("svix-timestamp", "soon"), "does not match"),
    "endless time": (with_header("svix-timestamp", "1e999"), "does not match"),
    "swapped id": (with_header("svix-id", "msg_of_another"), "does not match"),
    "changed body": (lambda: (BODY + b" ", signed()[1]), "does not match"),
    "garbage header": (with_header("svix-signature", "garbage"), "does not match"),
    "commas": (with_header("svix-signature", "v1,,,"), "does not match"),
    "other version alone": (with_header("svix-signature", "v2,AAAA"), "does not match"),
    "empty signature": (with_header("svix-signature", "v1,"), "does not match"),
    "bad base64": (with_header("svix-signature", "v1,A"), "does not match"),
    "signature not ASCII": (with_header("svix-signature", "v1,é"), "does not match"),
    "another's signature": (
        with_header("svix-signature", signed(b"{}")[1]["svix-signature"]),
        "does not match",
    ),
    "20,000 signatures": (with_header("svix-signature", " ".join(["v1,AAAA"] * 20_000)), "longer than"),
    "20,000 signatures, the last one good": (
        with_header("svix-signature", "v1,AAAA " * 20_000 + signed()[1]["svix-signature"]),
        "longer than",
    ),
    "body not UTF-8": (lambda: signed(b'{"type":"\xff\xfe"}'), "does not match"),
    "body in UTF-16": (lambda: signed(BODY.decode().encode("utf-16")), "does not match"),
    "no id": (with_header("svix-id", ""), "lacks svix-id:"),
    "two ids": (with_header("svix-id", f"{ID},{ID}"), "svix-id must be"),
    "two times": (with_header("svix-timestamp", f"{NOW},{NOW}"), "does not match"),
    "no headers": (lambda: (BODY, {}), "lacks svix-id, svix-timestamp, svix-signature"),
    "id with NUL": (lambda: signed(id="msg_\0"), "svix-id must be"),
    "id with a line break": (lambda: signed(id="msg_1\n"), "svix-id must be"),
    "endless id": (lambda: signed(id="m" * 129), "svix-id must be"),
    "empty body": (lambda: signed(b""), "not a JSON object"),
    "not JSON": (lambda: signed(b"type=user.created"), "not a JSON object"),
    "an array": (lambda: signed(b"[]"), "not a JSON object"),
    "two objects": (lambda: signed(BODY + BODY), "not a JSON object"),
    "deep nesting": (lambda: signed(b'{"data":' + b"[" * 100_000), "not a JSON object"),
    "endless number": (lambda: signed(b'{"data":' + b"9" * 5_000 + b"}"), "not a JSON object"),
}


@pytest.mark.usefixtures("_secrets")
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_delivery_that_is_not_clerks_is_refused_with_the_reason(attack: str) -> None:
    send, reason = ATTACKS[attack]
    with pytest.raises(DeliveryRefused) as refused:
        verify_delivery(*send())
    assert reason in refused.value.detail


@pytest.mark.usefixtures("_secrets")
def test_a_refusal_costs_little_however_much_is_sent() -> None:
    started = time.process_time()
    for attack in ("20,000 signatures", "deep nesting", "endless id"):
        with pytest.raises(DeliveryRefused):
            verify_delivery(*ATTACKS[attack][0]())
    assert time.process_time() - started < 1


@pytest.mark.usefixtures("_secrets")
@pytest.mark.parametrize("secret", [SECRET, SECOND])
def test_a_delivery_signed_with_either_secret_is_verified(secret: str) -> None:
    assert verify_delivery(*signed(secret=secret)).id == ID


@pytest.mark.usefixtures("_secrets")
@pytest.mark.parametrize("at", [NOW - 300, NOW + 300])
def test_five_minutes_either_way_are_tolerated(at: int) -> None:
    assert verify_delivery(*signed(at=at)).type == "user.created"


@pytest.mark.usefixtures("_secrets")
def test_header_names_are_read_in_any_case_and_other_versions_are_skipped() -> None:
    body, headers = signed()
    headers["svix-signature"] = f"v1a,AAAA {headers['svix-signature']} v2,BBBB"
    assert verify_delivery(body, {name.title(): value for name, value in headers.items()}).id == ID


def test_without_a_usable_secret_nothing_is_believed(settings: Settings) -> None:
    for secrets in ([], ["abc"], ["whsec_"], ["sk_test_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"]):
        settings.CLERK_WEBHOOK_SIGNING_SECRET = secrets
        with pytest.raises(NotConfigured, match="CLERK_WEBHOOK_SIGNING_SECRET"):
            verify_delivery(*signed())


@pytest.mark.usefixtures("_secrets")
def test_a_malformed_secret_is_passed_over(settings: Settings) -> None:
    settings.CLERK_WEBHOOK_SIGNING_SECRET = ["whsec_", SECRET]
    assert verify_delivery(*signed()).id == ID
    with pytest.raises(DeliveryRefused):
        verify_delivery(*signed(secret="whsec_"))


@pytest.mark.parametrize(
    ("secret", "fault"),
    [
        (SECRET, None),
        ("abc", "whsec_"),
        ("sk_test_0123456789", "whsec_"),
        ("whsec_", "not 0"),
        ("whsec_" + "A" * 28, "not 21"),
        ("whsec_" + "A" * 88, "not 66"),
        ("whsec_" + "A" * 31, "base64"),
        ("whsec_AAAA AAAA AAAA AAAA AAAA AAAA AAAA AAAA", "base64"),
        ("whsec_" + "é" * 32, "base64"),
    ],
)
def test_the_fault_of_a_secret_is_told_without_the_secret(secret: str, fault: str | None) -> None:
    text = secret_fault(secret)
    assert text is None if fault is None else text and fault in text
    assert secret not in (text or "")


EVENTS: dict[str, dict[str, object]] = {
    "user.created": {"object": "user", "id": "user_1", "email_addresses": [], "updated_at": 1716883200000},
    "user.updated": {
        "object": "user",
        "id": "user_1",
        "public_metadata": {"a": "é"},
        "updated_at": 1716883500000,
    },
    "user.deleted": {"object": "user", "id": "user_1", "deleted": True},
    "subscriptionItem.active": {
        "id": "csub_item_1",
        "plan": {"slug": "free"},
        "payer": {"user_id": "user_1"},
    },
    "subscriptionItem.ended": {"id": "csub_item_1", "plan": None, "payer": {"user_id": ""}},
}


@pytest.mark.usefixtures("_secrets")
@pytest.mark.parametrize("event_type", EVENTS)
@pytest.mark.parametrize("timestamp", [1716883200, 1716883200000])
def test_each_event_is_read_with_its_time_in_seconds_or_milliseconds(event_type: str, timestamp: int) -> None:
    data = EVENTS[event_type]
    envelope = {"object": "event", "type": event_type, "timestamp": timestamp, "data": data}
    delivery = verify_delivery(*signed(json.dumps(envelope).encode()))
    assert (delivery.type, delivery.data) == (event_type, data)
    assert delivery.occurred_at == datetime(2024, 5, 28, 8, tzinfo=UTC)


@pytest.mark.usefixtures("_secrets")
@pytest.mark.parametrize("timestamp", [None, True, "1716883200", 0, -1, 10**12 * 9, 10**400, [], 1.5])
def test_an_absurd_time_is_read_as_none(timestamp: object) -> None:
    assert verify_delivery(*signed(json.dumps({"timestamp": timestamp}).encode())).occurred_at is None


@pytest.mark.usefixtures("_secrets")
@pytest.mark.parametrize("event_type", [None, 1, "", "a\nb", "a\0", "\ud800", "t" * 129])
def test_an_absurd_type_is_unknown_and_absent_data_is_empty(event_type: object) -> None:
    delivery = verify_delivery(*signed(json.dumps({"type": event_type, "data": None}).encode()))
    assert (delivery.type, delivery.data) == ("unknown", {})


def test_a_user_is_read_with_the_primary_email() -> None:
    user = read_user(make_user(7, phone_numbers=object()))
    updated_at = datetime(2023, 11, 14, 22, 13, 27, tzinfo=UTC)
    assert user == ClerkUser("user_000007", "user7@example.com", updated_at)


@pytest.mark.parametrize("event_type", ["user.created", "user.updated", "user.deleted"])
def test_the_user_of_each_user_event_is_read(event_type: str) -> None:
    assert read_user(EVENTS[event_type]).user_id == "user_1"


@pytest.mark.parametrize(
    "changes",
    [
        {"email_addresses": None},
        {"email_addresses": "me@example.com"},
        {"email_addresses": [None, 1, {}]},
        {"email_addresses": [{"id": "idn_1", "email_address": 5}]},
        {"primary_email_address_id": None},
        {"primary_email_address_id": ["idn_1"]},
        {"primary_email_address_id": "idn_of_no_address"},
    ],
)
def test_a_user_without_a_readable_primary_email_has_none(changes: dict[str, object]) -> None:
    assert read_user(make_user(1, **changes)).email == ""


@pytest.mark.parametrize("updated_at", [None, "1716883200000", True, 1716883200, -1, 10**400, 1.5])
def test_an_absurd_updated_at_is_read_as_none(updated_at: object) -> None:
    assert read_user(make_user(1, updated_at=updated_at)).updated_at is None


@pytest.mark.parametrize(
    ("user_id", "reason"),
    [
        (None, "missing"),
        ("", "missing"),
        (7, "missing"),
        ("user_\0", "characters"),
        ("user_1\n", "characters"),
        ("user é", "characters"),
        ("u" * 129, "1 to 128"),
    ],
)
def test_an_odd_id_is_told(user_id: object, reason: str) -> None:
    with pytest.raises(UnusablePayload, match=reason):
        read_user({"id": user_id})


@pytest.mark.parametrize("email", ["a\0@example.com", "\ud83d@example.com", "e" * 321])
def test_an_email_that_cannot_be_stored_is_odd(email: str) -> None:
    with pytest.raises(UnusablePayload, match="the e-mail"):
        read_user(make_user(1, email_addresses=[{"id": "idn_1", "email_address": email}]))


def walk(waits: list[float] | None = None) -> list[list[dict[str, object]]]:
    return list(walk_users(on_wait=([] if waits is None else waits).append))


def test_users_are_walked_in_pages_from_id_to_id(clerk: ClerkAPI) -> None:
    clerk.users = make_users(1_200)
    pages = walk()
    assert [len(page) for page in pages] == [500, 500, 200]
    assert list(chain(*pages)) == clerk.users
    first, second, third = clerk.requests
    assert first == "/v1/users?limit=500&order_by=%2Bcreated_at"
    assert second == f"{first}&starting_after=user_000500"
    assert third == f"{first}&starting_after=user_001000"


def test_a_last_page_that_is_full_is_followed_by_an_empty_one(clerk: ClerkAPI) -> None:
    clerk.users = make_users(500)
    assert [len(page) for page in walk()] == [500]
    assert len(clerk.requests) == 2


def test_one_who_signs_up_meanwhile_is_walked_too(clerk: ClerkAPI) -> None:
    clerk.users = make_users(500)
    pages = walk_users()
    next(pages)
    clerk.users.append(make_user(501))
    assert next(pages) == [make_user(501)]


def test_users_are_counted(clerk: ClerkAPI) -> None:
    clerk.users = make_users(3)
    assert count_users() == 3


@pytest.mark.parametrize(
    ("retry_after", "wait"),
    [("3", 3), ("0", 1), ("9999", 60), ("9" * 5_000, 10), ("", 10), ("soon", 10), ("²", 10)],
)
def test_a_429_is_waited_out(clerk: ClerkAPI, retry_after: str, wait: float) -> None:
    clerk.users, waits = make_users(2), list[float]()
    clerk.answer_next(1, status=429, headers={"Retry-After": retry_after})
    assert walk(waits) == [clerk.users]
    assert waits == [wait]


def test_a_clerk_that_always_asks_to_wait_is_left_after_ten_tries(clerk: ClerkAPI) -> None:
    waits: list[float] = []
    clerk.answer_next(11, status=429, headers={"Retry-After": "2"})
    with pytest.raises(ClerkError, match="429"):
        walk(waits)
    assert waits == [2] * 9


def test_a_clerk_that_is_away_for_a_moment_is_asked_again(clerk: ClerkAPI) -> None:
    clerk.users, waits = make_users(2), list[float]()
    clerk.answer_next(2, status=503, body=b"<html>")
    clerk.drop_next(2)
    assert walk(waits) == [clerk.users]
    assert waits == [1, 2, 4, 8]


def test_a_clerk_that_stays_away_is_left_after_five_tries(clerk: ClerkAPI) -> None:
    clerk.answer_next(6, status=500, code="internal_error")
    with pytest.raises(ClerkError, match=r"500: .*internal_error"):
        walk()
    assert len(clerk.requests) == 5


def test_a_lost_page_is_asked_again_and_the_tries_are_counted_anew(clerk: ClerkAPI) -> None:
    clerk.users, waits = make_users(600), list[float]()
    clerk.drop_next(4)
    clerk.serve_next(1)
    clerk.drop_next(4)
    assert sum(map(len, walk(waits))) == 600
    assert waits == [1, 2, 4, 8] * 2


def test_a_server_that_is_not_there_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    settings.CLERK_API_URL, settings.CLERK_SECRET_KEY = "http://127.0.0.1:1/v1", ClerkAPI.key
    with pytest.raises(ClerkError, match=r"cannot be reached: ConnectError .*CLERK_API_URL") as error:
        walk()
    assert error.value.status is None


def test_a_wrong_key_is_told_at_once_with_code_and_trace(clerk: ClerkAPI, settings: Settings) -> None:
    settings.CLERK_SECRET_KEY = "sk_test_wrong"
    with pytest.raises(ClerkError) as error:
        walk()
    assert str(error.value) == (
        "Clerk answered 401: Invalid authentication, at length "
        "(code authentication_invalid, trace 3f5a9d0c). Check CLERK_SECRET_KEY."
    )
    assert len(clerk.requests) == 1


def test_the_key_is_in_no_error_even_if_the_server_sends_it_back(clerk: ClerkAPI) -> None:
    body = {"errors": [{"message": f"no such key:\x1b[31m {clerk.key}", "code": clerk.key}]}
    clerk.answer_next(1, status=403, body=json.dumps(body).encode())
    with pytest.raises(ClerkError) as error:
        walk()
    assert "no such key:[31m [CLERK_SECRET_KEY]" in str(error.value)
    assert clerk.key not in f"{error.value!r} {error.value} {vars(error.value)}"


def test_a_redirect_is_not_followed(clerk: ClerkAPI) -> None:
    clerk.answer_next(1, status=302, headers={"Location": f"{clerk.url}/users"})
    with pytest.raises(ClerkError, match=r"302.*CLERK_API_URL"):
        walk()
    assert len(clerk.requests) == 1


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b"{}", b'"users"'])
def test_an_answer_that_is_no_list_is_an_error(clerk: ClerkAPI, body: bytes) -> None:
    clerk.answer_next(1, status=200, body=body)
    with pytest.raises(ClerkError, match=r"not JSON|not an array"):
        walk()


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"total_count": "7"}'])
def test_an_answer_that_is_no_count_is_an_error(clerk: ClerkAPI, body: bytes) -> None:
    clerk.answer_next(1, status=200, body=body)
    with pytest.raises(ClerkError, match="total_count"):
        count_users()


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b'{"errors": [7]}', b'{"errors": {"code": 1}}'])
def test_an_error_without_clerks_form_is_an_error_too(clerk: ClerkAPI, body: bytes) -> None:
    clerk.answer_next(1, status=422, body=body)
    with pytest.raises(ClerkError, match="422: no reason given"):
        walk()


def test_one_odd_member_costs_nobody_else(clerk: ClerkAPI) -> None:
    clerk.answer_next(1, status=200, body=json.dumps([None, 7, make_user(1)]).encode())
    assert walk() == [[{}, {}, make_user(1)]]


def test_an_odd_user_at_the_end_of_a_page_stops_nothing(clerk: ClerkAPI) -> None:
    clerk.users = [*make_users(499), make_user(0, id="\ud800"), make_user(500)]
    assert make_user(500) in chain(*walk())


def test_a_walk_that_cannot_go_on_ends(clerk: ClerkAPI) -> None:
    clerk.answer_next(3, status=200, body=json.dumps([{"id": "user_1"}] * 500).encode())
    with pytest.raises(ClerkError, match="no id to continue from"):
        walk()
    assert len(clerk.requests) == 2


@pytest.mark.parametrize("key", ["", "pk_test_public", "sk_test_two\nlines", "sk_test_é", "whsec_AAAA"])
def test_without_a_key_the_variable_is_named_and_nothing_is_asked(
    clerk: ClerkAPI, settings: Settings, key: str
) -> None:
    settings.CLERK_SECRET_KEY = key
    with pytest.raises(NotConfigured, match="CLERK_SECRET_KEY is needed") as error:
        walk()
    assert clerk.requests == []
    assert key == "" or key not in str(error.value)

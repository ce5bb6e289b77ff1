"""Service keys: shown once, stored as a hash, valid for their scopes only; and the admin that makes them."""

import hashlib
import json
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import StringIO
from types import SimpleNamespace
from uuid import UUID

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.contrib.auth.models import User as Staff
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from quotas.access import service_keys
from quotas.access.refusals import Fault, Refused
from quotas.access.service_keys import remembered, service_of
from quotas.models import ChallengeQuota, LedgerEntry, Plan, PlanVersion, ServiceKey
from quotas.store import statements
from tests.api.test_service import ANY_KEY, Service, service_with
from tests.conftest import USER
from tests.store.test_round_trips import wire  # noqa: F401 - a fixture

pytestmark = pytest.mark.django_db
SCOPES = ["read", "consume", "refund", "adjust", "admin"]
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
SPEND = UUID(int=1)
ENDPOINTS = [  # method, path, scope, body
    ("GET", "quota", "read", None),
    ("GET", "history", "read", None),
    ("GET", "explain", "read", None),
    ("GET", f"consumptions/{SPEND}", "read", None),
    ("POST", "check", "read", {}),
    ("POST", "consume", "consume", {}),
    ("POST", f"consumptions/{SPEND}/refund", "refund", {"reason": "r"}),
    ("POST", "adjust", "adjust", {"delta": 50, "reason": "r"}),
    ("POST", "reset", "admin", {"reason": "r"}),
    ("PUT", "plan", "admin", {"plan": None}),
]
each_endpoint = pytest.mark.parametrize(("method", "path", "scope", "body"), ENDPOINTS)


@pytest.fixture(autouse=True)
def _forgetful() -> Iterator[None]:
    service_keys._cache.clear()
    yield
    service_keys._cache.clear()


@pytest.fixture
def later(monkeypatch):
    """Return a function that lets seconds pass for the cache of keys."""

    def move(seconds):
        clock = SimpleNamespace(monotonic=lambda: time.monotonic() + seconds)
        monkeypatch.setattr(service_keys, "time", clock)

    return move


def code(answer):
    return answer.status_code, answer.json().get("code")


@contextmanager
def counting():
    """Yield a function that returns how often the keys were read and written."""
    with CaptureQueriesContext(connection) as captured:
        texts = [re.compile(rf'^{verb}.*"service_keys"') for verb in ("SELECT", "UPDATE")]
        yield lambda: tuple(sum(bool(text.match(query["sql"])) for query in captured) for text in texts)


# How a key is made and stored


def test_a_key_is_kept_hashed_and_shown_by_its_beginning():
    key, text = ServiceKey.make("api server", {"read", "consume"})
    stored = ServiceKey.objects.values().get()
    assert re.fullmatch(r"qs_[0-9a-f]{8}_[A-Za-z0-9_-]{43}", text)
    assert stored["digest"] == hashlib.sha256(text.encode()).hexdigest()
    assert text.split("_")[1] == stored["prefix"]
    assert str(key) == f"api server (qs_{stored['prefix']}_…)"
    assert text[12:] not in repr(stored)
    assert stored["scopes"] == ["consume", "read"]


def test_two_keys_of_a_name_are_two():
    texts = {ServiceKey.make("api server", {"read"})[1] for _ in range(5)}
    assert len({text[:11] for text in texts}) == len({text[12:] for text in texts}) == 5


def create(*arguments, **options):
    out, err = StringIO(), StringIO()
    call_command("create_service_key", *arguments, stdout=out, stderr=err, **options)
    return out.getvalue(), err.getvalue()


def test_the_command_prints_the_key_alone():
    out, err = create("api server", "--scopes", "read", "consume")
    key = ServiceKey.objects.get()
    assert re.fullmatch(r"qs_[0-9a-f]{8}_[A-Za-z0-9_-]{43}\n", out)
    assert "api server" in err
    assert out.strip() not in err
    assert (key.name, key.scopes, key.expires_at) == ("api server", ["consume", "read"], None)
    assert Service(out.strip()).get("quota").status_code == 200


def test_the_command_makes_a_key_that_expires():
    create("api server", "--scopes", "read", "--days", "10")
    expires_in = ServiceKey.objects.get().expires_at - datetime.now(UTC)
    assert 10 * DAY - MINUTE < expires_in <= 10 * DAY


@pytest.mark.parametrize(
    "arguments",
    [
        ("api server",),
        ("api server", "--scopes"),
        ("api server", "--scopes", "root"),
        ("api server", "--scopes", "read,consume"),
        ("", "--scopes", "read"),
        ("x" * 101, "--scopes", "read"),
        ("api server", "--scopes", "read", "--days", "0"),
        ("api server", "--scopes", "read", "--days", "-1"),
        ("api server", "--scopes", "read", "--days", "3661"),
        ("api server", "--scopes", "read", "--days", "soon"),
    ],
)
def test_the_command_refuses_what_it_cannot_keep(arguments):
    with pytest.raises(CommandError):
        create(*arguments)
    assert ServiceKey.objects.count() == 0


# Keys that are refused


def unauthorized(answer, expected):
    """Whether the response is a 401 with this code, and with the same detail in challenge and body."""
    problem = answer.json()
    challenge = f'Bearer error="invalid_token", error_description="{problem["detail"]}"'
    return (*code(answer), answer["WWW-Authenticate"]) == (401, expected, challenge)


@pytest.mark.parametrize(
    "forge",
    [
        lambda text: "qs_00000000_" + text[12:],
        lambda text: text[:12] + "A" * 43,
        lambda text: text[:-1],
        lambda text: text + "A",
        lambda text: text[:11],
        lambda text: text.upper().replace("QS_", "qs_"),
        lambda text: "qs_",
        lambda text: "qs_" + "é" * 8 + text[11:],
        lambda text: "qs_" + ServiceKey.objects.get().digest,
        lambda text: f"qs_%{text[4:]}",
    ],
)
@each_endpoint
def test_an_unknown_or_forged_key_is_refused(forge, method, path, scope, body):
    key, text = ServiceKey.make("a server", SCOPES)
    answer = Service(forge(text)).send(method, path, body, ANY_KEY)
    assert unauthorized(answer, "key_unknown")
    assert (ChallengeQuota.objects.count(), service_keys._cache) == (0, {})
    key.refresh_from_db()
    assert key.last_used_at is None


def test_the_secret_of_one_key_does_not_open_another():
    one, other = (ServiceKey.make("a server", SCOPES)[1] for _ in range(2))
    assert unauthorized(Service(one[:12] + other[12:]).get("quota"), "key_unknown")


def test_an_expired_key_is_refused():
    _, text = ServiceKey.make("a server", SCOPES, datetime.now(UTC) - timedelta(seconds=1))
    assert unauthorized(Service(text).get("quota"), "key_expired")
    assert ChallengeQuota.objects.count() == 0


def test_a_key_is_good_until_it_expires():
    _, text = ServiceKey.make("a server", SCOPES, datetime.now(UTC) + MINUTE)
    assert Service(text).get("quota").status_code == 200


def test_a_revoked_key_is_refused():
    _, text = ServiceKey.make("a server", SCOPES)
    ServiceKey.objects.update(revoked_at=datetime.now(UTC))
    assert unauthorized(Service(text).get("quota"), "key_revoked")
    assert ServiceKey.objects.get().last_used_at is None


def test_a_key_is_taken_in_the_header_alone():
    _, text = ServiceKey.make("a server", SCOPES)
    client = Client(raise_request_exception=False)
    for given in (
        {"query_params": {"key": text, "access_token": text}},
        {"headers": {"Cookie": f"a={text}"}},
    ):
        answer = client.get(f"/api/v1/users/{USER}/quota", **given)
        assert (*code(answer), answer["WWW-Authenticate"]) == (401, "token_missing", "Bearer")


# Scopes


@pytest.mark.parametrize("held", SCOPES)
def test_a_scope_lets_exactly_its_own_endpoints_through(held):
    service = service_with(held)
    for method, path, scope, body in ENDPOINTS:
        answer = service.send(method, path, body, None if method == "GET" else ANY_KEY)
        is_held_back = code(answer) == (403, "scope_missing")
        assert is_held_back == (scope != held), path
        assert answer.status_code in ((403,) if is_held_back else (200, 201, 404))


@each_endpoint
def test_a_missing_scope_is_named_and_nothing_is_stored(method, path, scope, body):
    others = service_with(*(held for held in SCOPES if held != scope))
    answer = others.send(method, path, body, ANY_KEY)
    assert code(answer) == (403, "scope_missing")
    assert re.search(rf"\b{scope}\b", answer.json()["detail"])
    assert answer["Content-Type"] == "application/problem+json"
    assert ChallengeQuota.objects.count() == 0


@each_endpoint
@pytest.mark.parametrize("user_id", ["user_1", "user_2"])
def test_a_session_token_does_nothing_of_a_service(api, make_quota, method, path, scope, body, user_id):
    make_quota("user_1", remaining=12)
    make_quota("user_2", remaining=12)
    spend = api.consume({"cost": 5}).json()["id"]
    before = list(ChallengeQuota.objects.values()), LedgerEntry.objects.count()
    address = f"/api/v1/users/{user_id}/{path.replace(str(SPEND), spend)}"
    answer = api.send(method, address, json.dumps(body or {}), Idempotency_Key="k-1")
    assert code(answer) == (403, "service_only")
    assert (list(ChallengeQuota.objects.values()), LedgerEntry.objects.count()) == before


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/quota"),
        ("GET", "/api/v1/quota"),
        ("POST", "/api/v1/quota/consume"),
        ("GET", "/api/v1/quota/history"),
    ],
)
def test_a_service_key_does_nothing_of_a_user(method, path):
    answer = service_with().send(method, path, None if method == "GET" else {}, ANY_KEY)
    assert code(answer) == (403, "user_only")
    assert "/api/v1/users/" in answer.json()["detail"]
    assert ChallengeQuota.objects.count() == 0


@pytest.mark.parametrize("scope", SCOPES)
def test_the_plans_need_no_scope(scope):
    assert service_with(scope).get("/api/v1/plans").status_code == 200


# The cache of keys


def test_a_key_is_read_once_in_ten_seconds(later):
    service = service_with()
    with counting() as reads_and_writes:
        for _ in range(3):
            service.get("quota")
        assert reads_and_writes() == (1, 1)
        later(9.5)
        service.get("quota")
        assert reads_and_writes() == (1, 1)
        later(10.5)
        service.get("quota")
        assert reads_and_writes() == (2, 1)


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True, serialized_rollback=True)
def test_the_look_up_is_one_round_trip_and_then_none(wire, later):  # noqa: F811
    service = service_with()
    service.get("quota")
    service_keys._cache.clear()
    trips = []
    for passed in (0, 0, 11):
        later(passed)
        wire.reset()
        assert service.get("quota").status_code == 200
        trips.append(wire.round_trips)
    assert trips == [2, 1, 2]


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True, serialized_rollback=True)
def test_the_first_use_in_a_minute_is_one_round_trip_more(wire):  # noqa: F811
    service = service_with()
    ChallengeQuota.objects.current(USER)
    wire.reset()
    assert service.get("quota").status_code == 200
    assert wire.round_trips == 3


def test_a_revoked_key_works_no_longer_than_ten_seconds(later):
    service = service_with()
    service.get("quota")
    ServiceKey.objects.update(revoked_at=datetime.now(UTC))
    later(9.5)
    assert service.get("quota").status_code == 200
    later(10.5)
    assert [code(service.get("quota")) for _ in range(2)] == [(401, "key_revoked")] * 2


def test_a_scope_that_is_taken_away_works_no_longer_than_ten_seconds(later):
    service = service_with("read", "consume")
    service.get("quota")
    ServiceKey.objects.update(scopes=["consume"])
    later(10.5)
    assert code(service.get("quota")) == (403, "scope_missing")


def test_a_key_that_is_remembered_expires_on_the_second():
    service = service_with()
    service.get("quota")
    [(digest, held)] = service_keys._cache.items()
    service_keys._cache[digest] = replace(held, expires_at=datetime.now(UTC))
    assert unauthorized(service.get("quota"), "key_expired")


def test_what_is_remembered_is_told_without_a_query(later, django_assert_num_queries):
    _, text = ServiceKey.make("a server", {"read"})
    with django_assert_num_queries(0):
        assert remembered(text) is None
    held = service_of(text)
    with django_assert_num_queries(0):
        assert remembered(text) is service_of(text) is held
        assert remembered(text[:-1]) is None
        later(10.5)
        assert remembered(text) is None


def test_an_expired_key_is_refused_from_memory_without_a_query(django_assert_num_queries):
    _, text = ServiceKey.make("a server", {"read"}, datetime.now(UTC) - MINUTE)
    with pytest.raises(Refused, match="expired"):
        service_of(text)
    for ask in (remembered, service_of):
        with django_assert_num_queries(0), pytest.raises(Refused) as refused:
            ask(text)
        assert refused.value.fault is Fault.KEY_EXPIRED


def test_the_memory_has_an_end(monkeypatch):
    monkeypatch.setattr(service_keys, "MAX_CACHED_KEYS", 3)
    for _ in range(8):
        assert service_with().get("/api/v1/plans").status_code == 200
        assert len(service_keys._cache) <= 3


def test_the_memory_does_not_hold_the_key_itself():
    service = service_with()
    service.get("quota")
    assert service.key[12:] not in repr(service_keys._cache)


def test_the_last_use_is_noted_at_most_once_a_minute():
    service = service_with()

    def used_again_after(age):
        """Return last_used_at before and after a request that must read the key."""
        if age is not None:
            ServiceKey.objects.update(last_used_at=datetime.now(UTC) - age)
        before = ServiceKey.objects.get().last_used_at
        service_keys._cache.clear()
        service.get("quota")
        return before, ServiceKey.objects.get().last_used_at

    before, after = used_again_after(None)
    assert before is None
    assert datetime.now(UTC) - after < MINUTE
    before, after = used_again_after(timedelta(seconds=50))
    assert after == before
    before, after = used_again_after(timedelta(seconds=61))
    assert after - before > timedelta(seconds=60)


def test_a_process_that_comes_second_does_not_note_the_use_again():
    key, _ = ServiceKey.make("a server", SCOPES)
    service_keys._record_use(key)
    noted = ServiceKey.objects.get().last_used_at
    service_keys._record_use(key)  # as it was read before
    assert ServiceKey.objects.get().last_used_at == noted


def test_the_key_is_in_no_log_and_no_answer(caplog, monkeypatch, make_quota):
    make_quota(remaining=3)
    _, revoked = ServiceKey.make("another", SCOPES)
    ServiceKey.objects.update(revoked_at=datetime.now(UTC))
    service = service_with("read", "consume")
    connection.force_debug_cursor = True
    try:
        with caplog.at_level(logging.DEBUG):
            answers = [
                service.get("quota"),
                service.post("consume", {"cost": 9}),
                service.post("consume", {}, key=""),
                service.post("reset", {"reason": "r"}),
                service.of("a b").get("quota"),
                service.get("/api/v1/quota"),
                service.get("/api/v1/nothing"),
                service.send("DELETE", "quota"),
                Service(service.key[:-1] + "~").get("quota"),
                Service(revoked).get("quota"),
            ]
            for fault in (OperationalError("no route"), RuntimeError("a bug")):
                monkeypatch.setattr(
                    statements, "read_snapshot", lambda *_, fault=fault, **__: (_ for _ in ()).throw(fault)
                )
                answers.append(service.get("quota"))
    finally:
        connection.force_debug_cursor = False
    statuses = [answer.status_code for answer in answers]
    assert statuses == [200, 429, 400, 403, 404, 403, 404, 405, 401, 401, 503, 500]
    seen = "".join(f"{answer.serialize()!r}" for answer in answers) + caplog.text
    assert "service_keys" in caplog.text  # the log includes the SQL
    for secret in (service.key[12:-1], revoked[12:]):
        assert secret not in seen
        assert ServiceKey.digest_of(secret) not in seen


# The admin

LIST = "/admin/quotas/servicekey/"
ADD = f"{LIST}add/"
NEW = {"name": "api server", "scopes": ["read", "consume"], "expires_at": ""}
KEY = re.compile(r"qs_[0-9a-f]{8}_[A-Za-z0-9_-]{43}")


def sign_in(*codenames):
    user = Staff.objects.create_user("alice", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    client = Client(raise_request_exception=False)
    client.force_login(user)
    return client


@pytest.fixture
def staff(settings):
    settings.SECURE_SSL_REDIRECT = False
    return sign_in("view_servicekey", "add_servicekey", "change_servicekey", "delete_servicekey")


@pytest.fixture
def viewer(settings):
    settings.SECURE_SSL_REDIRECT = False
    return sign_in("view_servicekey")


def text(response):
    return response.content.decode()


def revoke(client, *keys):
    sent = {"action": "revoke", "_selected_action": [str(key.pk) for key in keys]}
    return client.post(LIST, sent, follow=True)


def test_the_admin_makes_a_key_that_works(staff):
    page = staff.post(ADD, NEW)
    [shown] = KEY.findall(text(page))
    key = ServiceKey.objects.get()
    assert (key.name, key.scopes, key.expires_at) == ("api server", ["consume", "read"], None)
    assert Service(shown).get("quota").status_code == 200
    assert code(Service(shown).post("reset", {"reason": "r"})) == (403, "scope_missing")


def test_the_admin_shows_the_key_in_one_answer_and_nowhere_else(staff, caplog):
    with caplog.at_level(logging.DEBUG):
        page = staff.post(ADD, NEW)
        [shown] = KEY.findall(text(page))
        key = ServiceKey.objects.get()
        others = [
            staff.get(path) for path in (LIST, f"{LIST}{key.pk}/change/", f"{LIST}{key.pk}/history/", ADD)
        ]
    assert page.status_code == 200  # no redirect, so nothing had to be kept for the next page
    assert {"no-store", "private"} <= set(page["Cache-Control"].split(", "))
    assert [other.status_code for other in others] == [200] * 4
    kept = [*map(text, others), *map(str, staff.cookies.values()), repr(dict(staff.session.items()))]
    kept += [repr(list(rows.values())) for rows in (LogEntry.objects, ServiceKey.objects)]
    assert not any(shown[12:] in place for place in [*kept, caplog.text])


def test_the_admin_logs_who_made_and_who_revoked_a_key(staff):
    staff.post(ADD, NEW)
    key = ServiceKey.objects.get()
    revoke(staff, key)
    logged = LogEntry.objects.order_by("pk")
    assert [entry.user.get_username() for entry in logged] == ["alice", "alice"]
    assert [entry.object_id for entry in logged] == [str(key.pk)] * 2
    assert [entry.object_repr for entry in logged] == [f"api server (qs_{key.prefix}_…)"] * 2


def test_the_admin_makes_a_key_that_expires(staff):
    day = (datetime.now(UTC) + 10 * DAY).date()
    staff.post(ADD, {**NEW, "expires_at": f"{day}T12:00"})
    assert ServiceKey.objects.get().expires_at == datetime(day.year, day.month, day.day, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": ""}, "This field is required."),
        ({"name": "x" * 101}, "at most 100 characters"),
        ({"scopes": []}, "This field is required."),
        ({"scopes": ["read", "root"]}, "root is not one of the available choices"),
        ({"expires_at": "2020-01-01T00:00"}, "This time is in the past"),
        ({"expires_at": "soon"}, "Enter a valid date/time."),
    ],
)
def test_the_admin_refuses_a_key_that_could_not_work(staff, wrong, message):
    page = text(staff.post(ADD, {**NEW, **wrong}))
    assert message in page
    assert not KEY.search(page)
    assert ServiceKey.objects.count() == 0


def test_the_list_tells_what_each_key_is(staff):
    active, text_of_one = ServiceKey.make("one", {"read", "admin"})
    Service(text_of_one).get("quota")
    ServiceKey.make("two", {"read"}, datetime.now(UTC) - DAY)
    revoked, _ = ServiceKey.make("three", {"read"})
    ServiceKey.objects.filter(pk=revoked.pk).update(revoked_at=datetime.now(UTC))
    page = text(staff.get(LIST))
    rows = {
        row[0]: row[1] for row in re.findall(r"<tr><td.*?>(one|two|three)</a>(.*?)</tr>", page, re.DOTALL)
    }
    for name, state in [("one", "active"), ("two", "expired"), ("three", "revoked")]:
        assert f">{state}</span>" in rows[name]
    assert f"qs_{active.prefix}_…" in rows["one"]
    assert "admin, read" in rows["one"]
    assert (rows["one"].count("<time"), rows["one"].count("never")) == (2, 1)
    assert (rows["two"].count("<time"), rows["two"].count("never")) == (2, 1)


def test_revoking_takes_effect_at_once_and_once(staff):
    key, text_of_one = ServiceKey.make("one", {"read"})
    other, text_of_other = ServiceKey.make("two", {"read"})
    assert "Keys revoked: 1 of 1. They stop working within 10 seconds." in text(revoke(staff, key))
    first = ServiceKey.objects.get(pk=key.pk).revoked_at
    assert code(Service(text_of_one).get("quota")) == (401, "key_revoked")
    assert Service(text_of_other).get("quota").status_code == 200
    assert "Keys revoked: 1 of 2." in text(revoke(staff, key, other))
    assert ServiceKey.objects.get(pk=key.pk).revoked_at == first


def test_a_key_is_not_edited_and_not_deleted(staff):
    key, _ = ServiceKey.make("one", {"read"})
    before = ServiceKey.objects.values().get()
    page = f"{LIST}{key.pk}"
    assert staff.get(f"{page}/change/").status_code == 200
    content = text(staff.get(f"{page}/change/")).partition('id="content"')[2]
    assert not re.search(r'<input(?! type="hidden")|name="_save', content)
    forged = {**NEW, "scopes": ["admin"], "_save": "Save", "post": "yes"}
    for refused in (f"{page}/change/", f"{page}/delete/"):
        assert staff.post(refused, forged).status_code == 403
    staff.post(ADD, {**forged, "_saveasnew": "1", "id": str(key.pk), "prefix": key.prefix})
    staff.post(LIST, {"action": "delete_selected", "_selected_action": str(key.pk), "post": "yes"})
    assert ServiceKey.objects.filter(pk=key.pk).values().get() == before


def test_who_may_only_look_makes_and_revokes_none(viewer):
    key, _ = ServiceKey.make("one", {"read"})
    assert viewer.get(LIST).status_code == viewer.get(f"{LIST}{key.pk}/change/").status_code == 200
    assert 'name="action"' not in text(viewer.get(LIST))
    assert viewer.get(ADD).status_code == viewer.post(ADD, NEW).status_code == 403
    revoke(viewer, key)
    assert ServiceKey.objects.get().revoked_at is None


def test_without_a_permission_nothing_is_shown(settings):
    settings.SECURE_SSL_REDIRECT = False
    assert sign_in("view_plan").get(LIST).status_code == 403


def test_hostile_names_are_shown_as_text(staff):
    hostile = "<script>alert(1)</script>"
    for page in (staff.post(ADD, {**NEW, "name": hostile}), staff.get(LIST)):
        assert hostile not in text(page)
        assert "&lt;script&gt;" in text(page)


def test_no_page_of_a_key_has_a_script_or_style_of_its_own(staff):
    for page in (staff.post(ADD, NEW), staff.get(LIST), staff.get(ADD)):
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=)", text(page))


# Plans in the admin


@pytest.fixture
def root(settings):
    settings.SECURE_SSL_REDIRECT = False
    client = Client()
    client.force_login(Staff.objects.create_superuser("root"))
    return client


EDITED = {
    "confirmed": "1",  # after the page with the affected users: tests/console/test_admin_plans.py
    "name": "mine",
    "allowance": "50",
    "reset_policy": "weekly",
    "period_seconds": "1 h",
    "timezone": "Europe/Berlin",
    "actions_name": "draw",
    "actions_cost": "5",
}


def test_a_plans_rules_can_be_edited_and_its_name_cannot(root):
    page = "/admin/quotas/plan/free/change/"
    assert "take effect at each user’s next reset" in text(root.get(page))
    root.post(page, EDITED)
    plan = Plan.objects.get()
    assert (plan.name, plan.is_default, plan.is_public) == ("free", True, False)
    assert (plan.allowance, plan.reset_policy, plan.period_seconds) == (50, "weekly", 3_600)
    assert (plan.timezone, plan.actions, plan.version) == ("Europe/Berlin", {"draw": 5}, 2)
    assert list(PlanVersion.objects.order_by("version").values_list("reset_policy", flat=True)) == [
        "rolling",
        "weekly",
    ]


def test_a_running_period_goes_on_by_the_rules_it_began_under(root, api, make_quota, shift):
    make_quota(remaining=12)
    before = api.get("/api/v1/quota").json()
    root.post("/admin/quotas/plan/free/change/", EDITED)
    after = api.get("/api/v1/quota").json()
    assert before.pop("seconds_to_reset") - after.pop("seconds_to_reset") in range(60)
    assert after == before
    page = text(root.get("/admin/quotas/challengequota/user_5F1/change/"))
    assert "rolling: a period after the last reset" in page
    assert "<dt>Period</dt><dd>1 d, since " in page
    shift(USER, DAY)
    fresh = api.get("/api/v1/quota").json()
    assert (fresh["quota_limit"], fresh["reset_policy"], fresh["timezone"]) == (50, "weekly", "Europe/Berlin")


@pytest.mark.parametrize(
    ("reset_policy", "period"),
    [("rolling", "1 h"), ("daily", "1 d"), ("weekly", "7 d"), ("monthly", "a month")],
)
def test_a_period_is_told_by_its_policy(root, reset_policy, period):
    Plan.objects.update(reset_policy=reset_policy, period_seconds=3_600)
    assert f'<td class="field-period">{period}</td>' in text(root.get("/admin/quotas/plan/"))


def test_a_plan_is_hidden_by_the_admin(root, api):
    page = "/admin/quotas/plan/free/change/"
    for box, shown in [({}, []), ({"is_public": "on"}, ["free"])]:
        root.post(page, {**EDITED, **box})
        assert [plan["name"] for plan in api.get("/api/v1/plans").json()["plans"]] == shown


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"timezone": "Mars/Olympus"}, "Name a time zone"),
        ({"period_seconds": "0"}, "Write a period of 1 s to 3660 d"),
        ({"reset_policy": "hourly"}, "not one of the available choices"),
        ({"actions_cost": "0"}, "the cost must be a whole number from 1"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(root, wrong, message):
    page = text(root.post("/admin/quotas/plan/free/change/", {**EDITED, **wrong}))
    assert message in page
    assert PlanVersion.objects.count() == 1

"""Attacks on the console, with and without a login: none may succeed.

Elsewhere: guessing passwords (test_lockout), framing and headers (test_page_policy), formulas in files
(test_csv_export), hostile users, e-mails and reasons (test_admin), what Support may not do
(test_admin_support), actions without a token or a permission (test_actions), hosts (test_bad_input).
"""

import re
from collections.abc import Callable
from urllib.parse import urlencode
from uuid import uuid4

import pytest
from axes.models import AccessAttempt
from django.contrib.auth.models import Group, Permission, User
from django.core.exceptions import BadRequest
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse
from django.test import Client, RequestFactory
from pytest_django import Settings

from quotas.models import ChallengeQuota, LedgerEntry, Plan, ServiceKey
from quotasite.staff.site import refusing_the_unusable
from tests.tools.staff import ACTING, LIST, PAGE, SCRIPT, Browser, sign_in, text

pytestmark = pytest.mark.django_db
Make = Callable[..., ChallengeQuota]

LOGIN = "/admin/login/"
SITE = "https://testserver"
HERE = {"Origin": SITE}
CREDENTIALS = {"username": "alice", "password": "a right password"}


@pytest.fixture
def alice(settings: Settings) -> User:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # a fast one
    return User.objects.create_superuser(**CREDENTIALS)


@pytest.fixture
def root() -> Client:
    return sign_in(is_superuser=True)


def log_in(client: Client, next_page: str = "/admin/") -> HttpResponse:
    return client.post(LOGIN, {**CREDENTIALS, "next": next_page})


# Requests that another site makes a browser send


def forms() -> list[tuple[str, dict[str, object]]]:
    """Every kind of form that changes something, as a superuser would fill it in."""
    action = {
        "action": "reset_now",
        "_selected_action": "user_1",
        "reason": "x",
        "token": uuid4(),
        "confirmed": "1",
    }
    return [
        (LIST, action),
        ("/admin/quotas/servicekey/add/", {"name": "mine", "scopes": "admin"}),
        ("/admin/quotas/plan/add/", {"name": "gold", "allowance": "99"}),
        ("/admin/auth/user/add/", {"username": "mallory", "password1": "x", "password2": "x"}),
        ("/admin/password_change/", {"new_password1": "x", "new_password2": "x"}),
        ("/admin/logout/", {}),
        (LOGIN, CREDENTIALS),
    ]


FORGED: dict[str, tuple[str, dict[str, str]]] = {
    "no token": ("", HERE),
    "a wrong token": ("x" * 64, HERE),
    "another site": ("right", {"Origin": "https://evil.example"}),
    "a site that begins alike": ("right", {"Origin": f"{SITE}.evil.example"}),
    "this site by plain HTTP": ("right", {"Origin": "http://testserver"}),
    "another port": ("right", {"Origin": f"{SITE}:8443"}),
    "a sandboxed frame": ("right", {"Origin": "null"}),
    "a page of another site": ("right", {"Referer": "https://evil.example/admin/"}),
    "no page": ("right", {}),
}


@pytest.mark.parametrize("why", FORGED)
def test_a_form_of_another_site_is_refused(alice: User, make_quota: Make, why: str) -> None:
    make_quota(remaining=1)
    victim = Browser(enforce_csrf_checks=True)
    victim.force_login(alice)
    token, headers = FORGED[why]
    token = _token(victim) if token == "right" else token
    for path, form in forms():
        refused = victim.post(path, {**form, "csrfmiddlewaretoken": token}, headers=headers)
        assert refused.status_code == 403, path
    assert ChallengeQuota.objects.get().quota_remaining == 1
    assert not ServiceKey.objects.exists()
    assert victim.get("/admin/").status_code == 200  # still signed in


def test_the_same_form_of_our_own_is_taken(alice: User, make_quota: Make) -> None:
    make_quota(remaining=1)
    staff = Browser(enforce_csrf_checks=True)
    staff.force_login(alice)
    path, form = forms()[0]
    sent = {**form, "csrfmiddlewaretoken": _token(staff)}
    assert staff.post(path, sent, headers=HERE).status_code == 302
    assert ChallengeQuota.objects.get().quota_remaining == 20


def _token(client: Client) -> str:
    found = re.search(
        r'name="csrfmiddlewaretoken" value="(\w+)"', text(client.get("/admin/password_change/"))
    )
    assert found
    return found[1]


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"])
@pytest.mark.parametrize("path", [LIST, PAGE, "/admin/quotas/plan/free/change/", LOGIN])
def test_no_other_method_changes_anything(root: Client, make_quota: Make, method: str, path: str) -> None:
    make_quota(remaining=1)
    before = [list(model.objects.values()) for model in (ChallengeQuota, LedgerEntry, Plan)]
    form = "action=reset_now&_selected_action=user_1&reason=x&confirmed=1&allowance=99"
    kind = "application/x-www-form-urlencoded"
    answer = root.generic(method, path, f"{form}&token={uuid4()}", content_type=kind)
    assert answer.status_code < 500
    assert [list(model.objects.values()) for model in (ChallengeQuota, LedgerEntry, Plan)] == before


@pytest.mark.parametrize("query", ["action=reset_now&_selected_action=user_1&confirmed=1", "_method=DELETE"])
def test_no_link_changes_anything(root: Client, make_quota: Make, query: str) -> None:
    make_quota(remaining=1)
    root.get(f"{LIST}?{query}&reason=x&token={uuid4()}")
    assert ChallengeQuota.objects.get().quota_remaining == 1
    assert root.get("/admin/logout/").status_code == 405
    assert root.get("/admin/").status_code == 200


# Where a login leads

ELSEWHERE = [
    "//evil.example",
    "///evil.example",
    "/\\evil.example",
    "\\\\evil.example",
    "https://evil.example/admin/",
    "https:evil.example",
    "http:///evil.example",
    "//testserver@evil.example",
    "//testserver.evil.example",
    "http://testserver/admin/",  # by plain HTTP
    "javascript:alert(1)",
    "data:text/html,x",
    "\x08//evil.example",
    " //evil.example",
    "\t//evil.example",
    "https://[evil",
]


@pytest.mark.parametrize("target", ELSEWHERE)
def test_a_login_leads_to_no_other_site(alice: User, target: str) -> None:
    client = Browser()
    assert log_in(client, target)["Location"] == "/admin/"
    again = client.get(LOGIN, {"next": target})
    assert again["Location"] == "/admin/"  # already signed in
    out = client.post("/admin/logout/", {"next": target})
    assert out.get("Location", "/admin/logout/") in ("/admin/logout/", "/admin/")


def test_a_login_leads_to_the_page_that_was_asked_for(alice: User) -> None:
    assert log_in(Browser(), PAGE)["Location"] == PAGE


@pytest.mark.parametrize(
    "path", ["//evil.example/admin/", "/admin//evil.example", "/admin/%2F%2Fevil.example"]
)
def test_no_address_leads_to_another_site(root: Client, path: str) -> None:
    for client in (Browser(), root):
        answer = client.get(path)
        assert not re.match(r"(https?:)?[/\\]{2}(?!testserver/)", answer.get("Location", ""))


def test_no_line_break_gets_into_a_header(alice: User) -> None:
    answer = log_in(Browser(), "/admin/\r\nSet-Cookie: a=b")
    assert "\n" not in str(answer.headers.get("Location"))
    redirect = Browser().get("/admin/%0d%0aSet-Cookie:%20a=b")
    assert "\n" not in redirect.get("Location", "")
    assert "a" not in {**answer.cookies, **redirect.cookies}


@pytest.mark.parametrize("header", ["X-Forwarded-Host", "X-Host", "Forwarded"])
def test_another_host_is_believed_in_no_other_header(root: Client, header: str) -> None:
    forged = {header: "host=evil.example" if header == "Forwarded" else "evil.example"}
    assert Client().get(LOGIN, headers=forged)["Location"] == f"{SITE}{LOGIN}"
    for path in ("/admin/", LIST):
        answer = root.get(path, headers=forged)
        assert "evil.example" not in text(answer) + str(answer.headers)


# Sessions


def test_the_cookies_of_a_session_are_for_this_site_by_https_alone(alice: User) -> None:
    client = Browser()
    client.get(LOGIN)
    log_in(client)
    session, csrf = client.cookies["sessionid"], client.cookies["csrftoken"]
    for cookie in (session, csrf):
        assert (cookie["secure"], cookie["samesite"], cookie["domain"], cookie["path"]) == (
            True,
            "Lax",
            "",
            "/",
        )
    assert session["httponly"] is True


def test_a_session_that_was_planted_is_not_the_one_that_is_signed_in(alice: User) -> None:
    attacker = Browser()
    attacker.get(LOGIN)
    session = attacker.session  # one that the site has stored
    session["planted"] = "x"
    session.save()
    planted = session.session_key
    assert planted
    victim = Browser()
    victim.cookies["sessionid"] = planted
    log_in(victim)
    assert victim.cookies["sessionid"].value not in ("", planted)
    attacker.cookies["sessionid"] = planted
    assert attacker.get("/admin/").status_code == 302


def test_a_session_ends_with_the_logout_the_password_and_the_rights(alice: User) -> None:
    def signed_in() -> tuple[Client, Client]:
        client, thief = Browser(), Browser()
        client.force_login(alice)
        thief.cookies["sessionid"] = client.cookies["sessionid"].value
        assert thief.get("/admin/").status_code == 200
        return client, thief

    client, thief = signed_in()
    client.post("/admin/logout/")
    assert thief.get("/admin/").status_code == 302
    _, thief = signed_in()
    alice.set_password("another one")
    alice.save()
    assert thief.get("/admin/").status_code == 302
    for right in ("is_staff", "is_active"):
        _, thief = signed_in()
        User.objects.update(**{right: False})
        assert thief.get("/admin/").status_code == 302
        User.objects.update(**{right: True})


def test_who_is_not_staff_or_not_active_is_not_let_in(alice: User) -> None:
    for right in ("is_staff", "is_active"):
        User.objects.update(**{right: False})
        client = Browser()
        assert log_in(client).status_code == 200
        assert "sessionid" not in client.cookies
        User.objects.update(**{right: True})


# Hostile text


def test_hostile_names_are_shown_as_text(root: Client, make_quota: Make) -> None:
    make_quota()
    shown = [root.post("/admin/quotas/servicekey/add/", {"name": SCRIPT, "scopes": "read"})]
    key = ServiceKey.objects.get()
    Plan(name=SCRIPT, allowance=1).save()
    form = {"action": "revoke", "_selected_action": str(key.pk)}
    shown += [
        root.get("/admin/quotas/servicekey/"),
        root.get(f"/admin/quotas/servicekey/{key.pk}/change/"),
        root.post("/admin/quotas/servicekey/", form, follow=True),
        root.get(f"/admin/quotas/servicekey/{key.pk}/history/"),
        root.get("/admin/quotas/plan/"),
        root.get(LIST),  # it lists the plans
        root.post(LIST, {"action": "change_plan", "_selected_action": "user_1"}),
    ]
    for page in shown:
        assert SCRIPT not in text(page)
        assert "&lt;script&gt;" in text(page)


@pytest.mark.parametrize(
    "query", ["q=%3Cscript%3E", "state=%3Cscript%3E", "nonsense=%3Cscript%3E", "spend=%3Cscript%3E"]
)
def test_what_is_asked_for_is_shown_as_text(root: Client, make_quota: Make, query: str) -> None:
    make_quota()
    for path in (LIST, PAGE, "/admin/quotas/ledgerentry/", "/admin/webhooks/webhookevent/", LOGIN):
        assert "<script>" not in text(root.get(f"{path}?{query}", follow=True))


# What viewers can query


@pytest.mark.parametrize(
    "query",
    [
        "plan__quotas__email__startswith=a",
        "entries__reason__startswith=a",
        "digest__startswith=a",
        "user__password__startswith=a",
    ],
)
def test_no_filter_reaches_beyond_the_list(make_quota: Make, query: str) -> None:
    make_quota()
    looks = sign_in(*(name for name in ACTING if name.startswith("view_")))
    answer = looks.get(f"{LIST}?{query}")
    assert answer.status_code in (302, 400)
    assert answer.get("Location", "?e=1").endswith("?e=1")


@pytest.mark.parametrize(
    "path", ["quotas/servicekey/?digest__startswith=", "auth/user/?password__startswith="]
)
def test_no_list_tells_a_hidden_column_letter_by_letter(root: Client, path: str) -> None:
    assert root.get(f"/admin/{path}a").status_code == 400


# Whether staff can extend their own rights


def test_who_may_edit_accounts_gives_nobody_a_right(alice: User) -> None:
    rights = [f"{verb}_{what}" for verb in ("view", "add", "change", "delete") for what in ("user", "group")]
    mallory = User.objects.create_user("mallory", is_staff=True)
    mallory.user_permissions.set(Permission.objects.filter(codename__in=rights))
    mallory.groups.set(Group.objects.filter(name="Support"))
    support = Group.objects.get(name="Support")
    client = Browser()
    client.force_login(mallory)
    everything = [permission.pk for permission in Permission.objects.all()]
    account = {"username": "mallory", "is_active": "on", "is_staff": "on", "is_superuser": "on"}
    dates = {"date_joined_0": "2026-01-01", "date_joined_1": "00:00:00"}
    password = {"password1": "a new password", "password2": "a new password", "usable_password": "true"}

    def all_there_is() -> list[object]:
        held = [list(user.get_all_permissions()) for user in User.objects.order_by("pk")]
        return [held, *(list(model.objects.order_by("pk").values()) for model in (User, Group))]

    before = all_there_is()
    for path, form in [
        (f"auth/user/{mallory.pk}/change/", {**account, **dates, "user_permissions": everything}),
        (f"auth/user/{alice.pk}/password/", password),
        (f"auth/user/{alice.pk}/delete/", {"post": "yes"}),
        ("auth/user/add/", {"username": "another", **password}),
        (f"auth/group/{support.pk}/change/", {"name": "Support", "permissions": everything}),
        ("auth/group/add/", {"name": "another", "permissions": everything}),
    ]:
        assert client.post(f"/admin/{path}", form).status_code == 403, path
    client.post(
        "/admin/auth/user/", {"action": "delete_selected", "_selected_action": alice.pk, "post": "yes"}
    )
    assert all_there_is() == before
    assert client.get("/admin/auth/user/").status_code == 200  # viewing is allowed


def test_a_superuser_edits_accounts(root: Client) -> None:
    password = {"password1": "a new password", "password2": "a new password", "usable_password": "true"}
    assert root.post("/admin/auth/user/add/", {"username": "bob", **password}).status_code == 302
    assert User.objects.filter(username="bob").exists()


# Addresses and forms that no query can use

LISTS = {
    "auth/group": ["id", "name"],
    "auth/user": ["id", "username", "date_joined"],
    "quotas/challengequota": ["user_id", "quota_remaining", "deleted_at", "usage"],
    "quotas/ledgerentry": ["id", "seq", "kind", "created_at", "metadata"],
    "quotas/plan": ["name", "allowance", "actions"],
    "quotas/servicekey": ["id", "scopes", "expires_at"],
    "webhooks/webhookevent": ["svix_id", "status", "handled_at"],
}
VALUES = [
    *("%00", "a%00b", "_00", "user_5F_00", "%ff", "%ed%a0%80", "%F0%9F%92%A9", "%0d%0a", "%25", "%5c"),
    *("-1", "99999", "2147483648", "9" * 20, "9" * 4_301, "1e400", "nan", "%D9%A3", "99999-01-01"),
    *(
        "0000-00-00",
        "9999-12-31",
        "a" * 5_000,
        "a,b",
        "*",
        "[]",
        "{}",
        "%22",
        "%27%3B--",
        "%2e%2e",
        "null",
        "",
    ),
]
LOOKUPS = ["", "__in", "__isnull", "__gte", "__year", "__year__gte", "__regex", "__range", "__date", "__len"]


def hostile_addresses(value: str) -> list[str]:
    """Addresses of every page, each with the value in it."""
    paths = [
        "",
        "login/",
        "logout/",
        "password_change/",
        "jsi18n/",
        "autocomplete/?app_label=auth&model_name=user&field_name=groups&term=&p=",
    ]
    for model, fields in LISTS.items():
        paths += [f"{model}/{value}/{page}/" for page in ("change", "delete", "history", "password")]
        paths += [
            f"{model}/add/?name=",
            f"{model}/?q=",
            f"{model}/?p=",
            f"{model}/?_to_field=",
            f"{model}/?o=",
        ]
        paths += [f"{model}/?{field}{lookup}=" for field in fields for lookup in LOOKUPS]
    paths += [f"quotas/challengequota/{value}/ledger.csv", "quotas/challengequota/csv/?state=1&user_id__in="]
    paths += ["quotas/challengequota/user_5F1/change/?spend=", f"r/{value}/{value}/", f"r/1/{value}/"]
    paths += ["quotas/challengequota/csv/?user_id__range=", "quotas/challengequota/csv/?deleted_at__year="]
    return [f"/admin/{path}{value if '?' in path else ''}" for path in paths]


@pytest.mark.parametrize("number", range(len(VALUES)))
def test_no_address_is_an_error_of_the_server(root: Client, make_quota: Make, number: int) -> None:
    """Each value in each sixth address, from another one on: all of them have every sixth value."""
    make_quota()
    value = VALUES[number]
    for address in hostile_addresses(value)[number % 6 :: 6]:
        answer = root.get(address)
        assert answer.status_code < 500, address
        assert "no-store" in answer["Cache-Control"], address
        text(answer)  # a file is read from the database only now
    for address in hostile_addresses(value)[:: len(VALUES)]:
        assert Browser().get(address).status_code < 500, address


@pytest.mark.parametrize(
    ("address", "fault"),
    [
        (f"{LIST}?user_id=%00", "the character U+0000"),
        (f"{LIST}?%00=1", "the character U+0000"),
        (f"{LIST}user_%00/change/", "the character U+0000"),
        (f"{LIST}csv/?q=%00", "the character U+0000"),
        (f"{LOGIN}?next=%00", "the character U+0000"),
        ("/admin/nothing%00", "the character U+0000"),
        ("/admin/auth/user/?date_joined__year=99999", "a filter that no list here offers"),
        ("/admin/quotas/servicekey/?digest=a", "a filter that this list does not offer"),
        ("/admin/auth/user/add/?_to_field=", "_to_field is empty"),
    ],
)
def test_what_is_wrong_with_an_address_is_told(root: Client, address: str, fault: str) -> None:
    answer = root.get(address)
    assert answer.status_code == 400
    assert answer["Content-Type"] == "text/plain"
    assert fault in text(answer)


def test_a_cookie_may_hold_what_no_session_does(root: Client) -> None:
    for address in ("/admin/", LOGIN, LIST):
        answer = root.get(address, headers={"Cookie": 'sessionid="aaaaaaaa\\000"'})
        assert (answer.status_code, "cookie" in text(answer)) == (400, True)


@pytest.mark.postgres
def test_what_only_the_database_refuses_is_the_fault_of_what_was_sent(root: Client) -> None:
    def divide(request: HttpRequest) -> HttpResponse:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 / 0")
        raise AssertionError

    with pytest.raises(BadRequest, match="a value that the database cannot take"), transaction.atomic():
        refusing_the_unusable(divide)(RequestFactory().get("/admin/"))


def test_a_filter_that_cannot_be_read_is_left_out_and_that_is_told(root: Client) -> None:
    answer = root.get("/admin/auth/user/?id__exact=abc", follow=True)
    assert (answer.status_code, "could not be read" in text(answer)) == (200, True)
    assert "could not be read" not in text(root.get("/admin/auth/user/"))


TICKED = {"_selected_action": "user_1", "reason": "x", "token": "x"}
FORMS = [
    (
        LIST,
        {"action": "reset_now", "_selected_action": "user_1", "reason": "x", "token": "x", "confirmed": "1"},
    ),
    (LIST, {"action": "adjust", "_selected_action": "user_1", "delta": "1", "reason": "x", "token": "x"}),
    (
        LIST,
        {"action": "change_plan", "_selected_action": "user_1", "plan": "free", "reason": "x", "token": "x"},
    ),
    (LIST, {"action": "export", "_selected_action": "user_1"}),
    ("/admin/quotas/servicekey/", {"action": "revoke", "_selected_action": "1"}),
    ("/admin/quotas/servicekey/add/", {"name": "x", "scopes": "read", "expires_at": "2030-01-01"}),
    ("/admin/quotas/plan/add/", {"name": "gold", "allowance": "9", "actions_name": "a", "timezone": "UTC"}),
    ("/admin/quotas/plan/free/change/", {"allowance": "9", "actions_cost": "9", "period_seconds": "9"}),
    ("/admin/auth/user/add/", {"username": "bob", "password1": "x", "password2": "x"}),
    ("/admin/auth/user/", {"action": "delete_selected", "_selected_action": "1", "post": "yes"}),
    ("/admin/auth/group/add/", {"name": "x", "permissions": "1"}),
    ("/admin/auth/group/", {"action": "delete_selected", "_selected_action": "1", "post": "yes"}),
    ("/admin/webhooks/webhookevent/", {"action": "apply_again", "_selected_action": "msg_1"}),
    ("/admin/password_change/", {"old_password": "x", "new_password1": "x", "new_password2": "x"}),
    (LOGIN, {"username": "alice", "password": "x", "next": "/admin/"}),
]


@pytest.mark.parametrize("number", range(len(FORMS)))
def test_no_form_is_an_error_of_the_server(alice: User, make_quota: Make, number: int) -> None:
    make_quota()
    path, form = FORMS[number]
    client = Browser()
    if path != LOGIN:
        client.force_login(alice)
    for name in form:
        for value in (
            b"\0",
            b"\xff",
            b"\xed\xa0\x80",
            b"-1",
            b"9" * 20,
            b"9" * 4_301,
            b"[" * 100_000,
            b"nan",
        ):
            body = urlencode({**form, name: value})
            answer = client.post(path, body, content_type="application/x-www-form-urlencoded")
            text(answer)  # the next export has to wait for the end of this one
            assert answer.status_code < 500, (name, value[:20])
            AccessAttempt.objects.all().delete()  # a lockout would hide the next one
    for query in ("date_joined__year=99999", "user_id=%00", "q=_00", "_to_field="):
        assert client.post(f"{path}?{query}", form).status_code < 500, query

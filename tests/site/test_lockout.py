"""Password guessing at the admin's login: five attempts for a name from one address, then a lock."""

import io
import logging
import runpy
from collections.abc import Callable
from datetime import timedelta
from ipaddress import ip_network

import httpx
import pytest
from axes.models import AccessAttempt, AccessFailureLog, AccessLog
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connection
from django.db.models import F
from django.http import HttpResponse
from django.test import RequestFactory
from django.test.utils import CaptureQueriesContext
from pytest_django import Settings

from quotasite.staff.lockout import client_address
from quotasite.staff.site import ONE_PASSWORD
from tests.conftest import Api
from tests.tools.site import ROOT, served, url_of_the_test_database
from tests.tools.staff import Browser, text

pytestmark = pytest.mark.django_db
RIGHT, HERE, ELSEWHERE = "a right password", "203.0.113.9", "198.51.100.7"
Guess = Callable[..., HttpResponse]


@pytest.fixture
def guess(settings: Settings) -> Guess:
    """Send the login form: by default as alice, from HERE, with a wrong password."""
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # a fast one
    User.objects.create_superuser("alice", password=RIGHT)
    User.objects.create_superuser("bob", password=RIGHT)

    def send(
        name: str = "alice", password: str = "wrong", address: str = HERE, agent: str = "", **typed: str
    ) -> HttpResponse:
        form = {"username": name, "password": password, "next": "/admin/", **typed}
        return Browser(REMOTE_ADDR=address).post("/admin/login/", form, headers={"User-Agent": agent})

    return send


def let_pass(time: timedelta) -> None:
    AccessAttempt.objects.update(attempt_time=F("attempt_time") - time)


def test_the_fifth_wrong_guess_locks_and_then_the_right_one_is_refused_too(guess: Guess) -> None:
    assert [guess().status_code for _ in range(5)] == [200, 200, 200, 200, 429]
    refused = guess(password=RIGHT)
    assert refused.status_code == 429
    assert "Too many failed log-ins" in text(refused)
    assert "sessionid" not in refused.cookies


def test_who_is_locked_out_is_told_for_how_long_and_no_cache_keeps_it(guess: Guess) -> None:
    for _ in range(5):
        refused = guess()
    assert 890 <= int(refused["Retry-After"]) <= 900
    assert "the next 15 min." in text(refused)
    assert "no-store" in refused["Cache-Control"]
    let_pass(timedelta(minutes=14, seconds=30))
    refused = guess()
    assert int(refused["Retry-After"]) <= 30
    assert "the next 1 min." in text(refused)


def test_the_lock_ends_by_itself_although_somebody_guesses_on(guess: Guess) -> None:
    for _ in range(5):
        guess()
    let_pass(timedelta(minutes=14))
    kept = AccessAttempt.objects.values().get()
    assert guess().status_code == 429
    assert AccessAttempt.objects.values().get() == kept  # further guesses write nothing
    let_pass(timedelta(minutes=1))
    assert guess(password=RIGHT).status_code == 302


def test_nobody_can_lock_staff_out_from_elsewhere(guess: Guess) -> None:
    for _ in range(5):
        guess(address=ELSEWHERE)
    assert guess(address=ELSEWHERE, password=RIGHT).status_code == 429
    assert guess(password=RIGHT).status_code == 302
    assert guess("bob", RIGHT, ELSEWHERE).status_code == 302


def test_another_browser_is_no_way_round(guess: Guess) -> None:
    for number in range(5):
        guess(agent=f"browser {number}")
    assert guess(password=RIGHT, agent="another").status_code == 429


def test_an_ipv6_network_is_one_client(guess: Guess) -> None:
    for number in range(5):
        guess(address=f"2001:db8:0:1::{number}")
    assert guess(password=RIGHT, address="2001:db8:0:1:ffff::1").status_code == 429
    assert guess(password=RIGHT, address="2001:db8:0:2::1").status_code == 302


def test_a_right_password_takes_the_failures_back(guess: Guess) -> None:
    for password in ["wrong"] * 4 + [RIGHT] + ["wrong"] * 4:
        guess(password=password)
    assert guess(password=RIGHT).status_code == 302


def test_a_name_that_does_not_exist_is_locked_alike(guess: Guess) -> None:
    pages = [[text(guess(name)) for _ in range(5)][-1] for name in ("alice", "nobody")]
    assert pages[0] == pages[1]


def test_nothing_that_was_typed_is_kept_or_logged_but_the_name(
    guess: Guess, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("django.db.backends").setLevel(logging.INFO)  # it would show every statement
    for _ in range(6):
        guess(password="hunter2", password1="hunter2", Password="hunter2", other="hunter2")
    assert "hunter2" not in str(list(AccessAttempt.objects.values()))
    assert "hunter2" not in caplog.text
    assert "alice" not in caplog.text  # users type their password there by mistake
    assert HERE in caplog.text


@pytest.mark.parametrize("name", ["a" * 151, "a" * 256, "a" * 10_000, "\ufdfa" * 150])
def test_a_name_that_no_account_can_have_is_refused_unchecked(guess: Guess, name: str) -> None:
    for _ in range(6):
        answer = guess(name)
        assert (answer.status_code, "at most 150 characters" in text(answer)) == (200, True)
    assert not AccessAttempt.objects.exists()


def test_the_longest_name_is_counted(guess: Guess) -> None:
    assert [guess("a" * 150).status_code for _ in range(5)][-1] == 429


def test_what_is_over_is_forgotten_with_the_next_login(guess: Guess) -> None:
    for number in range(3):
        guess(f"nobody {number}", address=ELSEWHERE)
    let_pass(timedelta(minutes=15))
    guess(password=RIGHT)
    kept = [model.objects.count() for model in (AccessAttempt, AccessLog, AccessFailureLog)]
    assert kept == [0, 0, 0]


def test_one_password_is_checked_at_a_time_and_nobody_waits_for_it(guess: Guess) -> None:
    with ONE_PASSWORD:
        refused = guess(password=RIGHT)
        assert Browser().get("/admin/login/").status_code == 200
    assert (refused.status_code, refused["Retry-After"]) == (503, "1")
    assert guess(password=RIGHT).status_code == 302
    assert guess().status_code == 200  # the lock is released
    assert not ONE_PASSWORD.locked()


def test_an_operator_lifts_a_lock(guess: Guess) -> None:
    for _ in range(5):
        guess()
    call_command("axes_reset_username", "alice", stdout=io.StringIO())
    assert guess(password=RIGHT).status_code == 302


def test_the_console_shows_no_attempts(guess: Guess) -> None:
    staff = Browser()
    staff.force_login(User.objects.get(username="alice"))
    assert "axes" not in text(staff.get("/admin/"))
    assert staff.get("/admin/axes/accessattempt/").status_code == 404


def test_the_api_knows_nothing_of_it(guess: Guess, api: Api) -> None:
    for _ in range(6):
        guess(address="127.0.0.1")
    with CaptureQueriesContext(connection) as captured:
        assert api.quota().status_code == 200
        for _ in range(6):
            assert api.get("/api/quota", Authorization="Bearer qs_wrong").status_code == 401
    assert not any("axes" in query["sql"] for query in captured)
    assert AccessAttempt.objects.count() == 1


@pytest.mark.parametrize(
    ("proxies", "forwarded", "found"),
    [
        (0, None, "192.0.2.1"),
        (0, HERE, "192.0.2.1"),
        (1, None, "192.0.2.1"),
        (1, HERE, HERE),
        (1, f"{ELSEWHERE}, {HERE}", HERE),
        (1, f"{ELSEWHERE},, {HERE}", HERE),
        (1, f" {HERE}:4711 ", HERE),
        (1, "::ffff:203.0.113.9", HERE),
        (1, "2001:db8:a:b:c:d:e:f", "2001:db8:a:b::"),
        (1, "[2001:db8:a:b:c:d:e:f]:4711", "2001:db8:a:b::"),
        (1, f"{HERE}, unknown", "0.0.0.0"),
        (1, f"{HERE},", "0.0.0.0"),
        (1, "'; DROP TABLE", "0.0.0.0"),
        (2, f"{ELSEWHERE}, {HERE}, 10.0.0.1", HERE),
        (2, HERE, HERE),
    ],
)
def test_the_client_is_whom_the_outermost_proxy_of_ours_saw(
    settings: Settings, proxies: int, forwarded: str | None, found: str
) -> None:
    settings.TRUSTED_PROXIES = proxies
    headers = {"X-Forwarded-For": forwarded} if forwarded is not None else {}
    request = RequestFactory(REMOTE_ADDR="192.0.2.1").get("/", headers=headers)
    assert client_address(request) == found


@pytest.mark.parametrize(("value", "proxies"), [("", 0), ("0", 0), ("no", 0), ("yes", 1), ("1", 1), ("3", 3)])
def test_a_yes_is_one_proxy(value: str, proxies: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUSTED_PROXY", value)
    assert runpy.run_path(str(ROOT / "quotasite/settings.py"))["TRUSTED_PROXIES"] == proxies


def test_who_comes_by_a_socket_without_an_address_is_counted_too(guess: Guess) -> None:
    assert [guess(address="").status_code for _ in range(5)][-1] == 429


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True, serialized_rollback=True)
def test_all_workers_know_of_a_lock_and_a_forged_address_is_no_way_round() -> None:
    User.objects.create_superuser("alice", password=RIGHT)
    with served(url_of_the_test_database(), workers=3, TRUSTED_PROXY="1") as port:

        def sign_in(password: str, forwarded: str) -> int:
            """Send the form like a proxy, which appends the client's address to the client's own header."""
            headers = {
                "X-Forwarded-Proto": "https",
                "Referer": f"https://127.0.0.1:{port}/",
                "X-Forwarded-For": forwarded,
                "Cookie": f"csrftoken={'x' * 32}",
            }
            form = {"username": "alice", "password": password, "csrfmiddlewaretoken": "x" * 32}
            return httpx.post(f"http://127.0.0.1:{port}/admin/login/", data=form, headers=headers).status_code

        addresses = ip_network("10.0.0.0/28").hosts()
        assert [sign_in("wrong", f"{next(addresses)}, {HERE}") for _ in range(8)][4:] == [429] * 4
        assert [sign_in(RIGHT, f"{next(addresses)}, {HERE}") for _ in range(4)] == [429] * 4
        assert sign_in(RIGHT, f"{HERE}, {ELSEWHERE}") == 302

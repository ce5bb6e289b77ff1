"""The fast path answers as the full path does, and hands over all other requests."""

from collections.abc import Callable
from typing import Any

import pytest
from django.db import OperationalError
from django.http import HttpResponse
from django.test import Client
from pytest_django import Settings

from quotas.access import session_tokens
from quotas.api import views
from quotas.models import ChallengeQuota, LedgerEntry
from quotas.store import manager
from quotas.store.steps import InThread, Steps
from tests.conftest import USER
from tests.tools import keys
from tests.tools.fast_path import FastPathHandler, learned_headers

pytestmark = [pytest.mark.postgres, pytest.mark.django_db]

CONSUME = "/api/v1/quota/consume"


class FastPathUser:
    """One user's requests, sent to the fast path."""

    def __init__(self, *, is_new: bool = False) -> None:
        self.handler = FastPathHandler(is_new=is_new)
        self.client = Client(raise_request_exception=False)
        self.client.handler = self.handler

    def send(self, method: str, path: str, body: bytes = b"", **environ: Any) -> HttpResponse:
        given = {"HTTP_AUTHORIZATION": f"Bearer {keys.mint(sub=USER)}", **environ}
        return self.client.generic(method, path, body, "application/json", **given)

    def get(self, path: str = "/api/quota", **environ: Any) -> HttpResponse:
        return self.send("GET", path, **environ)

    def consume(self, body: bytes = b"{}", **environ: Any) -> HttpResponse:
        return self.send("POST", CONSUME, body, **environ)

    def takes_fast_path(self, send: Callable[[], HttpResponse]) -> bool:
        before = self.handler.full_path_count
        send()
        return self.handler.full_path_count == before


@pytest.fixture
def user(settings_for_clerk: Settings) -> FastPathUser:
    return FastPathUser()


def names(answer: HttpResponse) -> set[str]:
    return {name.lower() for name in answer.headers}


def same(answer: HttpResponse) -> tuple[int, dict[str, str], bytes]:
    """Return the parts that equal answers share: without the request id and the seconds to the reset."""
    headers = {name.lower(): value for name, value in answer.items() if name.lower() != "x-request-id"}
    headers["ratelimit"] = headers["ratelimit"].partition(";t=")[0]
    return answer.status_code, headers, answer.content.partition(b',"seconds_to_reset"')[0]


ORIGIN = {"HTTP_ORIGIN": keys.PARTY}
BY_HTTPS = {"wsgi.url_scheme": "https"}


@pytest.mark.parametrize("path", ["/api/quota", "/api/v1/quota"])
@pytest.mark.parametrize("given", [{}, ORIGIN, BY_HTTPS, {**ORIGIN, **BY_HTTPS}], ids=str)
def test_a_read_is_answered_as_by_the_full_path(user: FastPathUser, path: str, given: dict[str, str]) -> None:
    full = user.get(path, HTTP_X_TEST="", **given)
    if given:  # learned separately: the middleware may decide by these headers
        assert not user.takes_fast_path(lambda: user.get(path, **given))
    assert user.takes_fast_path(lambda: user.get(path, **given))
    assert same(user.get(path, **given)) == same(full)


def test_what_is_learned_is_what_the_tests_of_the_contract_begin_with(settings_for_clerk: Settings) -> None:
    user = FastPathUser(is_new=True)
    for path in ("/api/quota", "/api/v1/quota"):
        user.get(path)
    user.consume()
    learned = {key: dict(headers) for key, headers in user.handler.fast_path.learned.items()}
    assert learned == {key: dict(headers) for key, headers in learned_headers().items()}


@pytest.mark.parametrize("headers", [{}, ORIGIN], ids=["plain", "with an origin"])
def test_a_spend_and_its_replay_are_answered_as_by_the_full_path(
    user: FastPathUser, headers: dict[str, str]
) -> None:
    user.consume(**headers)
    full = user.consume(b'{"cost": 3}', HTTP_IDEMPOTENCY_KEY="a", HTTP_X_TEST="", **headers)
    full_again = user.consume(b'{"cost": 3}', HTTP_IDEMPOTENCY_KEY="a", HTTP_X_TEST="", **headers)
    before = user.handler.full_path_count
    fast = user.consume(b'{"cost": 3}', HTTP_IDEMPOTENCY_KEY="b", **headers)
    fast_again = user.consume(b'{"cost": 3}', HTTP_IDEMPOTENCY_KEY="b", **headers)
    assert user.handler.full_path_count == before
    assert [entry.cost for entry in LedgerEntry.objects.filter(user_id=USER, kind="consumed")] == [3, 3, 1]
    assert (fast.status_code, names(fast)) == (full.status_code, names(full))
    assert (names(fast_again), fast_again.content) == (names(full_again), fast.content)


@pytest.mark.parametrize(
    "given",
    [
        {"HTTP_X_TEST": "1"},
        {"HTTP_TRANSFER_ENCODING": "chunked"},
        {"HTTP_HOST": "evil.example"},
        {"QUERY_STRING": "x=1"},
        {"HTTP_AUTHORIZATION": ""},
        {"HTTP_AUTHORIZATION": "Bearer qs_0123abcd_" + "A" * 43},
        {"HTTP_AUTHORIZATION": f"Bearer {'x' * 9_000}"},
        {"HTTP_IDEMPOTENCY_KEY": "a, b"},
        {"CONTENT_TYPE": "text/plain"},
        {"CONTENT_TYPE": "application/json; charset=utf-8"},
        {"CONTENT_LENGTH": "99999999"},
        {"CONTENT_LENGTH": "x"},
        {"CONTENT_LENGTH": "\u0663"},
        {"CONTENT_LENGTH": ""},
        {"body": b'{"cost": 0}'},
        {"body": b'{"cost": true}'},
        {"body": b'{"cost": 1.0}'},
        {"body": b'{"cost": 1, "cost": 1}'},
        {"body": b'{"action": "generate"}'},
        {"body": b'{"metadata": {"a": 1}}'},
        {"body": b'{"ammount": 1}'},
        {"body": b"[]"},
        {"body": b"{"},
        {"body": b'{"cost": 1}' + b" " * 200},
    ],
    ids=lambda given: str(given)[:60],
)
def test_what_is_not_plain_takes_the_full_path_and_is_answered_there(
    user: FastPathUser, given: dict[str, Any]
) -> None:
    assert not user.takes_fast_path(lambda: user.consume(**given))


def test_what_strangers_write_at_length_is_not_kept(user: FastPathUser) -> None:
    assert not user.takes_fast_path(lambda: user.get(**{"HTTP_SEC_" + "A" * 2_000: "1"}))
    known = len(user.handler.fast_path.learned)
    assert not user.takes_fast_path(lambda: user.get(HTTP_ORIGIN="https://" + "a" * 2_000))
    assert len(user.handler.fast_path.learned) == known


def test_a_read_with_a_body_takes_the_full_path(user: FastPathUser) -> None:
    assert not user.takes_fast_path(lambda: user.get(CONTENT_LENGTH="99999999"))


def test_what_took_the_full_path_is_done_there_once(user: FastPathUser) -> None:
    assert user.consume(b'{"cost": 2, "metadata": {"a": 1}}').status_code == 201
    assert ChallengeQuota.objects.current(USER).quota_remaining == 18


def test_a_missing_row_is_opened_on_the_way(user: FastPathUser) -> None:
    assert user.takes_fast_path(user.get)
    assert LedgerEntry.objects.get(user_id=USER).kind == "opened"


def test_a_refusal_is_told_by_the_view_and_decided_once(user: FastPathUser) -> None:
    user.consume(b'{"cost": 20}')
    refused = user.consume()
    assert (refused.status_code, refused.json()["code"]) == (429, "quota_exhausted")
    assert [entry.kind for entry in LedgerEntry.objects.filter(user_id=USER)][:1] == ["refused"]


def test_a_spend_of_unknown_outcome_is_not_made_again_by_the_view(
    user: FastPathUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def fail(user_id: str, *_: object) -> Steps[None]:
        calls.append(user_id)
        yield InThread(lambda: None)
        raise OperationalError("the connection is lost")

    monkeypatch.setattr(manager, "commit", fail)
    answer = user.consume()
    assert (answer.status_code, answer["Retry-After"], calls) == (503, "5", [USER])


def test_a_fault_of_our_own_is_a_500_that_says_nothing(
    user: FastPathUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "quota_headers", lambda *_, **__: 1 / 0)
    answer = user.get()
    assert (answer.status_code, answer.json()["code"]) == (500, "server_error")


def test_a_forged_token_is_refused(user: FastPathUser) -> None:
    session_tokens._verified.clear()
    forged = keys.mint()[:-4] + "AAAA"
    assert user.get(HTTP_AUTHORIZATION=f"Bearer {forged}").status_code == 401


def test_only_good_answers_are_learned_from(settings_for_clerk: Settings) -> None:
    user = FastPathUser(is_new=True)
    user.get(HTTP_AUTHORIZATION="")
    user.get(HTTP_HOST="evil.example")
    assert user.handler.fast_path.learned == {}


def test_an_answer_with_a_header_that_may_be_one_users_own_is_not_learned_from(
    settings_for_clerk: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = FastPathUser(is_new=True)
    monkeypatch.setattr(views, "quota_headers", lambda *_, **__: {"Set-Cookie": "their=own"})
    assert user.get()["Set-Cookie"] == "their=own"
    assert user.handler.fast_path.learned == {}


def test_strange_origins_do_not_fill_the_memory(user: FastPathUser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quotasite.serving.fast_path.MAX_LEARNED", 5)
    for number in range(7):
        assert "access-control-allow-origin" not in user.get(HTTP_ORIGIN=f"https://{number}.example")
    assert len(user.handler.fast_path.learned) <= 5

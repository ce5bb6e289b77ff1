"""What the Python client refuses before it sends anything, and its retries step by step, without a server."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import httpx
import pytest
import yaml

from quotasite_client import (
    AsyncQuotasite,
    QuotaError,
    QuotaProblem,
    Quotasite,
    QuotasiteUser,
    QuotaUnreachable,
    answers,
    calls,
    retries,
)
from quotasite_client.errors import answer_to
from quotasite_client.retries import Fetch, Pause, Token
from tests import ROOT

pytestmark = pytest.mark.once
SITE = "https://quota.example.com"
KEY = f"qs_0a1b2c3d_{'k' * 43}"


@pytest.fixture
def client() -> Iterator[Quotasite]:
    with Quotasite(SITE, key=KEY) as client:
        yield client


@pytest.mark.parametrize(
    ("base_url", "sentence"),
    [
        (
            "quota.example.com",
            "with its scheme, such as 'https://quota.example.com', not 'quota.example.com'",
        ),
        ("localhost:8000", "with its scheme"),
        ("", "with its scheme"),
        (None, "with its scheme"),
        ("https://", "with its scheme"),
        ("ftp://quota.example.com", "with its scheme"),
        ("https://quota.example.com/api/v1", "pass only 'https://quota.example.com', without a path"),
        ("https://quota.example.com:8443/?a=b", "pass only 'https://quota.example.com:8443'"),
        ("https://me:secret@quota.example.com", "pass only 'https://quota.example.com'"),
    ],
)
@pytest.mark.parametrize("kind", [Quotasite, AsyncQuotasite])
def test_an_address_that_is_none_is_refused_with_the_right_form(
    kind: Any, base_url: Any, sentence: str
) -> None:
    with pytest.raises(ValueError, match=r"^base_url: pass ") as caught:
        kind(base_url, key=KEY)
    assert sentence in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        (None, "key: pass a service key of Quotasite, which begins with qs_"),
        ("", "key: pass a service key of Quotasite, which begins with qs_"),
        ("sk_test_abcdef", "the secret key of Clerk, which Quotasite's clients never need"),
        ("sk_live_abcdef", "the secret key of Clerk"),
        ("pk_test_abcdef", "the publishable key of Clerk"),
        ("eyJhbGciOiJabcdef", "a session token: QuotasiteUser takes it"),
        ("qs_abcdef\nX-Other: 1", "key: pass a service key"),
        ("abcdef", "key: pass a service key"),
    ],
)
@pytest.mark.parametrize("kind", [Quotasite, AsyncQuotasite])
def test_what_is_no_service_key_is_refused_and_not_shown(kind: Any, key: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=r"manage\.py create_service_key") as caught:
        kind(SITE, key=key)
    assert sentence in str(caught.value)
    assert "abcdef" not in str(caught.value)


def test_the_line_break_at_the_end_of_a_file_with_a_key_does_no_harm() -> None:
    Quotasite(SITE, key=f"{KEY}\n").close()


def test_a_missing_token_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^token: pass the session token of the user"):
        QuotasiteUser(SITE, token="")


@pytest.mark.parametrize("user_id", ["", None, ".", "..", 7])
def test_an_empty_user_id_is_refused(client: Quotasite, user_id: Any) -> None:
    for call in (client.quota, client.check, client.history, client.spending):
        with pytest.raises(
            ValueError, match=r"^user_id: pass the id of the user in Clerk, such as 'user_2abc'"
        ):
            call(user_id)


@pytest.mark.parametrize("key", ["", None, "a b", "schlüssel", "k" * 129, "k\n", 7])
def test_an_idempotency_key_that_the_service_would_refuse_is_refused(client: Quotasite, key: Any) -> None:
    with pytest.raises(ValueError, match=r"^key: pass an Idempotency-Key that names this one action"):
        client.consume("user_1", key=key)


def test_a_write_without_a_key_names_what_is_missing(client: Any) -> None:
    with pytest.raises(TypeError, match=r"'key'"):
        client.consume("user_1", cost=1)


def test_a_time_without_a_zone_is_refused(client: Quotasite) -> None:
    with pytest.raises(ValueError, match=r"^at: pass a time with its zone"):
        client.explain("user_1", at=datetime(2026, 9, 24))  # noqa: DTZ001


# Retries, step by step


def take(*replies: Any) -> list[Any]:
    """Carry a spend out with these replies to its requests; return its steps but those for the token."""
    call = calls.post("/api/v1/quota/consume", answers.Consumption, {}, "k-1")
    steps, left, taken = retries.carry_out(call), list(replies), []
    step = next(steps)
    try:
        while True:
            taken.append(step)
            if isinstance(step, Fetch):
                reply = left.pop(0)
                step = steps.throw(reply) if isinstance(reply, Exception) else steps.send(reply)
            else:
                step = steps.send("token" if isinstance(step, Token) else None)
    except QuotaUnreachable as error:
        taken.append(error)
    return [step for step in taken if not isinstance(step, Token)]


def test_the_pauses_grow_and_differ_and_the_request_stays_the_same() -> None:
    taken = [take(*[httpx.ReadError("cut")] * 3) for _ in range(50)]
    assert {tuple(type(step) for step in steps) for steps in taken} == {
        (Fetch, Pause, Fetch, Pause, Fetch, QuotaUnreachable)
    }
    for first, lower, upper in ((1, 0.15, 0.45), (3, 0.6, 1.8)):
        seconds = [steps[first].seconds for steps in taken]
        assert lower <= min(seconds) < max(seconds) <= upper
        assert len(set(seconds)) > 40
    assert {(fetch.method, fetch.headers["Idempotency-Key"]) for fetch in taken[0][::2]} == {("POST", "k-1")}


@pytest.mark.parametrize(
    ("retry_after", "attempts"), [("5", 3), ("6", 1), ("86400", 1), ("soon", 3), ("", 3)]
)
def test_a_retry_after_of_up_to_five_seconds_is_waited_for(retry_after: str, attempts: int) -> None:
    steps = take(*[httpx.Response(502, headers={"Retry-After": retry_after})] * 3)
    assert sum(isinstance(step, Fetch) for step in steps) == attempts
    pauses = [step.seconds for step in steps if isinstance(step, Pause)]
    assert (retry_after == "5") == (pauses == [5, 5])


@pytest.mark.parametrize(
    ("error", "is_unknown"),
    [
        (httpx.ConnectError("refused"), False),
        (httpx.ConnectTimeout("slow"), False),
        (httpx.PoolTimeout("busy"), False),
        (httpx.ReadTimeout("slow"), True),
        (httpx.WriteError("cut"), True),
        (httpx.RemoteProtocolError("cut"), True),
    ],
)
def test_only_a_request_that_was_sent_leaves_something_unknown(error: Exception, is_unknown: bool) -> None:
    assert take(error, error, error)[-1].outcome_unknown is is_unknown


# What an app answers to its own client


def problem(status: int, code: str, **members: Any) -> QuotaProblem:
    return QuotaProblem.of({"status": status, "code": code, "detail": "A sentence.", **members})


def test_what_is_about_the_user_is_passed_on() -> None:
    error = problem(422, "cost_exceeds_limit", title="Unprocessable Content")
    status, headers, body = answer_to(error)
    assert (status, headers, body) == (422, {}, error.problem)


@pytest.mark.parametrize("error", [QuotaUnreachable("No answer."), problem(503, "database_unavailable")])
def test_a_service_that_is_away_is_a_503_with_a_retry_after(error: QuotaError) -> None:
    status, headers, body = answer_to(error)
    assert (status, headers, body["status"], body["code"]) == (
        503,
        {"Retry-After": "1"},
        503,
        "quota_unavailable",
    )
    error.retry_after = 7
    assert answer_to(error).headers == {"Retry-After": "7"}


@pytest.mark.parametrize(
    "error",
    [
        problem(401, "key_unknown"),
        problem(403, "scope_missing"),
        problem(422, "unknown_action"),
        QuotaError(),
    ],
)
def test_what_the_app_must_mend_stays_an_error(error: QuotaError) -> None:
    with pytest.raises(QuotaError) as caught:
        answer_to(error)
    assert caught.value is error


# The schema


SCHEMA = yaml.safe_load((ROOT / "docs/openapi.yaml").read_text())
SHARED = sorted(SCHEMA["components"]["schemas"].keys() & vars(answers))


@pytest.mark.parametrize("name", SHARED)
def test_the_answers_have_the_members_of_the_schema(name: str) -> None:
    assert len(SHARED) >= 11
    kind, schema = getattr(answers, name), SCHEMA["components"]["schemas"][name]
    own = {field for field in kind.__dataclass_fields__ if field != "replayed"}
    assert own == set(schema["properties"])

"""Verified tokens are cached, and the cache always gives the result of a full check."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import time_machine
from cryptography.hazmat.primitives.asymmetric import rsa
from django.conf import settings as live
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st

from quotas.access import session_tokens
from quotas.access.jwks import KeysUnavailable
from quotas.access.refusals import Refused
from quotas.access.session_tokens import verify
from tests.tools.keys import ISSUER, PARTY, REMOVE, mint, pem_of, private_key, public_pem

pytestmark = pytest.mark.once

NOW = 1_790_000_000
other_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_PARTY = "https://admin.example.com"


def token(*, seconds=60, early=-10, **changes):
    with time_machine.travel(NOW, tick=False):
        return mint(**{"exp": NOW + seconds, "nbf": NOW + early} | changes)


TOKENS = {
    "plain": token(),
    "short": token(seconds=3),
    "over": token(seconds=-9),
    "early": token(early=8),
    "without nbf": token(nbf=REMOVE),
    "fractions": token(exp=NOW + 0.5, nbf=NOW - 0.5),
    "another party": token(azp=OTHER_PARTY),
    "no party": token(azp=REMOVE),
    "another issuer": token(iss="https://clerk.example.org"),
    "pending": token(v2=True, sts="pending"),
    "version 2": token(v2=True),
    "impersonated": token(act={"sub": "user_staff"}),
    "another key": token(key=other_key),
    "of a machine": token(sub="mch_1"),
    "damaged": token()[:-9] + "AAAAAAAAA",
}
SETTINGS = {
    "CLERK_JWT_KEY": [public_pem, pem_of(other_key), ""],
    "CLERK_ISSUER": [ISSUER, "https://clerk.example.org", ""],
    "CLERK_AUTHORIZED_PARTIES": [[PARTY], [PARTY, OTHER_PARTY], []],
    "CLERK_ALLOW_MISSING_AZP": [False, True],
}


@pytest.fixture(autouse=True)
def _configured(settings, monkeypatch):
    settings.CLERK_JWKS_URL = ""
    for name, (usual, *_) in SETTINGS.items():
        setattr(settings, name, usual)
    monkeypatch.setattr(session_tokens, "_verified", {})


def outcome(text):
    try:
        return verify(text)
    except (Refused, KeysUnavailable) as error:
        return type(error), error.args


def outcome_of_a_full_check(text):
    remembered = dict(session_tokens._verified)
    session_tokens._verified.clear()
    try:
        return outcome(text)
    finally:
        session_tokens._verified.clear()
        session_tokens._verified.update(remembered)


steps = st.lists(
    st.tuples(st.just("ask"), st.sampled_from(list(TOKENS)))
    | st.tuples(st.just("wait"), st.sampled_from([-70, -3, 0.5, 1, 3, 5, 9, 60]))
    | st.sampled_from([(name, value) for name, values in SETTINGS.items() for value in values]),
    min_size=2,
    max_size=25,
)


@profile(deadline=None, max_examples=300)
@given(steps)
def test_the_memory_answers_as_a_full_check_does_whatever_changes_between(steps):
    for name, (usual, *_) in SETTINGS.items():
        setattr(live, name, usual)
    session_tokens._verified.clear()
    with time_machine.travel(NOW, tick=False) as clock:
        for what, value in steps:
            if what == "wait":
                clock.shift(value)
            elif what == "ask":
                assert outcome(TOKENS[value]) == outcome_of_a_full_check(TOKENS[value])
            else:
                setattr(live, what, value)


@pytest.fixture
def full_checks(monkeypatch):
    """The tokens whose signature was checked."""
    checked, check = [], session_tokens._signed_claims

    def note(text, key):
        checked.append(text)
        return check(text, key)

    monkeypatch.setattr(session_tokens, "_signed_claims", note)
    return checked


def test_a_token_is_checked_in_full_once(full_checks):
    text = mint()
    assert verify(text) == verify(text) == verify(text)
    assert full_checks == [text]


def test_a_token_that_differs_in_one_letter_is_another(full_checks):
    text = mint()
    verify(text)
    last = "A" if text[-20] != "A" else "B"
    assert outcome(text[:-20] + last + text[-19:])[1][0].code == "token_signature"
    assert len(full_checks) == 2


def test_nothing_is_remembered_past_its_exp(full_checks):
    with time_machine.travel(NOW, tick=False) as clock:
        text = mint(exp=NOW + 60)
        verify(text)
        clock.shift(59)
        verify(text)
        assert len(full_checks) == 1
        clock.shift(1)  # within the leeway the token is still valid, but is checked in full
        verify(text)
        assert len(full_checks) == 2


def test_a_key_that_is_replaced_ends_what_it_proved(settings):
    text = mint()
    verify(text)
    settings.CLERK_JWT_KEY = pem_of(other_key)
    assert outcome(text)[1][0].code == "token_signature"


@pytest.mark.parametrize("name", ["over", "early", "another party", "pending", "another key", "of a machine"])
def test_a_token_that_is_refused_is_not_remembered(name):
    with time_machine.travel(NOW, tick=False):
        assert outcome(TOKENS[name])[0] is Refused
    assert session_tokens._verified == {}


def test_the_memory_is_bounded_and_lets_go_of_the_expired_first(monkeypatch):
    monkeypatch.setattr(session_tokens, "MAX_REMEMBERED_TOKENS", 8)
    with time_machine.travel(NOW, tick=False) as clock:
        for n in range(5):
            verify(mint(sub=f"user_{n}", exp=NOW + 10))
        for n in range(5, 8):
            verify(mint(sub=f"user_{n}", exp=NOW + 60))
        clock.shift(20)
        verify(mint(sub="user_8", exp=NOW + 60))
        assert {proof.session.user_id for proof in session_tokens._verified.values()} == {
            "user_5",
            "user_6",
            "user_7",
            "user_8",
        }
        for n in range(9, 40):
            verify(mint(sub=f"user_{n}", exp=NOW + 60))
            assert len(session_tokens._verified) <= 8


def test_neither_the_token_nor_its_claims_are_kept():
    text = mint(email="me@example.com")
    verify(text)
    kept = repr(session_tokens._verified)
    assert "me@example.com" not in kept
    assert not any(part in kept for part in text.split("."))


def test_a_memory_in_use_by_many_threads_answers_each_right(monkeypatch):
    monkeypatch.setattr(session_tokens, "MAX_REMEMBERED_TOKENS", 4)
    texts = [mint(sub=f"user_{n}", exp=time.time() + 60, key=private_key) for n in range(12)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: verify(texts[n % 12]).user_id == f"user_{n % 12}", range(600)))
    assert all(answers)

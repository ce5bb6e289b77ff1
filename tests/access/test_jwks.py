"""Clerk's keys are fetched rarely, in a thread of their own, and do not delay requests."""

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from quotas.access import jwks, session_tokens
from quotas.access.jwks import JWKS, KeysUnavailable, UnknownKey
from quotas.access.refusals import Refused
from quotas.access.session_tokens import Session, verify
from tests.access.test_session_tokens import SESSION, other_key, weak_key
from tests.tools.key_server import KeyServer
from tests.tools.keys import ISSUER, KID, PARTY, REMOVE, jwk, key_set_of, mint, public_pem

pytestmark = pytest.mark.once

DAY = 86_400
SOON = 5  # seconds in which another thread must have finished
BARE = {name: jwk()[name] for name in ("kty", "kid", "n", "e")}


@pytest.fixture(autouse=True)
def _configured(settings, monkeypatch):
    settings.CLERK_JWT_KEY = ""
    settings.CLERK_ISSUER = ISSUER
    settings.CLERK_AUTHORIZED_PARTIES = [PARTY]
    monkeypatch.setattr(jwks, "_key_sets", {})
    monkeypatch.setattr(session_tokens, "_verified", {})
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server(settings):
    with KeyServer() as server:
        settings.CLERK_JWKS_URL = server.url
        yield server


class Clock:
    now = 1_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def key_set(server, clock):
    return JWKS(server.url, clock)


def settled(key_set):
    """Wait until no fetch is under way."""
    assert key_set._fetch is None or key_set._fetch.is_over.wait(SOON)
    return key_set


def outcome(token):
    """Return the token's session, the code of its refusal, or the seconds to wait."""
    try:
        return verify(token)
    except Refused as refused:
        return refused.code
    except KeysUnavailable as unavailable:
        return unavailable.retry_after


def forged(count):
    return [mint(header={"kid": f"ins_{n}"}, key=other_key) for n in range(count)]


# How often the keys are fetched


def test_the_keys_are_fetched_once_for_many_tokens(server):
    assert [verify(mint()) for _ in range(5)] == [SESSION] * 5
    assert server.fetches == 1


def test_a_changed_address_is_asked_for_its_own_keys(server, settings):
    verify(mint())
    settings.CLERK_JWKS_URL += "?instance=2"
    verify(mint())
    assert server.fetches == 2


def test_a_forked_child_fetches_for_itself(server):
    """A fork copies neither the thread that fetches nor the holder of the lock."""
    server.release.clear()
    mine = jwks.key_set(server.url)
    mine.renew()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        theirs = jwks.key_set(server.url)
        os.write(writer, b"same" if theirs is mine else b"other")
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b"other"
    assert os.waitpid(child, 0)[1] == 0
    assert jwks.key_set(server.url) is mine


def test_a_pem_is_preferred_and_nothing_is_fetched(server, settings):
    settings.CLERK_JWT_KEY = public_pem
    verify(mint())
    assert server.fetches == 0


def test_a_bad_signature_under_a_known_kid_fetches_nothing(server):
    verify(mint())
    assert outcome(mint(key=other_key)) == "token_signature"
    assert server.fetches == 1


def test_a_token_that_no_key_could_make_good_fetches_nothing(server):
    for member in ({"alg": "none"}, {"alg": "HS256"}, {"crit": ["exp"]}, {"kid": [KID]}, {"typ": "at+jwt"}):
        with pytest.raises(Refused):
            verify(mint(header=member))
    assert server.fetches == 0


def test_a_token_that_is_not_three_parts_of_base64url_fetches_nothing(server):
    for text in (
        mint() + "=",
        mint() + "+",
        mint().rpartition(".")[0] + ".",
        mint(payload=b""),
        mint() + ".a",
    ):
        with pytest.raises(Refused, match="three base64url parts"):
            verify(text)
    assert server.fetches == 0


@pytest.mark.parametrize("kid", ["ins_forged", REMOVE])
def test_a_kid_that_a_fresh_fetch_does_not_bring_is_refused(server, kid):
    assert outcome(mint(header={"kid": kid})) == "token_signature"
    assert server.fetches == 1


@pytest.mark.parametrize("kid", ["ins_forged", None])
def test_an_unknown_kid_waits_for_ten_seconds_after_a_fetch(server, clock, key_set, kid):
    key_set.find(KID)
    clock.now += 2.5
    with pytest.raises(KeysUnavailable) as unavailable:
        key_set.find(kid)
    assert (unavailable.value.retry_after, server.fetches) == (8, 1)


def test_a_new_key_is_found_when_the_quiet_time_is_over(server, clock, key_set):
    key_set.find(KID)
    server.publish(key_set_of("ins_new"))
    clock.now += 10
    assert key_set.find("ins_new").raw_value.key_size == 2048
    assert server.fetches == 2


@pytest.mark.parametrize("known", [False, True], ids=["at the start", "once the keys are known"])
def test_twenty_forged_tokens_cost_one_fetch_and_no_good_token_waits(server, known):
    if known:
        verify(mint())
    attacks = forged(20)
    with ThreadPoolExecutor(21) as pool:
        outcomes = list(pool.map(outcome, attacks))
        assert pool.submit(outcome, mint()).result() == SESSION
    assert server.fetches == 1
    unknown = [10] * 20 if known else [10] * 19 + ["token_signature"]
    assert sorted(outcomes, key=str) == unknown


def test_all_who_come_at_the_start_share_one_fetch(server):
    server.release.clear()
    with ThreadPoolExecutor(8) as pool:
        sessions = [pool.submit(verify, mint()) for _ in range(8)]
        time.sleep(0.2)
        server.release.set()
    assert [session.result() for session in sessions] == [SESSION] * 8
    assert server.fetches == 1


# How long the keys stay in use


def test_the_keys_are_fresh_for_an_hour(server, clock, key_set):
    key_set.find(KID)
    for wait, fetches in [(3_599, 1), (1, 2), (0, 2)]:
        clock.now += wait
        key_set.find(KID)
        settled(key_set)
        assert server.fetches == fetches


def test_who_knows_the_key_does_not_wait_for_its_renewal(server, clock, key_set):
    key = key_set.find(KID)
    clock.now += 3_600
    server.release.clear()
    assert key_set.find(KID) is key_set.find(KID) is key
    server.release.set()
    settled(key_set)
    assert server.fetches == 2
    assert key_set.find(KID) is not key


def test_a_key_that_was_withdrawn_is_dropped_with_the_next_fetch(server, clock, key_set):
    key_set.find(KID)
    server.publish(key_set_of("ins_new"))
    clock.now += 3_600
    key_set.find(KID)
    settled(key_set)
    clock.now += 10
    with pytest.raises(UnknownKey):
        key_set.find(KID)


def test_old_keys_are_served_while_no_new_ones_can_be_had(server, clock, key_set):
    key = key_set.find(KID)
    server.status = 500
    for wait, fetches in [(3_600, 2), (59, 2), (1, 3), (DAY, 4)]:
        clock.now += wait
        assert key_set.find(KID) is key
        settled(key_set)
        assert server.fetches == fetches


def test_the_age_is_that_of_the_last_good_fetch(server, clock, key_set):
    assert key_set.age is None
    key_set.find(KID)
    clock.now += 4_000
    server.status = 500
    key_set.find(KID)
    assert settled(key_set).age == 4_000


def test_keys_that_were_never_fetched_can_be_asked_for_in_advance(server, key_set):
    key_set.renew()
    settled(key_set)
    assert (key_set.age, server.fetches) == (0, 1)


# When the keys cannot be fetched


def test_after_a_failure_the_keys_are_asked_for_again_in_a_second(server, clock, key_set):
    server.status = 503
    for wait, fetches in [(0, 1), (0.9, 1), (0.1, 2)]:
        clock.now += wait
        with pytest.raises(KeysUnavailable) as unavailable:
            key_set.find(KID)
        settled(key_set)
        assert (unavailable.value.retry_after, server.fetches) == (1, fetches)


def test_keys_that_were_down_from_the_start_come_by_themselves(server, clock, key_set):
    server.status = 503
    with pytest.raises(KeysUnavailable):
        key_set.find(KID)
    server.status = 200
    clock.now += 1
    with pytest.raises(KeysUnavailable):  # it begins a fetch without waiting for it
        key_set.find(KID)
    assert settled(key_set).find(KID)


def test_once_a_silent_server_is_known_nobody_waits_for_it(server, clock, key_set, monkeypatch):
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT", 0.3)
    server.release.clear()
    with pytest.raises(KeysUnavailable):
        key_set.find(KID)
    settled(key_set)
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT", 60)
    started = time.monotonic()
    for _ in range(5):
        clock.now += 1
        with pytest.raises(KeysUnavailable):
            key_set.find(KID)
    assert time.monotonic() - started < 2
    server.release.set()
    assert settled(key_set).find(KID)


def test_who_waits_for_a_hanging_fetch_waits_for_the_time_out_at_the_most(server, key_set, monkeypatch):
    """Resolving a host name may exceed the time-out, so the fetch may last longer."""
    monkeypatch.setattr(jwks, "_download", lambda url: server.release.wait(SOON) and b"")
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT", 0.2)
    server.release.clear()
    started = time.monotonic()
    for _ in range(5):  # the first one waits, and the others know then
        with pytest.raises(KeysUnavailable):
            key_set.find(KID)
    assert time.monotonic() - started < 1
    server.release.set()
    settled(key_set)


def test_a_fetch_that_never_ends_is_given_up_for_lost(server, clock, key_set, monkeypatch):
    download = jwks._download
    hangs = threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(jwks, "FETCH_TIMEOUT", 0.05)
        patch.setattr(jwks, "_download", lambda url: hangs.wait(SOON) and b"")
        with pytest.raises(KeysUnavailable):
            key_set.find(KID)
        lost = key_set._fetch
        patch.setattr(jwks, "_download", download)
        clock.now += jwks.LOST_AFTER - 0.1
        with pytest.raises(KeysUnavailable):
            key_set.find(KID)
        assert (key_set._fetch, server.fetches) == (lost, 0)
    clock.now += 0.1
    with pytest.raises(KeysUnavailable):
        key_set.find(KID)
    assert settled(key_set).find(KID)
    hangs.set()  # the lost fetch fails at last, which no longer counts
    assert lost.is_over.wait(SOON)
    assert key_set.find(KID)
    assert not key_set._is_down


def test_a_key_server_that_is_down_hangs_nobody(settings):
    settings.CLERK_JWKS_URL = "http://127.0.0.1:1/jwks.json"
    started = time.monotonic()
    assert [outcome(mint()) for _ in range(20)] == [1] * 20
    assert time.monotonic() - started < 2


def test_a_fault_of_ours_in_a_fetch_leaves_nobody_waiting(key_set, monkeypatch):
    monkeypatch.setattr(jwks, "_parse_key_set", lambda raw: 1 / 0)
    monkeypatch.setattr(threading, "excepthook", lambda *args: None)
    with pytest.raises(KeysUnavailable):
        key_set.find(KID)


def test_an_answer_that_drips_is_left_after_the_time_out(server, key_set, monkeypatch):
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT", 0.3)
    server.publish(key_set_of(*"abcdefghijklmnop"))
    server.pause = 0.2  # never silent for the whole time-out
    with pytest.raises(KeysUnavailable):
        key_set.find(KID)
    assert settled(key_set).age is None


# The key server's responses


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"<html>", id="no JSON"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b"\xff", id="no UTF-8"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"{}", id="no member keys"),
        pytest.param(b'{"keys": {}}', id="keys are no list"),
        pytest.param(json.dumps({"keys": []}).encode(), id="no keys"),
        pytest.param(json.dumps(key_set_of() | {"more": "a" * 300_000}).encode(), id="over 256 KiB"),
    ],
)
def test_an_answer_that_is_no_key_set_takes_no_key_away(server, clock, key_set, body):
    key = key_set.find(KID)
    server.body = body
    clock.now += 3_600
    key_set.find(KID)
    assert settled(key_set).find(KID) is key
    assert server.fetches == 2


def test_a_packed_answer_is_not_asked_for(server, key_set):
    key_set.find(KID)
    assert server.asked["Accept-Encoding"] == "identity"


def test_a_failed_fetch_is_logged(server, key_set, caplog):
    server.status = 404
    with pytest.raises(KeysUnavailable):
        key_set.find(KID)
    deadline = time.monotonic() + SOON
    while not caplog.records and time.monotonic() < deadline:  # the waiters are released first
        time.sleep(0.01)
    assert "CLERK_JWKS_URL could not be fetched: status 404" in caplog.text


def test_a_missing_certificate_file_is_unavailable_and_no_error(server, key_set, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", "missing.pem")
    with pytest.raises(KeysUnavailable):
        key_set.find(KID)


def test_a_redirect_is_not_followed(server, key_set):
    server.status, server.headers = 302, {"Location": server.url}
    with pytest.raises(KeysUnavailable):
        key_set.find(KID)
    assert server.fetches == 1


@pytest.mark.parametrize(
    "unusable",
    [
        pytest.param(jwk("ins_odd", kty="EC"), id="no RSA key"),
        pytest.param(BARE | {"kid": "ins_odd", "use": "enc"}, id="for encryption"),
        pytest.param(jwk("ins_odd", use="tls"), id="for a use of the future"),
        pytest.param(jwk("ins_odd", use=["sig"]), id="use is a list"),
        pytest.param(jwk("ins_odd", alg="RS512"), id="for another algorithm"),
        pytest.param(jwk("ins_odd", key_ops=["sign"]), id="not to verify with"),
        pytest.param(jwk("ins_odd", key_ops=1), id="key_ops is a number"),
        pytest.param(jwk("ins_odd", n="AQAB"), id="tiny"),
        pytest.param(jwk("ins_odd", n=1), id="n is a number"),
        pytest.param(jwk("ins_odd", e="AA"), id="e is zero"),
        pytest.param(jwk("ins_odd", key=weak_key), id="1024 bits"),
        pytest.param(jwk("ins_odd", d="AQAB"), id="private"),
        pytest.param({"kty": "RSA", "kid": "ins_odd"}, id="no numbers"),
        pytest.param(jwk(kid=["ins_odd"]), id="kid is a list"),
        pytest.param(jwk(kid=None), id="kid is null"),
        pytest.param({}, id="empty"),
        pytest.param(None, id="null"),
        pytest.param("ins_odd", id="text"),
    ],
)
@pytest.mark.filterwarnings("ignore:Key size")  # joserfc warns of a weak key
def test_an_odd_key_costs_the_others_nothing(server, unusable, key_set):
    server.publish({"keys": [unusable, jwk()]})
    assert key_set.find(KID)
    assert list(key_set._keys) == [KID]


def test_a_key_with_as_little_as_clerk_may_publish_is_taken(server, key_set):
    server.publish({"keys": [BARE]})
    assert key_set.find(KID)


def test_a_key_with_all_that_may_be_published_is_taken(server, key_set):
    server.publish({"keys": [jwk(alg="RS256", key_ops=["verify"], x5c=["MIIC"], x5t="AQAB", issuer=ISSUER)]})
    assert key_set.find(KID)


def test_an_address_that_is_none_is_unavailable_and_no_error():
    for url in ("http://[", "nonsense", "https://:x/"):
        with pytest.raises(KeysUnavailable):
            JWKS(url).find(KID)


def test_a_session_proved_by_a_fetched_key_is_whole(server):
    assert verify(mint(act={"sub": "user_staff"})) == Session("user_2abc", "sess_2abc", "user_staff")

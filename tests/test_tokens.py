"""A session token proves one session, or is refused with the reason; keys are fetched sparingly."""

import base64
import hashlib
import hmac
import json
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import example, given
from hypothesis import settings as profile
from hypothesis import strategies as st

from quotas import tokens
from quotas.tokens import JWKS, KeysUnavailable, Session, TokenRefused, verify
from tests.keys import ISSUER, KID, PARTY, REMOVE, b64, jwk, jwks, mint, pem_of, private_key, public_pem, sign

pytestmark = pytest.mark.once

SESSION = Session("user_2abc", "sess_2abc", None)
DAY = 86_400
PIECE = 1_000  # bytes that the key server sends before each pause
other_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
weak_key = rsa.generate_private_key(public_exponent=65537, key_size=1024)


def at(seconds):
    return time.time() + seconds


@pytest.fixture(autouse=True)
def _configured(settings, monkeypatch):
    settings.CLERK_JWT_KEY = public_pem
    settings.CLERK_JWKS_URL = ""
    settings.CLERK_ISSUER = ISSUER
    settings.CLERK_AUTHORIZED_PARTIES = [PARTY]
    monkeypatch.setattr(tokens, "_key_sets", {})
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.mark.parametrize(
    "token",
    [
        pytest.param(lambda: mint(), id="version 1"),
        pytest.param(lambda: mint(v2=True), id="version 2"),
        pytest.param(lambda: mint(header={"kid": "ins_other"}), id="any kid, when the key is a PEM"),
        pytest.param(lambda: mint(header={"kid": REMOVE}), id="no kid, when the key is a PEM"),
        pytest.param(lambda: mint(header={"typ": REMOVE}), id="no typ"),
        pytest.param(lambda: mint(header={"typ": "jwt"}), id="typ in small letters"),
        pytest.param(lambda: mint(header={"cat": "cl_B7d4PD111AAA"}), id="cat of sessions"),
        pytest.param(lambda: mint(header={"cat": "cl_I7d4PD111III"}), id="cat to be ignored"),
        pytest.param(lambda: mint(header={"x-new": [1]}), id="unknown header member"),
        pytest.param(lambda: mint(aud="https://other.example.com"), id="an audience"),
        pytest.param(lambda: mint(iat=at(900)), id="issued in the future"),
        pytest.param(lambda: mint(iat=REMOVE, nbf=REMOVE), id="neither iat nor nbf"),
        pytest.param(lambda: mint(exp=at(-1)), id="expired within the leeway"),
        pytest.param(lambda: mint(nbf=at(3)), id="early within the leeway"),
        pytest.param(lambda: mint(exp=at(DAY - 60)), id="almost a day"),
        pytest.param(lambda: mint(more="a" * 5_400), id="almost 8 KB"),
    ],
)
def test_a_genuine_token_proves_its_session(token):
    assert verify(token()) == SESSION


def hs256_with_the_public_key():
    signed = mint(header={"alg": "HS256"}).rpartition(".")[0]
    return f"{signed}.{b64(hmac.digest(public_pem.encode(), signed.encode(), hashlib.sha256))}"


def alg_none():
    return mint(header={"alg": "none"}).rpartition(".")[0] + "."


def changed(part, old, new):
    """A genuine token, with a part changed after it was signed."""
    parts = mint().split(".")
    raw = base64.urlsafe_b64decode(parts[part] + "==")
    parts[part] = b64(raw.replace(old, new))
    return ".".join(parts)


@pytest.mark.parametrize(
    ("code", "attack"),
    [
        pytest.param(code, attack, id=name)
        for name, code, attack in [
            # the form
            ("empty", "token_malformed", lambda: ""),
            ("no parts", "token_malformed", lambda: "token"),
            ("two parts", "token_malformed", lambda: mint().rpartition(".")[0]),
            ("four parts", "token_malformed", lambda: mint() + ".a"),
            ("five parts, encrypted", "token_malformed", lambda: "a.b.c.d.e"),
            ("no payload", "token_malformed", lambda: sign(b'{"alg":"RS256"}', b"")),
            ("line feed at the end", "token_malformed", lambda: mint() + "\n"),
            ("padding", "token_malformed", lambda: mint() + "=="),
            ("header of 1 + 4n letters", "token_malformed", lambda: "a." + mint().partition(".")[2]),
            ("loose bits in the signature", "token_malformed", lambda: mint()[:-1] + "_"),
            ("not ASCII", "token_malformed", lambda: "é." + mint()),
            ("surrogate", "token_malformed", lambda: "\ud800." + mint()),
            ("over 8 KB", "token_malformed", lambda: mint(more="a" * 6_144, exp=at(-60))),
            ("10 MB", "token_malformed", lambda: "a" * 10_000_000),
            ("header is no JSON", "token_malformed", lambda: sign(b"{", b"{}")),
            ("header is a list", "token_malformed", lambda: sign(b"[]", b"{}")),
            ("header is deep", "token_malformed", lambda: sign(b"[" * 3_000, b"{}")),
            ("header is no UTF-8", "token_malformed", lambda: sign(b'{"alg":"\xff"}', b"{}")),
            ("payload is no JSON", "token_malformed", lambda: mint(payload=b"{")),
            ("payload is a list", "token_malformed", lambda: mint(payload=b"[]")),
            ("payload is a string", "token_malformed", lambda: mint(payload=b'"sub"')),
            ("payload is deep", "token_malformed", lambda: mint(payload=b"[" * 5_000)),
            ("payload is no UTF-8", "token_malformed", lambda: mint(payload=b'{"sub":"\xff"}')),
            ("payload has a number of 5,000 digits", "token_malformed", lambda: mint(payload=b"1" * 5_000)),
            # the header
            ("alg none", "token_malformed", alg_none),
            ("alg none with a signature", "token_malformed", lambda: mint(header={"alg": "none"})),
            ("HS256 with the public key", "token_malformed", hs256_with_the_public_key),
            ("alg RS512", "token_malformed", lambda: mint(header={"alg": "RS512"})),
            ("alg in small letters", "token_malformed", lambda: mint(header={"alg": "rs256"})),
            ("alg is a list", "token_malformed", lambda: mint(header={"alg": ["RS256"]})),
            ("no alg", "token_malformed", lambda: mint(header={"alg": REMOVE})),
            ("crit", "token_malformed", lambda: mint(header={"crit": ["exp"]})),
            ("crit b64", "token_malformed", lambda: mint(header={"crit": ["b64"], "b64": True})),
            ("b64 false", "token_malformed", lambda: mint(header={"b64": False})),
            ("kid is a list", "token_malformed", lambda: mint(header={"kid": [KID]})),
            ("kid is null", "token_malformed", lambda: mint(header={"kid": None})),
            ("typ at+jwt", "token_kind", lambda: mint(header={"typ": "at+jwt"})),
            ("typ is null", "token_kind", lambda: mint(header={"typ": None})),
            ("cat of templates", "token_kind", lambda: mint(header={"cat": "cl_B7d4PD222AAA"})),
            ("cat is a list", "token_kind", lambda: mint(header={"cat": ["cl_B7d4PD111AAA"]})),
            ("cat is null", "token_kind", lambda: mint(header={"cat": None})),
            # the signature
            ("another key", "token_signature", lambda: mint(key=other_key)),
            ("no RSA signature", "token_signature", lambda: mint().rpartition(".")[0] + ".AAAA"),
            ("changed payload", "token_signature", lambda: changed(1, b"user_2abc", b"user_2abd")),
            ("changed header", "token_signature", lambda: changed(0, KID.encode(), b"ins_2abd")),
            # whose
            ("no sub", "token_malformed", lambda: mint(sub=REMOVE)),
            ("sub is a number", "token_malformed", lambda: mint(sub=1)),
            ("sub with NUL", "token_malformed", lambda: mint(sub="user_\0")),
            ("sub with a line feed at the end", "token_malformed", lambda: mint(sub="user_2abc\n")),
            ("sub with a surrogate", "token_malformed", lambda: mint(sub="user_\ud800")),
            ("sub of 129", "token_malformed", lambda: mint(sub="user_".ljust(129, "a"))),
            ("sub of a machine", "token_kind", lambda: mint(sub="mch_2abc", sid=REMOVE)),
            ("no sid", "token_malformed", lambda: mint(sid=REMOVE)),
            ("empty sid", "token_malformed", lambda: mint(sid="")),
            ("sid is a list", "token_malformed", lambda: mint(sid=["sess_2abc"])),
            ("sid with a line feed", "token_malformed", lambda: mint(sid="sess_2abc\n")),
            # when
            ("no exp", "token_malformed", lambda: mint(exp=REMOVE)),
            ("exp is true", "token_malformed", lambda: mint(exp=True)),
            ("exp is text", "token_malformed", lambda: mint(exp="9999999999")),
            ("exp is NaN", "token_malformed", lambda: mint(exp=float("nan"))),
            ("exp is infinite", "token_malformed", lambda: mint(exp=float("inf"))),
            ("exp 10^30", "token_malformed", lambda: mint(exp=10**30)),
            ("exp 10^4000", "token_malformed", lambda: mint(exp=10**4_000)),
            ("exp -10^4000", "token_expired", lambda: mint(exp=-(10**4_000))),
            ("exp in over a day", "token_malformed", lambda: mint(exp=at(DAY + 60))),
            ("expired", "token_expired", lambda: mint(exp=at(-6))),
            ("exp twice, the last one over", "token_expired", lambda: mint(payload=twice("exp", at(-60)))),
            ("early", "token_not_yet_valid", lambda: mint(nbf=at(9))),
            ("nbf 10^4000", "token_not_yet_valid", lambda: mint(nbf=10**4_000)),
            ("nbf is text", "token_malformed", lambda: mint(nbf="0")),
            ("nbf is null", "token_malformed", lambda: mint(nbf=None)),
            ("nbf is NaN", "token_malformed", lambda: mint(nbf=float("nan"))),
            ("iat is text", "token_malformed", lambda: mint(iat="now")),
            ("iat is false", "token_malformed", lambda: mint(iat=False)),
            # where from
            ("another issuer", "token_issuer", lambda: mint(iss="https://clerk.example.org")),
            ("issuer with a slash", "token_issuer", lambda: mint(iss=ISSUER + "/")),
            ("issuer is a list", "token_issuer", lambda: mint(iss=[ISSUER])),
            ("no issuer", "token_issuer", lambda: mint(iss=REMOVE)),
            ("another party", "token_azp", lambda: mint(azp="https://evil.example.com")),
            ("party is an object", "token_azp", lambda: mint(azp={})),
            ("no party", "token_azp", lambda: mint(azp=REMOVE)),
            ("pending", "session_pending", lambda: mint(v2=True, sts="pending")),
        ]
    ],
)
def test_an_attack_is_refused_with_the_reason(code, attack):
    with pytest.raises(TokenRefused) as refused:
        verify(attack())
    assert refused.value.code == code
    assert re.fullmatch(r"[ !#-\[\]-~]+", refused.value.detail)  # it stands quoted in a header


def twice(name, value):
    claims = base64.urlsafe_b64decode(mint().split(".")[1] + "==")
    return claims[:-1] + f', "{name}": {value}}}'.encode()


def test_the_impersonator_is_told():
    assert verify(mint(act={"sub": "user_staff", "sid": "sess_9"})).act == "user_staff"


@pytest.mark.parametrize("act", ["user_staff", {"sub": "user_\n"}, {"sub": 1}, {}, None])
def test_an_ill_formed_impersonator_is_left_out(act):
    assert verify(mint(act=act)).act is None


def test_without_an_issuer_every_token_is_refused(settings):
    settings.CLERK_ISSUER = ""
    for iss in (ISSUER, "", REMOVE):
        with pytest.raises(TokenRefused, match="CLERK_ISSUER") as refused:
            verify(mint(iss=iss))
        assert refused.value.code == "token_issuer"


@pytest.mark.parametrize("azp", [REMOVE, "https://evil.example.com"])
def test_without_authorized_parties_any_party_will_do(settings, azp):
    settings.CLERK_AUTHORIZED_PARTIES = []
    assert verify(mint(azp=azp)) == SESSION


@profile(deadline=None)
@given(st.text() | st.text("ey._-", max_size=40))
def test_any_text_is_refused(text):
    with pytest.raises(TokenRefused):
        verify(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
CLAIMS = ("sub", "sid", "exp", "nbf", "iat", "iss", "azp", "sts", "act", "aud", "v")


@profile(deadline=None)
@given(
    header=st.dictionaries(st.sampled_from(["alg", "kid", "typ", "cat", "crit", "b64"]), json_values),
    claims=st.dictionaries(st.sampled_from(CLAIMS), json_values),
)
@example(header={}, claims={"exp": 10**400})
def test_a_signed_oddity_is_refused_or_proves_a_session(header, claims):
    proves_or_is_refused(mint(header=header, **claims))


@profile(deadline=None)
@given(st.data())
def test_a_damaged_token_is_refused_or_unharmed(data):
    token = mint()
    start = data.draw(st.integers(0, len(token)))
    end = data.draw(st.integers(start, min(start + 3, len(token))))
    proves_or_is_refused(token[:start] + data.draw(st.text(max_size=3)) + token[end:])


def proves_or_is_refused(token):
    with suppress(TokenRefused):
        assert isinstance(verify(token), Session)


def test_without_a_key_source_the_settings_are_named(settings):
    settings.CLERK_JWT_KEY = ""
    with pytest.raises(KeysUnavailable, match="CLERK_PUBLISHABLE_KEY, or CLERK_JWT_KEY"):
        verify(mint())


def private_pem():
    return private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@pytest.mark.parametrize(
    "pem",
    [
        pytest.param(lambda: "pk_test_abc", id="no PEM"),
        pytest.param(lambda: public_pem[:200], id="cut short"),
        pytest.param(lambda: "\udcff" + public_pem, id="surrogate"),
        pytest.param(private_pem, id="private key"),
        pytest.param(lambda: pem_of(ed25519.Ed25519PrivateKey.generate()), id="no RSA key"),
        pytest.param(lambda: pem_of(weak_key), id="1024 bits"),
    ],
)
def test_a_key_that_cannot_be_used_is_named_and_not_shown(settings, pem):
    settings.CLERK_JWT_KEY = pem()
    with pytest.raises(KeysUnavailable, match=r"^\(.CLERK_JWT_KEY is not a PEM public key: [ -~]+$"):
        verify(mint())


def test_a_pem_needs_no_http_client():
    program = "import sys, quotas.tokens; sys.exit('httpx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


class KeyServer(ThreadingHTTPServer):
    """Serves a key set, or what it is told to, and counts how often it was asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), KeyHandler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/.well-known/jwks.json"
        self.status, self.headers, self.fetches, self.pause = 200, {}, 0, 0
        self.release = threading.Event()
        self.release.set()
        self.publish(jwks())

    def publish(self, value):
        self.body = json.dumps(value).encode()


class KeyHandler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.fetches += 1
        self.server.asked = self.headers
        self.server.release.wait(10)
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        for start in range(0, len(self.server.body), PIECE):
            self.wfile.write(self.server.body[start : start + PIECE])
            time.sleep(self.server.pause)

    def handle(self):
        with suppress(ConnectionError):  # who asks may hang up
            super().handle()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(settings):
    with KeyServer() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        settings.CLERK_JWT_KEY = ""
        settings.CLERK_JWKS_URL = server.url
        yield server
        server.release.set()
        server.shutdown()


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


def test_the_keys_are_fetched_once_for_many_tokens(server):
    assert [verify(mint()) for _ in range(5)] == [SESSION] * 5
    assert server.fetches == 1


def test_a_changed_address_is_asked_for_its_own_keys(server, settings):
    verify(mint())
    settings.CLERK_JWKS_URL += "?instance=2"
    verify(mint())
    assert server.fetches == 2


def test_a_forked_child_does_not_share_the_lock(monkeypatch):
    mine = tokens._key_set("http://127.0.0.1:1")
    assert tokens._key_set("http://127.0.0.1:1") is mine
    monkeypatch.setattr(tokens.os, "getpid", lambda: 0)
    assert tokens._key_set("http://127.0.0.1:1") is not mine


def test_a_pem_is_preferred_and_nothing_is_fetched(server, settings):
    settings.CLERK_JWT_KEY = public_pem
    verify(mint())
    assert server.fetches == 0


def test_a_bad_signature_under_a_known_kid_fetches_nothing(server):
    verify(mint())
    with pytest.raises(TokenRefused) as refused:
        verify(mint(key=other_key))
    assert (refused.value.code, server.fetches) == ("token_signature", 1)


def test_a_token_that_no_key_could_make_good_fetches_nothing(server):
    for member in ({"alg": "none"}, {"alg": "HS256"}, {"crit": ["exp"]}, {"kid": [KID]}, {"typ": "at+jwt"}):
        with pytest.raises(TokenRefused):
            verify(mint(header=member))
    assert server.fetches == 0


@pytest.mark.parametrize("kid", ["ins_forged", REMOVE])
def test_a_kid_that_a_fresh_fetch_does_not_bring_is_refused(server, kid):
    with pytest.raises(TokenRefused) as refused:
        verify(mint(header={"kid": kid}))
    assert (refused.value.code, server.fetches) == ("token_signature", 1)


@pytest.mark.parametrize("kid", ["ins_forged", None])
def test_an_unknown_kid_waits_for_ten_seconds_after_a_fetch(server, clock, key_set, kid):
    key_set.find(KID)
    clock.now += 2.5
    with pytest.raises(KeysUnavailable) as unavailable:
        key_set.find(kid)
    assert (unavailable.value.retry_after, server.fetches) == (8, 1)


def test_a_new_key_is_found_when_the_quiet_time_is_over(server, clock, key_set):
    key_set.find(KID)
    server.publish(jwks("ins_new"))
    clock.now += 10
    assert key_set.find("ins_new").key_size == 2048
    assert server.fetches == 2


def test_twenty_forged_tokens_cost_one_fetch(server):
    forged = [mint(header={"kid": f"ins_{n}"}, key=other_key) for n in range(20)]
    with ThreadPoolExecutor(20) as pool:
        outcomes = list(pool.map(outcome, forged))
    assert server.fetches == 1
    assert sorted(outcomes, key=str) == [10] * 19 + ["token_signature"]


def outcome(token):
    try:
        return verify(token)
    except TokenRefused as refused:
        return refused.code
    except KeysUnavailable as unavailable:
        return unavailable.retry_after


def test_all_who_come_at_the_start_share_one_fetch(server):
    server.release.clear()
    with ThreadPoolExecutor(8) as pool:
        sessions = [pool.submit(verify, mint()) for _ in range(8)]
        time.sleep(0.2)
        server.release.set()
    assert [session.result() for session in sessions] == [SESSION] * 8
    assert server.fetches == 1


def test_the_keys_are_fresh_for_an_hour(server, clock, key_set):
    key_set.find(KID)
    clock.now += 3_599
    key_set.find(KID)
    assert server.fetches == 1
    clock.now += 1
    key_set.find(KID)
    assert server.fetches == 2


def test_a_key_that_was_withdrawn_is_dropped_with_the_next_fetch(server, clock, key_set):
    key_set.find(KID)
    server.publish(jwks("ins_new"))
    clock.now += 3_600
    with pytest.raises(TokenRefused):
        key_set.find(KID)


def test_old_keys_are_served_while_no_new_ones_can_be_had(server, clock, key_set):
    key = key_set.find(KID)
    server.status = 500
    for wait, fetches in [(3_600, 2), (59, 2), (1, 3), (DAY, 4)]:
        clock.now += wait
        assert key_set.find(KID) is key
        assert server.fetches == fetches


def test_who_knows_the_key_does_not_wait_for_a_slow_renewal(server, clock, key_set):
    key = key_set.find(KID)
    clock.now += 3_600
    server.release.clear()
    with ThreadPoolExecutor(1) as pool:
        renewing = pool.submit(key_set.find, KID)
        while server.fetches < 2:
            time.sleep(0.01)
        assert key_set.find(KID) is key
        assert not renewing.done()
        server.release.set()


def test_after_a_failure_the_keys_are_asked_for_again_in_a_second(server, clock, key_set):
    server.status = 503
    for wait, fetches in [(0, 1), (0.9, 1), (0.1, 2)]:
        clock.now += wait
        with pytest.raises(KeysUnavailable) as unavailable:
            key_set.find(KID)
        assert (unavailable.value.retry_after, server.fetches) == (1, fetches)
    server.status = 200
    clock.now += 1
    assert key_set.find(KID)


def test_a_key_server_that_is_down_hangs_nobody(server, settings):
    settings.CLERK_JWKS_URL = "http://127.0.0.1:1/jwks.json"
    started = time.monotonic()
    assert [outcome(mint()) for _ in range(20)] == [1] * 20
    assert time.monotonic() - started < 2


def test_a_key_server_that_is_silent_is_left_after_the_time_out(server, monkeypatch):
    monkeypatch.setattr(tokens, "FETCH_TIMEOUT", 0.2)
    server.release.clear()
    with ThreadPoolExecutor(4) as pool:
        started = time.monotonic()
        assert list(pool.map(outcome, [mint()] * 4)) == [1] * 4
    assert time.monotonic() - started < 2
    assert server.fetches == 1


def test_an_answer_that_drips_is_left_after_the_time_out(server, key_set, monkeypatch):
    monkeypatch.setattr(tokens, "FETCH_TIMEOUT", 0.3)
    server.publish(jwks(*"abcdefghijklmnop"))
    server.pause = 0.2  # never silent for the whole time-out
    with pytest.raises(KeysUnavailable):
        key_set.find(KID)


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
        pytest.param(json.dumps(jwks() | {"more": "a" * 300_000}).encode(), id="over 256 KiB"),
    ],
)
def test_an_answer_that_is_no_key_set_takes_no_key_away(server, clock, key_set, body):
    key = key_set.find(KID)
    server.body = body
    clock.now += 3_600
    assert key_set.find(KID) is key


def test_a_packed_answer_is_not_asked_for(server, key_set):
    key_set.find(KID)
    assert server.asked["Accept-Encoding"] == "identity"


def test_a_failed_fetch_is_logged(server, key_set, caplog):
    server.status = 404
    with pytest.raises(KeysUnavailable):
        key_set.find(KID)
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
    "odd",
    [
        pytest.param(jwk("ins_odd", kty="EC"), id="no RSA key"),
        pytest.param(jwk("ins_odd", use="enc"), id="for encryption"),
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
def test_an_odd_key_costs_the_others_nothing(server, odd, key_set):
    server.publish({"keys": [odd, jwk()]})
    assert key_set.find(KID)
    assert list(key_set._keys) == [KID]


def test_a_key_without_use_is_taken(server, key_set):
    bare = jwk()
    del bare["use"]
    server.publish({"keys": [bare]})
    assert key_set.find(KID)


def test_an_address_that_is_none_is_unavailable_and_no_error():
    for url in ("http://[", "nonsense", "https://:x/"):
        with pytest.raises(KeysUnavailable):
            JWKS(url).find(KID)

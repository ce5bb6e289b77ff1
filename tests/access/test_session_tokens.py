"""A session token proves one session, or is refused with the reason."""

import base64
import hashlib
import hmac
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http.client import HTTPConnection

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from django.test import Client
from hypothesis import example, given
from hypothesis import settings as profile
from hypothesis import strategies as st

from quotas.access import session_tokens
from quotas.access.jwks import KeysUnavailable
from quotas.access.refusals import Refused
from quotas.access.session_tokens import Session, verify
from tests.tools.key_server import KeyServer
from tests.tools.keys import ISSUER, KID, PARTY, REMOVE, b64, mint, pem_of, private_key, public_pem, sign

pytestmark = pytest.mark.once

SESSION = Session("user_2abc", "sess_2abc", None)
DAY = 86_400
TEMPLATE = "cl_B7d4PD222AAA"  # Clerk's category of the tokens that are made with a template
SESSIONS, IGNORE = {"cat": "cl_B7d4PD111AAA"}, {"cat": "cl_I7d4PD111III"}
Mint = Callable[..., str]  # tests.tools.keys.mint, for a token of version 1 or 2
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
    monkeypatch.setattr(session_tokens, "_verified", {})


GENUINE: dict[str, Callable[[Mint], str]] = {
    "as it is": lambda make: make(),
    "any kid, when the key is a PEM": lambda make: make(header={"kid": "ins_other"}),
    "no kid, when the key is a PEM": lambda make: make(header={"kid": REMOVE}),
    "no typ": lambda make: make(header={"typ": REMOVE}),
    "typ in small letters": lambda make: make(header={"typ": "jwt"}),
    "cat of sessions": lambda make: make(header={"cat": "cl_B7d4PD111AAA"}),
    "cat to be ignored": lambda make: make(header={"cat": "cl_I7d4PD111III"}),
    "unknown header member": lambda make: make(header={"x-new": [1]}),
    "time of the first issue in the header": lambda make: make(header={"oiat": at(-600)}),
    "an audience": lambda make: make(aud="https://other.example.com"),
    "issued in the future": lambda make: make(iat=at(900)),
    "neither iat nor nbf": lambda make: make(iat=REMOVE, nbf=REMOVE),
    "expired within the leeway": lambda make: make(exp=at(-1)),
    "early within the leeway": lambda make: make(nbf=at(3)),
    "almost a day": lambda make: make(exp=at(DAY - 60)),
    "almost 8 KB": lambda make: make(more="a" * 5_400),
    "an organization in the form of version 1": lambda make: make(
        org_id="org_2abc", org_slug="acme", org_role="org:admin", org_permissions=["org:billing:manage"]
    ),
    "an organization in the form of version 2": lambda make: make(
        o={"id": "org_2abc", "slg": "acme", "rol": "admin", "per": "manage", "fpm": "1"}, fea="o:billing"
    ),
    "claims of the product's own": lambda make: make(metadata={"plan": "pro"}, email="a@example.com"),
}


@pytest.mark.parametrize("v2", [False, True], ids=["version 1", "version 2"])
@pytest.mark.parametrize("token", GENUINE)
def test_a_genuine_token_proves_its_session(token, v2):
    assert verify(GENUINE[token](partial(mint, v2=v2))) == SESSION


def hs256_with_the_public_key(make):
    signed = make(header={"alg": "HS256"}).rpartition(".")[0]
    return f"{signed}.{b64(hmac.digest(public_pem.encode(), signed.encode(), hashlib.sha256))}"


def signed_as(alg, make):
    """A token with a valid signature, but not with Clerk's algorithm."""
    return jwt.encode(jwt.decode(make(), options={"verify_signature": False}), private_key, alg)


def alg_none(make):
    return make(header={"alg": "none"}).rpartition(".")[0] + "."


def changed(token, part, old, new):
    """A genuine token with a part that was changed after signing."""
    parts = token.split(".")
    raw = base64.urlsafe_b64decode(parts[part] + "==")
    assert old in raw
    parts[part] = b64(raw.replace(old, new))
    return ".".join(parts)


def twice(name, value):
    claims = base64.urlsafe_b64decode(mint().split(".")[1] + "==")
    return claims[:-1] + f', "{name}": {value}}}'.encode()


# Not in the form of a session token, whatever the claims.
ON_FORM: list[tuple[str, str, Callable[[], str]]] = [
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
    ("two tokens", "token_malformed", lambda: f"{mint()} {mint()}"),
    ("two headers, joined as WSGI does", "token_malformed", lambda: f"{mint()},Bearer {mint()}"),
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
    ("exp twice, the last one over", "token_expired", lambda: mint(payload=twice("exp", at(-60)))),
    # what Clerk issues besides JSON Web Tokens
    ("opaque token of a machine", "token_malformed", lambda: "mt_8XOIucKvqHVr5tYP123456789abcdefghij"),
    ("opaque OAuth access token", "token_malformed", lambda: "oat_8XOIucKvqHVr5tYP123456789abcdefghij"),
    ("API key", "token_malformed", lambda: "ak_LCWGdaM8mv8K4PC/57IICZQXAeWfCgF30DZaFXHoGn9="),
    ("secret key of the instance", "token_malformed", lambda: "sk_test_" + "a" * 42),
]

MACHINE = {"sub": "mch_2abc", "sid": REMOVE, "azp": REMOVE, "jti": "mt_2abc", "aud": ["mch_2abd"]}
OAUTH = {"client_id": "client_2abc", "scope": "profile email", "jti": "oat_2abc"}
IDENTITY = {"sid": REMOVE, "azp": "client_2abc", "aud": "client_2abc", "at_hash": "2abc", "nonce": "2abc"}
HANDSHAKE = {"sub": REMOVE, "sid": REMOVE, "azp": REMOVE, "handshake": ["__session=a; Path=/"]}

# In the form of a token of either version, but with invalid content.
ON_CONTENT: list[tuple[str, str, Callable[[Mint], str]]] = [
    # the header
    ("alg none", "token_malformed", alg_none),
    ("alg none with a signature", "token_malformed", lambda make: make(header={"alg": "none"})),
    ("HS256 with the public key", "token_malformed", hs256_with_the_public_key),
    ("RS384", "token_malformed", lambda make: signed_as("RS384", make)),
    ("RS512", "token_malformed", lambda make: signed_as("RS512", make)),
    ("PS256", "token_malformed", lambda make: signed_as("PS256", make)),
    ("alg in small letters", "token_malformed", lambda make: make(header={"alg": "rs256"})),
    ("alg is a list", "token_malformed", lambda make: make(header={"alg": ["RS256"]})),
    ("no alg", "token_malformed", lambda make: make(header={"alg": REMOVE})),
    ("crit", "token_malformed", lambda make: make(header={"crit": ["exp"]})),
    ("crit b64", "token_malformed", lambda make: make(header={"crit": ["b64"], "b64": True})),
    ("b64 false", "token_malformed", lambda make: make(header={"b64": False})),
    ("kid is a list", "token_malformed", lambda make: make(header={"kid": [KID]})),
    ("kid is null", "token_malformed", lambda make: make(header={"kid": None})),
    # another kind of token, signed by the same key
    ("typ is null", "token_kind", lambda make: make(header={"typ": None})),
    ("cat of templates", "token_kind", lambda make: make(header={"cat": TEMPLATE})),
    ("cat is a list", "token_kind", lambda make: make(header={"cat": ["cl_B7d4PD111AAA"]})),
    ("cat is null", "token_kind", lambda make: make(header={"cat": None})),
    ("template", "token_kind", lambda make: make(header={"cat": TEMPLATE}, sid=REMOVE)),
    ("template, cat to be ignored", "token_malformed", lambda make: make(header=IGNORE, sid=REMOVE)),
    ("machine", "token_kind", lambda make: make(header={"cat": "cl_B7d4PD333AAA"}, **MACHINE)),
    ("machine, cat to be ignored", "token_kind", lambda make: make(header=IGNORE, **MACHINE)),
    ("machine with a sid", "token_kind", lambda make: make(sub="mch_2abc")),
    ("OAuth", "token_kind", lambda make: make(header={"typ": "at+jwt"}, **OAUTH)),
    ("OAuth, typ in full", "token_kind", lambda make: make(header={"typ": "application/at+jwt"}, **OAUTH)),
    ("OAuth, cat of sessions", "token_kind", lambda make: make(header={"typ": "at+jwt"} | SESSIONS, **OAUTH)),
    ("OAuth, typ JWT, no sid", "token_malformed", lambda make: make(sid=REMOVE, **OAUTH)),
    ("OpenID identity", "token_malformed", lambda make: make(**IDENTITY)),
    ("handshake", "token_malformed", lambda make: make(header=SESSIONS, **HANDSHAKE)),
    # the signature
    ("another key", "token_signature", lambda make: make(key=other_key)),
    ("no RSA signature", "token_signature", lambda make: make().rpartition(".")[0] + ".AAAA"),
    ("changed payload", "token_signature", lambda make: changed(make(), 1, b"user_2abc", b"user_2abd")),
    ("changed header", "token_signature", lambda make: changed(make(), 0, KID.encode(), b"ins_2abd")),
    # the user and the session
    ("no sub", "token_malformed", lambda make: make(sub=REMOVE)),
    ("sub is a number", "token_malformed", lambda make: make(sub=1)),
    ("sub with NUL", "token_malformed", lambda make: make(sub="user_\0")),
    ("sub with a line feed at the end", "token_malformed", lambda make: make(sub="user_2abc\n")),
    ("sub with a surrogate", "token_malformed", lambda make: make(sub="user_\ud800")),
    ("sub of 129", "token_malformed", lambda make: make(sub="user_".ljust(129, "a"))),
    ("no sid", "token_malformed", lambda make: make(sid=REMOVE)),
    ("empty sid", "token_malformed", lambda make: make(sid="")),
    ("sid is a list", "token_malformed", lambda make: make(sid=["sess_2abc"])),
    ("sid with a line feed", "token_malformed", lambda make: make(sid="sess_2abc\n")),
    # the times
    ("no exp", "token_malformed", lambda make: make(exp=REMOVE)),
    ("exp is true", "token_malformed", lambda make: make(exp=True)),
    ("exp is text", "token_malformed", lambda make: make(exp="9999999999")),
    ("exp is NaN", "token_malformed", lambda make: make(exp=float("nan"))),
    ("exp is infinite", "token_malformed", lambda make: make(exp=float("inf"))),
    ("exp 10^30", "token_malformed", lambda make: make(exp=10**30)),
    ("exp 10^4000", "token_malformed", lambda make: make(exp=10**4_000)),
    ("exp -10^4000", "token_expired", lambda make: make(exp=-(10**4_000))),
    ("exp in over a day", "token_malformed", lambda make: make(exp=at(DAY + 60))),
    ("expired", "token_expired", lambda make: make(exp=at(-6))),
    ("early", "token_not_yet_valid", lambda make: make(nbf=at(9))),
    ("nbf 10^4000", "token_not_yet_valid", lambda make: make(nbf=10**4_000)),
    ("nbf is text", "token_malformed", lambda make: make(nbf="0")),
    ("nbf is null", "token_malformed", lambda make: make(nbf=None)),
    ("nbf is NaN", "token_malformed", lambda make: make(nbf=float("nan"))),
    ("iat is text", "token_malformed", lambda make: make(iat="now")),
    ("iat is false", "token_malformed", lambda make: make(iat=False)),
    # the issuer and the origin
    ("another issuer", "token_issuer", lambda make: make(iss="https://clerk.example.org")),
    ("issuer with a slash", "token_issuer", lambda make: make(iss=ISSUER + "/")),
    ("issuer is a list", "token_issuer", lambda make: make(iss=[ISSUER])),
    ("no issuer", "token_issuer", lambda make: make(iss=REMOVE)),
    ("another party", "token_azp", lambda make: make(azp="https://evil.example.com")),
    ("party is an object", "token_azp", lambda make: make(azp={})),
    ("party is empty", "token_azp", lambda make: make(azp="")),
    ("party is null", "token_azp", lambda make: make(azp=None)),
    ("no party", "token_azp", lambda make: make(azp=REMOVE)),
    ("pending", "session_pending", lambda make: make(sts="pending")),
]
ATTACKS: dict[str, tuple[str, Callable[[], str]]] = {
    **{name: (code, attack) for name, code, attack in ON_FORM},
    **{
        f"{name}, version {2 if v2 else 1}": (code, partial(attack, partial(mint, v2=v2)))
        for name, code, attack in ON_CONTENT
        for v2 in (False, True)
    },
}
UNSENDABLE = ("line feed at the end", "surrogate")  # not possible in a header, so no client sends it


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_with_the_reason(name):
    code, attack = ATTACKS[name]
    with pytest.raises(Refused) as refused:
        verify(attack())
    assert refused.value.code == code


def test_no_row_of_the_table_hides_another():
    assert len(ATTACKS) == len(ON_FORM) + 2 * len(ON_CONTENT)


@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in UNSENDABLE])
def test_an_attack_over_http_is_a_401_that_asks_no_database(name):
    # Without the mark for a database, any use of one raises.
    code, attack = ATTACKS[name]
    answer = ask(attack())
    assert (answer.status_code, answer.json()["code"]) == (401, code)
    assert answer["WWW-Authenticate"].startswith('Bearer error="invalid_token", error_description="')
    assert answer["Content-Type"] == "application/problem+json"


def test_a_genuine_token_over_http_does_ask_the_database(caplog):
    assert ask(mint()).status_code == 500
    assert "Database access not allowed" in caplog.text


@pytest.mark.parametrize("name", UNSENDABLE)
def test_what_no_header_can_have_is_not_sent(name):
    connection = HTTPConnection("127.0.0.1")
    connection.putrequest("GET", "/api/quota")
    with pytest.raises(ValueError, match=r"Invalid header value|ordinal not in range"):
        connection.putheader("Authorization", f"Bearer {ATTACKS[name][1]()}")


def ask(token):
    return Client().get("/api/quota", headers={"Authorization": f"Bearer {token}"})


def test_all_attacks_together_cost_one_fetch_of_the_keys(settings, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    settings.CLERK_JWT_KEY = ""
    with KeyServer() as server:
        settings.CLERK_JWKS_URL = server.url
        for _, attack in ATTACKS.values():
            with pytest.raises((Refused, KeysUnavailable)):
                verify(attack())
    assert server.fetches == 1


@pytest.mark.parametrize(
    "copy",
    [
        pytest.param(lambda token: changed(token, 1, b"user_2abc", b"user_2abd"), id="another user"),
        pytest.param(lambda token: changed(token, 0, b'"JWT"', b'"jwt"'), id="another header"),
        pytest.param(lambda token: token.rpartition(".")[0] + ".AAAA", id="another signature"),
        pytest.param(lambda token: token + "==", id="padding"),
        pytest.param(lambda token: token + "\n", id="line feed at the end"),
    ],
)
def test_a_changed_copy_of_a_token_that_was_just_believed_is_refused(copy):
    token = mint()
    verify(token)
    with pytest.raises(Refused):
        verify(copy(token))


def test_the_impersonator_is_told():
    assert verify(mint(act={"sub": "user_staff", "sid": "sess_9"})).act == "user_staff"


@pytest.mark.parametrize("act", ["user_staff", {"sub": "user_\n"}, {"sub": 1}, {}, None])
def test_an_ill_formed_impersonator_is_left_out(act):
    assert verify(mint(act=act)).act is None


def test_without_an_issuer_every_token_is_refused(settings):
    settings.CLERK_ISSUER = ""
    for iss in (ISSUER, "", REMOVE):
        with pytest.raises(Refused, match="CLERK_ISSUER") as refused:
            verify(mint(iss=iss))
        assert refused.value.code == "token_issuer"


@pytest.mark.parametrize("azp", [REMOVE, "https://evil.example.com"])
def test_without_authorized_parties_any_party_will_do(settings, azp):
    settings.CLERK_AUTHORIZED_PARTIES = []
    assert verify(mint(azp=azp)) == SESSION


def test_tokens_of_native_apps_are_accepted_by_a_switch(settings):
    with pytest.raises(Refused, match="CLERK_ALLOW_MISSING_AZP=1"):
        verify(mint(azp=REMOVE))
    settings.CLERK_ALLOW_MISSING_AZP = True
    assert verify(mint(azp=REMOVE)) == SESSION
    assert verify(mint()) == SESSION


@pytest.mark.parametrize("name", [name for name in ATTACKS if not name.startswith("no party")])
def test_the_switch_lets_no_other_attack_pass(settings, name):
    settings.CLERK_ALLOW_MISSING_AZP = True
    code, attack = ATTACKS[name]
    with pytest.raises(Refused) as refused:
        verify(attack())
    assert refused.value.code == code


@profile(deadline=None)
@given(st.text() | st.text("ey._-", max_size=40))
def test_any_text_is_refused(text):
    with pytest.raises(Refused):
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
    with suppress(Refused):
        assert isinstance(verify(token), Session)


def test_without_a_key_source_the_settings_are_named(settings):
    settings.CLERK_JWT_KEY = ""
    with pytest.raises(KeysUnavailable, match="CLERK_PUBLISHABLE_KEY or CLERK_JWT_KEY"):
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
    program = "import sys, quotas.access.session_tokens; sys.exit('httpx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0

"""Session tokens signed by Clerk's own JavaScript, and what its verifyToken accepts of ours."""

import json
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import time_machine
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pytest_django import Settings

from quotas.access.refusals import Refused
from quotas.access.session_tokens import Session, verify
from tests.access.test_session_tokens import ATTACKS, GENUINE
from tests.tools.javascript import CLERK, HERE, ask, install
from tests.tools.keys import ISSUER, KID, PARTY, mint, private_key, public_pem

pytestmark = pytest.mark.once

RECORDED = json.loads((HERE / "js_token.json").read_text("utf-8"))
CATEGORY = {"cat": "cl_B7d4PD111AAA"}
V1 = {"org_id": "org_2js", "org_slug": "zoë", "org_role": "org:admin", "org_permissions": ["org:a:b"]}
V2 = {"v": 2, "sts": "active", "pla": "u:free", "fea": "u:draw", "o": {"id": "org_2js", "rol": "admin"}}
STAFF = {"act": {"iss": "https://dashboard.clerk.com", "sid": "sess_2staff", "sub": "user_2staff"}}
AGENT = {"act": {"sub": "agent_2js", "type": "agent"}}

# The rows of the table of attacks that verifyToken accepts, with the same key, parties and issuer.
REFUSED_BY_US_ALONE = {
    # It does not check the kind of a token, except one category of machine tokens and the typ.
    "cat of templates",
    "cat is a list",
    "cat is null",
    "template",
    "template, cat to be ignored",
    "machine with a sid",
    "OAuth, typ JWT, no sid",
    # So it requires no session, and accepts one that is pending.
    "no sid",
    "empty sid",
    "sid is a list",
    "sid with a line feed",
    "pending",
    # It accepts any text as a user id.
    "sub with NUL",
    "sub with a line feed at the end",
    "sub with a surrogate",
    "sub of 129",
    # It has no limit for a token's life, and treats a time beyond its calendar as now.
    "exp 10^30",
    "exp 10^4000",
    "exp -10^4000",
    "exp in over a day",
    "nbf 10^4000",
    # It ignores the rest of the header.
    "crit",
    "crit b64",
    "b64 false",
    "kid is a list",
    "kid is null",
}
IN_ONE_VERSION = {"padding"}  # it decodes base64 leniently
REFUSED_BY_CLERK_ALONE = {"typ in small letters", "issued in the future"}


@pytest.fixture
def clerk(tmp_path: Path) -> Path:
    return install(tmp_path, CLERK, "clerk_backend.mjs")


@pytest.fixture(autouse=True)
def _configured(settings: Settings) -> None:
    settings.CLERK_JWT_KEY, settings.CLERK_JWKS_URL = public_pem, ""
    settings.CLERK_ISSUER, settings.CLERK_AUTHORIZED_PARTIES = ISSUER, [PARTY]


def sessions() -> list[dict[str, Any]]:
    """Sessions for clerk_backend.mjs to sign: of both versions, with and without an impersonator."""
    now = int(time.time())
    usual = {"azp": PARTY, "iss": ISSUER, "sub": "user_2js", "sid": "sess_2js", "fva": [0, -1]}
    times = {"exp": now + 60, "nbf": now - 10}
    return [
        {"header": {"kid": KID, "typ": "JWT", **category}, "claims": {**usual, **times, **version, **act}}
        for category in ({}, CATEGORY)
        for version in ({}, V1, V2)
        for act in ({}, STAFF, AGENT)
    ]


@pytest.mark.full
def test_tokens_that_clerks_javascript_signs_now_are_verified_here_and_there(clerk: Path) -> None:
    pem = private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    signed = ask(clerk, sign=sessions(), privateKey=pem)["signed"]
    acts = [session["claims"].get("act", {}).get("sub") for session in sessions()]
    assert [verify(token) for token in signed] == [Session("user_2js", "sess_2js", act) for act in acts]
    assert judged_by_clerk(clerk, signed) == [None] * len(signed)


@pytest.mark.full
def test_clerks_javascript_accepts_an_attack_only_where_it_is_known_to(clerk: Path) -> None:
    made = {name: attack() for name, (_, attack) in ATTACKS.items()}
    accepted = {
        name for name, why in zip(made, judged_by_clerk(clerk, [*made.values()]), strict=True) if not why
    }
    assert accepted == in_both_versions(REFUSED_BY_US_ALONE) | IN_ONE_VERSION


@pytest.mark.full
def test_clerks_javascript_refuses_a_genuine_token_only_where_it_is_known_to(clerk: Path) -> None:
    made = {
        f"{name}, version {2 if v2 else 1}": make(partial(mint, v2=v2))
        for name, make in GENUINE.items()
        for v2 in (False, True)
    }
    refused = {name for name, why in zip(made, judged_by_clerk(clerk, [*made.values()]), strict=True) if why}
    assert refused == in_both_versions(REFUSED_BY_CLERK_ALONE)


def in_both_versions(names: set[str]) -> set[str]:
    return {f"{name}, version {version}" for name in names for version in (1, 2)}


def judged_by_clerk(clerk: Path, tokens: list[str]) -> list[str | None]:
    """Return why Clerk's verifyToken refuses each token, or None."""
    options = {"jwtKey": public_pem, "authorizedParties": [PARTY], "issuer": ISSUER}
    reasons: list[str | None] = ask(clerk, tokens=tokens, options=options)["tokens"]
    return reasons


@pytest.mark.parametrize("version", RECORDED["tokens"])
def test_a_recorded_token_of_clerks_javascript_is_verified_at_its_time(
    settings: Settings, version: str
) -> None:
    settings.CLERK_JWT_KEY = RECORDED["public_key"]
    with at_its_time():
        session = verify(RECORDED["tokens"][version])
    assert session == Session("user_2js", "sess_2js", "user_2staff" if version == "2" else None)


@pytest.mark.parametrize("version", RECORDED["tokens"])
def test_a_recorded_token_of_clerks_javascript_is_long_over(settings: Settings, version: str) -> None:
    settings.CLERK_JWT_KEY = RECORDED["public_key"]
    with pytest.raises(Refused, match="expired"):
        verify(RECORDED["tokens"][version])


@pytest.mark.parametrize("version", RECORDED["tokens"])
def test_a_recorded_token_of_clerks_javascript_needs_its_own_key(version: str) -> None:
    with at_its_time(), pytest.raises(Refused, match="signature"):
        verify(RECORDED["tokens"][version])


def at_its_time() -> time_machine.travel:
    return time_machine.travel(datetime.fromtimestamp(RECORDED["time"], UTC), tick=False)

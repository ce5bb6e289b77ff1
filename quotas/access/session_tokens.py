"""Clerk's session tokens: what a valid token contains, and why a token is refused.

`verify` is the entry point. Every check of a token is in this file; jwks.py decides which keys are valid.
"""

import hashlib
import json
import math
import re
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeGuard

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from django.conf import settings
from joserfc import jws
from joserfc.jwk import RSAKey
from joserfc.util import urlsafe_b64decode

from quotas.access.jwks import KeysUnavailable, UnknownKey, key_set, require_strong
from quotas.access.refusals import Fault, Refused

MAX_TOKEN = 8 * 1024
LEEWAY = 5  # seconds by which two clocks may differ
MAX_LIFE = 86_400  # seconds; Clerk's tokens live for one minute
# Clerk signs other kinds of token with the same key; these categories are the session tokens.
SESSION_CATEGORIES = ("cl_B7d4PD111AAA", "cl_I7d4PD111III")
RECHECKED_CLAIMS = ("exp", "nbf", "iat", "iss", "azp", "sts")  # their validity depends on time and settings
COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
ID = re.compile(r"[A-Za-z0-9_:.@-]{1,128}")

MAX_REMEMBERED_TOKENS = 4_096  # tokens; about 1 KB each
RETRY_SETTINGS = 60  # seconds; wrong settings last until an operator fixes them

RS256 = jws.JWSRegistry(algorithms=["RS256"]).get_alg("RS256")


@dataclass(frozen=True, slots=True)
class Session:
    user_id: str
    session_id: str
    act: str | None  # the id of the impersonator, if any


class VerifiedToken(NamedTuple):
    """The content of a token with a valid signature, and the key that verified it."""

    kid: str | None
    key: RSAKey
    session: Session
    claims: dict[str, Any]  # RECHECKED_CLAIMS only


# The tokens that this process has verified, by the digest of the whole token. A client sends each token many
# times in its minute; a full check costs many times as much as this cache (bench/tokens.py).
_verified: dict[bytes, VerifiedToken] = {}


def verify(token: str, *, may_wait: bool = True) -> Session:
    """Return the session that `token` proves.

    Raises Refused with the first fault, or KeysUnavailable. If `may_wait` is false, raises WouldWait for a
    key that must be fetched.
    """
    if len(token) > MAX_TOKEN:
        raise Refused(Fault.TOKEN_TOO_LONG)
    now = time.time()
    digest = hashlib.sha256(token.encode(errors="surrogatepass")).digest()
    verified = _verified.get(digest)
    # A token's content and signer cannot change. The key, the time and the settings can: recheck them.
    if verified and now < verified.claims["exp"] and _find_key(verified.kid, may_wait) is verified.key:
        _check_claims(verified.claims, now)
        return verified.session
    _check_form(token)
    kid = _check_header(token.partition(".")[0])
    key = _find_key(kid, may_wait)
    claims = _signed_claims(token, key)
    session = _session_from(claims)
    _check_claims(claims, now)
    judged = {name: claims[name] for name in RECHECKED_CLAIMS if name in claims}
    _remember(digest, VerifiedToken(kid, key, session, judged), now)
    return session


def _remember(digest: bytes, verified: VerifiedToken, now: float) -> None:
    if len(_verified) >= MAX_REMEMBERED_TOKENS:
        for known, (*_, claims) in list(_verified.items()):
            if claims["exp"] <= now:
                _verified.pop(known, None)
    if len(_verified) >= MAX_REMEMBERED_TOKENS:
        _verified.clear()
    _verified[digest] = verified


def _check_form(token: str) -> None:
    if not COMPACT.fullmatch(token):
        raise Refused(Fault.TOKEN_NOT_THREE_PARTS)


@lru_cache(maxsize=64)  # a Clerk instance uses few headers
def _check_header(part: str) -> str | None:
    """Return the kid. Raises Refused if no key could make the token valid, before a key is fetched."""
    try:
        header = _json_object(urlsafe_b64decode(part.encode()))
    except ValueError:
        raise Refused(Fault.HEADER_NOT_AN_OBJECT) from None
    kid = header.get("kid")
    if header.get("alg") != "RS256":
        raise Refused(Fault.ALG_NOT_RS256)
    if "crit" in header or header.get("b64", True) is not True:
        raise Refused(Fault.CRIT_OR_B64)
    if "kid" in header and not isinstance(kid, str):
        raise Refused(Fault.KID_NOT_A_STRING)
    typ = header.get("typ", "JWT")
    if not isinstance(typ, str) or typ.upper() != "JWT":
        raise Refused(Fault.ANOTHER_TYP)
    if header.get("cat", SESSION_CATEGORIES[0]) not in SESSION_CATEGORIES:
        raise Refused(Fault.ANOTHER_CAT)
    return kid


def _signed_claims(token: str, key: RSAKey) -> dict[str, Any]:
    # Not jws.deserialize_compact: it takes a malformed signature for a wrong one, and limits a valid header.
    signed, _, signature = token.rpartition(".")
    try:
        if not RS256.verify(signed.encode(), urlsafe_b64decode(signature.encode()), key):
            raise Refused(Fault.SIGNATURE_OF_ANOTHER_KEY)
        payload = urlsafe_b64decode(signed.partition(".")[2].encode())
    except ValueError:
        raise Refused(Fault.PART_NOT_BASE64URL) from None
    try:
        return _json_object(payload)
    except ValueError:
        raise Refused(Fault.PAYLOAD_NOT_AN_OBJECT) from None


def _session_from(claims: dict[str, Any]) -> Session:
    user_id, session_id, act = claims.get("sub"), claims.get("sid"), claims.get("act")
    if not _is_id(user_id):
        raise Refused(Fault.SUB_NOT_AN_ID)
    if not user_id.startswith("user_"):
        raise Refused(Fault.SUB_NOT_A_USER)
    if not _is_id(session_id):
        raise Refused(Fault.SID_NOT_AN_ID)
    actor = act.get("sub") if isinstance(act, dict) else None
    return Session(user_id, session_id, actor if _is_id(actor) else None)


def _check_claims(claims: dict[str, Any], now: float) -> None:
    _check_times(claims, now)
    _check_origin(claims)
    if claims.get("sts") == "pending":
        raise Refused(Fault.SESSION_PENDING)


def _check_times(claims: dict[str, Any], now: float) -> None:
    exp = claims.get("exp")
    if not _is_number(exp):
        raise Refused(Fault.EXP_NOT_A_NUMBER)
    if exp > now + MAX_LIFE:
        raise Refused(Fault.EXP_TOO_FAR_AHEAD)
    if exp <= now - LEEWAY:
        raise Refused(Fault.TOKEN_EXPIRED)
    if not _is_number(claims.get("nbf", 0)):
        raise Refused(Fault.NBF_NOT_A_NUMBER)
    if claims.get("nbf", 0) > now + LEEWAY:
        raise Refused(Fault.TOKEN_NOT_YET_VALID)
    if not _is_number(claims.get("iat", 0)):
        raise Refused(Fault.IAT_NOT_A_NUMBER)


def _check_origin(claims: dict[str, Any]) -> None:
    if not settings.CLERK_ISSUER:
        raise Refused(Fault.NO_ISSUER_CONFIGURED)
    if claims.get("iss") != settings.CLERK_ISSUER:
        raise Refused(Fault.ANOTHER_ISSUER)
    parties = settings.CLERK_AUTHORIZED_PARTIES
    if not parties or ("azp" not in claims and settings.CLERK_ALLOW_MISSING_AZP):
        return
    if claims.get("azp") not in parties:
        raise Refused(Fault.ANOTHER_PARTY if "azp" in claims else Fault.NO_PARTY)


def _json_object(raw: bytes) -> dict[str, Any]:
    """Parse one JSON object in UTF-8. Raises ValueError."""
    try:
        value = json.loads(raw.decode())
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _is_id(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and ID.fullmatch(value) is not None


def _is_number(value: object) -> TypeGuard[float]:
    """Return whether the value is a finite number. Only compare it: an integer may exceed a float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf


def key_source() -> tuple[str, float | None]:
    """Return where the keys come from (PEM, JWKS or none), and how many seconds ago they were fetched.

    Begins to fetch keys that are missing or old, so that the first request need not wait for them.
    """
    if settings.CLERK_JWT_KEY:
        return "PEM", None
    if not settings.CLERK_JWKS_URL:
        return "none", None
    keys = key_set(settings.CLERK_JWKS_URL)
    keys.renew()
    return "JWKS", keys.age


def _find_key(kid: str | None, may_wait: bool) -> RSAKey:
    if settings.CLERK_JWT_KEY:
        try:
            return public_key(settings.CLERK_JWT_KEY)
        except ValueError as error:
            raise KeysUnavailable(str(error), RETRY_SETTINGS) from None
    if settings.CLERK_JWKS_URL:
        try:
            return key_set(settings.CLERK_JWKS_URL).find(kid, may_wait=may_wait)
        except UnknownKey:
            raise Refused(Fault.KID_UNKNOWN) from None
    raise KeysUnavailable(
        "No key to verify tokens is configured: set CLERK_PUBLISHABLE_KEY or CLERK_JWT_KEY.",
        RETRY_SETTINGS,
    )


@lru_cache(maxsize=2)
def public_key(pem: str) -> RSAKey:
    """Parse the PEM of CLERK_JWT_KEY. Raises ValueError, which names the fix and never shows the value."""
    try:
        return require_strong(load_pem_public_key(pem.encode()))
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(
            "CLERK_JWT_KEY is not a PEM public key: copy it whole from the API keys page of Clerk, "
            "from BEGIN PUBLIC KEY to END PUBLIC KEY (RSA, at least 2048 bits)."
        ) from None

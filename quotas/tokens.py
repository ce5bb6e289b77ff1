"""Clerk's session tokens: where the key comes from, what a token must say, why one is refused.

Every check is in this file. `verify` is the whole of it for a caller: a Session, or one of two errors.
"""

import base64
import json
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeGuard

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from django.conf import settings
from jwt.algorithms import RSAAlgorithm
from jwt.api_jws import PyJWS
from jwt.exceptions import InvalidSignatureError, PyJWTError

log = logging.getLogger(__name__)

MAX_TOKEN = 8 * 1024
LEEWAY = 5  # seconds by which two clocks may differ
MAX_LIFE = 86_400  # seconds; Clerk's tokens live for one minute
MIN_KEY_BITS = 2048  # Clerk's size; below it PyJWT warns at every token
# Clerk signs other kinds of token with the same key; these categories are the session tokens.
SESSION_CATEGORIES = ("cl_B7d4PD111AAA", "cl_I7d4PD111III")
COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
ID = re.compile(r"[A-Za-z0-9_:.@-]{1,128}")

FETCH_TIMEOUT = 3  # seconds
MAX_KEY_SET = 256 * 1024  # bytes
FRESH = 3_600  # seconds for which fetched keys are not asked for again
RETRY_STALE = 60  # seconds between attempts to renew old keys, which are served meanwhile
QUIET_AFTER_SUCCESS, QUIET_AFTER_FAILURE = 10, 1  # seconds without a fetch, whatever kid is asked for
RETRY_SETTINGS = 60  # seconds; wrong settings last until somebody mends them

Code = Literal[
    "token_malformed",
    "token_expired",
    "token_not_yet_valid",
    "token_signature",
    "token_issuer",
    "token_azp",
    "token_kind",
    "session_pending",
]

_jws = PyJWS()


class TokenRefused(Exception):
    """The token is at fault. `detail` is fit for a header: ASCII, nothing quoted from the token."""

    def __init__(self, code: Code, detail: str) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail


class KeysUnavailable(Exception):
    """The token cannot be judged now; ask again after `retry_after` seconds."""

    def __init__(self, detail: str, retry_after: int) -> None:
        super().__init__(detail, retry_after)
        self.detail = detail
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Session:
    user_id: str
    session_id: str
    act: str | None  # who impersonates the user


def verify(token: str) -> Session:
    """Return the session that `token` proves.

    Raises TokenRefused, with the code of the first thing to put right, or KeysUnavailable.
    """
    kid = _check_header(token)
    claims = _signed_claims(token, _find_key(kid))
    session = _session(claims)
    _check_times(claims, time.time())
    _check_origin(claims)
    if claims.get("sts") == "pending":
        raise TokenRefused("session_pending", "The session is pending: the user has sign-in tasks to finish.")
    return session


def _check_header(token: str) -> str | None:
    """Refuse what no key could make good, before any key is looked for; return the kid."""
    if len(token) > MAX_TOKEN:
        raise TokenRefused("token_malformed", "The token is longer than 8 KB.")
    if not COMPACT.fullmatch(token):
        raise TokenRefused(
            "token_malformed",
            "The token must be three base64url parts with dots between, as Clerk issues it.",
        )
    try:
        first = token.partition(".")[0]
        header = _json_object(base64.urlsafe_b64decode(first + "=" * (-len(first) % 4)))
    except ValueError:
        raise TokenRefused(
            "token_malformed", "The first part of the token must be a JSON object in base64url."
        ) from None
    kid = header.get("kid")
    if header.get("alg") != "RS256":
        raise TokenRefused("token_malformed", "The alg header must be RS256.")
    if "crit" in header:
        raise TokenRefused("token_malformed", "The crit header is not supported.")
    if "kid" in header and not isinstance(kid, str):
        raise TokenRefused("token_malformed", "The kid header must be a string.")
    typ = header.get("typ", "JWT")
    if not isinstance(typ, str) or typ.upper() != "JWT":
        raise TokenRefused("token_kind", "The typ header must be JWT: send a session token of Clerk.")
    if header.get("cat", SESSION_CATEGORIES[0]) not in SESSION_CATEGORIES:
        raise TokenRefused(
            "token_kind",
            "The cat header names another kind of token: send a session token, made without a template.",
        )
    return kid


def _signed_claims(token: str, key: RSAPublicKey) -> dict[str, Any]:
    try:
        payload = _jws.decode_complete(token, key, algorithms=["RS256"])["payload"]
    except InvalidSignatureError:
        raise TokenRefused(
            "token_signature",
            "The signature does not fit the key: the token is of another Clerk instance, or forged.",
        ) from None
    except PyJWTError:
        raise TokenRefused("token_malformed", "A part of the token is not proper base64url.") from None
    try:
        return _json_object(payload)
    except ValueError:
        raise TokenRefused("token_malformed", "The payload of the token must be a JSON object.") from None


def _session(claims: dict[str, Any]) -> Session:
    user_id, session_id, act = claims.get("sub"), claims.get("sid"), claims.get("act")
    if not _is_id(user_id):
        raise TokenRefused("token_malformed", "The sub claim must be a user id of Clerk.")
    if not user_id.startswith("user_"):
        raise TokenRefused(
            "token_kind",
            "The sub claim does not start with user_: send a session token, not one of a machine.",
        )
    if not _is_id(session_id):
        raise TokenRefused("token_malformed", "The sid claim must be a session id of Clerk.")
    actor = act.get("sub") if isinstance(act, dict) else None
    return Session(user_id, session_id, actor if _is_id(actor) else None)


def _check_times(claims: dict[str, Any], now: float) -> None:
    exp = claims.get("exp")
    if not _is_number(exp):
        raise TokenRefused("token_malformed", "The exp claim must be a number of seconds.")
    if exp > now + MAX_LIFE:
        raise TokenRefused("token_malformed", "The exp claim is more than a day ahead.")
    if exp <= now - LEEWAY:
        raise TokenRefused(
            "token_expired", "The token has expired: ask Clerk for a new one before each request."
        )
    if not _is_number(claims.get("nbf", 0)):
        raise TokenRefused("token_malformed", "The nbf claim must be a number of seconds.")
    if claims.get("nbf", 0) > now + LEEWAY:
        raise TokenRefused(
            "token_not_yet_valid",
            "The token is not valid yet: compare the clock of this server with the true time.",
        )
    if not _is_number(claims.get("iat", 0)):
        raise TokenRefused("token_malformed", "The iat claim must be a number of seconds.")


def _check_origin(claims: dict[str, Any]) -> None:
    if not settings.CLERK_ISSUER:
        raise TokenRefused(
            "token_issuer",
            "No issuer is configured, so every token is refused: set CLERK_PUBLISHABLE_KEY or CLERK_ISSUER.",
        )
    if claims.get("iss") != settings.CLERK_ISSUER:
        raise TokenRefused(
            "token_issuer",
            "The iss claim is not the issuer that CLERK_ISSUER or CLERK_PUBLISHABLE_KEY configures.",
        )
    parties = settings.CLERK_AUTHORIZED_PARTIES
    if parties and claims.get("azp") not in parties:
        raise TokenRefused(
            "token_azp", "The azp claim is not one of the origins in CLERK_AUTHORIZED_PARTIES."
        )


def _json_object(raw: bytes) -> dict[str, Any]:
    """Parse one JSON object in UTF-8, or raise ValueError."""
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
    """Tell a finite number. Integers may exceed a float here, so only comparisons are safe."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf


def _find_key(kid: str | None) -> RSAPublicKey:
    if settings.CLERK_JWT_KEY:
        try:
            return public_key(settings.CLERK_JWT_KEY)
        except ValueError as error:
            raise KeysUnavailable(str(error), RETRY_SETTINGS) from None
    if settings.CLERK_JWKS_URL:
        return _key_set(settings.CLERK_JWKS_URL).find(kid)
    raise KeysUnavailable(
        "No key to check tokens with is configured: set CLERK_PUBLISHABLE_KEY, or CLERK_JWT_KEY.",
        RETRY_SETTINGS,
    )


@lru_cache(maxsize=2)
def public_key(pem: str) -> RSAPublicKey:
    """Parse the PEM of CLERK_JWT_KEY, or raise ValueError with the fix, never with the value."""
    try:
        return _strong(load_pem_public_key(pem.encode()))
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(
            "CLERK_JWT_KEY is not a PEM public key: copy it whole from the API keys page of Clerk, "
            "from BEGIN PUBLIC KEY to END PUBLIC KEY (RSA, at least 2048 bits)."
        ) from None


def _strong(key: object) -> RSAPublicKey:
    if not isinstance(key, RSAPublicKey) or key.key_size < MIN_KEY_BITS:
        raise ValueError("not an RSA public key of at least 2048 bits")
    return key


class JWKS:
    """The public keys behind one address, by kid.

    A stranger chooses the kid, so fetches are rationed: one at a time, and after each a quiet time in
    which none is made. Old keys are served for as long as no new ones can be had.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._clock = clock
        self._fetching = threading.Lock()
        self._keys: dict[str | None, RSAPublicKey] = {}
        self._stale_at = self._quiet_until = clock()

    def find(self, kid: str | None) -> RSAPublicKey:
        """Return the key named `kid`.

        Raises KeysUnavailable if the keys cannot be asked for it now, and TokenRefused if they were
        and do not have it.
        """
        key = self._keys.get(kid)
        # With a key in hand nobody waits for another request's fetch.
        if self._fetching.acquire(timeout=0 if key else FETCH_TIMEOUT):
            try:
                return self._find_after_fetch(kid)
            finally:
                self._fetching.release()
        if key is None:
            raise self._unavailable()
        return key

    def _find_after_fetch(self, kid: str | None) -> RSAPublicKey:
        due = self._stale_at if kid in self._keys else self._quiet_until
        if self._clock() >= due and self._fetch() and kid not in self._keys:
            raise TokenRefused(
                "token_signature", "The kid header names no key of the configured Clerk instance."
            )
        if kid not in self._keys:
            raise self._unavailable()
        return self._keys[kid]

    def _fetch(self) -> bool:
        try:
            self._keys = _parse_key_set(_download(self._url))
        except ValueError as error:
            log.warning("The keys at CLERK_JWKS_URL could not be fetched: %s", error)
            self._quiet_until = self._clock() + QUIET_AFTER_FAILURE
            self._stale_at = self._clock() + RETRY_STALE
            return False
        self._quiet_until = self._clock() + QUIET_AFTER_SUCCESS
        self._stale_at = self._clock() + FRESH
        return True

    def _unavailable(self) -> KeysUnavailable:
        return KeysUnavailable(
            "The key of this token could not be fetched from Clerk: try again shortly.",
            max(1, math.ceil(self._quiet_until - self._clock())),
        )


_key_sets: dict[tuple[int, str], JWKS] = {}


def _key_set(url: str) -> JWKS:
    # By process too: a fork may have copied a lock that nobody in the child will release.
    name = (os.getpid(), url)
    return _key_sets.get(name) or _key_sets.setdefault(name, JWKS(url))  # setdefault is atomic


def _parse_key_set(raw: bytes) -> dict[str | None, RSAPublicKey]:
    """Return the usable keys by kid, or raise ValueError if there are none."""
    members = _json_object(raw).get("keys")
    keys: dict[str | None, RSAPublicKey] = {}
    for jwk in members if isinstance(members, list) else []:
        try:
            if jwk.get("use", "sig") == "sig" and isinstance(jwk["kid"], str):
                keys[jwk["kid"]] = _strong(RSAAlgorithm.from_jwk(jwk))
        except (PyJWTError, ValueError, LookupError, TypeError, AttributeError):
            continue  # one odd key must not cost the others
    if not keys:
        raise ValueError("no RSA key in the answer")
    return keys


def _download(url: str) -> bytes:
    """GET a small body, or raise ValueError. No redirect is followed."""
    import httpx  # here, because a process with CLERK_JWT_KEY never needs it

    deadline = time.monotonic() + FETCH_TIMEOUT
    body = b""
    try:
        # Unpacked bytes could exceed the cap in one step, so none are asked for packed.
        with httpx.stream(
            "GET", url, timeout=FETCH_TIMEOUT, headers={"Accept-Encoding": "identity"}
        ) as answer:
            if answer.status_code != 200:
                raise ValueError(f"status {answer.status_code}")
            for part in answer.iter_raw():
                body += part
                if len(body) > MAX_KEY_SET or time.monotonic() > deadline:
                    raise ValueError("the answer is too long or too slow")
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise ValueError(type(error).__name__) from error
    return body

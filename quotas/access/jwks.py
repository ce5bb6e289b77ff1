"""Clerk's public keys (JWKS), fetched from a URL rarely, and in a thread of their own.

The sender of a token chooses its kid, and the key server may be down or slow. Neither may delay a request for
long, nor cause more than an occasional fetch.
"""

import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from joserfc.errors import JoseError
from joserfc.jwk import RSAKey

from quotas import metrics

log = logging.getLogger(__name__)

MIN_KEY_BITS = 2048  # the size of Clerk's keys
MAX_KEY_SET = 256 * 1024  # bytes
FETCH_TIMEOUT = 3  # seconds
LOST_AFTER = 4 * FETCH_TIMEOUT  # seconds; resolving the host name may exceed the time-out
FRESH = 3_600  # seconds after a fetch in which the keys are not renewed
RETRY_STALE = 60  # seconds between attempts to renew old keys, which stay in use
COOLDOWN_AFTER_SUCCESS, COOLDOWN_AFTER_FAILURE = 10, 1  # seconds without a fetch, whatever the kid


KEY_NOT_FETCHED = "The key of this token could not be fetched from Clerk: try again shortly."


class KeysUnavailable(Exception):
    """The token cannot be verified now; retry after `retry_after` seconds."""

    def __init__(self, detail: str, retry_after: int) -> None:
        super().__init__(detail, retry_after)
        self.detail = detail
        self.retry_after = retry_after


class WouldWait(Exception):
    """The check needs a fetch, and the caller cannot wait for one."""


class UnknownKey(Exception):
    """The keys have just been fetched, and this kid is not among them."""


@dataclass(slots=True, eq=False)
class Fetch:
    """One fetch of the keys; `keys` stays None if it fails."""

    began_at: float
    keys: dict[str | None, RSAKey] | None = None
    is_over: threading.Event = field(default_factory=threading.Event)


class JWKS:
    """The keys of one URL, by kid.

    One fetch runs at a time, in a thread of its own, and a cool-down follows it. Old keys stay in use until
    new ones arrive. Only a request for a missing key waits, for at most FETCH_TIMEOUT seconds, and not at all
    if the last fetch failed.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._clock = clock
        self._lock = threading.Lock()  # never held during a wait
        self._keys: dict[str | None, RSAKey] = {}
        self._fetch: Fetch | None = None
        self._fetched_at: float | None = None
        self._stale_at = self._cooldown_until = clock()
        self._is_down = False

    def find(self, kid: str | None, *, may_wait: bool = True) -> RSAKey:
        """Return the key named `kid`.

        Raises UnknownKey if the keys just fetched lack it, and KeysUnavailable if they cannot be fetched now.
        If `may_wait` is false, raises WouldWait for a key that is missing.
        """
        if key := self._keys.get(kid):
            self.renew()
            return key
        if not may_wait:
            raise WouldWait
        fetch, is_ours = self._begin(self._cooldown_until)
        if fetch and not self._is_down and not fetch.is_over.wait(FETCH_TIMEOUT):
            self._is_down = True
        if key := self._keys.get(kid):
            return key
        # A fetch that another thread began may have read Clerk's keys before Clerk published this key.
        if fetch and is_ours and fetch.keys is not None:
            raise UnknownKey
        raise KeysUnavailable(
            KEY_NOT_FETCHED,
            max(1, math.ceil(self._cooldown_until - self._clock())),
        )

    def renew(self) -> None:
        """Begin to fetch the keys if they are old or were never fetched; do not wait for them."""
        if self._clock() >= self._stale_at:
            self._begin(self._stale_at)

    @property
    def age(self) -> float | None:
        """Seconds since the keys were fetched; None if they never were."""
        return None if self._fetched_at is None else self._clock() - self._fetched_at

    def _begin(self, due: float) -> tuple[Fetch | None, bool]:
        """Return the running fetch, a new one if it is time, or None; and whether it is new."""
        with self._lock:
            now, fetch = self._clock(), self._fetch
            if fetch and not fetch.is_over.is_set() and now < fetch.began_at + LOST_AFTER:
                return fetch, False
            if now < max(due, self._cooldown_until):
                return None, False
            self._fetch = fetch = Fetch(now)
        threading.Thread(target=self._run, args=(fetch,), name="jwks", daemon=True).start()
        return fetch, True

    def _run(self, fetch: Fetch) -> None:
        fault = ""
        try:
            fetch.keys = _parse_key_set(_download(self._url))
        except ValueError as error:
            fault = str(error)
        finally:  # even after an unexpected error, release the requests that wait
            self._finish(fetch)
        metrics.KEY_FETCHES.labels("failed" if fault else "fetched").inc()
        if fault:
            log.warning("The keys at CLERK_JWKS_URL could not be fetched: %s", fault)
        else:
            metrics.KEYS_FETCHED_AT.set_to_current_time()

    def _finish(self, fetch: Fetch) -> None:
        with self._lock:
            now = self._clock()
            if fetch.keys is not None:
                self._keys, self._fetched_at, self._is_down = fetch.keys, now, False
                self._stale_at, self._cooldown_until = now + FRESH, now + COOLDOWN_AFTER_SUCCESS
            elif fetch is self._fetch:  # the failure of a lost fetch does not count
                self._is_down = True
                self._stale_at, self._cooldown_until = now + RETRY_STALE, now + COOLDOWN_AFTER_FAILURE
            fetch.is_over.set()


_key_sets: dict[tuple[int, str], JWKS] = {}


def key_set(url: str) -> JWKS:
    """Return this process's keys of the URL."""
    # Per process: a fork may copy a held lock, but copies neither its holder nor the thread that fetches.
    name = (os.getpid(), url)
    return _key_sets.get(name) or _key_sets.setdefault(name, JWKS(url))  # setdefault is atomic


def require_strong(key: object) -> RSAKey:
    """Return the key for joserfc. Raises ValueError if it is not an RSA key of at least MIN_KEY_BITS bits."""
    if not isinstance(key, RSAPublicKey) or key.key_size < MIN_KEY_BITS:
        raise ValueError(f"not an RSA public key of at least {MIN_KEY_BITS} bits")
    return RSAKey.import_key(key)


def _parse_key_set(raw: bytes) -> dict[str | None, RSAKey]:
    """Return the usable keys by kid. Raises ValueError if there are none."""
    try:
        answer = json.loads(raw.decode())
    except RecursionError:
        raise ValueError("nested too deeply") from None
    members = answer.get("keys") if isinstance(answer, dict) else None
    keys: dict[str | None, RSAKey] = {}
    for jwk in members if isinstance(members, list) else []:
        # joserfc refuses a whole set for one strange key (findings/joserfc_key_set_with_a_strange_key.sh).
        with suppress(JoseError, ValueError, LookupError, TypeError):
            keys[jwk["kid"]] = _key_of(jwk)
    if not keys:
        raise ValueError("no RSA key in the response")
    return keys


def _key_of(jwk: dict[str, Any]) -> RSAKey:
    """Return the key of a JWK that verifies RS256. Raises JoseError, ValueError, LookupError or TypeError."""
    if jwk["kty"] != "RSA":  # RSAKey ignores it
        raise ValueError("not an RSA key")
    key = RSAKey.import_key(jwk)
    key.check_use("sig")
    key.check_alg("RS256")
    key.check_key_op("verify")
    return require_strong(key.raw_value)


def _download(url: str) -> bytes:
    """GET a body of at most MAX_KEY_SET bytes, without following redirects. Raises ValueError."""
    import httpx  # here, because a process with CLERK_JWT_KEY never needs it

    deadline = time.monotonic() + FETCH_TIMEOUT
    body = b""
    try:
        # No compression: one chunk could expand beyond the limit.
        with httpx.stream(
            "GET", url, timeout=FETCH_TIMEOUT, headers={"Accept-Encoding": "identity"}
        ) as answer:
            if answer.status_code != 200:
                raise ValueError(f"status {answer.status_code}")
            for part in answer.iter_raw():
                body += part
                if len(body) > MAX_KEY_SET or time.monotonic() > deadline:
                    raise ValueError("the response is too long or too slow")
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise ValueError(type(error).__name__) from error
    return body

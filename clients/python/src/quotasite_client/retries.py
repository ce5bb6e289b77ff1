"""A call as steps: which requests to send, and when, until an answer decides it. Drivers take the steps."""

import json
import random
import re
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import httpx

from quotasite_client.calls import Call
from quotasite_client.errors import (
    PROBLEM_TYPE,
    QuotaError,
    QuotaExhausted,
    QuotaProblem,
    QuotaUnreachable,
    may_pass,
)
from quotasite_client.version import VERSION

T = TypeVar("T")
PAUSES = (0.3, 1.2)  # seconds before the second attempt and the third
MAX_PAUSE = 5  # seconds; a longer Retry-After is raised at once
TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")
NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
IMPOSSIBLE = (httpx.LocalProtocolError, httpx.UnsupportedProtocol)


@dataclass(frozen=True)
class Token:
    """Get the token or key of the caller, None if nobody is signed in."""


@dataclass(frozen=True)
class Fetch:
    """Send a request, follow no redirect, and read the whole response."""

    method: str
    target: str
    headers: dict[str, str]
    content: bytes | None


@dataclass(frozen=True)
class Pause:
    seconds: float


Step: TypeAlias = Token | Fetch | Pause
Steps: TypeAlias = Generator[Step, Any, T]


def carry_out(call: Call[T]) -> Steps[T]:
    """Return the answer of the call, or raise a QuotaError.

    Every write has a key, so every request can be sent again: up to twice after a lost answer or a 5xx, and
    once more with a fresh token after a 401.
    """
    return (yield from Attempts(call).steps())


class Attempts(Generic[T]):
    def __init__(self, call: Call[T]) -> None:
        self._call = call
        self.may_be_done = False  # whether an attempt may have been carried out, although no answer says so

    def steps(self) -> Steps[T]:
        try:
            return (yield from self._with_token())
        except QuotaError as error:
            error.key = self._call.key
            # A 429 is a decision: with a key that was carried out it would be the first answer again.
            error.outcome_unknown = self.may_be_done and not isinstance(error, QuotaExhausted)
            raise

    def _with_token(self) -> Steps[T]:
        token = yield from _token()
        try:
            return (yield from self._persist(token))
        except QuotaProblem as error:
            if error.status != 401:
                raise
            fresh = yield from _token()
            if not fresh or fresh == token:
                raise
        return (yield from self._persist(fresh))

    def _persist(self, token: str | None) -> Steps[T]:
        for pause in PAUSES:
            try:
                return (yield from self._attempt(token))
            except QuotaError as error:
                if not may_pass(error) or (error.retry_after or 0) > MAX_PAUSE:
                    raise
                wait = error.retry_after or 0
            yield Pause(max(wait, pause * random.uniform(0.5, 1.5)))  # noqa: S311 - a jitter
        return (yield from self._attempt(token))

    def _attempt(self, token: str | None) -> Steps[T]:
        try:
            response = yield _request(self._call, token)
            return _answer(self._call, response)
        except IMPOSSIBLE as cause:
            raise QuotaError("The quota service cannot be asked like this.") from cause
        except httpx.RequestError as cause:
            self.may_be_done |= self._call.key is not None and not isinstance(cause, NEVER_SENT)
            raise QuotaUnreachable("The quota service could not be reached: no answer came.") from cause
        except QuotaError as error:
            self.may_be_done |= self._call.key is not None and may_pass(error)
            raise


def _token() -> Generator[Step, Any, str | None]:
    try:
        token: str | None = yield Token()
    except Exception as cause:
        raise QuotaUnreachable("The session token could not be fetched.") from cause
    if token and not TOKEN.fullmatch(token):
        raise QuotaError("The session token has characters that no token has: pass it without 'Bearer '.")
    return token


def _request(call: Call[Any], token: str | None) -> Fetch:
    headers = {"Accept": "application/json", "User-Agent": f"quotasite-client/{VERSION} python"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    if call.key:
        headers["Idempotency-Key"] = call.key
    if call.body is None:
        return Fetch(call.method, call.target, headers, None)
    headers["Content-Type"] = "application/json"
    return Fetch(call.method, call.target, headers, json.dumps(call.body).encode())


def _answer(call: Call[T], response: httpx.Response) -> T:
    if 300 <= response.status_code < 400:
        raise _elsewhere("redirects", response)
    if not response.is_success:
        raise _refusal(response)
    try:
        members = response.json()
        if isinstance(members, dict):
            members["replayed"] = "Idempotent-Replayed" in response.headers
        return call.read(members)
    except (ValueError, TypeError, KeyError) as cause:
        raise _elsewhere("came from another server", response) from cause


def _refusal(response: httpx.Response) -> QuotaError:
    if not response.headers.get("Content-Type", "").startswith(PROBLEM_TYPE):
        return _elsewhere("came from another server", response)
    try:
        error = QuotaProblem.of(response.json())
    except (ValueError, TypeError, KeyError):
        return _elsewhere("came from another server", response)
    error.request_id = response.headers.get("X-Request-Id")
    error.retry_after = _retry_after(response)
    return error


def _elsewhere(what: str, response: httpx.Response) -> QuotaUnreachable:
    error = QuotaUnreachable(
        f"The quota service could not be reached: the answer ({response.status_code}) {what}."
    )
    error.retry_after = _retry_after(response)
    return error


def _retry_after(response: httpx.Response) -> int | None:
    seconds = response.headers.get("Retry-After", "")
    return int(seconds) or None if seconds.isascii() and seconds.isdigit() else None

"""The fast path of the hottest requests: a user reads their quota, or spends from it.

It answers in the event loop, in front of Django's handler, which costs more CPU than the rest of such a
request; a thread would cost as much again. Token check, verb and response fields are the functions that the
views use. The headers that the middleware adds are learned from a response of the full path. Unusual requests
and errors go to the full path too.
"""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from json import JSONEncoder
from time import perf_counter
from typing import NamedTuple

from quotas.access.callers import User, caller_from
from quotas.access.jwks import WouldWait
from quotas.api import idempotency, messages, views
from quotas.api.strict_json import json_object
from quotas.rules.values import MAX_UNITS
from quotas.store.loop import Pool
from quotasite.observing.request_log import RequestKind, caller_of, log_request, request_id_for

CONSUME = "/api/v1/quota/consume"
READ = {"/api/quota": messages.simple_quota, "/api/v1/quota": messages.full_quota}
FAST_REQUESTS = {("POST", CONSUME), *(("GET", path) for path in READ)}
# The request headers that the middleware decides by: response headers are learned for each combination.
HEADER_KEY_FIELDS = ("host", "origin", "x-forwarded-proto")
PLAIN_HEADERS = re.compile(
    "accept(-encoding|-language)?|authorization|cache-control|connection|content-(length|type)|cookie|dnt|host|"
    "origin|idempotency-key|pragma|priority|referer|sec-[a-z-]+|user-agent|via|x-forwarded-[a-z-]+|x-real-ip|"
    "x-request-id"
)
# Response headers that differ between the responses of one key, and those that all of them share. Nothing is
# learned from a response with any other header.
PER_ANSWER_HEADERS = re.compile(
    "(content-length|idempotent-replayed|ratelimit(-policy)?|x-request-id)$", re.IGNORECASE
)
SHARED_HEADERS = re.compile(
    "(access-control-(allow-origin|expose-headers)|allow|cache-control|content-type|cross-origin-opener-policy|"
    "referrer-policy|strict-transport-security|vary|x-content-type-options|x-frame-options)$",
    re.IGNORECASE,
)
MAX_LEARNED = 256
MAX_NAMES_LENGTH = 1_024  # characters from a client that may be kept in memory

Headers = list[tuple[str, str]]
HeaderKey = tuple[str | None, ...]
encode_body = JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Request(NamedTuple):
    """A request with its whole body; header names are in lower case."""

    method: str
    path: str
    query: str
    scheme: str
    headers: Mapping[str, str]
    body: bytes
    began: float


class Response(NamedTuple):
    status: int
    headers: Headers
    body: bytes


class UseFullPath(NamedTuple):
    """The full path must answer.

    `unknown` is the key whose headers to learn from its response. `error` is for its view to raise, instead
    of running the verb again.
    """

    unknown: HeaderKey | None = None
    error: Exception | None = None


class FastPath:
    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.learned: dict[HeaderKey, Headers] = {}

    async def respond(self, request: Request) -> Response | UseFullPath:
        is_fast = (request.method, request.path) in FAST_REQUESTS
        if not is_fast or request.query or not are_plain(request.headers):
            return UseFullPath()
        key = (request.method, request.path, request.scheme, *map(request.headers.get, HEADER_KEY_FIELDS))
        if (headers := self.learned.get(key)) is None:
            return UseFullPath(key)
        try:
            return await self._respond(request, headers)
        except WouldWait:
            return UseFullPath()
        except Exception as error:  # noqa: BLE001 - the view raises it again and turns it into a problem
            return UseFullPath(error=error)

    async def _respond(self, request: Request, headers: Headers) -> Response | UseFullPath:
        caller = caller_from(request.headers.get("authorization", ""), may_wait=False)
        if not isinstance(caller, User):
            return UseFullPath()
        cost = None
        if message := READ.get(request.path):
            if "content-length" in request.headers:
                return UseFullPath()
            quota = await self.pool.run_steps(views.quotas.current.steps(caller.user_id, actor=caller.actor))
            kind = RequestKind("GET", request.path[1:], "read", "ok", 200)
            body, fields = message(quota), views.quota_headers(quota)
        else:
            if (spend := plain_spend(request)) is None:
                return UseFullPath()
            key = idempotency.idempotency_key(request.headers.get("idempotency-key"))
            steps = views.quotas.consume.steps(caller.user_id, spend.get("cost"), key=key, actor=caller.actor)
            receipt = await self.pool.run_steps(steps)
            outcome = "replayed" if receipt.is_replay else "granted"
            kind, cost = RequestKind("POST", request.path[1:], "consume", outcome, 201), receipt.entry.cost
            body = messages.consumption(receipt)
            fields = views.quota_headers(receipt.quota_now, is_replay=receipt.is_replay)
        payload = encode_body(body).encode()
        request_id = request_id_for(request.headers.get("x-request-id", ""))
        own = [("X-Request-Id", request_id), ("Content-Length", str(len(payload)))]
        log_request(kind, caller_of(caller), request_id, perf_counter() - request.began, cost)
        return Response(kind.status, [*headers, *fields.items(), *own], payload)

    def learn(self, key: HeaderKey, status: int, headers: Headers) -> None:
        """Keep the headers that a response of the full path shares with all responses of its key."""
        if sum(map(len, filter(None, key))) > MAX_NAMES_LENGTH:
            return
        others = [header for header in headers if not PER_ANSWER_HEADERS.match(header[0])]
        if status in (200, 201) and all(SHARED_HEADERS.match(name) for name, _ in others):
            if len(self.learned) >= MAX_LEARNED:
                self.learned.clear()
            self.learned[key] = others


def are_plain(headers: Iterable[str]) -> bool:
    names = " ".join(headers)
    return len(names) <= MAX_NAMES_LENGTH and _are_plain(names)


@lru_cache(maxsize=1_024)  # keyed by strings from clients, so MAX_NAMES_LENGTH bounds them
def _are_plain(names: str) -> bool:
    return all(map(PLAIN_HEADERS.fullmatch, names.split()))


def plain_spend(request: Request) -> dict[str, int] | None:
    """Return the body if it is an empty object or has a valid cost and no other member; else None."""
    length = request.headers.get("content-length", "")
    if request.headers.get("content-type") != "application/json" or not re.fullmatch("[1-9][0-9]?", length):
        return None
    if len(request.body) != int(length):
        return None
    cost = (spend := json_object(request.body)).get("cost", 1)
    return spend if spend.keys() <= {"cost"} and type(cost) is int and 1 <= cost <= MAX_UNITS else None

"""The short way for the hottest requests: a user reads his quota, or spends of it.

It stands in front of Django's handler, which costs more than all else that such a request does, and
stays in the event loop, for a thread costs as much again. The token check, the verb and the fields of the
answer are the functions that the views use; what the middleware adds is learned from an answer that went
the whole way. So does all that is not plain, or fails.
"""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from json import JSONEncoder
from time import perf_counter
from typing import NamedTuple

from quotas.access.callers import User, principal
from quotas.access.jwks import WouldWait
from quotas.api import idempotency, messages, views
from quotas.api.strict_json import json_object
from quotas.rules.values import MAX_UNITS
from quotas.store.loop import Pool
from quotasite.observing.request_log import Kind, asker, id_for, tell

CONSUME = "/api/v1/quota/consume"
READ = {"/api/quota": messages.simple_quota, "/api/v1/quota": messages.full_quota}
HOT = {("POST", CONSUME), *(("GET", path) for path in READ)}
# Of the headers, what the middleware may judge a request by: for each combination its own are learned apart.
JUDGED = ("host", "origin", "x-forwarded-proto")
PLAIN = re.compile(
    "accept(-encoding|-language)?|authorization|cache-control|connection|content-(length|type)|cookie|dnt|host|"
    "origin|idempotency-key|pragma|priority|referer|sec-[a-z-]+|user-agent|via|x-forwarded-[a-z-]+|x-real-ip|"
    "x-request-id"
)
# The headers of an answer: of one with any other nothing is learned.
OWN = re.compile("(content-length|idempotent-replayed|ratelimit(-policy)?|x-request-id)$", re.IGNORECASE)
ALIKE = re.compile(
    "(access-control-(allow-origin|expose-headers)|allow|cache-control|content-type|cross-origin-opener-policy|"
    "referrer-policy|strict-transport-security|vary|x-content-type-options|x-frame-options)$",
    re.IGNORECASE,
)
MOST_LEARNED = 256
MOST_NAMES = 1_024  # characters of a stranger that are kept

Headers = list[tuple[str, str]]
Way = tuple[str | None, ...]
to_json = JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Asked(NamedTuple):
    """A request: its headers by their names in lower case, the body if it has come."""

    method: str
    path: str
    query: str
    scheme: str
    headers: Mapping[str, str]
    body: bytes
    began: float


class Answer(NamedTuple):
    status: int
    headers: Headers
    body: bytes


class Detour(NamedTuple):
    """The request goes the whole way: to be learned from, or because of what the view will raise again."""

    unknown: Way | None = None
    error: Exception | None = None


class FastLane:
    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.learned: dict[Way, Headers] = {}

    async def answer(self, asked: Asked) -> Answer | Detour:
        if (asked.method, asked.path) not in HOT or asked.query or not are_plain(asked.headers):
            return Detour()
        way = (asked.method, asked.path, asked.scheme, *map(asked.headers.get, JUDGED))
        if (headers := self.learned.get(way)) is None:
            return Detour(way)
        try:
            return await self.plain_answer(asked, headers)
        except WouldWait:
            return Detour()
        except Exception as error:  # noqa: BLE001 - the view raises it again, and says what it means
            return Detour(error=error)

    async def plain_answer(self, asked: Asked, headers: Headers) -> Answer | Detour:
        who = principal(asked.headers.get("authorization", ""), may_wait=False)
        if not isinstance(who, User):
            return Detour()
        cost = None
        if shown := READ.get(asked.path):
            if "content-length" in asked.headers:
                return Detour()
            quota = await self.pool.run_steps(views.quotas.reading(who.user_id, actor=who.actor))
            kind = Kind("GET", asked.path[1:], "read", "ok", 200)
            body, fields = shown(quota), views.fields(quota)
        else:
            if (order := plain_order(asked)) is None:
                return Detour()
            key = idempotency.idempotency_key(asked.headers.get("idempotency-key"))
            steps = views.quotas.consuming(who.user_id, order.get("cost"), key=key, actor=who.actor)
            async with self.pool.one_writer(who.user_id):
                receipt = await self.pool.run_steps(steps)
            outcome = "replayed" if receipt.is_replay else "granted"
            kind, cost = Kind("POST", asked.path[1:], "consume", outcome, 201), receipt.entry.cost
            body = messages.consumption(receipt)
            fields = views.fields(receipt.quota_now, is_replay=receipt.is_replay)
        payload, request_id = to_json(body).encode(), id_for(asked.headers.get("x-request-id", ""))
        own = [("X-Request-Id", request_id), ("Content-Length", str(len(payload)))]
        tell(kind, asker(who), request_id, perf_counter() - asked.began, cost)
        return Answer(kind.status, [*headers, *fields.items(), *own], payload)

    def learn(self, way: Way, status: int, headers: Headers) -> None:
        """Learn from an answer that went the whole way what is added to all of its kind."""
        if sum(map(len, filter(None, way))) > MOST_NAMES:
            return
        others = [header for header in headers if not OWN.match(header[0])]
        if status in (200, 201) and all(ALIKE.match(name) for name, _ in others):
            if len(self.learned) >= MOST_LEARNED:
                self.learned.clear()
            self.learned[way] = others


def are_plain(headers: Iterable[str]) -> bool:
    names = " ".join(headers)
    return len(names) <= MOST_NAMES and _are_plain(names)


@lru_cache(maxsize=1_024)  # of what strangers write, hence MOST_NAMES
def _are_plain(names: str) -> bool:
    return all(map(PLAIN.fullmatch, names.split()))


def plain_order(asked: Asked) -> dict[str, int] | None:
    """The body, if it asks for a cost or for nothing."""
    length = asked.headers.get("content-length", "")
    if asked.headers.get("content-type") != "application/json" or not re.fullmatch("[1-9][0-9]?", length):
        return None
    if len(asked.body) != int(length):
        return None
    cost = (order := json_object(asked.body)).get("cost", 1)
    return order if order.keys() <= {"cost"} and type(cost) is int and 1 <= cost <= MAX_UNITS else None

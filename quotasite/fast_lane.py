"""The short way for the hottest requests: a user reads his quota, or spends of it.

It stands in front of Django's handler, which costs more than all else that such a request does. The
token check, the verb and the fields of the answer are the functions that the views use; what the
middleware adds is learned from an answer that went the whole way. So does all that is not plain, or fails.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from io import BytesIO
from json import JSONEncoder
from time import perf_counter
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from quotas import serializers, views
from quotas.authentication import User, principal
from quotas.parsers import json_object
from quotas.policy import MAX_UNITS
from quotasite.request_log import BEGAN, Kind, asker, id_for, tell

CONSUME = "/api/v1/quota/consume"
READ = {"/api/quota": serializers.simple_quota, "/api/v1/quota": serializers.full_quota}
HOT = {("POST", CONSUME), *(("GET", path) for path in READ)}
# What the middleware may judge a request by: for each combination its headers are learned apart.
JUDGED = (
    "REQUEST_METHOD",
    "PATH_INFO",
    "HTTP_HOST",
    "HTTP_ORIGIN",
    "HTTP_X_FORWARDED_PROTO",
    "wsgi.url_scheme",
)
PLAIN = re.compile(
    "(?!HTTP_)|HTTP_(ACCEPT(_ENCODING|_LANGUAGE)?|AUTHORIZATION|CACHE_CONTROL|CONNECTION|COOKIE|DNT|HOST|ORIGIN|"
    "IDEMPOTENCY_KEY|PRAGMA|PRIORITY|REFERER|SEC_.*|USER_AGENT|VIA|X_FORWARDED_.*|X_REAL_IP|X_REQUEST_ID)$"
)
# The headers of an answer: of one with any other nothing is learned.
OWN = re.compile("(content-length|idempotent-replayed|ratelimit(-policy)?|x-request-id)$", re.IGNORECASE)
ALIKE = re.compile(
    "(access-control-(allow-origin|expose-headers)|allow|cache-control|content-type|cross-origin-opener-policy|"
    "referrer-policy|strict-transport-security|vary|x-content-type-options|x-frame-options)$",
    re.IGNORECASE,
)
MOST_LEARNED = 256
STATUS = {200: "200 OK", 201: "201 Created"}

is_plain = lru_cache(maxsize=1_024)(PLAIN.match)
Answer = tuple[Kind, User, int | None, dict[str, Any], dict[str, str]]  # …, cost, body, header fields
to_json = JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class FastLane:
    def __init__(self, whole_way: WSGIApplication) -> None:
        self.whole_way = whole_way
        self.learned: dict[tuple[Any, ...], list[tuple[str, str]]] = {}

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        way = tuple(map(environ.get, JUDGED))
        if way[:2] not in HOT or environ.get("QUERY_STRING") or not all(map(is_plain, environ)):
            return self.whole_way(environ, start_response)
        if (headers := self.learned.get(way)) is None:
            return self.whole_way(environ, self.learning(way, start_response))
        began = environ.setdefault(BEGAN, perf_counter())
        try:
            answer = answer_to(environ)
        except Exception as error:  # noqa: BLE001 - the view raises it again, and says what it means
            environ[views.RAISED] = error
            answer = None
        if answer is None:
            return self.whole_way(environ, start_response)
        kind, who, cost, body, fields = answer
        payload, request_id = to_json(body).encode(), id_for(environ.get("HTTP_X_REQUEST_ID", ""))
        own = [("X-Request-Id", request_id), ("Content-Length", str(len(payload)))]
        start_response(STATUS[kind.status], [*headers, *fields.items(), *own])
        tell(kind, asker(who), request_id, perf_counter() - began, cost)
        return (payload,)

    def learning(self, way: tuple[Any, ...], start_response: StartResponse) -> StartResponse:
        def learn(status: str, headers: list[tuple[str, str]], *failed: Any) -> Any:
            others = [header for header in headers if not OWN.match(header[0])]
            if status in STATUS.values() and all(ALIKE.match(name) for name, _ in others):
                if len(self.learned) >= MOST_LEARNED:
                    self.learned.clear()
                self.learned[way] = others
            return start_response(status, headers, *failed)

        return learn


def answer_to(environ: WSGIEnvironment) -> Answer | None:
    """Do what is asked for, and tell of it; None if it is not plain, and nothing was done."""
    path, who = environ["PATH_INFO"], principal(environ.get("HTTP_AUTHORIZATION", ""))
    if not isinstance(who, User):
        return None
    if shown := READ.get(path):
        if environ.get("CONTENT_LENGTH"):
            return None
        quota = views.quotas.current(who.user_id, actor=who.actor)
        return Kind("GET", path[1:], "read", "ok", 200), who, None, shown(quota), views.fields(quota)
    if (order := plain_order(environ)) is None:
        return None
    key = views.idempotency_key(environ.get("HTTP_IDEMPOTENCY_KEY"))
    receipt = views.quotas.consume(who.user_id, order.get("cost"), key=key, actor=who.actor)
    kind = Kind("POST", path[1:], "consume", "replayed" if receipt.is_replay else "granted", 201)
    fields = views.fields(receipt.standing, is_replay=receipt.is_replay)
    return kind, who, receipt.entry.cost, serializers.consumption(receipt), fields


def plain_order(environ: WSGIEnvironment) -> dict[str, int] | None:
    """The body, if it asks for a cost or for nothing; whoever comes next can read it again."""
    length = environ.get("CONTENT_LENGTH", "")
    if environ.get("CONTENT_TYPE") != "application/json" or not re.fullmatch("[1-9][0-9]?", length):
        return None
    raw = environ["wsgi.input"].read(int(length))
    environ["wsgi.input"] = BytesIO(raw)
    cost = (order := json_object(raw)).get("cost", 1)
    return order if order.keys() <= {"cost"} and type(cost) is int and 1 <= cost <= MAX_UNITS else None

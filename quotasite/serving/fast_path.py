"""The API in the event loop, in front of Django's handler.

Django's handler costs more CPU than the rest of a read or a spend, and a thread as much again. The steps are
those that a view drives (quotas/api/respond.py); what the middleware adds to a response is asked of it once.
"""

import io
from collections.abc import Mapping
from functools import lru_cache
from time import perf_counter
from typing import NamedTuple

from django.conf import settings
from django.core.exceptions import DisallowedHost
from django.core.handlers.wsgi import WSGIRequest
from django.http import HttpRequest, HttpResponse
from django.utils.module_loading import import_string

from quotas.api.endpoints import find
from quotas.api.middleware import length_fault
from quotas.api.respond import Call, respond
from quotas.api.responses import Response, problem_response
from quotas.problems import Problem
from quotas.store.batches import Batches
from quotasite.observing.json_logs import request_id
from quotasite.observing.probes import ALIVE
from quotasite.observing.request_log import (
    RequestKind,
    caller_of,
    log_request,
    method_in_log,
    request_id_for,
)

# The request headers by which a response of the API may differ. All others are ignored.
HEADERS_READ = (
    *("authorization", "content-length", "content-type", "host", "idempotency-key", "origin"),
    *("transfer-encoding", "x-forwarded-proto", "x-request-id"),
)
# Not asked: the first logs requests, and `_answer` adds its X-Request-Id; the second loads all static files.
NOT_ASKED = (
    "quotasite.observing.middleware.RequestLog",
    "whitenoise.middleware.WhiteNoiseMiddleware",
)
MAX_HOST_LENGTH = 255  # characters; Django answers for a longer one

Headers = list[tuple[str, str]]


class Received(NamedTuple):
    """A request as the server received it; header names are in lower case."""

    method: str
    path: str
    query: str
    scheme: str
    headers: Mapping[str, str]  # at least HEADERS_READ
    body: bytes
    began: float
    is_plain: bool = True  # False: a header of HEADERS_READ is repeated, or not ASCII


class Answer(NamedTuple):
    """A response as the server sends it."""

    status: int
    headers: Headers
    body: bytes


class FastPath:
    """Without a driver, Django answers all requests."""

    def __init__(self, driver: Batches | None) -> None:
        self.driver = driver
        self.added_headers = {
            (origin, scheme): headers_of_the_middleware(origin, scheme)
            for origin in (None, *settings.CORS_ALLOWED_ORIGINS)
            for scheme in ("http", "https")
        }
        self.is_allowed_host = lru_cache(maxsize=256)(_is_allowed_host)

    async def respond(self, request: Received) -> Answer | None:
        """Return the answer to a request to the API, or to /healthz; None if Django must answer."""
        if request.path == "/healthz" and request.method in ("GET", "HEAD"):
            return self._answer_at_once(request, ALIVE, "healthz", "healthz")
        found = find(request.method, request.path)
        if not self.driver or not found or not self._is_readable(request):
            return None
        endpoint, parameters = found
        own_id = request_id_for(request.headers.get("x-request-id", ""))
        call = Call(parameters, request.query, request.headers, request.body)
        token = request_id.set(own_id)
        try:
            response = await self.driver.run_steps(respond(endpoint, call))
        finally:
            request_id.reset(token)
        return self._answer(request, response, own_id, f"api/{endpoint.route}", endpoint.verb)

    def refuse(self, request: Received, problem: Problem) -> Answer:
        return self._answer_at_once(request, problem_response(problem), None, "other")

    def _answer_at_once(self, request: Received, response: Response, route: str | None, verb: str) -> Answer:
        own_id = request_id_for(request.headers.get("x-request-id", ""))
        return self._answer(request, response, own_id, route, verb)

    def _is_readable(self, request: Received) -> bool:
        host = request.headers.get("host", "")
        if not request.is_plain or len(host) > MAX_HOST_LENGTH or not self.is_allowed_host(host):
            return False
        return not length_fault(request.method, request.path, request.headers)

    def _answer(
        self, request: Received, response: Response, own_id: str, route: str | None, verb: str
    ) -> Answer:
        method = method_in_log(request.method)
        kind = RequestKind(method, route, verb, response.outcome, response.status)
        seconds = perf_counter() - request.began
        log_request(kind, caller_of(response.caller), own_id, seconds, response.cost)
        own = [("X-Request-Id", own_id), ("Content-Length", str(len(response.body)))]
        headers = [*self._added_headers(request), *response.headers.items(), *own]
        return Answer(response.status, headers, response.body)

    def _added_headers(self, request: Received) -> Headers:
        scheme = request.scheme
        origin = request.headers.get("origin") if request.path.startswith("/api/") else None
        forwarded = request.headers.get("x-forwarded-proto")
        if settings.SECURE_PROXY_SSL_HEADER and forwarded is not None:
            scheme = "https" if forwarded.partition(",")[0].strip() == "https" else "http"
        return self.added_headers.get((origin, scheme)) or self.added_headers[None, scheme]


def headers_of_the_middleware(origin: str | None, scheme: str) -> Headers:
    """Ask the middleware what it adds to a response of the API."""

    def respond(request: HttpRequest) -> HttpResponse:
        response = HttpResponse()
        del response.headers["Content-Type"]
        return response

    for path in reversed(settings.MIDDLEWARE):
        if path not in NOT_ASKED:
            respond = import_string(path)(respond)
    request = _Asking({"REQUEST_METHOD": "GET", "PATH_INFO": "/api/quota", "wsgi.input": io.BytesIO()})
    request.META |= {"HTTP_ORIGIN": origin} if origin else {}
    request.environ["wsgi.url_scheme"] = scheme
    return [(name, value) for name, value in respond(request).items() if name != "Content-Length"]


class _Asking(WSGIRequest):
    def get_host(self) -> str:
        return "localhost"  # whatever ALLOWED_HOSTS is


def _is_allowed_host(host: str) -> bool:
    request = HttpRequest()
    request.META = {"HTTP_HOST": host, "SERVER_NAME": "", "SERVER_PORT": ""}
    try:
        return bool(request.get_host())
    except DisallowedHost:
        return False

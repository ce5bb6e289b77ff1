"""What scripts of other origins may send, and checks of a request's length before its body is read."""

import re
from collections.abc import Callable, Mapping

from corsheaders.middleware import ACCESS_CONTROL_ALLOW_HEADERS, CorsMiddleware
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils.cache import patch_vary_headers

from quotas import problems
from quotas.api.responses import problem_http_response
from quotas.problems import Problem

MAX_BODY_BYTES = {"/api/": 64 * 1024, "/webhooks/": 1024 * 1024}  # by path prefix
ACCESS_CONTROL_REQUEST_HEADERS = "access-control-request-headers"
MAX_ASKED = 4 * 1024  # characters of that header
HEADER_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110, a token


class RequestGuard:
    """Refuse a body of unknown or excessive length, unread.

    Django reads a chunked body as empty: a spend of 2 would become a spend of 1. Under Granian none arrives
    here in chunks: quotasite/serving/rsgi.py has read and counted it.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        fault = length_fault(request.method or "", request.path, request.headers)
        return problem_http_response(fault) if fault else self.get_response(request)


def max_body_bytes(path: str) -> int | None:
    """Return the longest body that is read at this path; None: as Django limits it."""
    return next((limit for prefix, limit in MAX_BODY_BYTES.items() if path.startswith(prefix)), None)


def length_fault(method: str, path: str, headers: Mapping[str, str]) -> Problem | None:
    """Return what is wrong with the length of a request's body, by its headers, in lower case or Django's."""
    if method not in ("POST", "PUT", "PATCH"):
        return None
    if (limit := max_body_bytes(path)) is None:
        return None
    if "transfer-encoding" in headers:
        return problems.LENGTH_REQUIRED()
    length = headers.get("content-length", "") or "0"
    if not re.fullmatch(r"[0-9]{1,18}", length):
        return problems.MALFORMED_LENGTH()
    if int(length) > limit:
        return problems.BODY_TOO_LARGE(kib=limit // 1024)
    return None


class CrossOrigin(CorsMiddleware):
    """Let the configured origins send the headers that they ask for, besides CORS_ALLOW_HEADERS.

    Tracing libraries and gateways add theirs to each request. No answer depends on them, nor on a cookie.
    """

    def add_response_headers(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        super().add_response_headers(request, response)
        if usual := response.get(ACCESS_CONTROL_ALLOW_HEADERS):
            allowed = dict.fromkeys([*usual.split(", "), *headers_asked_for(request)])
            response[ACCESS_CONTROL_ALLOW_HEADERS] = ", ".join(allowed)
            patch_vary_headers(response, (ACCESS_CONTROL_REQUEST_HEADERS,))
        return response


def headers_asked_for(request: HttpRequest) -> list[str]:
    """Return the names of the headers that a preflight asks for; none if the list is too long or garbled."""
    asked = request.headers.get(ACCESS_CONTROL_REQUEST_HEADERS, "")
    names = [name.strip(" \t").lower() for name in asked.split(",")]
    is_usable = len(asked) <= MAX_ASKED and all(HEADER_NAME.fullmatch(name) for name in names)
    return names if is_usable else []

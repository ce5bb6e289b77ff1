"""Checks of a request's length before its body is read."""

import re
from collections.abc import Callable, Mapping

from django.http import HttpRequest, HttpResponse

from quotas import problems
from quotas.api.responses import problem_http_response
from quotas.problems import Problem

MAX_BODY_BYTES = {"/api/": 64 * 1024, "/webhooks/": 1024 * 1024}  # by path prefix


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

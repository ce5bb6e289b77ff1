"""Checks of a request before a view runs."""

import re
from collections.abc import Callable

from django.http import HttpRequest, HttpResponse

from quotas.api.problems import Problem

BODY_TIMED_OUT = "quotas.late"  # in the WSGI environ: true if the server gave up waiting for the body
MAX_BODY_BYTES = {"/api/": 64 * 1024, "/webhooks/": 1024 * 1024}  # by path prefix


class RequestGuard:
    """Refuse a body that did not arrive in time, and, unread, one of unknown or excessive length.

    Django reads a chunked body as empty: a spend of 2 would become a spend of 1.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        try:
            if request.META.get(BODY_TIMED_OUT):
                detail = "The body did not arrive in time: send it together with its headers."
                raise Problem(408, "body_timeout", detail)
            _check_length(request)
        except Problem as problem:
            return problem.response()
        return self.get_response(request)


def _check_length(request: HttpRequest) -> None:
    limit = next((limit for path, limit in MAX_BODY_BYTES.items() if request.path.startswith(path)), None)
    if limit is None or request.method not in ("POST", "PUT", "PATCH"):
        return
    if "Transfer-Encoding" in request.headers:
        raise Problem(411, "length_required", "Send the body with a Content-Length, not in chunks.")
    length = request.headers.get("Content-Length", "") or "0"
    if not re.fullmatch(r"[0-9]{1,18}", length):
        raise Problem(400, "malformed_length", "Content-Length must be a whole number.")
    if int(length) > limit:
        raise Problem(413, "body_too_large", f"The body must not be longer than {limit // 1024} KiB.")

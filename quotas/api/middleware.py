"""What is settled before a request reaches a view."""

import re
from collections.abc import Callable

from django.http import HttpRequest, HttpResponse

from quotas.api.problems import Problem

BODY_TIMED_OUT = "quotas.late"  # in the environment: the server waited for the body, and it did not come
MAX_BODY_BYTES = {"/api/": 64 * 1024, "/webhooks/": 1024 * 1024}  # of a body, by the path's beginning


class RequestGuard:
    """Refuse a body that did not come, and unread one of unknown or excessive length.

    A chunked body reads as empty in Django, so that a spend of 2 would be taken for a spend of 1.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        try:
            if request.META.get(BODY_TIMED_OUT):
                raise Problem(408, "body_timeout", "The body did not come in time: send it with its headers.")
            _check_length(request)
        except Problem as problem:
            return problem.response()
        return self.get_response(request)


def _check_length(request: HttpRequest) -> None:
    most = next((most for path, most in MAX_BODY_BYTES.items() if request.path.startswith(path)), None)
    if most is None or request.method not in ("POST", "PUT", "PATCH"):
        return
    if "Transfer-Encoding" in request.headers:
        raise Problem(411, "length_required", "Send the body with a Content-Length, not in chunks.")
    length = request.headers.get("Content-Length", "") or "0"
    if not re.fullmatch(r"[0-9]{1,18}", length):
        raise Problem(400, "malformed_length", "Content-Length must be a whole number.")
    if int(length) > most:
        raise Problem(413, "body_too_large", f"The body must not be longer than {most // 1024} KiB.")

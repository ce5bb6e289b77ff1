"""Django's test client behind the fast lane, so that the tests of the contract run against both."""

from collections.abc import Iterable
from typing import Any

from django.core.handlers.wsgi import WSGIRequest
from django.http import HttpResponse
from django.http.response import HttpResponseBase
from django.test.client import ClientHandler

from quotasite.fast_lane import HOT, JUDGED, FastLane

# What the lane learns from a first answer to the test client; test_fast_lane.py sees that it is so.
HEADERS = {
    "Content-Type": "application/json",
    "Allow": "GET, HEAD, OPTIONS",
    "Cache-Control": "no-store",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Vary": "origin",
}
ALLOW = {"GET": "GET, HEAD, OPTIONS", "POST": "POST, OPTIONS"}


def learned() -> dict[tuple[Any, ...], list[tuple[str, str]]]:
    """What the lane knows of the test client once it has sent one request of each kind."""
    plain = {"wsgi.url_scheme": "http"}
    return {
        (*hot, *map(plain.get, JUDGED[2:])): [*{**HEADERS, "Allow": ALLOW[hot[0]]}.items()] for hot in HOT
    }


class LaneHandler(ClientHandler):
    """The test client's handler, behind a lane; `whole_ways` counts the requests that the lane handed on."""

    def __init__(self, *, is_new: bool = False) -> None:
        super().__init__(enforce_csrf_checks=False)
        self.whole_ways = 0
        self.lane = FastLane(self.whole_way)
        self.lane.learned = {} if is_new else learned()

    def __call__(self, environ: dict[str, Any]) -> HttpResponseBase:
        told: list[Any] = []
        chunks = self.lane(environ, lambda status, headers, *_: told.extend((status, headers)))
        if isinstance(chunks, HttpResponseBase):
            return chunks
        response = HttpResponse(b"".join(chunks), status=int(told[0][:3]), headers=dict(told[1]))
        response.wsgi_request = WSGIRequest(environ)  # type: ignore[attr-defined] # as ClientHandler sets it
        return response

    def whole_way(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.whole_ways += 1
        response = super().__call__(environ)
        start_response(f"{response.status_code} {response.reason_phrase}", list(response.items()))
        return response

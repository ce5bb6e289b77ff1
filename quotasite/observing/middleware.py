"""The middleware that logs each request, checks its host, and gives pages their policy and sessions."""

from collections.abc import Callable
from time import perf_counter

from csp.middleware import CSPMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.http import HttpRequest, HttpResponse, HttpResponsePermanentRedirect
from django.http.response import HttpResponseBase
from django.middleware.common import CommonMiddleware
from django.utils.cache import add_never_cache_headers

from quotasite.observing.json_logs import request_id
from quotasite.observing.probes import JSON_PATHS, PROBE_PATHS
from quotasite.observing.request_log import (
    BEGAN,
    CallerFields,
    RequestKind,
    caller_of,
    log_request,
    method_in_log,
    request_id_for,
)


class RequestLog:
    """Give each request an id, and log its outcome. Must be outermost, so that it sees every refusal."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        began = request.META.get(BEGAN) or perf_counter()
        own = request_id_for(request.META.get("HTTP_X_REQUEST_ID", ""))
        token = request_id.set(own)
        try:
            response = self.get_response(request)
        finally:
            request_id.reset(token)
        response.headers["X-Request-Id"] = own
        caller = caller_fields(request, response)
        cost = getattr(response, "cost", None)  # as http_response of quotas/api/responses.py sets it
        log_request(kind_of(request, response), caller, own, perf_counter() - began, cost)
        return response


def kind_of(request: HttpRequest, response: HttpResponseBase) -> RequestKind:
    """Return the fields to log. The verb is the URL name; all pages of the admin have the verb `admin`."""
    method = method_in_log(request.method or "")
    match = request.resolver_match
    outcome, status = outcome_of(response), response.status_code
    if match is None:  # a static file, a preflight, or a refusal before the URL was resolved
        return RequestKind(method, None, "other", outcome, status)
    verb = "admin" if match.app_names else match.url_name or "other"
    return RequestKind(method, match.route, verb, outcome, status)


def outcome_of(response: HttpResponseBase) -> str:
    if outcome := getattr(response, "outcome", ""):
        return str(outcome)
    return f"http_{response.status_code}" if response.status_code >= 400 else "ok"


def caller_fields(request: HttpRequest, response: HttpResponseBase) -> CallerFields:
    """Return the caller of the API, or the staff user that was found already; send no query to find one."""
    staff = getattr(request, "_cached_user", None)
    if staff is not None and staff.pk:
        return CallerFields("staff", str(staff.pk))
    return caller_of(getattr(response, "caller", None))


class PagePolicy(CSPMiddleware):
    """Give each page the policy of settings.py, and let no cache keep a page of the admin.

    JSON has no such policy, which saves the time on each spend.
    """

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        if request.path_info.startswith(JSON_PATHS):
            return response
        if request.path_info.startswith("/admin"):
            add_never_cache_headers(response)
        return super().process_response(request, response)


class HostCheck(CommonMiddleware):
    """Check the host of every request except a probe's, which may name an address that no setting knows.

    A platform probes a pod at its own address; the answer names no host.
    """

    def process_request(self, request: HttpRequest) -> HttpResponsePermanentRedirect | None:
        return None if request.path_info in PROBE_PATHS else super().process_request(request)


class PageSession(SessionMiddleware):
    """Keep sessions for pages. The API reads no cookie, and so sets and deletes none."""

    def process_response(self, request: HttpRequest, response: HttpResponse) -> HttpResponse:
        if request.path_info.startswith(JSON_PATHS):
            return response
        return super().process_response(request, response)

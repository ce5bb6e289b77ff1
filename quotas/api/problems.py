"""Errors as `application/problem+json` (RFC 9457), each with a stable `code`.

This module turns every error under /api and /webhooks into a response: refusals of the rules, invalid
requests, and an unavailable database.
"""

import logging
from http import HTTPStatus
from typing import Any

from django.db import InterfaceError, InternalError, OperationalError, connection
from django.http import Http404, HttpResponse, JsonResponse
from rest_framework import exceptions

from quotas import metrics
from quotas.access.jwks import KeysUnavailable
from quotas.access.refusals import Refused
from quotas.api import rate_limit
from quotas.rules import outcomes, values
from quotas.store.errors import READ_ONLY, NoDefaultPlan, sqlstate

log = logging.getLogger(__name__)

RETRY_SECONDS = 5  # Retry-After while the database is unavailable

TITLES = {
    413: "Content Too Large",
    422: "Unprocessable Content",
}  # of RFC 9110: older Pythons have other phrases
STATUS = {
    outcomes.CostExceedsLimit.code: 422,
    outcomes.UnknownAction.code: 422,
    outcomes.CostBelowPrice.code: 422,
    outcomes.KeyReused.code: 422,
    outcomes.AdjustmentOutOfRange.code: 409,
    outcomes.RefundTooLarge.code: 409,
    outcomes.AlreadyRefunded.code: 409,
    outcomes.ConsumptionNotFound.code: 404,
    outcomes.UnknownPlan.code: 404,
    outcomes.Deleted.code: 410,
}


class ProblemResponse(JsonResponse):
    """A problem as a response; `code` and `cost` are for the log (quotasite/observing/middleware.py)."""

    def __init__(self, problem: "Problem") -> None:
        super().__init__(
            problem.body,
            status=problem.status,
            content_type="application/problem+json",
            headers=problem.headers,
        )
        self.code: str = problem.body["code"]
        self.cost: int | None = problem.body.get("cost")


class Problem(Exception):
    """An error as the client sees it; raise it anywhere in a view of the API."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        headers: dict[str, str] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.headers = {"Cache-Control": "no-store", **(headers or {})}
        self.body = {
            "type": "about:blank",
            "title": TITLES.get(status) or HTTPStatus(status).phrase,
            "status": status,
            "code": code,
            "detail": detail,
            **members,
        }

    def response(self) -> HttpResponse:
        return ProblemResponse(self)


def exception_handler(error: Exception, context: dict[str, Any]) -> HttpResponse | None:
    """Return the response to an exception of an API view; None leaves a bug to Django's 500."""
    problem = problem_for(error)
    return problem.response() if problem else None


def problem_for(error: Exception) -> Problem | None:
    """Return the problem that describes `error`, or None if the error is a bug."""
    match error:
        case Problem():
            return error
        case outcomes.Exhausted():
            return _exhausted(error)
        case outcomes.Refusal():
            return Problem(STATUS[error.code], error.code, str(error))
        case Refused():
            return unauthorized(error.code, error.detail)
        case KeysUnavailable():
            return unavailable("keys_unavailable", error.detail, error.retry_after)
        case OperationalError() | InterfaceError():
            return _database_unavailable(error)
        case InternalError() if sqlstate(error) == READ_ONLY:  # Django maps it to InternalError
            if not connection.in_atomic_block:
                connection.close()  # it leads to a standby; a new one may find the server that takes writes
            return _database_unavailable(error)
        case NoDefaultPlan():
            log.error("%s", error)
            return unavailable("no_default_plan", str(error), RETRY_SECONDS)
        case Http404() | exceptions.NotFound():
            return Problem(404, "not_found", "There is nothing at this address: see /api/docs.")
        case exceptions.MethodNotAllowed():
            detail = "This address does not support this method: see the Allow header."
            return Problem(405, "method_not_allowed", detail)
        case exceptions.UnsupportedMediaType():
            return Problem(415, "unsupported_media_type", "Send JSON, with Content-Type: application/json.")
        case exceptions.ValidationError():
            return Problem(400, "invalid_request", _first_error(error.detail))
        case _:
            return None


def unauthorized(code: str, detail: str) -> Problem:
    """Return a 401; without a token the challenge has no error, as RFC 6750 requires."""
    challenge = f'Bearer error="invalid_token", error_description="{detail}"'
    headers = {"WWW-Authenticate": "Bearer" if code == "token_missing" else challenge}
    return Problem(401, code, detail, headers=headers)


def unavailable(code: str, detail: str, retry_after: int) -> Problem:
    return Problem(503, code, detail, headers={"Retry-After": str(retry_after)})


def _database_unavailable(error: Exception) -> Problem:
    """Return a 503; the log line shows whether the database is down, full, too busy or read-only."""
    metrics.DATABASE_ERRORS.inc()
    log.error("The database cannot be used: %r", str(error))
    detail = "The database is unavailable, but nothing was lost: try again with the same Idempotency-Key."
    return unavailable("database_unavailable", detail, RETRY_SECONDS)


def _exhausted(refusal: outcomes.Exhausted) -> Problem:
    quota = refusal.quota
    wait = rate_limit.retry_after(quota)
    return Problem(
        429,
        refusal.code,
        str(refusal),
        headers={"Retry-After": str(wait), **rate_limit.rate_limit_headers(quota)},
        **{
            "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
            "title": "Quota exceeded",
            "violated-policies": [quota.plan.name],
            "quota_limit": quota.quota_limit,
            "quota_remaining": quota.quota_remaining,
            "cost": refusal.cost,
            "resets_at": values.rfc3339(quota.resets_at),
            "retry_after": wait,
        },
    )


def _first_error(detail: Any) -> str:
    """Return one sentence from a serializer's nested errors: the member, and what it must be."""
    path = []
    while not isinstance(detail, str):
        if isinstance(detail, dict):
            name, detail = next(iter(detail.items()))
            path.append("" if name == "non_field_errors" else str(name))
        else:
            detail = detail[0]
    name = ".".join(part for part in path if part)
    return f"{name}: {detail}" if name else str(detail)

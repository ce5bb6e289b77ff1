"""Errors as `application/problem+json` (RFC 9457), each with a stable `code`.

Everything that goes wrong below /api and /webhooks is answered from here: what the rules refuse, a
stranger's mistakes, and a database that cannot be reached.
"""

import logging
from http import HTTPStatus
from typing import Any

from django.db import InterfaceError, InternalError, OperationalError, connection
from django.http import Http404, HttpResponse, JsonResponse
from rest_framework import exceptions

from quotas import metrics
from quotas.access.jwks import KeysUnavailable
from quotas.access.service_keys import KeyRefused
from quotas.access.session_tokens import TokenRefused
from quotas.api import rate_limit
from quotas.rules import outcomes, values
from quotas.store.errors import READ_ONLY, NoDefaultPlan, sqlstate

log = logging.getLogger(__name__)

RETRY_SECONDS = 5  # what a client shall wait when the database is away

TITLES = {413: "Content Too Large", 422: "Unprocessable Content"}  # RFC 9110's, in every Python
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
    """A problem on its way; `code` and `cost` are for the log (quotasite/observing/middleware.py)."""

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
    """An error as the client sees it; raise it anywhere below a view of the API."""

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
    """Answer an exception of an API view; None leaves a fault of our own to Django's 500."""
    problem = problem_for(error)
    return problem.response() if problem else None


def problem_for(error: Exception) -> Problem | None:
    """Return the problem that tells of `error`, or None if it is a fault of our own."""
    match error:
        case Problem():
            return error
        case outcomes.Exhausted():
            return _exhausted(error)
        case outcomes.Refusal():
            return Problem(STATUS[error.code], error.code, str(error))
        case TokenRefused() | KeyRefused():
            return unauthorized(error.code, error.detail)
        case KeysUnavailable():
            return unavailable("keys_unavailable", error.detail, error.retry_after)
        case OperationalError() | InterfaceError():
            return _database_unavailable(error)
        case InternalError() if sqlstate(error) == READ_ONLY:  # Django takes it for a fault of ours
            if not connection.in_atomic_block:
                connection.close()  # it would stay with this server; a new one finds who takes writes now
            return _database_unavailable(error)
        case NoDefaultPlan():
            log.error("%s", error)
            return unavailable("no_default_plan", str(error), RETRY_SECONDS)
        case Http404() | exceptions.NotFound():
            return Problem(404, "not_found", "There is nothing at this address; /api/v1 has the API.")
        case exceptions.MethodNotAllowed():
            return Problem(405, "method_not_allowed", "This address does not know this method; see Allow.")
        case exceptions.UnsupportedMediaType():
            return Problem(415, "unsupported_media_type", "Send JSON, as Content-Type: application/json.")
        case exceptions.ValidationError():
            return Problem(400, "invalid_request", _first_error(error.detail))
        case _:
            return None


def unauthorized(code: str, detail: str) -> Problem:
    """401; a missing token gets a bare challenge without an error, as RFC 6750 asks."""
    challenge = f'Bearer error="invalid_token", error_description="{detail}"'
    headers = {"WWW-Authenticate": "Bearer" if code == "token_missing" else challenge}
    return Problem(401, code, detail, headers=headers)


def unavailable(code: str, detail: str, retry_after: int) -> Problem:
    return Problem(503, code, detail, headers={"Retry-After": str(retry_after)})


def _database_unavailable(error: Exception) -> Problem:
    """503: it is away, full, too busy, or takes no writes; the log says which."""
    metrics.DATABASE_ERRORS.inc()
    log.error("The database cannot be used: %r", str(error))
    detail = "The database cannot be used for now; nothing was lost. Try again, with the same key."
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
    """One plain sentence from a serializer's nested findings: the member, and what it should be."""
    where = []
    while not isinstance(detail, str):
        if isinstance(detail, dict):
            name, detail = next(iter(detail.items()))
            where.append("" if name == "non_field_errors" else str(name))
        else:
            detail = detail[0]
    name = ".".join(part for part in where if part)
    return f"{name}: {detail}" if name else str(detail)

"""What a call raises if it does not succeed, and what an app answers to its own client then."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from quotasite_client.answers import Consumption, instant


class QuotaError(Exception):
    """The error of every call that does not succeed; its message is one sentence for users."""

    code: str | None = None  # for programs
    status: int | None = None  # of the answer, if Quotasite gave one
    retry_after: int | None = None  # seconds
    key: str | None = None  # of a write: sent again with this key, it is carried out once
    outcome_unknown: bool = False  # whether this write may have been carried out all the same

    @property
    def detail(self) -> str:
        return str(self)


class QuotaUnreachable(QuotaError):
    """No answer of Quotasite arrived, or no token."""


class QuotaProblem(QuotaError):
    """Quotasite refused the request. `problem` is the body of its answer, with members of its own."""

    code: str
    status: int
    problem: Mapping[str, Any]
    request_id: str | None = None  # in the logs of the service

    @classmethod
    def of(cls, problem: Mapping[str, Any]) -> "QuotaProblem":
        """Raises KeyError, TypeError or ValueError if this is no problem of Quotasite."""
        is_exhausted = problem["code"] == "quota_exhausted"
        error = QuotaExhausted(problem["detail"]) if is_exhausted else QuotaProblem(problem["detail"])
        error.code, error.status, error.problem = problem["code"], int(problem["status"]), problem
        if isinstance(error, QuotaExhausted):
            error.cost, error.quota_limit = problem["cost"], problem["quota_limit"]
            error.quota_remaining = problem["quota_remaining"]
            error.resets_at = instant(problem["resets_at"])
        return error


class QuotaExhausted(QuotaProblem):
    """Too few units are left for this cost, until `resets_at`."""

    cost: int
    quota_limit: int
    quota_remaining: int
    resets_at: datetime


class AlreadySpent(QuotaError):
    """The key of a `spending` was used before: the work of `consumption` was begun, and is not done again.

    If `outcome_unknown` is true, this call lost an answer, and the consumption may be its own.
    """

    code: str = "already_spent"
    consumption: Consumption


class AlreadyRefunded(AlreadySpent):
    """The work of this key failed before, and its units were given back: a new attempt needs a new key."""

    code: str = "already_refunded"


def may_pass(error: QuotaError) -> bool:
    """Whether the service, or the way to it, failed: the same request may succeed later."""
    return isinstance(error, QuotaUnreachable) or (isinstance(error, QuotaProblem) and error.status >= 500)


PROBLEM_TYPE = "application/problem+json"


class ProblemAnswer(NamedTuple):
    """The answer of an app to its own client, of the type PROBLEM_TYPE."""

    status: int
    headers: dict[str, str]
    body: dict[str, Any]


# The others are mistakes of the app, such as an unknown service key: its users can do nothing about them.
ABOUT_THE_USER = ("quota_exhausted", "cost_exceeds_limit", "idempotency_key_reused", "user_deleted")


def answer_to(error: QuotaError) -> ProblemAnswer:
    """Return what to answer to the app's own client: a 409, 410, 422, 429 or 503.

    Raises the error again if the app must be mended.
    """
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after else {}
    if isinstance(error, QuotaProblem) and error.code in ABOUT_THE_USER:
        return ProblemAnswer(error.status, headers, dict(error.problem))
    if isinstance(error, AlreadySpent):
        return ProblemAnswer(409, headers, _problem(409, "Conflict", error.code, str(error)))
    if may_pass(error):
        sentence = "The quota service is not available: try again in a moment."
        body = _problem(503, "Service Unavailable", "quota_unavailable", sentence)
        return ProblemAnswer(503, {"Retry-After": "1", **headers}, body)
    raise error


def _problem(status: int, title: str, code: str, detail: str) -> dict[str, Any]:
    return {"type": "about:blank", "title": title, "status": status, "code": code, "detail": detail}

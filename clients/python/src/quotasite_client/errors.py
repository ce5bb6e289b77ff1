"""What a call raises if it does not succeed."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

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

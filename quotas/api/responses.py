"""The response to a result or a problem, for the event loop and for Django."""

from typing import NamedTuple

import msgspec
from django.http import HttpResponse

from quotas.access.callers import Caller
from quotas.api.rate_limit import rate_limit_headers
from quotas.problems import Problem
from quotas.rules.values import Quota

encode = msgspec.json.Encoder().encode


class Success(NamedTuple):
    """What an endpoint returns. With `quota`, the response has the RateLimit fields of its present state."""

    answer: msgspec.Struct
    quota: Quota | None = None
    is_replay: bool = False
    cost: int | None = None  # for the log


class Response(NamedTuple):
    """The response, without the middleware's headers, and what the log says of it."""

    status: int
    headers: dict[str, str]
    body: bytes
    outcome: str
    caller: Caller | None = None
    cost: int | None = None


def success_response(status: int, result: Success, caller: Caller) -> Response:
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    if result.quota:
        headers |= rate_limit_headers(result.quota)
    if result.is_replay:
        headers["Idempotent-Replayed"] = "true"
    outcome = "replayed" if result.is_replay else "ok" if result.cost is None else "granted"
    return Response(status, headers, encode(result.answer), outcome, caller, result.cost)


def problem_response(problem: Problem, caller: Caller | None = None) -> Response:
    headers = {"Content-Type": "application/problem+json", "Cache-Control": "no-store"}
    if problem.retry_after is not None:
        headers["Retry-After"] = str(problem.retry_after)
    if problem.quota:
        headers |= rate_limit_headers(problem.quota)
    code, status = problem.type.code, problem.type.status
    if status == 401:  # without a token the challenge has no error, as RFC 6750 requires
        error = f' error="invalid_token", error_description="{problem.detail}"'
        headers["WWW-Authenticate"] = "Bearer" + (error if code != "token_missing" else "")
    cost = problem.members.get("cost")
    return Response(status, headers, encode(problem.body), code, caller, cost)


def http_response(response: Response) -> HttpResponse:
    """Return a response for Django, with what its log line says (quotasite/observing/middleware.py)."""
    headers = {**response.headers, "Content-Length": str(len(response.body))}
    answer = HttpResponse(response.body, status=response.status, headers=headers)
    answer.outcome = response.outcome  # type: ignore[attr-defined]
    answer.caller, answer.cost = response.caller, response.cost  # type: ignore[attr-defined]
    return answer


def problem_http_response(problem: Problem) -> HttpResponse:
    return http_response(problem_response(problem))

"""FastAPI: an endpoint that spends for its user, and answers problems as Quotasite does."""

from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import Depends, Request
from fastapi.responses import JSONResponse

from quotasite_client.answers import Consumption
from quotasite_client.client import AsyncQuotasite
from quotasite_client.errors import PROBLEM_TYPE, QuotaError, answer_to
from quotasite_client.spending import OnReplay


async def answer_problem(request: Request, error: Exception) -> JSONResponse:
    """The handler of QuotaError: `app.add_exception_handler(QuotaError, answer_problem)`."""
    if not isinstance(error, QuotaError):
        raise error
    status, headers, body = answer_to(error)
    return JSONResponse(body, status, headers, media_type=PROBLEM_TYPE)


def no_key() -> str | None:
    """Each request is a new action."""
    return None


def spend(
    client: AsyncQuotasite,
    user: Callable[..., Any],
    *,
    cost: int | None = None,
    action: str | None = None,
    key: Callable[..., str | None] = no_key,
    on_replay: OnReplay = "refuse",
) -> Callable[..., AsyncIterator[Consumption]]:
    """Return a dependency that spends before the endpoint runs, and refunds if the endpoint raises.

    `user` is a dependency that returns the user's id, and `key` one that returns an Idempotency-Key.
    """

    async def spent(
        request: Request,
        user_id: str = Depends(user),
        own_key: str | None = Depends(key),
    ) -> AsyncIterator[Consumption]:
        if QuotaError not in request.app.exception_handlers:
            raise RuntimeError("Add the handler: app.add_exception_handler(QuotaError, answer_problem)")
        spending = client.spending(user_id, cost=cost, action=action, key=own_key, on_replay=on_replay)
        async with spending as consumption:
            yield consumption

    return spent

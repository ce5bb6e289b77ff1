"""Django: a view that spends for its user, and answers problems as Quotasite does."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from django.http import HttpRequest, HttpResponseBase, JsonResponse

from quotasite_client.client import AsyncQuotasite, Quotasite
from quotasite_client.errors import PROBLEM_TYPE, QuotaError, answer_to
from quotasite_client.spending import OnReplay

View = TypeVar("View", bound=Callable[..., Any])


class _NotDelivered(Exception):
    """The view returned an error instead of what was paid for."""

    def __init__(self, response: HttpResponseBase) -> None:
        self.response = response


def spends(
    client: Quotasite | AsyncQuotasite,
    user: Callable[[HttpRequest], str],
    *,
    cost: int | None = None,
    action: str | None = None,
    key: Callable[[HttpRequest], str | None] = lambda request: None,
    on_replay: OnReplay = "refuse",
) -> Callable[[View], View]:
    """Spend before the view runs; refund if it raises, or returns a status of 400 or more.

    The view finds the consumption as `request.consumption`. `user` returns the id of the request's user, and
    `key` an Idempotency-Key. An AsyncQuotasite is for async views.
    """

    def spending(request: HttpRequest) -> Any:
        options: dict[str, Any] = {"cost": cost, "action": action, "key": key(request)}
        return client.spending(user(request), on_replay=on_replay, **options)

    def decorate(view: View) -> View:
        @wraps(view)
        def spend(request: HttpRequest, *args: Any, **options: Any) -> HttpResponseBase:
            try:
                with spending(request) as request.consumption:  # type: ignore[attr-defined]
                    return _delivered(view(request, *args, **options))
            except (QuotaError, _NotDelivered) as error:
                return _answer(error)

        @wraps(view)
        async def spend_async(request: HttpRequest, *args: Any, **options: Any) -> HttpResponseBase:
            try:
                async with spending(request) as request.consumption:  # type: ignore[attr-defined]
                    return _delivered(await view(request, *args, **options))
            except (QuotaError, _NotDelivered) as error:
                return _answer(error)

        return cast(View, spend_async if isinstance(client, AsyncQuotasite) else spend)

    return decorate


def _delivered(response: HttpResponseBase) -> HttpResponseBase:
    if response.status_code >= 400:
        raise _NotDelivered(response)
    return response


def _answer(error: QuotaError | _NotDelivered) -> HttpResponseBase:
    if isinstance(error, _NotDelivered):
        return error.response
    status, headers, body = answer_to(error)
    return JsonResponse(body, status=status, headers=headers, content_type=PROBLEM_TYPE)

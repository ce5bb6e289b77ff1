"""The sync and the async clients, called in one way, so that each test runs on both."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, aclosing, contextmanager
from functools import partial
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal

from quotasite_client import AsyncQuotasite, AsyncQuotasiteUser, Quotasite, QuotasiteUser, retries


class Clients:
    """Makes async clients in the event loop of `portal`, or sync ones without it, which share connections."""

    def __init__(self, http: Any, portal: BlockingPortal | None = None) -> None:
        self._http, self._portal = http, portal

    def service(self, *args: Any, **options: Any) -> Any:
        return self._made(AsyncQuotasite if self._portal else Quotasite, args, options)

    def user(self, *args: Any, **options: Any) -> Any:
        return self._made(AsyncQuotasiteUser if self._portal else QuotasiteUser, args, options)

    def _made(self, kind: Any, args: Any, options: Any) -> Any:
        client = kind(*args, http=self._http, **options)
        return InLoop(self._portal, client) if self._portal else client


@contextmanager
def pauses(*seconds: float) -> Iterator[None]:
    """Let the clients wait for other times before the second attempt and the third."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retries, "PAUSES", seconds)
        yield


class InLoop:
    """An async client, called like a sync one."""

    def __init__(self, portal: BlockingPortal, client: Any) -> None:
        self._portal, self._client = portal, client

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        method = getattr(self._client, verb)
        return lambda *args, **options: self._portal.call(partial(method, *args, **options))

    def history(self, *args: Any, **options: Any) -> Any:
        return self._portal.call(items_of, self._client.history(*args, **options))

    def users(self, **options: Any) -> Any:
        return self._portal.call(items_of, self._client.users(**options))

    def spending(self, *args: Any, **options: Any) -> AbstractContextManager[Any]:
        return self._portal.wrap_async_context_manager(self._client.spending(*args, **options))


async def items_of(listing: Any) -> list[Any]:
    async with aclosing(listing.__aiter__()) as items:
        return [item async for item in items]

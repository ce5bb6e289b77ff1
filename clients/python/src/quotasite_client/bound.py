"""Decorators for methods that describe calls: the client that has the method carries them out in its way.

So each verb is written once, and is typed for the sync and for the async clients.
"""

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import replace
from functools import update_wrapper
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from quotasite_client.answers import Consumption, Page
from quotasite_client.calls import Call
from quotasite_client.drivers import AsyncDriver, Driver
from quotasite_client.retries import carry_out
from quotasite_client.spending import AsyncSpending, Spending, SpendingSteps

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")


class Described(Generic[P, R]):
    """A method that describes what to do. On its class it is the plain function."""

    def __init__(self, describe: Callable[Concatenate[Any, P], R]) -> None:
        self._describe = describe
        self.__doc__ = describe.__doc__

    def _bound(self, client: Any, finish: Callable[[R], object]) -> Any:
        describe = self._describe.__get__(client)

        def method(*args: P.args, **options: P.kwargs) -> object:
            return finish(describe(*args, **options))

        return update_wrapper(method, describe)


class verb(Described[P, Call[T]]):
    """Makes a method of one call: it returns the answer, or a coroutine of it."""

    @overload
    def __get__(self, client: None, owner: Any) -> Callable[..., Call[T]]: ...
    @overload
    def __get__(self, client: Driver, owner: Any = None) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: AsyncDriver, owner: Any = None) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, client: Any, owner: Any = None) -> Any:
        if client is None:
            return self._describe
        return self._bound(client, lambda call: client._run(carry_out(call)))


class listing(Described[P, Call[Page[T]]]):
    """Makes a method that returns an iterable over the items of all pages."""

    @overload
    def __get__(self, client: None, owner: Any) -> Callable[..., Call[Page[T]]]: ...
    @overload
    def __get__(self, client: Driver, owner: Any = None) -> "Callable[P, Listing[T]]": ...
    @overload
    def __get__(self, client: AsyncDriver, owner: Any = None) -> "Callable[P, AsyncListing[T]]": ...
    def __get__(self, client: Any, owner: Any = None) -> Any:
        if client is None:
            return self._describe
        kind = AsyncListing if isinstance(client, AsyncDriver) else Listing
        return self._bound(client, lambda call: kind(client, call))


class context(Described[P, SpendingSteps]):
    """Makes a method that returns a context manager of a consumption."""

    @overload
    def __get__(self, client: None, owner: Any) -> Callable[..., SpendingSteps]: ...
    @overload
    def __get__(
        self, client: Driver, owner: Any = None
    ) -> Callable[P, AbstractContextManager[Consumption, None]]: ...
    @overload
    def __get__(
        self, client: AsyncDriver, owner: Any = None
    ) -> Callable[P, AbstractAsyncContextManager[Consumption, None]]: ...
    def __get__(self, client: Any, owner: Any = None) -> Any:
        if client is None:
            return self._describe
        kind = AsyncSpending if isinstance(client, AsyncDriver) else Spending
        return self._bound(client, lambda steps: kind(client, steps))


class Listing(Generic[T]):
    """Iterates over all items, and fetches each page when it is needed; `pages` iterates over the pages."""

    def __init__(self, client: Driver, first: Call[Page[T]]) -> None:
        self._client, self._first = client, first

    def __iter__(self) -> Iterator[T]:
        for page in self.pages():
            yield from page.items

    def pages(self) -> Iterator[Page[T]]:
        call: Call[Page[T]] | None = self._first
        while call:
            page = self._client._run(carry_out(call))
            yield page
            call = _after(call, page)


class AsyncListing(Generic[T]):
    """As Listing, for `async for`."""

    def __init__(self, client: AsyncDriver, first: Call[Page[T]]) -> None:
        self._client, self._first = client, first

    async def __aiter__(self) -> AsyncIterator[T]:
        async for page in self.pages():
            for item in page.items:
                yield item

    async def pages(self) -> AsyncIterator[Page[T]]:
        call: Call[Page[T]] | None = self._first
        while call:
            page = await self._client._run(carry_out(call))
            yield page
            call = _after(call, page)


def _after(call: Call[Page[T]], page: Page[T]) -> Call[Page[T]] | None:
    if page.next_cursor is None:
        return None
    return replace(call, query={**call.query, "cursor": page.next_cursor})

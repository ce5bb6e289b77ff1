"""Take the steps of a call: in this thread, or in an event loop of asyncio or trio."""

import inspect
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import anyio
import httpx

from quotasite_client.retries import Fetch, Pause, Steps, Token

T = TypeVar("T")
D = TypeVar("D", bound="Driver")
A = TypeVar("A", bound="AsyncDriver")


class Driver:
    """Takes steps in the thread that calls."""

    def __init__(
        self, site: str, token: Callable[[], str | None], http: httpx.Client | None, timeout: float
    ) -> None:
        self._site, self._token, self._timeout = site, token, timeout
        self._http = http or httpx.Client()
        self._is_borrowed = http is not None

    def __enter__(self: D) -> D:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, unless they were given to the client."""
        if not self._is_borrowed:
            self._http.close()

    def _run(self, steps: Steps[T]) -> T:
        proceed: Callable[[], Any] = partial(next, steps)
        while True:
            try:
                step = proceed()
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            try:
                proceed = partial(steps.send, self._take(step))
            except Exception as error:  # noqa: BLE001 - the steps handle it
                proceed = partial(steps.throw, error)

    def _take(self, step: object) -> Any:
        match step:
            case Token():
                return self._token()
            case Fetch(method, target, headers, content):
                request = self._http.build_request(
                    method, self._site + target, headers=headers, content=content, timeout=self._timeout
                )
                return self._http.send(request, follow_redirects=False)
            case Pause(seconds):
                return time.sleep(seconds)


class AsyncDriver:
    """Takes steps without blocking the event loop."""

    def __init__(
        self,
        site: str,
        token: Callable[[], str | Awaitable[str | None] | None],
        http: httpx.AsyncClient | None,
        timeout: float,
    ) -> None:
        self._site, self._token, self._timeout = site, token, timeout
        self._http = http or httpx.AsyncClient()
        self._is_borrowed = http is not None

    async def __aenter__(self: A) -> A:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections, unless they were given to the client."""
        if not self._is_borrowed:
            await self._http.aclose()

    async def _run(self, steps: Steps[T]) -> T:
        proceed: Callable[[], Any] = partial(next, steps)
        while True:
            try:
                step = proceed()
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            try:
                proceed = partial(steps.send, await self._take(step))
            except Exception as error:  # noqa: BLE001 - the steps handle it
                proceed = partial(steps.throw, error)

    async def _take(self, step: object) -> Any:
        match step:
            case Token():
                token = self._token()
                return await token if inspect.isawaitable(token) else token
            case Fetch(method, target, headers, content):
                request = self._http.build_request(
                    method, self._site + target, headers=headers, content=content, timeout=self._timeout
                )
                return await self._http.send(request, follow_redirects=False)
            case Pause(seconds):
                return await anyio.sleep(seconds)

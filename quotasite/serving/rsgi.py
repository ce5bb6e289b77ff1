"""The site as Granian serves it: request bodies are awaited in its event loop, and the fast path runs there.

A server that gives each request a thread at once can be stopped by clients that send headers and no body: 50
of them froze one with 16 threads. Here a request gets a thread only when its body has arrived or timed out
(BODY_SECONDS), and only if the fast path hands it over. So few threads are enough (WEB_THREADS), each with a
database session.
"""

import asyncio
import gc
import io
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from queue import SimpleQueue
from threading import Thread
from time import perf_counter
from typing import Any, NamedTuple
from wsgiref.types import WSGIApplication, WSGIEnvironment

from quotasite.serving.drain import CONNECTION_CLOSE, Drain  # first: SIGTERM may arrive during the rest
from quotasite.wsgi import application  # sets up Django, which the imports below need

# isort: split
from django.conf import settings

from quotas.api.middleware import BODY_TIMED_OUT
from quotas.api.views import FAST_PATH_ERROR
from quotas.store.loop import Pool
from quotas.store.steps import Result
from quotas.store.thread import vendor
from quotasite.observing.request_log import BEGAN
from quotasite.serving.fast_path import FastPath, Headers, Request, Response, UseFullPath

BODY_SECONDS = 10
CHUNK_SECONDS = 30  # for a client to read a chunk of a long response
UNPREFIXED = ("CONTENT_LENGTH", "CONTENT_TYPE")  # in the WSGI environment without HTTP_


class Exchange(NamedTuple):
    """A request whose body has arrived or timed out; `scope` and `protocol` are Granian's."""

    scope: Any
    protocol: Any
    body: bytes
    body_timed_out: bool
    began: float


class Site:
    """The callable that Granian serves, in front of a WSGI application."""

    def __init__(self, application: WSGIApplication) -> None:
        self.application = application
        self.jobs: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]]] = SimpleQueue()
        self.fast_path: FastPath | None = None
        self.drain = Drain()

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.drain.listen(loop)
        self.loop = loop
        for _ in range(settings.WEB_THREADS):
            Thread(target=self._work, daemon=True).start()
        if settings.FAST_LANE and vendor() == "postgresql":
            self.fast_path = FastPath(Pool(settings.LANE_CONNECTIONS, self.run_in_thread))
        gc.collect()
        gc.freeze()  # objects made so far live as long as the worker: no collection needs to visit them

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        began = perf_counter()
        body, body_timed_out = await _read_body(scope, protocol)
        handover = UseFullPath()
        if self.fast_path and not body_timed_out and (request := _request(scope, body, began)):
            response = await self.fast_path.respond(request)
            if isinstance(response, Response):
                protocol.response_bytes(response.status, self._with_drain(response.headers), response.body)
                return
            handover = response
        exchange = Exchange(scope, protocol, body, body_timed_out, began)
        await self.run_in_thread(partial(self._respond, exchange, handover))

    def run_in_thread(self, function: Callable[[], Result]) -> "asyncio.Future[Result]":
        """Let one of the threads run a function that would block the event loop."""
        future: asyncio.Future[Result] = self.loop.create_future()
        self.jobs.put((function, future))
        return future

    def _work(self) -> None:
        while True:
            function, future = self.jobs.get()
            try:
                resolve = partial(_resolve, future, function(), None)
            except BaseException as error:  # noqa: BLE001 - a thread that ends is never replaced
                resolve = partial(_resolve, future, None, error)
            self.loop.call_soon_threadsafe(resolve)

    def _respond(self, exchange: Exchange, handover: UseFullPath) -> None:
        """Answer by the full path: Django's WSGI application."""
        started: list[Any] = []

        def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            started[:] = int(status[:3]), headers

        environ = environment(exchange.scope, exchange.body)
        environ[BEGAN], environ[BODY_TIMED_OUT] = exchange.began, exchange.body_timed_out
        environ[FAST_PATH_ERROR] = handover.error
        chunks: Any = self.application(environ, start_response)
        try:
            status, headers = started
            if self.fast_path and handover.unknown:
                self.fast_path.learn(handover.unknown, status, headers)
            headers = self._with_drain(headers)
            if getattr(chunks, "streaming", False) and not chunks.has_header("Content-Length"):
                self._stream(exchange.protocol.response_stream(status, headers), chunks)
            else:
                exchange.protocol.response_bytes(status, headers, b"".join(chunks))
        finally:
            if hasattr(chunks, "close"):
                chunks.close()

    def _with_drain(self, headers: Headers) -> Headers:
        return [*headers, CONNECTION_CLOSE] if self.drain.is_draining else headers

    def _stream(self, transport: Any, chunks: Any) -> None:
        """Send a response that is too long to hold in memory, as fast as the client reads it."""

        async def send(chunk: bytes) -> None:
            await transport.send_bytes(chunk)

        for chunk in chunks:
            asyncio.run_coroutine_threadsafe(send(chunk), self.loop).result(CHUNK_SECONDS)


async def _read_body(scope: Any, protocol: Any) -> tuple[bytes, bool]:
    """Return the body, and whether it timed out; one of unknown or excessive length is not read."""
    length = scope.headers.get("content-length", "")
    if not length.isdecimal() or not 0 < int(length) <= settings.DATA_UPLOAD_MAX_MEMORY_SIZE:
        return b"", False
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await protocol(), False
    except TimeoutError:
        return b"", True


def _request(scope: Any, body: bytes, began: float) -> Request | None:
    """Return the request for the fast path; None if a header occurs twice or has a non-ASCII value."""
    items = scope.headers.items()
    headers = dict(items)
    if not len(headers) == len(items) == len(scope.headers):
        return None
    return Request(scope.method, scope.path, scope.query_string, scope.scheme, headers, body, began)


def _resolve(future: "asyncio.Future[Result]", result: Result, error: BaseException | None) -> None:
    if future.done():  # cancelled
        return
    if error:
        future.set_exception(error)
    else:
        future.set_result(result)


def environment(scope: Any, body: bytes) -> WSGIEnvironment:
    """Return the WSGI environment of a request (PEP 3333).

    A header with a non-ASCII value, which Granian omits, becomes U+FFFD: otherwise a garbled Idempotency-Key
    would count as a missing one.
    """
    environ = {
        "REQUEST_METHOD": scope.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": scope.path.encode().decode("latin-1"),
        "QUERY_STRING": scope.query_string,
        "SERVER_NAME": scope.server.rpartition(":")[0],
        "SERVER_PORT": scope.server.rpartition(":")[2],
        "SERVER_PROTOCOL": f"HTTP/{scope.http_version}",
        "REMOTE_ADDR": scope.client.rpartition(":")[0].strip("[]"),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.scheme,
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    items = scope.headers.items()
    for name, value in items:
        if key := _environ_key(name):
            environ[key] = f"{environ[key]},{value}" if key in environ else value
    if len(scope.headers) > len({name for name, _ in items}):
        for key in filter(None, map(_environ_key, scope.headers)):
            environ.setdefault(key, "\ufffd")
    return environ


@lru_cache(maxsize=256)
def _environ_key(name: str) -> str:
    """Return the header's name in the environment; "" if an underscore could make it pass for another."""
    if "_" in name:
        return ""
    key = name.upper().replace("-", "_")
    return key if key in UNPREFIXED else f"HTTP_{key}"


site = Site(application)

"""The site as Granian serves it: bodies are awaited in its event loop, the hottest requests answered there.

A server that gives each request a thread at once can be stopped by whoever sends headers and no body: 50
such clients froze one of 16 threads. Here a request gets a thread when its body has come, within
BODY_SECONDS, and only if the fast lane leaves it to one. So the threads, each with its session at the
database, can be few: WEB_THREADS.
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

from quotasite.serving.drain import LAST, Drain  # hears the end that is told while the rest is loaded
from quotasite.wsgi import application  # sets Django up, which the others need

# isort: split
from django.conf import settings

from quotas.api.middleware import LATE
from quotas.api.views import RAISED
from quotas.store.errors import Result
from quotas.store.loop import Pool
from quotas.store.thread import vendor
from quotasite.observing.request_log import BEGAN
from quotasite.serving.fast_path import Answer, Asked, Detour, FastLane

BODY_SECONDS = 10
CHUNK_SECONDS = 30  # for a client to take a piece of a long answer
BARE = ("CONTENT_LENGTH", "CONTENT_TYPE")  # without HTTP_ before their names


class Request(NamedTuple):
    """A request that is here as a whole; `scope` and `protocol` are Granian's."""

    scope: Any
    protocol: Any
    body: bytes
    is_late: bool  # it did not come
    began: float


class Site:
    """What Granian calls, in front of a WSGI application."""

    def __init__(self, application: WSGIApplication) -> None:
        self.application = application
        self.jobs: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]]] = SimpleQueue()
        self.lane: FastLane | None = None
        self.drain = Drain()

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.drain.listen(loop)
        self.loop = loop
        for _ in range(settings.WEB_THREADS):
            Thread(target=self._work, daemon=True).start()
        if settings.FAST_LANE and vendor() == "postgresql":
            self.lane = FastLane(Pool(settings.LANE_CONNECTIONS, self.run_in_thread))
        gc.collect()
        gc.freeze()  # what is here by now stays: no collection need look at it

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        began, body, is_late, headers = perf_counter(), b"", False, scope.headers
        # One that is too long is left unread: it is refused by its length.
        length = headers.get("content-length", "")
        if length.isdecimal() and 0 < int(length) <= settings.DATA_UPLOAD_MAX_MEMORY_SIZE:
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    body = await protocol()
            except TimeoutError:
                is_late = True
        detour = Detour()
        if self.lane and not is_late:
            items = headers.items()
            asked = Asked(
                scope.method, scope.path, scope.query_string, scope.scheme, dict(items), body, began
            )
            if len(asked.headers) == len(items) == len(headers):  # none is there twice, or garbled
                answer = await self.lane.answer(asked)
                if isinstance(answer, Answer):
                    status, own, content = answer
                    protocol.response_bytes(status, [*own, LAST] if self.drain.is_on else own, content)
                    return
                detour = answer
        request = Request(scope, protocol, body, is_late, began)
        await self.run_in_thread(partial(self._answer, request, detour))

    def run_in_thread(self, function: Callable[[], Result]) -> "asyncio.Future[Result]":
        """Have one of the threads do what would block the loop."""
        done: asyncio.Future[Result] = self.loop.create_future()
        self.jobs.put((function, done))
        return done

    def _work(self) -> None:
        while True:
            function, done = self.jobs.get()
            try:
                settle = partial(_settle, done, function(), None)
            except BaseException as error:  # noqa: BLE001 - a thread that ended would be missing for good
                settle = partial(_settle, done, None, error)
            self.loop.call_soon_threadsafe(settle)

    def _answer(self, request: Request, detour: Detour) -> None:
        told: list[Any] = []

        def start_response(status: str, headers: list[tuple[str, str]], failed: Any = None) -> Any:
            told[:] = int(status[:3]), headers

        environ = environment(request.scope, request.body)
        environ[BEGAN], environ[LATE], environ[RAISED] = request.began, request.is_late, detour.error
        chunks: Any = self.application(environ, start_response)
        try:
            status, headers = told
            if self.lane and detour.unknown:
                self.lane.learn(detour.unknown, status, headers)
            if self.drain.is_on:
                headers = [*headers, LAST]
            if getattr(chunks, "streaming", False) and not chunks.has_header("Content-Length"):
                self._stream(request.protocol.response_stream(status, headers), chunks)
            else:
                request.protocol.response_bytes(status, headers, b"".join(chunks))
        finally:
            if hasattr(chunks, "close"):
                chunks.close()

    def _stream(self, transport: Any, chunks: Any) -> None:
        """Send what is too long to hold piece by piece, as fast as the client takes it."""

        async def send(chunk: bytes) -> None:
            await transport.send_bytes(chunk)

        for chunk in chunks:
            asyncio.run_coroutine_threadsafe(send(chunk), self.loop).result(CHUNK_SECONDS)


def _settle(done: "asyncio.Future[Result]", found: Result, error: BaseException | None) -> None:
    if done.done():  # cancelled, that is
        return
    if error:
        done.set_exception(error)
    else:
        done.set_result(found)


def environment(scope: Any, body: bytes) -> WSGIEnvironment:
    """Return PEP 3333's form of a request.

    A value that is not ASCII stands there as U+FFFD: Granian leaves such a header out, and a garbled
    Idempotency-Key must not be taken for none.
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
        if key := _key(name):
            environ[key] = f"{environ[key]},{value}" if key in environ else value
    if len(scope.headers) > len({name for name, _ in items}):
        for key in filter(None, map(_key, scope.headers)):
            environ.setdefault(key, "\ufffd")
    return environ


@lru_cache(maxsize=256)
def _key(name: str) -> str:
    """Its name there; none for one with an underscore, which could pass for another with a dash."""
    if "_" in name:
        return ""
    key = name.upper().replace("-", "_")
    return key if key in BARE else f"HTTP_{key}"


site = Site(application)

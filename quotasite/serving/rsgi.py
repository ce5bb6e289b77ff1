"""The site as Granian serves it: request bodies are awaited in its event loop, and the fast path runs there.

A server that gives each request a thread at once can be stopped by clients that send headers and no body: 50
of them froze one with 16 threads. Here a request gets a thread only when its body has arrived, within
BODY_SECONDS, and only if it is not one that the fast path answers. So few threads are enough (WEB_THREADS),
each with a database session.
"""

import asyncio
import gc
import io
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import lru_cache, partial
from time import perf_counter
from typing import Any
from wsgiref.types import WSGIApplication, WSGIEnvironment

from quotasite.serving.drain import CONNECTION_CLOSE, Drain  # first: SIGTERM may arrive during the rest
from quotasite.wsgi import application  # sets up Django, which the imports below need

# isort: split
from django.conf import settings
from django.core.exceptions import SuspiciousOperation

from quotas.problems import BAD_REQUEST, BODY_TIMEOUT
from quotas.store.loop import Pool
from quotas.store.steps import Result
from quotas.store.thread import vendor
from quotasite.observing.request_log import BEGAN
from quotasite.serving.fast_path import HEADERS_READ, Answer, FastPath, Headers, Received

BODY_SECONDS = 10
CHUNK_SECONDS = 30  # for a client to read a chunk of a long response
UNPREFIXED = ("CONTENT_LENGTH", "CONTENT_TYPE")  # in the WSGI environment without HTTP_


class Site:
    """The callable that Granian serves, in front of a WSGI application."""

    def __init__(self, application: WSGIApplication) -> None:
        self.application = application
        self.drain = Drain()

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.drain.listen(loop)
        self.loop = loop
        self.threads = ThreadPoolExecutor(settings.WEB_THREADS)
        is_fast = settings.FAST_LANE and vendor() == "postgresql"
        self.fast_path = FastPath(Pool(settings.LANE_CONNECTIONS, self.run_in_thread) if is_fast else None)
        gc.collect()
        gc.freeze()  # objects made so far live as long as the worker: no collection needs to visit them

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        request, is_late = await _read_request(scope, protocol)
        answer: Answer | None
        if is_late:
            answer = self.fast_path.refuse(request, BODY_TIMEOUT())
        elif not (answer := await self.fast_path.respond(request)):
            await self.run_in_thread(partial(self._respond, request, scope, protocol))
            return
        self._send(answer, protocol)

    def run_in_thread(self, function: Callable[[], Result]) -> "asyncio.Future[Result]":
        """Let one of the threads run a function that would block the event loop."""
        return self.loop.run_in_executor(self.threads, copy_context().run, function)

    def _respond(self, request: Received, scope: Any, protocol: Any) -> None:
        """Answer by Django's WSGI application."""
        started: list[Any] = []

        def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            started[:] = int(status[:3]), headers

        environ = environment(scope, request.body)
        environ[BEGAN] = request.began
        try:
            chunks: Any = self.application(environ, start_response)
        except SuspiciousOperation:
            # If the Content-Type has a charset, Django parses the query before it can refuse one.
            self._send(self.fast_path.refuse(request, BAD_REQUEST()), protocol)
            return
        try:
            status, headers = started
            headers = self._with_drain(headers)
            if getattr(chunks, "streaming", False) and not chunks.has_header("Content-Length"):
                self._stream(protocol.response_stream(status, headers), chunks)
            else:
                protocol.response_bytes(status, headers, b"".join(chunks))
        finally:
            if hasattr(chunks, "close"):
                chunks.close()

    def _send(self, answer: Answer, protocol: Any) -> None:
        protocol.response_bytes(answer.status, self._with_drain(answer.headers), answer.body)

    def _with_drain(self, headers: Headers) -> Headers:
        return [*headers, CONNECTION_CLOSE] if self.drain.is_draining else headers

    def _stream(self, transport: Any, chunks: Any) -> None:
        """Send a response that is too long to hold in memory, as fast as the client reads it."""

        async def send(chunk: bytes) -> None:
            await transport.send_bytes(chunk)

        for chunk in chunks:
            asyncio.run_coroutine_threadsafe(send(chunk), self.loop).result(CHUNK_SECONDS)


async def _read_request(scope: Any, protocol: Any) -> tuple[Received, bool]:
    """Return the request, and whether its body timed out; one of excessive length is not read."""
    began, items, body, is_late = perf_counter(), scope.headers.items(), b"", False
    headers = dict(items)
    is_plain = len(headers) == len(items) == len(scope.headers) or _is_plain(scope.headers)
    length = headers.get("content-length", "")
    if length.isdecimal() and 0 < int(length) <= settings.DATA_UPLOAD_MAX_MEMORY_SIZE:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await protocol()
        except TimeoutError:
            is_late = True
    query, scheme = scope.query_string, scope.scheme
    return Received(scope.method, scope.path, query, scheme, headers, body, began, is_plain), is_late


def _is_plain(headers: Any) -> bool:
    """Whether no header that the fast path reads is repeated; Granian omits a value that is not ASCII."""
    return all(len(headers.get_all(name)) == (name in headers) for name in HEADERS_READ)


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

"""The site as Granian serves it: request bodies are awaited in its event loop, and the fast path runs there.

A server that gives each request a thread at once can be stopped by clients that send headers and no body: 50
of them froze one with 16 threads. Here a request gets a thread only when its body has arrived, within
BODY_SECONDS, and only if it is not one that the fast path answers. So few threads are enough (WEB_THREADS),
each with a database session. A body in chunks is counted, and then handled as one of that length.
"""

import asyncio
import gc
import io
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from functools import lru_cache, partial
from time import perf_counter
from typing import Any
from wsgiref.types import WSGIApplication, WSGIEnvironment

from quotasite.serving.drain import CONNECTION_CLOSE, Drain  # first: SIGTERM may arrive during the rest
from quotasite.wsgi import application  # sets up Django, which the imports below need

# isort: split
from django.conf import settings

from quotas.api.middleware import max_body_bytes
from quotas.problems import BODY_INCOMPLETE, BODY_TIMEOUT, Problem
from quotas.store.batches import Batches
from quotas.store.steps import Result
from quotas.store.thread import vendor
from quotasite.observing.request_log import BEGAN
from quotasite.serving.fast_path import HEADERS_READ, Answer, FastPath, Headers, Received

BODY_SECONDS = 10
CHUNK_SECONDS = 30  # for the event loop to send a chunk of a long response
Parts = AsyncIterator[bytes]  # of a body
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
        driver = Batches(settings.LANE_CONNECTIONS, self.run_in_thread) if is_fast else None
        self.fast_path = FastPath(driver)
        gc.collect()
        gc.freeze()  # objects made so far live as long as the worker: no collection needs to visit them

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        request, fault, rest = await _read_request(scope, protocol)
        if fault:
            self._send(self.fast_path.refuse(request, fault), protocol)
        elif answer := await self.fast_path.respond(request):
            self._send(answer, protocol)
        else:
            await self.run_in_thread(partial(self._respond, request, scope, protocol))
        if rest:
            await _discard(rest)

    def run_in_thread(self, function: Callable[[], Result]) -> "asyncio.Future[Result]":
        """Let one of the threads run a function that would block the event loop."""
        return self.loop.run_in_executor(self.threads, copy_context().run, function)

    def _respond(self, request: Received, scope: Any, protocol: Any) -> None:
        """Answer by Django's WSGI application."""
        started: list[Any] = []

        def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            started[:] = int(status[:3]), headers

        environ = environment(scope, request)
        environ[BEGAN] = request.began
        chunks: Any = self.application(environ, start_response)
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
        """Send a response chunk by chunk.

        Granian accepts each at once, and keeps what the client has not read yet. Only exports are that long,
        and a process sends one at a time.
        """

        async def send(chunk: bytes) -> None:
            await transport.send_bytes(chunk)

        for chunk in chunks:
            asyncio.run_coroutine_threadsafe(send(chunk), self.loop).result(CHUNK_SECONDS)


async def _read_request(scope: Any, protocol: Any) -> tuple[Received, Problem | None, Parts | None]:
    """Return the request, what is wrong with how its body arrived, and the rest of one that is too long."""
    began, items, body, fault, rest = perf_counter(), scope.headers.items(), b"", None, None
    headers = dict(items)
    is_plain = len(headers) == len(items) == len(scope.headers) or _is_plain(scope.headers)
    if "content-length" in headers or "transfer-encoding" in headers:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body, rest = await _read_body(scope, headers, protocol)
        except TimeoutError:
            fault = BODY_TIMEOUT()
        except Incomplete:
            fault = BODY_INCOMPLETE()
    query, scheme = scope.query_string, scope.scheme
    return Received(scope.method, scope.path, query, scheme, headers, body, began, is_plain), fault, rest


async def _read_body(scope: Any, headers: dict[str, str], protocol: Any) -> tuple[bytes, Parts | None]:
    """Return the body; b"" and its rest if it is too long. Let the headers of one in chunks state its length.

    Raises Incomplete if it ended too early.
    """
    limit = max_body_bytes(scope.path) or settings.DATA_UPLOAD_MAX_MEMORY_SIZE
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) <= limit:
        return (await _read_whole(protocol) if int(length) else b""), None
    parts = (part async for part in protocol)  # Granian's own iterator can be used in one loop only
    if [coding.strip().lower() for coding in scope.headers.get_all("transfer-encoding")] == ["chunked"]:
        body = await _read_chunks(parts, limit)
        del headers["transfer-encoding"]
        headers["content-length"] = str(len(body))
        if len(body) <= limit:
            return bytes(body), None
    return b"", parts


async def _read_whole(protocol: Any) -> bytes:
    try:
        body: bytes = await protocol()
    except Exception as error:
        raise Incomplete from error
    return body


async def _read_chunks(parts: Parts, limit: int) -> bytearray:
    """Return the body, or so much of it that the limit is exceeded."""
    body, empty_parts = bytearray(), 0
    async for part in parts:
        body += part
        empty_parts += not part
        if len(body) > limit:
            return body
    # Granian ends the iteration of a body that was cut off like that of a whole one, but for one more empty
    # part, as after trailers: findings/granian_ends_a_body_that_was_cut_off_like_a_whole_one.sh.
    if empty_parts > 1:
        raise Incomplete
    return body


async def _discard(rest: Parts) -> None:
    """Receive the rest of a body that was answered: some clients read only when they have sent everything."""
    with suppress(TimeoutError):
        async with asyncio.timeout(BODY_SECONDS):
            async for _ in rest:
                pass


class Incomplete(Exception):
    """The body ended before it was complete."""


def _is_plain(headers: Any) -> bool:
    """Whether no header that the fast path reads is repeated; Granian omits a value that is not ASCII."""
    return all(len(headers.get_all(name)) == (name in headers) for name in HEADERS_READ)


def environment(scope: Any, request: Received) -> WSGIEnvironment:
    """Return the WSGI environment of a request (PEP 3333); of a body in chunks, with its length.

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
        # A socket of IPv6 names an IPv4 client by an address in that notation.
        "REMOTE_ADDR": scope.client.rpartition(":")[0].strip("[]").removeprefix("::ffff:"),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.scheme,
        "wsgi.input": io.BytesIO(request.body),
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
    if "transfer-encoding" not in request.headers and environ.pop("HTTP_TRANSFER_ENCODING", None):
        environ["CONTENT_LENGTH"] = request.headers["content-length"]
    return environ


@lru_cache(maxsize=256)
def _environ_key(name: str) -> str:
    """Return the header's name in the environment; "" if an underscore could make it pass for another."""
    if "_" in name:
        return ""
    key = name.upper().replace("-", "_")
    return key if key in UNPREFIXED else f"HTTP_{key}"


site = Site(application)

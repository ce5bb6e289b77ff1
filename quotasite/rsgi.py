"""The site as Granian serves it: bodies are awaited in its event loop, and the work is done in a few threads.

A server that gives each request a thread at once can be stopped by whoever sends headers and no body: 50
such clients froze one of 16 threads. Here a request gets a thread when its body has come, within
BODY_SECONDS. So the threads, each with its session at the database, can be few: WEB_THREADS.
"""

import asyncio
import gc
import io
import logging
import sys
from functools import lru_cache
from queue import SimpleQueue
from threading import Thread
from time import perf_counter
from typing import Any, NamedTuple
from wsgiref.types import WSGIApplication, WSGIEnvironment

from quotasite.wsgi import application  # sets Django up, which the others need

# isort: split
from django.conf import settings

from quotas.middleware import LATE
from quotasite.request_log import BEGAN

BODY_SECONDS = 10
CHUNK_SECONDS = 30  # for a client to take a piece of a long answer
BARE = ("CONTENT_LENGTH", "CONTENT_TYPE")  # without HTTP_ before their names

log = logging.getLogger(__name__)


class Job(NamedTuple):
    """A request that is here as a whole; `scope` and `protocol` are Granian's."""

    scope: Any
    protocol: Any
    body: bytes
    is_late: bool  # it did not come
    loop: asyncio.AbstractEventLoop
    done: "asyncio.Future[None]"
    began: float


class Site:
    """What Granian calls, in front of a WSGI application."""

    def __init__(self, application: WSGIApplication) -> None:
        self.application = application
        self.jobs: SimpleQueue[Job] = SimpleQueue()

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        for _ in range(settings.WEB_THREADS):
            Thread(target=self._work, daemon=True).start()
        gc.collect()
        gc.freeze()  # what is here by now stays: no collection need look at it

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        body, is_late, length = b"", False, scope.headers.get("content-length", "")
        # One that is too long is left unread: it is refused by its length.
        if length.isdecimal() and 0 < int(length) <= settings.DATA_UPLOAD_MAX_MEMORY_SIZE:
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    body = await protocol()
            except TimeoutError:
                is_late = True
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        self.jobs.put(Job(scope, protocol, body, is_late, loop, done, perf_counter()))
        await done

    def _work(self) -> None:
        while True:
            job = self.jobs.get()
            try:
                self._answer(job)
            except BaseException:  # a thread that ended would be missing for good
                log.exception("A request was not answered.")
            finally:
                job.loop.call_soon_threadsafe(_finish, job.done)

    def _answer(self, job: Job) -> None:
        told: list[Any] = []

        def start_response(status: str, headers: list[tuple[str, str]], failed: Any = None) -> Any:
            told[:] = int(status[:3]), headers

        environ = environment(job.scope, job.body)
        environ[BEGAN], environ[LATE] = job.began, job.is_late
        chunks: Any = self.application(environ, start_response)
        try:
            status, headers = told
            if getattr(chunks, "streaming", False) and not chunks.has_header("Content-Length"):
                _stream(job, job.protocol.response_stream(status, headers), chunks)
            else:
                job.protocol.response_bytes(status, headers, b"".join(chunks))
        finally:
            if hasattr(chunks, "close"):
                chunks.close()


def _stream(job: Job, transport: Any, chunks: Any) -> None:
    """Send what is too long to hold piece by piece, as fast as the client takes it."""

    async def send(chunk: bytes) -> None:
        await transport.send_bytes(chunk)

    for chunk in chunks:
        asyncio.run_coroutine_threadsafe(send(chunk), job.loop).result(CHUNK_SECONDS)


def _finish(done: "asyncio.Future[None]") -> None:
    if not done.done():  # cancelled, that is
        done.set_result(None)


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

"""A handler for Django's test client with the fast path, so that the contract tests run on both paths."""

import asyncio
import threading
from asyncio.events import _get_running_loop, _set_running_loop
from collections.abc import Callable
from io import BytesIO
from time import perf_counter
from typing import Any

from django.core.handlers.wsgi import WSGIRequest
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.http import HttpResponse
from django.http.response import HttpResponseBase
from django.test.client import ClientHandler

from quotas.api.views import FAST_PATH_ERROR
from quotas.store.loop import LoopSession, Pool, Prepared
from quotas.store.plan_cache import clear
from quotas.store.steps import Result, Steps
from quotas.store.thread import database
from quotasite.serving.fast_path import (
    FAST_REQUESTS,
    HEADER_KEY_FIELDS,
    FastPath,
    HeaderKey,
    Headers,
    Request,
    UseFullPath,
)

# What the fast path learns from a first response to the test client; test_fast_path.py checks it.
HEADERS = {
    "Content-Type": "application/json",
    "Allow": "GET, HEAD, OPTIONS",
    "Cache-Control": "no-store",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Vary": "origin",
}
ALLOW = {"GET": "GET, HEAD, OPTIONS", "POST": "POST, OPTIONS"}


def learned_headers() -> dict[HeaderKey, Headers]:
    """Return what the fast path has learned once the test client has sent one request of each kind."""
    return {
        (method, path, "http", *(None for _ in HEADER_KEY_FIELDS)): [
            *{**HEADERS, "Allow": ALLOW[method]}.items()
        ]
        for method, path in FAST_REQUESTS
    }


class OwnSession(LoopSession):
    """A session on this thread's connection: it sees what the test has not committed."""

    def should_prepare(self, prepared: Prepared) -> bool:
        """Not within a transaction: after a rollback psycopg deallocates all prepared statements."""
        return self.raw.autocommit and super().should_prepare(prepared)


class OwnPool(Pool):
    def __init__(self) -> None:
        super().__init__(1, run_at_once)

    async def acquire(self) -> LoopSession:
        db = outside(own_connection)
        before = getattr(_local, "session", None)
        session = _local.session = OwnSession(db, lambda _: outside(db.close))
        if before and before.raw is session.raw:
            session.names, session.uses = before.names, before.uses
        return session

    async def run_steps(self, steps: Steps[Result]) -> Result:
        """As a thread does, cache no plans that were read in a transaction: it may be rolled back."""
        try:
            return await super().run_steps(steps)
        finally:
            if outside(lambda: database().in_atomic_block):
                clear()

    def release(self, session: LoopSession) -> None:
        session.loop.remove_reader(session.socket)


_local = threading.local()


def own_connection() -> BaseDatabaseWrapper:
    """Return this thread's connection, with the transaction begun if it is in an atomic block."""
    db: BaseDatabaseWrapper = connections[DEFAULT_DB_ALIAS]
    db.ensure_connection()
    if db.in_atomic_block:
        with db.cursor() as cursor:
            cursor.execute("SELECT 1")
    return db


def outside(function: Callable[[], Any]) -> Any:
    """Call the function as if no event loop ran: Django refuses to query in one."""
    loop = _get_running_loop()
    _set_running_loop(None)
    try:
        return function()
    finally:
        _set_running_loop(loop)


def run_at_once(function: Callable[[], Any]) -> "asyncio.Future[Any]":
    future = asyncio.get_running_loop().create_future()
    try:
        future.set_result(outside(function))
    except BaseException as error:  # noqa: BLE001 - the future raises it
        future.set_exception(error)
    return future


class FastPathHandler(ClientHandler):
    """The test client's handler with a fast path in front; `full_path_count` counts what that handed over."""

    def __init__(self, *, is_new: bool = False) -> None:
        super().__init__(enforce_csrf_checks=False)
        self.full_path_count = 0
        self.fast_path = FastPath(OwnPool())
        self.fast_path.learned = {} if is_new else learned_headers()

    def __call__(self, environ: dict[str, Any]) -> HttpResponseBase:
        answer = asyncio.run(self.fast_path.respond(request_of(environ)))
        if isinstance(answer, UseFullPath):
            return self.full_path(environ, answer)
        response = HttpResponse(answer.body, status=answer.status, headers=dict(answer.headers))
        response.wsgi_request = WSGIRequest(environ)  # type: ignore[attr-defined] # as ClientHandler sets it
        return response

    def full_path(self, environ: dict[str, Any], handover: UseFullPath) -> HttpResponseBase:
        self.full_path_count += 1
        response = super().__call__({**environ, FAST_PATH_ERROR: handover.error})
        if handover.unknown:
            self.fast_path.learn(handover.unknown, response.status_code, list(response.items()))
        return response


def request_of(environ: dict[str, Any]) -> Request:
    """Return the request as the server passes it to the fast path."""
    body = environ["wsgi.input"].read()
    environ["wsgi.input"] = BytesIO(body)
    headers = {
        name.removeprefix("HTTP_").replace("_", "-").lower(): value
        for name, value in environ.items()
        if name.startswith("HTTP_") or (name in ("CONTENT_TYPE", "CONTENT_LENGTH") and value)
    }
    method, path, query = (environ[name] for name in ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING"))
    return Request(method, path, query, environ["wsgi.url_scheme"], headers, body, perf_counter())

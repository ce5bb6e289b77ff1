"""A handler for Django's test client with the fast path, so that the contract tests run on both paths."""

import asyncio
import threading
from asyncio.events import _get_running_loop, _set_running_loop
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from io import BytesIO
from time import perf_counter
from typing import Any

from django.core.handlers.wsgi import WSGIRequest
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.http import HttpResponse
from django.http.response import HttpResponseBase
from django.test.client import ClientHandler

from quotas.store.batches import Batches
from quotas.store.loop import Connections, LoopSession, Prepared
from quotas.store.plan_cache import clear
from quotas.store.steps import Attempt, Result, Step, Steps
from quotas.store.thread import database, run_step
from quotasite.serving.fast_path import FastPath, Received


class OwnSession(LoopSession):
    """A session on this thread's connection: it sees what the test has not committed."""

    def should_prepare(self, prepared: Prepared) -> bool:
        """Not within a transaction: after a rollback psycopg deallocates all prepared statements."""
        return self.raw.autocommit and super().should_prepare(prepared)


class OwnConnections(Connections):
    @asynccontextmanager
    async def use(self) -> AsyncIterator[LoopSession]:
        db = outside(own_connection)
        before = getattr(_local, "session", None)
        session = _local.session = OwnSession(db, lambda _: outside(db.close))
        if before and before.raw is session.raw:
            session.names, session.uses = before.names, before.uses
        try:
            yield session
        finally:
            session.loop.remove_reader(session.socket)


class OwnBatches(Batches):
    def __init__(self) -> None:
        super().__init__(2, run_at_once)
        self.connections = OwnConnections(run_at_once, lambda: None)

    async def run_steps(self, steps: Steps[Result]) -> Result:
        """As a thread does, cache no plans that were read in a transaction: it may be rolled back."""
        try:
            return await super().run_steps(steps)
        finally:
            if outside(lambda: database().in_atomic_block):
                clear()

    async def _run_step(self, step: Step) -> Any:
        """Lock a row by Django's means, which know the transaction of the test."""
        if isinstance(step, Attempt) and step.must_lock:
            return outside(partial(run_step, step))
        return await super()._run_step(step)


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

    def __init__(self) -> None:
        super().__init__(enforce_csrf_checks=False)
        self.full_path_count = 0
        self.fast_path: FastPath | None = None

    def __call__(self, environ: dict[str, Any]) -> HttpResponseBase:
        self.fast_path = self.fast_path or FastPath(OwnBatches())  # not before the settings of the test
        answer = asyncio.run(self.fast_path.respond(request_of(environ)))
        if answer is None:
            self.full_path_count += 1
            return super().__call__(environ)
        response = HttpResponse(answer.body, status=answer.status, headers=dict(answer.headers))
        response.wsgi_request = WSGIRequest({**environ, "QUERY_STRING": ""})  # type: ignore[attr-defined] # as ClientHandler sets it
        return response


def request_of(environ: dict[str, Any]) -> Received:
    """Return the request as the server passes it to the fast path."""
    body = environ["wsgi.input"].read()
    environ["wsgi.input"] = BytesIO(body)
    headers = {
        name.removeprefix("HTTP_").replace("_", "-").lower(): value
        for name, value in environ.items()
        if name.startswith("HTTP_") or (name in ("CONTENT_TYPE", "CONTENT_LENGTH") and value)
    }
    headers.setdefault("host", environ["SERVER_NAME"])  # which every client of HTTP/1.1 sends
    if (length := headers.get("content-length", "0")).isascii() and length.isdecimal():
        body = body[: int(length)]
    method, path, query = (environ[name] for name in ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING"))
    return Received(method, path, query, environ["wsgi.url_scheme"], headers, body, perf_counter())

"""Django's test client behind the fast lane, so that the tests of the contract run against both."""

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
from quotas.store.commit import Steps
from quotas.store.errors import Result
from quotas.store.loop import LoopSession, Pool
from quotas.store.plan_cache import clear
from quotas.store.thread import Prepared, in_transaction
from quotasite.serving.fast_path import (
    FAST_REQUESTS,
    HEADER_KEY_FIELDS,
    FastPath,
    HeaderKey,
    Headers,
    Request,
    UseFullPath,
)

# What the lane learns from a first answer to the test client; test_fast_lane.py sees that it is so.
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


def learned() -> dict[HeaderKey, Headers]:
    """What the lane knows of the test client once it has sent one request of each kind."""
    return {
        (*hot, "http", *(None for _ in HEADER_KEY_FIELDS)): [*{**HEADERS, "Allow": ALLOW[hot[0]]}.items()]
        for hot in FAST_REQUESTS
    }


class OwnSession(LoopSession):
    """A session over the connection of this thread: it sees what a test has not committed."""

    def should_prepare(self, prepared: Prepared) -> bool:
        """Not within a transaction: after a rollback psycopg has the server forget what it kept."""
        return self.raw.autocommit and super().should_prepare(prepared)


class OwnPool(Pool):
    def __init__(self) -> None:
        super().__init__(1, at_once)

    async def acquire(self) -> LoopSession:
        db = outside(own_connection)
        before = getattr(_kept, "session", None)
        session = _kept.session = OwnSession(db, lambda _: outside(db.close))
        if before and before.raw is session.raw:
            session.names, session.uses = before.names, before.uses
        return session

    async def run_steps(self, steps: Steps[Result]) -> Result:
        """As in a thread, what is not committed is not remembered."""
        try:
            return await super().run_steps(steps)
        finally:
            if outside(in_transaction):
                clear()

    def release(self, session: LoopSession) -> None:
        session.loop.remove_reader(session.socket)


_kept = threading.local()


def own_connection() -> BaseDatabaseWrapper:
    """This thread's connection, in its transaction if it is in one."""
    db: BaseDatabaseWrapper = connections[DEFAULT_DB_ALIAS]
    db.ensure_connection()
    if db.in_atomic_block:
        with db.cursor() as cursor:
            cursor.execute("SELECT 1")
    return db


def outside(act: Callable[[], Any]) -> Any:
    """Act as a thread would: Django refuses to wait in an event loop."""
    loop = _get_running_loop()
    _set_running_loop(None)
    try:
        return act()
    finally:
        _set_running_loop(loop)


def at_once(act: Callable[[], Any]) -> "asyncio.Future[Any]":
    done = asyncio.get_running_loop().create_future()
    try:
        done.set_result(outside(act))
    except BaseException as error:  # noqa: BLE001 - handed on
        done.set_exception(error)
    return done


class LaneHandler(ClientHandler):
    """The test client's handler, behind a lane; `whole_ways` counts the requests that the lane handed on."""

    def __init__(self, *, is_new: bool = False) -> None:
        super().__init__(enforce_csrf_checks=False)
        self.whole_ways = 0
        self.lane = FastPath(OwnPool())
        self.lane.learned = {} if is_new else learned()

    def __call__(self, environ: dict[str, Any]) -> HttpResponseBase:
        answer = asyncio.run(self.lane.answer(asked(environ)))
        if isinstance(answer, UseFullPath):
            return self.whole_way(environ, answer)
        response = HttpResponse(answer.body, status=answer.status, headers=dict(answer.headers))
        response.wsgi_request = WSGIRequest(environ)  # type: ignore[attr-defined] # as ClientHandler sets it
        return response

    def whole_way(self, environ: dict[str, Any], detour: UseFullPath) -> HttpResponseBase:
        self.whole_ways += 1
        response = super().__call__({**environ, FAST_PATH_ERROR: detour.error})
        if detour.unknown:
            self.lane.learn(detour.unknown, response.status_code, list(response.items()))
        return response


def asked(environ: dict[str, Any]) -> Request:
    """The request as the server tells the lane of it."""
    body = environ["wsgi.input"].read()
    environ["wsgi.input"] = BytesIO(body)
    headers = {
        name.removeprefix("HTTP_").replace("_", "-").lower(): value
        for name, value in environ.items()
        if name.startswith("HTTP_") or (name in ("CONTENT_TYPE", "CONTENT_LENGTH") and value)
    }
    method, path, query = (environ[name] for name in ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING"))
    return Request(method, path, query, environ["wsgi.url_scheme"], headers, body, perf_counter())

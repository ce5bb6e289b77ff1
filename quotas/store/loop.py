"""Runs the steps of the store in an event loop, where no thread waits for the database.

The connections have Django's own settings. A thread continues the same steps if no connection is free, if a
statement fails, or if a row must be locked.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from time import monotonic
from typing import Any, Protocol

import psycopg
from django.db import DEFAULT_DB_ALIAS, Error, OperationalError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg.errors import error_from_result
from psycopg.pq import Format
from psycopg.pq.abc import PGresult

from quotas.store.commit import WRITER_WAIT_SECONDS, Step, Steps, run_steps
from quotas.store.errors import Result, translate_error
from quotas.store.thread import Prepared, PreparedSession, new_statement_name, with_dollar_placeholders

RECONNECT_SECONDS = 1  # between a failed attempt to connect and the next one
CONNECTION_WAIT_SECONDS = 1  # for one of LANE_CONNECTIONS; then a thread runs the steps on its own
LIVENESS_SECONDS = 1  # between checks of the connections
WRITER_LOCK_COUNT = 256  # shared by all users


class RunInThread(Protocol):
    """Runs in a thread what would block the loop."""

    def __call__(self, function: Callable[[], Result]) -> "asyncio.Future[Result]": ...


def connect() -> BaseDatabaseWrapper:
    db = connections.create_connection(DEFAULT_DB_ALIAS)
    db.ensure_connection()
    return db


class LoopSession(PreparedSession):
    """One connection to PostgreSQL that an event loop reads; it runs one statement at a time."""

    def __init__(self, db: BaseDatabaseWrapper, on_close: Callable[["LoopSession"], None]) -> None:
        super().__init__(db.connection)
        self.pgconn = self.raw.pgconn
        self.errors = db.wrap_database_errors
        self.on_close = on_close
        self.is_open = True
        self.loop = asyncio.get_running_loop()
        self.pending: asyncio.Future[PGresult] | None = None
        self.result: PGresult | None = None
        self.socket = self.raw.fileno()
        self.loop.add_reader(self.socket, self.on_readable)

    async def execute(self, step: Step) -> Any:
        """Return the step's result. Raises ConnectionLost, or another of Django's database errors."""
        try:
            with self.errors:
                result = await self._execute(*self.encode(step.statement, step.parameters))
        except Error as error:
            raise translate_error(error, is_lost=self.raw.closed, close=self.close) from error.__cause__
        return self.decode_row(result) if step.wants_row else result.command_tuples or 0

    async def _execute(self, prepared: Prepared, values: Any) -> PGresult:
        (statement, types), formats = prepared, self.transformer.formats
        if self.should_prepare(prepared):
            if (name := self.names.get(prepared)) is None:
                name = new_statement_name()
                self.pgconn.send_prepare(name, with_dollar_placeholders(statement), types)
                self.check_result(await self._next_result())
                self.names[prepared] = name
            self.pgconn.send_query_prepared(name, values, formats, Format.BINARY)
            if result := self.check_result(await self._next_result()):
                return result
        self.pgconn.send_query_params(
            with_dollar_placeholders(statement), values, types, formats, Format.BINARY
        )
        answer = await self._next_result()
        if result := self.check_result(answer):
            return result
        raise error_from_result(answer)

    def _next_result(self) -> "asyncio.Future[PGresult]":
        self.pending = self.loop.create_future()
        return self.pending

    def on_readable(self) -> None:
        """Read what the server sent: a result, or, if none is pending, a notice or the connection's end.

        After an ErrorResponse the server may close at once, and libuv signals readability only once: drain
        the socket twice.
        """
        try:
            for _ in range(2):
                self.pgconn.consume_input()
                while not self.pgconn.is_busy():
                    if (result := self.pgconn.get_result()) is None:
                        break
                    self.result = result
                if self._deliver():
                    return
        except psycopg.OperationalError as error:
            self.close(error)

    def _deliver(self) -> bool:
        """If the result is complete, pass it to the future that waits for it; return whether it was."""
        pending, result = self.pending, self.result
        if not pending or not result or self.pgconn.is_busy():
            return False
        self.pending = self.result = None
        if not pending.done():
            pending.set_result(result)
        return True

    def close(self, error: Exception | None = None) -> None:
        if self.is_open:
            self.is_open = False
            self.loop.remove_reader(self.socket)
            self.raw.close()
            self.on_close(self)
        if self.pending and not self.pending.done():
            self.pending.set_exception(error or psycopg.OperationalError("the connection was closed"))


class Pool:
    """At most `size` connections for one event loop, opened on demand."""

    def __init__(self, size: int, run_in_thread: RunInThread) -> None:
        self.size = size
        self.run_in_thread = run_in_thread
        self.sessions: set[LoopSession] = set()
        self.opening = 0
        self.idle: list[LoopSession] = []  # a stack: the one used last has the warmest caches
        self.waiting: deque[asyncio.Future[LoopSession | None]] = deque()
        self.retry_at = 0.0
        self.checks_liveness = False
        self.writer_locks = [asyncio.Lock() for _ in range(WRITER_LOCK_COUNT)]

    async def run_steps(self, steps: Steps[Result]) -> Result:
        """Return the result of the steps, which a thread finishes if the loop cannot."""
        error: Error | None = None
        if session := await self.acquire():
            try:
                step = next(steps)
                while isinstance(step, Step):
                    try:
                        found = await session.execute(step)
                    except Error as fault:
                        error = fault
                        break
                    step = steps.send(found)
            except StopIteration as stop:
                result: Result = stop.value
                return result
            finally:
                self.release(session)
        return await self.run_in_thread(partial(run_steps, steps, error))

    @asynccontextmanager
    async def one_writer(self, user_id: str) -> AsyncIterator[None]:
        """Let one task of this loop at a time write to this user's row, as commit.one_writer one thread."""
        lock = self.writer_locks[hash(user_id) % WRITER_LOCK_COUNT]
        is_ours = True
        if lock.locked():
            try:
                async with asyncio.timeout(WRITER_WAIT_SECONDS):
                    await lock.acquire()
            except TimeoutError:
                is_ours = False
        else:
            await lock.acquire()
        try:
            yield
        finally:
            if is_ours:
                lock.release()

    async def acquire(self) -> LoopSession | None:
        """Return a connection; None if none becomes free in time, or if connecting failed a moment ago.

        Raises OperationalError if connecting fails now.
        """
        if self.idle:
            return self.idle.pop()
        if len(self.sessions) + self.opening < self.size and monotonic() >= self.retry_at:
            self.opening += 1
            self.run_in_thread(connect).add_done_callback(self._on_connected)
        elif not self.sessions and not self.opening:
            return None
        waiter: asyncio.Future[LoopSession | None] = asyncio.get_running_loop().create_future()
        self.waiting.append(waiter)
        try:
            await asyncio.wait([waiter], timeout=CONNECTION_WAIT_SECONDS if self.sessions else None)
        except asyncio.CancelledError:
            if not waiter.cancel() and not waiter.exception() and (session := waiter.result()):
                self.release(session)
            raise
        return None if waiter.cancel() else waiter.result()

    def _on_connected(self, opening: "asyncio.Future[BaseDatabaseWrapper]") -> None:
        self.opening -= 1
        try:
            session = LoopSession(opening.result(), self._on_close)
        except Exception as error:  # noqa: BLE001 - the waiters raise it
            self.retry_at = monotonic() + RECONNECT_SECONDS
            while not self.sessions and (waiter := self._next_waiter()):
                waiter.set_exception(OperationalError(*error.args))  # one each: raising it changes it
            return
        self.sessions.add(session)
        if not self.checks_liveness:
            self.checks_liveness = True
            self._check_liveness()
        self._wake_next(session)

    def _check_liveness(self) -> None:
        """Find closed connections that libuv did not signal: a task would wait for them forever."""
        for session in [*self.sessions]:
            session.on_readable()
        asyncio.get_running_loop().call_later(LIVENESS_SECONDS, self._check_liveness)

    def release(self, session: LoopSession) -> None:
        if session.pending:  # its task was cancelled: the result is still to come
            session.close()
        elif session.is_open:
            self._wake_next(session)

    def _wake_next(self, session: LoopSession) -> None:
        if waiter := self._next_waiter():
            waiter.set_result(session)
        else:
            self.idle.append(session)

    def _next_waiter(self) -> "asyncio.Future[LoopSession | None] | None":
        """Return the first waiter that has not given up."""
        while self.waiting:
            if not (waiter := self.waiting.popleft()).done():
                return waiter
        return None

    def _on_close(self, session: LoopSession) -> None:
        self.sessions.discard(session)
        if session in self.idle:
            self.idle.remove(session)
        while not self.sessions and not self.opening and (waiter := self._next_waiter()):
            waiter.set_result(None)

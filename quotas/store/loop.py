"""The steps of the store in an event loop, where no thread waits for the database.

The connections are made as Django makes its own. Whatever is not plain (no connection is free or to be
had, one dies, a row must be locked) is left to a thread, which goes on with the same steps.
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

from quotas.store.commit import PATIENCE, Step, Steps, perform
from quotas.store.errors import Found, told_apart
from quotas.store.thread import Prepared, Session, fresh_name, numbered

RETRY = 1  # seconds without an attempt to connect, after one that failed
LISTEN = 1  # seconds
TURNS = 256  # locks for all users' rows


class InThread(Protocol):
    """Has a thread do what would block the loop."""

    def __call__(self, act: Callable[[], Found]) -> "asyncio.Future[Found]": ...


def connect() -> BaseDatabaseWrapper:
    db = connections.create_connection(DEFAULT_DB_ALIAS)
    db.ensure_connection()
    return db


class LoopSession(Session):
    """One connection to PostgreSQL, which the loop listens to; one statement at a time."""

    def __init__(self, db: BaseDatabaseWrapper, at_end: Callable[["LoopSession"], None]) -> None:
        super().__init__(db.connection)
        self.pgconn = self.raw.pgconn
        self.errors = db.wrap_database_errors
        self.at_end = at_end
        self.is_open = True
        self.loop = asyncio.get_running_loop()
        self.awaited: asyncio.Future[PGresult] | None = None
        self.latest: PGresult | None = None
        self.socket = self.raw.fileno()
        self.loop.add_reader(self.socket, self.hear)

    async def ask(self, step: Step) -> Any:
        """Return what comes back of a step; raise Django's errors, a CutOff among them."""
        try:
            with self.errors:
                result = await self._result(*self.dumped(step.statement, step.parameters))
        except Error as error:
            raise told_apart(error, is_cut_off=self.raw.closed, close=self.close) from error.__cause__
        return self.loaded(result) if step.wants_row else result.command_tuples or 0

    async def _result(self, prepared: Prepared, values: Any) -> PGresult:
        (statement, types), formats = prepared, self.transformer.formats
        if self.is_worth_keeping(prepared):
            if (name := self.names.get(prepared)) is None:
                name = fresh_name()
                self.pgconn.send_prepare(name, numbered(statement), types)
                self.checked(await self._answer())
                self.names[prepared] = name
            self.pgconn.send_query_prepared(name, values, formats, Format.BINARY)
            if result := self.checked(await self._answer()):
                return result
        self.pgconn.send_query_params(numbered(statement), values, types, formats, Format.BINARY)
        answer = await self._answer()
        if result := self.checked(answer):
            return result
        raise error_from_result(answer)

    def _answer(self) -> "asyncio.Future[PGresult]":
        self.awaited = self.loop.create_future()
        return self.awaited

    def hear(self) -> None:
        """Take in what came; what comes when nothing is awaited is a notice, or the connection's end.

        Behind an error there may be the end, which libuv does not tell of a second time: so look twice.
        """
        try:
            for _ in range(2):
                self.pgconn.consume_input()
                while not self.pgconn.is_busy():
                    if (result := self.pgconn.get_result()) is None:
                        break
                    self.latest = result
                if self._settle():
                    return
        except psycopg.OperationalError as error:
            self.close(error)

    def _settle(self) -> bool:
        """Give whoever waits the result, if all of it is there."""
        awaited, result = self.awaited, self.latest
        if not awaited or not result or self.pgconn.is_busy():
            return False
        self.awaited = self.latest = None
        if not awaited.done():
            awaited.set_result(result)
        return True

    def close(self, error: Exception | None = None) -> None:
        if self.is_open:
            self.is_open = False
            self.loop.remove_reader(self.socket)
            self.raw.close()
            self.at_end(self)
        if self.awaited and not self.awaited.done():
            self.awaited.set_exception(error or psycopg.OperationalError("the connection was closed"))


class Pool:
    """At most `size` connections for one event loop, opened as they are needed."""

    def __init__(self, size: int, in_thread: InThread) -> None:
        self.size = size
        self.in_thread = in_thread
        self.sessions: set[LoopSession] = set()
        self.opening = 0
        self.idle: list[LoopSession] = []  # the one used last is used next: it is warm
        self.waiting: deque[asyncio.Future[LoopSession | None]] = deque()
        self.quiet_until = 0.0
        self.is_listening = False
        self.turns = [asyncio.Lock() for _ in range(TURNS)]

    async def perform(self, steps: Steps[Found]) -> Found:
        """Return what the steps come to."""
        error: Error | None = None
        if session := await self._take():
            try:
                step = next(steps)
                while isinstance(step, Step):
                    try:
                        found = await session.ask(step)
                    except Error as fault:
                        error = fault
                        break
                    step = steps.send(found)
            except StopIteration as stop:
                result: Found = stop.value
                return result
            finally:
                self._give_back(session)
        return await self.in_thread(partial(perform, steps, error))

    @asynccontextmanager
    async def turn(self, user_id: str) -> AsyncIterator[None]:
        """As the store's turns: spare others of this loop the races that they would lose."""
        lock = self.turns[hash(user_id) % TURNS]
        is_ours = True
        if lock.locked():
            try:
                async with asyncio.timeout(PATIENCE):
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

    async def _take(self) -> LoopSession | None:
        """A connection; None if there is no time to wait for one. Raises what connecting raises."""
        if self.idle:
            return self.idle.pop()
        if len(self.sessions) + self.opening < self.size and monotonic() >= self.quiet_until:
            self.opening += 1
            self.in_thread(connect).add_done_callback(self._opened)
        elif not self.sessions and not self.opening:
            return None
        waiter: asyncio.Future[LoopSession | None] = asyncio.get_running_loop().create_future()
        self.waiting.append(waiter)
        try:
            await asyncio.wait([waiter], timeout=PATIENCE if self.sessions else None)
        except asyncio.CancelledError:
            if not waiter.cancel() and not waiter.exception() and (session := waiter.result()):
                self._give_back(session)
            raise
        return None if waiter.cancel() else waiter.result()

    def _opened(self, opening: "asyncio.Future[BaseDatabaseWrapper]") -> None:
        self.opening -= 1
        try:
            session = LoopSession(opening.result(), self._ended)
        except Exception as error:  # noqa: BLE001 - told to whoever waits
            self.quiet_until = monotonic() + RETRY
            while not self.sessions and (waiter := self._next_waiter()):
                waiter.set_exception(OperationalError(*error.args))  # each his own, for he adds to it
            return
        self.sessions.add(session)
        if not self.is_listening:
            self.is_listening = True
            self._listen()
        self._hand_over(session)

    def _listen(self) -> None:
        """Look for ends that the loop was not told of: who waits by such a connection would wait for ever."""
        for session in [*self.sessions]:
            session.hear()
        asyncio.get_running_loop().call_later(LISTEN, self._listen)

    def _give_back(self, session: LoopSession) -> None:
        if session.awaited:  # whoever waited for it was cancelled
            session.close()
        elif session.is_open:
            self._hand_over(session)

    def _hand_over(self, session: LoopSession) -> None:
        if waiter := self._next_waiter():
            waiter.set_result(session)
        else:
            self.idle.append(session)

    def _next_waiter(self) -> "asyncio.Future[LoopSession | None] | None":
        """The first of those who have not given up."""
        while self.waiting:
            if not (waiter := self.waiting.popleft()).done():
                return waiter
        return None

    def _ended(self, session: LoopSession) -> None:
        self.sessions.discard(session)
        if session in self.idle:
            self.idle.remove(session)
        while not self.sessions and not self.opening and (waiter := self._next_waiter()):
            waiter.set_result(None)

"""The driver of an event loop, where no thread waits for the database.

Each step takes one of the pool's connections, which have Django's own settings. A step runs in a thread if no
connection is free in time, if it locks a row, or if it may wait for something else. Only this driver calls
libpq.
"""

import asyncio
import re
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import count
from time import monotonic
from typing import Any, Protocol

import psycopg
from django.db import DEFAULT_DB_ALIAS, Error, OperationalError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, Format
from psycopg.pq.abc import PGresult

from quotas.store import thread
from quotas.store.errors import STALE_STATEMENT_STATES, ConnectionLost, translate_error
from quotas.store.statements import Statement, Statements, statements_of, statements_of_all
from quotas.store.steps import Attempt, DatabaseStep, Result, Step, Steps

RECONNECT_SECONDS = 1  # between a failed attempt to connect and the next one
CONNECTION_WAIT_SECONDS = 1  # for one of LANE_CONNECTIONS; then a thread runs the step
LIVENESS_SECONDS = 1  # between checks of the connections

Prepared = tuple[str, tuple[int, ...] | None]  # a statement, and the types of its parameters
OK_STATUSES = (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK)
STATEMENT_NUMBERS = count()


class RunInThread(Protocol):
    """Runs in a thread what would block the loop."""

    def __call__(self, function: Callable[[], Result]) -> "asyncio.Future[Result]": ...


def connect() -> BaseDatabaseWrapper:
    db = connections.create_connection(DEFAULT_DB_ALIAS)
    db.ensure_connection()
    return db


@lru_cache
def with_dollar_placeholders(text: str) -> tuple[bytes, dict[str, int]]:
    """Return the text with the placeholders of PostgreSQL's protocol, and the number of each name."""
    numbers: dict[str, int] = {}

    def dollar(match: re.Match[str]) -> str:
        name = match[1]
        return f"${numbers.setdefault(name, len(numbers) + 1)}" if name else "%"

    return re.sub(r"%\((\w+)\)s|%%", dollar, text).encode(), numbers


class LoopSession:
    """One connection to PostgreSQL that an event loop reads; it runs one statement at a time.

    Once a statement was used prepare_threshold times, it is prepared.
    """

    def __init__(self, db: BaseDatabaseWrapper, on_close: Callable[["LoopSession"], None]) -> None:
        self.raw: psycopg.Connection[Any] = db.connection
        self.pgconn = self.raw.pgconn
        self.transformer = Transformer(thread.binary_cursor(self.raw))
        self.errors = db.wrap_database_errors
        self.on_close = on_close
        self.is_open = True
        self.uses: Counter[Prepared] = Counter()
        self.names: dict[Prepared, bytes] = {}
        self.loop = asyncio.get_running_loop()
        self.pending: asyncio.Future[PGresult] | None = None
        self.result: PGresult | None = None
        self.socket = self.raw.fileno()
        self.loop.add_reader(self.socket, self.on_readable)

    async def run(self, statements: Statements[Result]) -> Result:
        """Return the statements' result. Raises ConnectionLost, or another of Django's database errors."""
        try:
            statement = next(statements)
            while True:
                statement = statements.send(await self.execute(statement))
        except StopIteration as stop:
            result: Result = stop.value
            return result

    async def execute(self, statement: Statement) -> Any:
        try:
            with self.errors:
                result = await self._execute(statement)
        except Error as error:
            raise translate_error(error, is_lost=self.raw.closed, close=self.close) from error.__cause__
        return self.decode_row(result) if statement.wants_row else result.command_tuples or 0

    async def _execute(self, statement: Statement) -> PGresult:
        text, numbers = with_dollar_placeholders(statement.text)
        values = self.encode(statement.parameters, numbers)
        types, formats = self.transformer.types, self.transformer.formats
        prepared = statement.text, types
        if self.should_prepare(prepared):
            if (name := self.names.get(prepared)) is None:
                name = b"kept_%d" % next(STATEMENT_NUMBERS)
                self.pgconn.send_prepare(name, text, types)
                self.check_result(await self._next_result())
                self.names[prepared] = name
            self.pgconn.send_query_prepared(name, values, formats, Format.BINARY)
            if result := self.check_result(await self._next_result()):
                return result
        self.pgconn.send_query_params(text, values, types, formats, Format.BINARY)
        answer = await self._next_result()
        if result := self.check_result(answer):
            return result
        raise error_from_result(answer)

    def encode(self, parameters: Mapping[str, Any], numbers: dict[str, int]) -> Any:
        if parameters.keys() != numbers.keys():
            raise TypeError(f"The parameters are {[*parameters]}, the placeholders {[*numbers]}.")
        values = [parameters[name] for name in numbers]
        return self.transformer.dump_sequence(values, [PyFormat.AUTO] * len(values))

    def decode_row(self, result: PGresult) -> Sequence[Any]:
        self.transformer.set_pgresult(result, set_loaders=True, format=Format.BINARY)
        row: Sequence[Any] | None = self.transformer.load_row(0, tuple)
        assert row  # noqa: S101 - for mypy: a snapshot always has one
        return row

    def should_prepare(self, prepared: Prepared) -> bool:
        """Count a use of the statement; return whether it is used often enough to be prepared."""
        self.uses[prepared] += 1
        return self.raw.prepare_threshold is not None and self.uses[prepared] > self.raw.prepare_threshold

    def check_result(self, result: PGresult) -> PGresult | None:
        """Return the result; None if the prepared statement is stale. Raises psycopg's error if it failed."""
        if result.status in OK_STATUSES:
            return result
        if self.raw.closed:
            raise psycopg.OperationalError("the connection was lost")
        error = error_from_result(result)
        if error.sqlstate not in STALE_STATEMENT_STATES:
            raise error
        self.names.clear()
        self.uses.clear()
        return None

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


def _statements(step: Step) -> Statements[Any] | None:
    if isinstance(step, Attempt):
        return None if step.must_lock else statements_of_all(step.steps(), "postgresql")
    return statements_of(step, "postgresql") if isinstance(step, DatabaseStep) else None


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

    async def run_steps(self, steps: Steps[Result]) -> Result:
        """Return the result of the steps. They never leave the loop; a thread may run single ones."""
        try:
            step = next(steps)
            while True:
                try:
                    found = await self._run_step(step)
                except Exception as error:  # noqa: BLE001 - the steps handle it, or raise it
                    step = steps.throw(error)
                else:
                    step = steps.send(found)
        except StopIteration as stop:
            result: Result = stop.value
            return result
        finally:
            steps.close()

    async def _run_step(self, step: Step) -> Any:
        if (statements := _statements(step)) and (session := await self.acquire()):
            try:
                return await session.run(statements)
            except ConnectionLost:
                self._close_dead()  # a server that ends one session may have ended others
                raise
            finally:
                self.release(session)
        return await self.run_in_thread(partial(thread.run_step, step))

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
        self._close_dead()
        asyncio.get_running_loop().call_later(LIVENESS_SECONDS, self._check_liveness)

    def _close_dead(self) -> None:
        """Close the connections that ended: libuv may not signal it, and a task would wait forever."""
        for session in [*self.sessions]:
            session.on_readable()

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

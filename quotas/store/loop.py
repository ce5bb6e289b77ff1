"""Connections to PostgreSQL that an event loop reads, with Django's own settings.

Only this module calls libpq. It knows statements, and no quota.
"""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import lru_cache, partial
from itertools import count
from math import inf
from time import monotonic
from typing import Any, Protocol

import psycopg
from django.db import DEFAULT_DB_ALIAS, Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg import capabilities
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, Format, TransactionStatus
from psycopg.pq.abc import PGresult

from quotas.store import thread
from quotas.store.errors import STALE_STATEMENT_STATES, LostRace, Overdue, translate_error
from quotas.store.statements import Statement, Statements
from quotas.store.steps import Result

STATEMENT_SECONDS = 4  # for a statement; it may wait twice for sql.LOCK_SECONDS
WATCH_SECONDS = 0.25  # between checks of the connections
HANG_SECONDS = 0.25  # after which a statement counts as one that hangs
FAR_SECONDS = 0.0005  # a database whose quickest answer takes longer is far
THREAD_SECONDS = 5  # for a step in a thread
CANCEL_SECONDS = 2  # to cancel a statement that took too long

Prepared = tuple[str, tuple[int, ...] | None]  # a statement, and the types of its parameters
OK_STATUSES = (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK)
STATEMENT_NUMBERS = count()


class RunInThread(Protocol):
    """Runs in a thread what would block the loop."""

    def __call__(self, function: Callable[[], Result]) -> "asyncio.Future[Result]": ...


async def in_time(future: "asyncio.Future[Result]") -> Result:
    """Return the result of a thread. Raises Overdue if it takes longer than THREAD_SECONDS."""
    try:
        async with asyncio.timeout(THREAD_SECONDS):
            return await future
    except TimeoutError:
        raise Overdue("A thread did not end in time.") from None


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
        self.sent_at = 0.0
        self.quickest = inf  # seconds between a statement and its result
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
        except Overdue:
            raise
        except Error as error:
            raise translate_error(
                error, is_lost=not self.is_open or self.raw.closed, close=self.close
            ) from error.__cause__
        return self.decode_rows(result) if statement.wants_rows else result.command_tuples or 0

    async def _execute(self, statement: Statement) -> PGresult:
        if not self.is_open:
            raise psycopg.OperationalError("the connection was closed")
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

    def decode_rows(self, result: PGresult) -> list[tuple[Any, ...]]:
        self.transformer.set_pgresult(result, set_loaders=True, format=Format.BINARY)
        return self.transformer.load_rows(0, result.ntuples, tuple)

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
        if self.pgconn.transaction_status == TransactionStatus.INERROR:
            raise LostRace("A stale statement has failed the transaction.")
        return None

    def _next_result(self) -> "asyncio.Future[PGresult]":
        self.sent_at = monotonic()
        self.pending = self.loop.create_future()
        return self.pending

    @property
    def under_way(self) -> float:
        """For how many seconds a result has been waited for."""
        return monotonic() - self.sent_at if self.pending else 0.0

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
        self.quickest = min(self.quickest, monotonic() - self.sent_at)
        if not pending.done():
            pending.set_result(result)
        return True

    def close(self, error: Exception | None = None) -> None:
        if self.is_open:
            self.leave(error or psycopg.OperationalError("the connection was closed"))
            self.raw.close()

    def leave(self, error: Exception) -> None:
        """Use the connection no more, and raise the error in whoever waits for a result."""
        self.is_open = False
        self.loop.remove_reader(self.socket)
        if self.pending and not self.pending.done():
            self.pending.set_exception(error)
        self.on_close(self)


class Connections:
    """The connections of one event loop, opened on demand and kept. Whoever uses them limits their number."""

    def __init__(self, run_in_thread: RunInThread, on_watch: Callable[[], None]) -> None:
        self.run_in_thread = run_in_thread
        self.on_watch = on_watch
        self.is_slow = False  # whether the database is far, or hangs
        self.sessions: set[LoopSession] = set()
        self.idle: list[LoopSession] = []  # a stack: the one used last has the warmest caches
        self.is_watched = False

    @asynccontextmanager
    async def use(self) -> AsyncIterator[LoopSession]:
        """Lend a connection. Raises OperationalError if a new one cannot be opened."""
        session = self.idle.pop() if self.idle else await self._open()
        try:
            yield session
        finally:
            self._take_back(session)

    async def _open(self) -> LoopSession:
        session = LoopSession(await in_time(self.run_in_thread(connect)), self._on_close)
        self.sessions.add(session)
        if not self.is_watched:
            self.is_watched = True
            self._watch()
        return session

    def _take_back(self, session: LoopSession) -> None:
        if session.pgconn.transaction_status != TransactionStatus.IDLE:  # after an error in a transaction
            session.close()
        elif session.is_open:
            self.idle.append(session)

    def _watch(self) -> None:
        """Give up statements that take too long, and close the connections that ended.

        A server that hangs keeps its connections, and libuv may not signal that one ended: a task would wait
        forever.
        """
        for session in [*self.sessions]:
            session.on_readable()
            if session.under_way > STATEMENT_SECONDS:
                session.leave(Overdue("The database did not answer in time."))
                self.run_in_thread(partial(_cancel_and_close, session.raw))
        is_far = min((session.quickest for session in self.sessions), default=0) > FAR_SECONDS
        self.is_slow = is_far or any(session.under_way > HANG_SECONDS for session in self.sessions)
        asyncio.get_running_loop().call_later(WATCH_SECONDS, self._watch)
        self.on_watch()

    def _on_close(self, session: LoopSession) -> None:
        self.sessions.discard(session)
        if session in self.idle:
            self.idle.remove(session)
        for other in [*self.sessions]:  # a server that ends one session may have ended others
            other.on_readable()


def _cancel_and_close(raw: "psycopg.Connection[Any]") -> None:
    if capabilities.has_cancel_safe():
        with suppress(psycopg.Error):
            raw.cancel_safe(timeout=CANCEL_SECONDS)
    raw.close()

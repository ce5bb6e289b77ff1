"""The verbs in an event loop with two threads, as the site drives them, and locks that hold them up."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from threading import Barrier
from typing import Any

import psycopg
import pytest
from django.db import connection, connections

from quotas.models import ChallengeQuota, LedgerEntry
from quotas.rules.values import Quota
from quotas.store import loop
from quotas.store.batches import Batches
from quotas.store.statements import Statement
from tests.conftest import USER
from tests.tools.holds import row_held
from tests.tools.site import url_of_the_test_database

OTHER = "user_2"
quotas = ChallengeQuota.objects


def run(work: Callable[[Batches], Coroutine[Any, Any, Any]], size: int = 2) -> Any:
    """Run the work in an event loop, with a driver of this many connections and two threads."""

    async def main() -> Any:
        loop = asyncio.get_running_loop()
        driver = Batches(size, lambda function: asyncio.wrap_future(threads.submit(function), loop=loop))
        try:
            return await work(driver)
        finally:
            for session in [*driver.connections.sessions]:
                session.close()

    with ThreadPoolExecutor(2) as threads:
        try:
            return asyncio.run(main())
        finally:
            both = Barrier(2)  # otherwise one thread might close twice, and the other not at all
            for closed in [threads.submit(lambda: (both.wait(), connections.close_all())) for _ in range(2)]:
                closed.result()


async def read(driver: Batches, user_id: str = USER) -> Quota:
    return await driver.run_steps(quotas.current.steps(user_id))


async def spend(driver: Batches, key: str | None = None, user_id: str = USER, cost: int = 1) -> Any:
    return await driver.run_steps(quotas.consume.steps(user_id, cost, key=key))


def spent(user_id: str = USER) -> int:
    return LedgerEntry.objects.filter(user_id=user_id, kind="consumed").count()


def held(user_id: str = USER) -> AbstractContextManager[None]:
    """Lock the user's row in another session."""
    return row_held(url_of_the_test_database(), user_id)


@contextmanager
def held_table(table: str, mode: str = "ACCESS EXCLUSIVE") -> Iterator[None]:
    """Lock a whole table in another session: from reads too, or in SHARE mode from writes only."""
    with psycopg.connect(url_of_the_test_database()) as other:
        other.execute(f"LOCK TABLE {table} IN {mode} MODE")
        yield


async def until(is_so: Callable[[], bool]) -> None:
    for _ in range(500):
        if is_so():
            return
        await asyncio.sleep(0.02)
    pytest.fail("The condition was not met in time.")


def waiting() -> list[int]:
    """The server processes that wait for a lock."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        return [pid for (pid,) in cursor.fetchall()]


def terminate(pids: list[int]) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pid) FROM unnest(%s) AS pid", [pids])


@contextmanager
def statements_sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Record the statements that the loop sends, by their first words."""
    texts: list[str] = []
    execute = loop.LoopSession.execute

    async def recorded(session: loop.LoopSession, statement: Statement) -> Any:
        texts.append(kind_of(statement.text))
        return await execute(session, statement)

    with monkeypatch.context() as patched:
        patched.setattr(loop.LoopSession, "execute", recorded)
        yield texts


def kind_of(text: str) -> str:
    if "WITH ORDINALITY" in text:
        return "read together"
    if "held AS" in text:
        return "write together"
    if "WITH done" in text:
        return "write"
    return "read" if "clock_timestamp" in text else text.split()[0].lower()

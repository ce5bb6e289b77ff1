"""The steps of the store in an event loop: no task blocks another, gets its result, or loses a unit."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from threading import Barrier, current_thread
from typing import Any

import psycopg
import pytest
from django.db import OperationalError, connection, connections

from quotas import metrics
from quotas.models import ChallengeQuota, LedgerEntry, Plan
from quotas.rules.values import Quota
from quotas.store import commit, loop, plan_cache, thread
from quotas.store.loop import Pool, with_dollar_placeholders
from quotas.store.statements import Statement
from quotas.store.steps import InThread, Result, Steps, Turn
from tests.conftest import USER
from tests.store.test_thread import altered_column
from tests.tools.fast_path import outside
from tests.tools.postgres import free_port
from tests.tools.site import url_of_the_test_database

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True, serialized_rollback=True)]
OTHER = "user_2"
quotas = ChallengeQuota.objects


def run(work: Callable[[Pool], Coroutine[Any, Any, Any]], size: int = 3) -> Any:
    """Run the work in an event loop with a pool and two threads, as the site does."""

    async def main() -> Any:
        loop = asyncio.get_running_loop()
        pool = Pool(size, lambda function: asyncio.wrap_future(threads.submit(function), loop=loop))
        try:
            return await work(pool)
        finally:
            while pool.opening:
                await asyncio.sleep(0.01)
            for session in [*pool.idle]:
                session.close()

    with ThreadPoolExecutor(2) as threads:
        try:
            return asyncio.run(main())
        finally:
            both = Barrier(2)  # otherwise one thread might close twice, and the other not at all
            for closed in [threads.submit(lambda: (both.wait(), connections.close_all())) for _ in range(2)]:
                closed.result()


async def read(pool: Pool, user_id: str = USER) -> Quota:
    return await pool.run_steps(quotas.current.steps(user_id))


async def spend(pool: Pool, key: str | None = None, user_id: str = USER) -> Any:
    return await pool.run_steps(quotas.consume.steps(user_id, key=key))


def spent(user_id: str = USER) -> int:
    return LedgerEntry.objects.filter(user_id=user_id, kind="consumed").count()


@contextmanager
def held(user_id: str = USER) -> Iterator["psycopg.Connection[Any]"]:
    """Lock the user's row in another session."""
    with psycopg.connect(url_of_the_test_database()) as other:
        other.execute("SELECT 1 FROM challenge_quotas WHERE user_id = %s FOR UPDATE", [user_id])
        yield other


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


def test_each_gets_its_own_answer_however_few_the_connections() -> None:
    users = [f"user_{number}" for number in range(60)]
    for number, user_id in enumerate(users):
        quotas.consume(user_id, 1 + number % 20)

    async def work(pool: Pool) -> list[Quota]:
        found = await asyncio.gather(*(read(pool, user_id) for user_id in users * 5))
        assert (len(pool.sessions), len(pool.idle), pool.opening) == (3, 3, 0)
        return found

    found = run(work)
    assert [quota.user_id for quota in found] == users * 5
    assert [quota.quota_remaining for quota in found] == [19 - number % 20 for number in range(60)] * 5


def test_a_key_spends_once_however_often_it_is_sent_at_once() -> None:
    async def work(pool: Pool) -> list[Any]:
        await read(pool)  # caches the plan
        return await asyncio.gather(*(spend(pool, "a key") for _ in range(20)))

    receipts = run(work)
    assert spent() == 1
    assert sorted(receipt.is_replay for receipt in receipts) == [False] + [True] * 19


def test_a_period_goes_on_by_the_version_it_began_under() -> None:
    plan = Plan.objects.get(is_default=True)

    def edit() -> None:
        plan.allowance, plan.period_seconds = 7, 3_600
        plan.save()

    async def work(pool: Pool) -> list[Quota]:
        await spend(pool)
        outside(edit)
        plan_cache.clear()  # as in another process, whose first user has the new version
        await read(pool, OTHER)
        return [await read(pool), await read(pool, OTHER)]

    found = [
        (quota.plan.version, quota.quota_limit, quota.resets_at - quota.last_reset_date)
        for quota in run(work)
    ]
    assert found == [(1, 20, timedelta(days=1)), (2, 7, timedelta(hours=1))]


def test_who_waits_for_a_row_holds_up_nobody_else() -> None:
    quotas.current(USER)

    async def work(pool: Pool) -> None:
        await read(pool, OTHER)
        with held():
            stuck = [asyncio.create_task(spend(pool)) for _ in range(4)]
            await until(lambda: bool(outside(waiting)))
            for _ in range(5):
                assert (await read(pool, OTHER)).quota_remaining == 20
            assert not any(task.done() for task in stuck)
        await asyncio.gather(*stuck)

    run(work)
    assert spent() == 4


def test_a_thread_helps_out_when_no_connection_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CONNECTION_WAIT_SECONDS", 0.05)
    quotas.current(USER)

    async def work(pool: Pool) -> None:
        with held():
            stuck = asyncio.create_task(spend(pool))
            await until(lambda: bool(outside(waiting)))
            assert (await read(pool, OTHER)).quota_remaining == 20
        await stuck

    run(work, size=1)
    assert spent() == 1


def test_a_connection_that_died_while_it_was_idle_is_replaced() -> None:
    async def work(pool: Pool) -> None:
        await asyncio.gather(*(read(pool) for _ in range(3)))
        await until(lambda: len(pool.idle) == 3)
        outside(lambda: terminate([session.raw.info.backend_pid for session in pool.idle]))
        await until(lambda: len(pool.sessions) == 0)
        assert pool.idle == []
        assert (await spend(pool)).quota.quota_remaining == 19
        assert len(pool.sessions) == 1

    run(work)
    assert spent() == 1


def test_a_spend_whose_connection_dies_is_made_once() -> None:
    quotas.current(USER)

    async def work(pool: Pool) -> Any:
        with held():
            stuck = asyncio.create_task(spend(pool))
            await until(lambda: bool(outside(waiting)))
            [lost] = outside(waiting)
            outside(lambda: terminate([lost]))
            await until(lambda: outside(waiting) not in ([], [lost]))  # the same spend, on a new connection
        return await stuck

    assert run(work).quota.quota_remaining == 19
    assert spent() == 1


def test_whoever_waits_for_a_connection_that_dies_is_answered_by_a_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "CONNECTION_WAIT_SECONDS", 600)
    quotas.current(USER)
    quotas.current(OTHER)

    async def work(pool: Pool) -> list[Quota]:
        with held():
            stuck = asyncio.create_task(spend(pool))
            await until(lambda: bool(outside(waiting)))
            others = [asyncio.create_task(read(pool, OTHER)) for _ in range(4)]
            await until(lambda: len(pool.waiting) == 4)
            outside(lambda: terminate(waiting()))
            found = await asyncio.gather(*others)
        await stuck
        return found

    assert [quota.user_id for quota in run(work, size=1)] == [OTHER] * 4


def test_steps_end_at_once_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread, "execute", lambda _: 1 / 0)
    monkeypatch.setattr(commit, "UNLOCKED_TRIES", 0)
    steps = quotas.consume.steps(USER)
    with pytest.raises(ZeroDivisionError) as error:
        thread.run_steps(steps)
    assert error.value
    assert steps.gi_frame is None
    assert not connection.in_atomic_block


def test_a_lock_is_held_in_a_thread_and_the_loop_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "UNLOCKED_TRIES", 0)
    quotas.current(USER)

    async def work(pool: Pool) -> None:
        with held():
            stuck = asyncio.create_task(spend(pool))
            await until(lambda: bool(outside(waiting)))
            assert not pool.sessions  # a thread's own connection waits for the lock
            assert (await pool.run_steps(asking(lambda: "in time"))) == "in time"
        await stuck

    run(work)
    assert spent() == 1


def asking(function: Callable[[], Result]) -> Steps[Result]:
    result: Result = yield InThread(function)
    return result


def test_what_may_wait_is_called_in_a_thread() -> None:
    async def work(pool: Pool) -> str:
        return await pool.run_steps(asking(lambda: current_thread().name))

    assert run(work) != current_thread().name


def test_the_steps_get_the_error_of_what_a_thread_called() -> None:
    def steps() -> Steps[str]:
        try:
            yield InThread(lambda: 1 / 0)
        except ZeroDivisionError:
            return "handled"
        return "not raised"

    assert run(lambda pool: pool.run_steps(steps())) == "handled"


@pytest.mark.parametrize("parameters", [{}, {"n": 1, "unknown": 2}], ids=["missing", "unknown"])
def test_a_statement_with_other_parameters_than_it_names_is_not_sent(parameters: dict[str, int]) -> None:
    async def work(pool: Pool) -> None:
        await read(pool)
        with pytest.raises(TypeError, match="placeholders"):
            await pool.idle[0].execute(Statement("SELECT %(n)s", parameters))

    run(work)


def test_a_name_that_is_repeated_is_one_parameter() -> None:
    text = "SELECT %(b)s + %(a)s %% %(b)s"
    assert with_dollar_placeholders(text) == (b"SELECT $1 + $2 % $1", {"b": 1, "a": 2})


def test_a_migration_that_changes_a_column_under_warm_connections_is_no_error() -> None:
    quotas.current(USER)

    async def work(pool: Pool) -> None:
        for _ in range(10):
            await asyncio.gather(*(read(pool) for _ in range(3)))
            await spend(pool)
        assert all(session.names for session in pool.idle)
        with altered_column():
            await asyncio.gather(*(read(pool) for _ in range(3)))
            await spend(pool)
        await spend(pool)

    run(work)
    assert spent() == 12


def test_who_gives_up_leaves_no_answer_to_the_next() -> None:
    quotas.current(USER)

    async def work(pool: Pool) -> None:
        await read(pool, OTHER)
        with held():
            stuck = asyncio.create_task(spend(pool))
            await until(lambda: bool(outside(waiting)))
            stuck.cancel()
            with pytest.raises(asyncio.CancelledError):
                await stuck
            assert (await read(pool, OTHER)).user_id == OTHER
        assert (await read(pool, OTHER)).user_id == OTHER

    run(work, size=1)
    assert spent() <= 1


def test_those_who_wait_are_told_when_no_connection_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(pool: Pool) -> None:
        settings = connections["default"].settings_dict
        with monkeypatch.context() as away:
            away.setitem(settings, "PORT", str(free_port()))
            answers = await asyncio.gather(*(read(pool) for _ in range(8)), return_exceptions=True)
            assert {type(answer) for answer in answers} == {OperationalError}
            await until(lambda: pool.opening == 0)
            assert (len(pool.sessions), len(pool.waiting)) == (0, 0)
        assert (await read(pool)).quota_remaining == 20  # by a thread: the pool does not connect for a second
        pool.retry_at = 0
        await read(pool)
        assert len(pool.sessions) == 1

    run(work)


def without_turns(steps: Steps[Any]) -> Steps[Any]:
    assert isinstance(next(steps), Turn)
    return (yield from steps)


def test_writers_of_one_row_take_turns_and_lose_no_race(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lost() -> float:
        return float(metrics.LOST_RACES._value.get())

    async def without_locks(pool: Pool) -> None:
        before = lost()
        await asyncio.gather(*(pool.run_steps(without_turns(quotas.consume.steps(OTHER))) for _ in range(10)))
        assert lost() > before

    async def work(pool: Pool) -> None:
        await asyncio.gather(read(pool), read(pool, OTHER))
        await without_locks(pool)
        before = lost()
        await asyncio.gather(*(spend(pool) for _ in range(10)))
        assert lost() == before

    monkeypatch.setattr(loop, "WRITER_WAIT_SECONDS", 60)
    run(work)
    assert spent() == spent(OTHER) == 10


def test_a_turn_is_waited_for_no_longer_than_its_limit_whoever_else_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "WRITER_WAIT_SECONDS", 0.2)

    async def work(pool: Pool) -> None:
        first, second, third = list[asyncio.Lock](), list[asyncio.Lock](), list[asyncio.Lock]()
        await pool._take_turn(USER, first)
        waiter = asyncio.create_task(pool._take_turn(USER, second))
        await asyncio.sleep(0)
        first.pop().release()  # it is the waiter's now, although nobody has it yet
        async with asyncio.timeout(5):
            await pool._take_turn(USER, third)
        await waiter
        assert (len(second), len(third)) == (1, 0)

    run(work)

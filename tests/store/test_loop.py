"""The steps of the store in an event loop: no task blocks another, gets its result, or loses a unit."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from threading import current_thread

import pytest
from django.db import OperationalError, connection, connections

from quotas.models import Plan
from quotas.rules.values import Quota
from quotas.store import commit, loop, plan_cache, thread
from quotas.store.batches import Batches
from quotas.store.errors import Overdue
from quotas.store.loop import with_dollar_placeholders
from quotas.store.statements import Statement
from quotas.store.steps import InThread, Result, Steps
from tests.conftest import USER
from tests.store.test_thread import altered_column
from tests.tools.fast_path import outside
from tests.tools.in_loop import (
    OTHER,
    held_table,
    quotas,
    read,
    run,
    spend,
    spent,
    terminate,
    until,
    waiting,
)
from tests.tools.postgres import free_port

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True, serialized_rollback=True)]


def test_each_gets_its_own_answer_however_few_the_connections() -> None:
    users = [f"user_{number}" for number in range(60)]
    for number, user_id in enumerate(users):
        quotas.consume(user_id, 1 + number % 20)

    async def work(driver: Batches) -> list[Quota]:
        found = await asyncio.gather(*(read(driver, user_id) for user_id in users * 5))
        assert len(driver.connections.sessions) == len(driver.connections.idle) <= 2
        return found

    found = run(work)
    assert [quota.user_id for quota in found] == users * 5
    assert [quota.quota_remaining for quota in found] == [19 - number % 20 for number in range(60)] * 5


def test_a_period_goes_on_by_the_version_it_began_under() -> None:
    plan = Plan.objects.get(is_default=True)

    def edit() -> None:
        plan.allowance, plan.period_seconds = 7, 3_600
        plan.save()

    async def work(driver: Batches) -> list[Quota]:
        await spend(driver)
        outside(edit)
        plan_cache.clear()  # as in another process, whose first user has the new version
        await read(driver, OTHER)
        return [await read(driver), await read(driver, OTHER)]

    found = [
        (quota.plan.version, quota.quota_limit, quota.resets_at - quota.last_reset_date)
        for quota in run(work)
    ]
    assert found == [(1, 20, timedelta(days=1)), (2, 7, timedelta(hours=1))]


def test_a_connection_that_died_while_it_was_idle_is_replaced() -> None:
    async def work(driver: Batches) -> None:
        await read(driver)
        assert driver.connections.idle
        outside(lambda: terminate([session.raw.info.backend_pid for session in driver.connections.idle]))
        await until(lambda: len(driver.connections.sessions) == 0)
        assert driver.connections.idle == []
        assert (await spend(driver)).quota.quota_remaining == 19
        assert len(driver.connections.sessions) == 1

    run(work)
    assert spent() == 1


def test_steps_end_at_once_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread, "execute", lambda _: 1 / 0)
    monkeypatch.setattr(commit, "UNLOCKED_TRIES", 0)
    steps = quotas.consume.steps(USER)
    with pytest.raises(ZeroDivisionError) as error:
        thread.run_steps(steps)
    assert error.value
    assert steps.gi_frame is None
    assert not connection.in_atomic_block


def asking(function: Callable[[], Result]) -> Steps[Result]:
    result: Result = yield InThread(function)
    return result


def test_what_may_wait_is_called_in_a_thread() -> None:
    async def work(driver: Batches) -> str:
        return await driver.run_steps(asking(lambda: current_thread().name))

    assert run(work) != current_thread().name


def test_the_steps_get_the_error_of_what_a_thread_called() -> None:
    def steps() -> Steps[str]:
        try:
            yield InThread(lambda: 1 / 0)
        except ZeroDivisionError:
            return "handled"
        return "not raised"

    assert run(lambda driver: driver.run_steps(steps())) == "handled"


@pytest.mark.parametrize("parameters", [{}, {"n": 1, "unknown": 2}], ids=["missing", "unknown"])
def test_a_statement_with_other_parameters_than_it_names_is_not_sent(parameters: dict[str, int]) -> None:
    async def work(driver: Batches) -> None:
        await read(driver)
        with pytest.raises(TypeError, match="placeholders"):
            await driver.connections.idle[0].execute(Statement("SELECT %(n)s", parameters))

    run(work)


def test_a_name_that_is_repeated_is_one_parameter() -> None:
    text = "SELECT %(b)s + %(a)s %% %(b)s"
    assert with_dollar_placeholders(text) == (b"SELECT $1 + $2 % $1", {"b": 1, "a": 2})


def test_a_migration_that_changes_a_column_under_warm_connections_is_no_error() -> None:
    quotas.current(USER)

    async def work(driver: Batches) -> None:
        for _ in range(10):
            await asyncio.gather(*(read(driver) for _ in range(3)))
            await spend(driver)
        assert all(session.names for session in driver.connections.idle)
        with altered_column():
            await asyncio.gather(*(read(driver) for _ in range(3)))
            await spend(driver)
        await spend(driver)

    run(work)
    assert spent() == 12


def test_a_stale_statement_within_a_transaction_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "UNLOCKED_TRIES", 0)
    quotas.current(USER)

    async def work(driver: Batches) -> None:
        for _ in range(10):
            await spend(driver)
        assert all(session.names for session in driver.connections.idle)
        with altered_column():
            await spend(driver)
        await spend(driver)

    run(work)
    assert spent() == 12


def test_who_gives_up_leaves_no_answer_to_the_next() -> None:
    quotas.current(USER)

    async def work(driver: Batches) -> None:
        await read(driver, OTHER)
        with held_table("challenge_quotas"):
            stuck = asyncio.create_task(read(driver))
            await until(lambda: bool(outside(waiting)))
            stuck.cancel()
            with pytest.raises(asyncio.CancelledError):
                await stuck
        assert (await read(driver, OTHER)).user_id == OTHER

    run(work, size=2)


def test_those_who_wait_are_told_when_no_connection_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(driver: Batches) -> None:
        settings = connections["default"].settings_dict
        with monkeypatch.context() as away:
            away.setitem(settings, "PORT", str(free_port()))
            answers = await asyncio.gather(*(read(driver) for _ in range(100)), return_exceptions=True)
            assert {type(answer) for answer in answers} == {OperationalError}
            assert not driver.connections.sessions
            assert not driver.waiting
        assert (await read(driver)).quota_remaining == 20

    run(work)


def test_a_statement_that_takes_too_long_is_given_up_and_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "STATEMENT_SECONDS", 0.3)
    monkeypatch.setattr(loop, "WATCH_SECONDS", 0.1)
    quotas.current(USER)

    async def work(driver: Batches) -> None:
        await read(driver)
        with held_table("challenge_quotas"):
            async with asyncio.timeout(10):
                answers = await asyncio.gather(*(read(driver) for _ in range(5)), return_exceptions=True)
            assert {type(answer) for answer in answers} == {Overdue}
            await until(lambda: not outside(waiting))
        assert (await spend(driver)).quota.quota_remaining == 19

    run(work)

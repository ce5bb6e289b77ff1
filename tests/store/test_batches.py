"""Attempts that are carried out together: each has its own outcome, and an error of one is nobody else's."""

import asyncio
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import pytest
from django.db import DataError, OperationalError

from quotas.models import ChallengeQuota, LedgerEntry, Plan
from quotas.rules.outcomes import Change, Exhausted, KeyReused
from quotas.rules.values import Actor
from quotas.store import batches, commit, sql
from quotas.store.batches import Batches
from quotas.store.errors import LOCK_NOT_AVAILABLE, Overdue, sqlstate
from quotas.store.statements import Statements
from tests.conftest import USER
from tests.tools.fast_path import outside
from tests.tools.holds import row_half_opened
from tests.tools.in_loop import (
    OTHER,
    held,
    held_table,
    quotas,
    read,
    run,
    spend,
    spent,
    statements_sent,
    terminate,
    until,
    waiting,
)
from tests.tools.site import url_of_the_test_database

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True, serialized_rollback=True)]
STAFF = Actor("staff", "a test")
USERS = [f"user_{number}" for number in range(20)]
USERS_FIRST = [USER, *(user for user in USERS if user != USER)]


async def lined_up(driver: Batches, work: list[Any]) -> list["asyncio.Task[Any]"]:
    """Let the work wait together for the one connection, which a read of somebody else holds up."""
    with held_table("plans"):
        first = asyncio.create_task(read(driver, "user_first"))
        await until(lambda: bool(outside(waiting)))
        tasks = [asyncio.create_task(one) for one in work]
        await until(lambda: len(driver.waiting) == len(work))
    await first
    return tasks


async def gathered(driver: Batches, work: list[Any]) -> list[Any]:
    return await asyncio.gather(*(await lined_up(driver, work)), return_exceptions=True)


def opened(*users: str) -> None:
    for user_id in ("user_first", *users):
        quotas.current(user_id)


async def warmed(driver: Batches) -> None:
    await read(driver, "user_first")  # caches the plan


async def warmed_for_locks(driver: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open a connection of both kinds, cache the plan, and let all lock from now on."""
    await warmed(driver)
    monkeypatch.setattr(commit, "UNLOCKED_TRIES", 0)
    await spend(driver, user_id="user_first")
    monkeypatch.setattr(commit, "UNLOCKED_TRIES", 1)
    await warmed(driver)  # a new connection has cleared the cache
    monkeypatch.setattr(commit, "UNLOCKED_TRIES", 0)


def test_what_waits_is_read_once_and_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    opened(*USERS)

    async def work(driver: Batches) -> list[Any]:
        await warmed(driver)
        with statements_sent(monkeypatch) as texts:
            found = await gathered(driver, [spend(driver, f"key {user}", user) for user in USERS])
        assert texts == ["read", "read together", "write together"]
        return found

    receipts = run(work)
    assert [receipt.entry.user_id for receipt in receipts] == USERS
    assert [receipt.entry.idempotency_key for receipt in receipts] == [f"consume:user:key {u}" for u in USERS]
    assert ChallengeQuota.objects.filter(user_id__in=USERS, quota_remaining=19).count() == len(USERS)


def test_a_batch_has_64_at_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    opened(USER)

    async def work(driver: Batches) -> None:
        await warmed(driver)
        with statements_sent(monkeypatch) as texts:
            await gathered(driver, [read(driver) for _ in range(64 + 64 + 1)])
        assert texts == ["read", "read together", "read together", "read"]

    run(work)


def test_requests_of_one_account_see_what_those_before_them_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    opened(USER)

    async def work(driver: Batches) -> list[Any]:
        await warmed(driver)
        requests = [spend(driver, None if number % 2 else f"key {number}") for number in range(25)]
        with statements_sent(monkeypatch) as texts:
            found = await gathered(driver, [*requests, read(driver)])
        assert texts == ["read", "read together", "write together"]  # nobody went alone, after an error
        return found

    *answers, quota = run(work)
    assert [receipt.quota.quota_remaining for receipt in answers[:20]] == [*range(19, -1, -1)]
    assert {type(answer) for answer in answers[20:]} == {Exhausted}
    assert quota.quota_remaining == 0
    entries = [*LedgerEntry.objects.filter(user_id=USER).order_by("seq")]
    assert [entry.seq for entry in entries] == [*range(1, len(entries) + 1)]
    assert all(b.balance_after == a.balance_after + b.delta for a, b in pairwise(entries))
    assert [entry.kind for entry in entries] == ["opened"] + ["consumed"] * 20 + ["refused"]


def test_a_check_sees_the_spends_before_it_and_takes_nothing_from_those_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened(USER)

    async def work(driver: Batches) -> list[Any]:
        await warmed(driver)
        checks = [driver.run_steps(quotas.forecast.steps(USER, 10)) for _ in range(2)]
        with statements_sent(monkeypatch) as texts:
            spends = [spend(driver, cost=11), spend(driver, cost=9)]
            found = await gathered(driver, [checks[0], spends[0], checks[1], spends[1]])
        assert texts == ["read", "read together", "write"]
        return found

    before, _, after, last = run(work)
    assert (before.remaining_after, after.remaining_after) == (10, None)
    assert isinstance(after.refusal, Exhausted)
    assert last.quota.quota_remaining == 0


def test_a_key_that_comes_twice_in_a_batch_is_a_replay_and_with_other_words_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened(USER)

    async def work(driver: Batches) -> list[Any]:
        await warmed(driver)
        with statements_sent(monkeypatch) as texts:
            found = await gathered(driver, [spend(driver, "a key", cost=cost) for cost in (2, 2, 3)])
        assert texts == ["read", "read together", "write"]  # nobody went alone, after an error
        return found

    first, replay, reused = run(work)
    assert (first.is_replay, replay.is_replay) == (False, True)
    assert replay.entry == first.entry
    assert isinstance(reused, KeyReused)
    assert quotas.current(USER).quota_remaining == 18


def test_replays_that_are_read_together_or_alone_say_what_was_refunded_of_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened(*USERS[:3])
    for asked, user_id in enumerate(USERS[:3], start=1):
        entry = quotas.consume(user_id, 3, key="a key").entry
        quotas.refund(user_id, entry.id, asked, reason="a test", actor=STAFF)

    async def work(driver: Batches) -> list[Any]:
        await warmed(driver)
        replays = [spend(driver, "a key", user_id, 3) for user_id in USERS[:3]]
        with statements_sent(monkeypatch) as texts:
            found = await gathered(driver, replays)
            found.append(await spend(driver, "a key", USERS[1], 3))
        assert texts == ["read", "read together", "read"]
        return found

    assert [receipt.refunded for receipt in run(work)] == [1, 2, 3, 2]


def test_a_key_spends_once_however_often_it_is_sent_at_once() -> None:
    async def work(driver: Batches) -> list[Any]:
        await read(driver)  # caches the plan
        return await asyncio.gather(*(spend(driver, "a key") for _ in range(20)))

    receipts = run(work, size=6)
    assert spent() == 1
    assert sorted(receipt.is_replay for receipt in receipts) == [False] + [True] * 19


def test_what_waits_for_no_row_of_its_own_goes_alone() -> None:
    """A user without a row, one whose usage only the ledger knows, a refund, a plan that is not cached."""
    opened(*USERS)
    Plan.objects.create(name="pro", allowance=50)
    entry = quotas.consume(USER, 3).entry
    quotas.consume(OTHER, 5)
    ChallengeQuota.objects.filter(user_id=OTHER).update(usage_seq=None, period_consumed=0)

    async def work(driver: Batches) -> list[Any]:
        refund = quotas.refund.steps(USER, entry.id, reason="a test", actor=STAFF)
        plan = quotas.change_plan.steps(USERS[5], "pro", reason="a test", actor=STAFF)
        await warmed(driver)
        first = await gathered(
            driver,
            [
                *(spend(driver, user_id=user) for user in ("user_new", OTHER, USERS[4])),
                *(driver.run_steps(steps) for steps in (refund, plan)),
            ],
        )
        return first + await gathered(driver, [spend(driver, user_id=user) for user in USERS[4:6]])

    new, other, plain, refunded, changed, again, with_plan = run(work)
    assert [one.quota.quota_remaining for one in (new, other, plain, again)] == [19, 14, 19, 18]
    assert refunded.quota.quota_remaining == 20
    assert with_plan.quota.quota_remaining == changed.quota.quota_remaining - 1


def test_what_can_only_go_alone_needs_nobody_to_wait_with() -> None:
    """A refund or a change of plan by itself, and users without a row, alone and together."""
    opened(USER)
    Plan.objects.create(name="pro", allowance=50)
    entry = quotas.consume(USER, 3).entry

    async def work(driver: Batches) -> None:
        await driver.run_steps(quotas.refund.steps(USER, entry.id, reason="a test", actor=STAFF))
        await driver.run_steps(quotas.change_plan.steps(USER, "pro", reason="a test", actor=STAFF))
        await spend(driver, user_id="user_new")
        news = [spend(driver, user_id=f"user_new_{number % 3}") for number in range(9)]
        assert not any(isinstance(answer, Exception) for answer in await gathered(driver, news))

    run(work)
    assert [spent(f"user_new_{number}") for number in range(3)] == [3, 3, 3]
    assert quotas.current(USER).quota_remaining == 50


def test_a_guard_that_is_lost_sends_only_its_own_account_on(monkeypatch: pytest.MonkeyPatch) -> None:
    opened(*USERS)
    write_changes = batches.write_changes

    def overtaken(changes: list[Change]) -> Statements[set[str]]:
        if len(changes) > 1:
            outside(lambda: quotas.consume(OTHER, 5))
        return write_changes(changes)

    monkeypatch.setattr(batches, "write_changes", overtaken)

    async def work(driver: Batches) -> list[Any]:
        await warmed(driver)
        requests = [spend(driver, user_id=user) for user in [*USERS[:10], OTHER]]
        with statements_sent(monkeypatch) as texts:
            found = await gathered(driver, requests)
        assert "read" not in texts[1:]  # nobody went alone
        return found

    *others, last = run(work)
    left = {receipt.entry.user_id: receipt.quota.quota_remaining for receipt in others}
    assert left == {user: 14 if user == OTHER else 19 for user in USERS[:10]}
    assert last.quota.quota_remaining == 13


def test_a_row_that_somebody_holds_stops_nobody_else_and_is_folded_when_it_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened(USER, OTHER)

    async def work(driver: Batches) -> list[str]:
        await warmed(driver)
        await read(driver, OTHER)
        with held():
            stuck = [asyncio.create_task(spend(driver, f"key {number}")) for number in range(10)]
            await until(lambda: bool(outside(waiting)))
            for number in range(5):
                assert (await read(driver, OTHER)).quota_remaining == 20 - number
                assert (await spend(driver, user_id=OTHER)).quota.quota_remaining == 19 - number
            await until(lambda: len(driver.aside.get((USER, driver._run_locked), [])) == 10)
            assert not any(task.done() for task in stuck)
        with statements_sent(monkeypatch) as texts:
            await asyncio.gather(*stuck)
        return texts

    assert run(work) == ["read together", "write together", "commit"]
    assert spent() == 10


def test_a_single_spend_of_a_held_row_stops_nobody_else() -> None:
    """It has a statement of its own, which does not wait for the row either."""
    opened(USER, OTHER)

    async def work(driver: Batches) -> None:
        await warmed(driver)
        with held():
            stuck = asyncio.create_task(spend(driver))
            await until(lambda: bool(outside(waiting)))
            async with asyncio.timeout(1):
                await spend(driver, user_id=OTHER)
        await stuck

    run(work)
    assert spent() == 1


def test_a_held_row_in_a_batch_stops_none_of_the_others() -> None:
    opened(*USERS)

    async def work(driver: Batches) -> None:
        await warmed(driver)
        with held():
            held_up, *others = await lined_up(driver, [spend(driver, user_id=user) for user in USERS_FIRST])
            async with asyncio.timeout(1):
                await asyncio.gather(*others)
            assert not held_up.done()
        await held_up

    run(work)
    assert [spent(user) for user in USERS_FIRST] == [1] * len(USERS_FIRST)


def test_keys_of_a_batch_find_their_own_entries() -> None:
    opened(*USERS)
    spends = {
        user: quotas.consume(user, number, key=f"key {number}").entry
        for number, user in enumerate(USERS[:8], 1)
    }

    async def work(driver: Batches) -> list[Any]:
        await warmed(driver)
        again = [spend(driver, f"key {number}", user, number) for number, user in enumerate(spends, 1)]
        return await gathered(driver, again)

    assert [receipt.entry for receipt in run(work)] == [*spends.values()]


def test_a_locked_batch_is_reported_when_it_is_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    opened(USER)

    async def work(driver: Batches) -> list[Any]:
        await warmed_for_locks(driver, monkeypatch)
        with held():
            tasks = [asyncio.create_task(spend(driver)) for _ in range(3)]
            await until(lambda: bool(outside(waiting)))
            monkeypatch.setattr(sql, "COMMIT", "SELECT 1 FROM no_table")
        found = await asyncio.gather(*tasks, return_exceptions=True)
        monkeypatch.setattr(sql, "COMMIT", "COMMIT")
        return found

    assert all(isinstance(answer, Exception) for answer in run(work))
    assert spent() == 0


def test_a_row_that_stays_held_is_given_up_in_time_and_its_key_spends_once_later() -> None:
    opened(USER, OTHER)

    async def work(driver: Batches) -> Any:
        await warmed(driver)
        with held():
            stuck = [asyncio.create_task(spend(driver, "a key")) for _ in range(4)]
            answers = await asyncio.gather(*stuck, return_exceptions=True)
            assert {sqlstate(answer) for answer in answers} == {LOCK_NOT_AVAILABLE}
        return await spend(driver, "a key")

    assert run(work).quota.quota_remaining == 19
    assert spent() == 1


def test_a_statement_that_hangs_stops_nobody_else_for_long() -> None:
    opened(USER)

    async def work(driver: Batches) -> Any:
        await warmed(driver)
        with row_half_opened(url_of_the_test_database(), "user_new", like=USER):
            stuck = [asyncio.create_task(spend(driver, "a key", "user_new")) for _ in range(24)]
            await until(lambda: bool(outside(waiting)))
            async with asyncio.timeout(2):
                await read(driver)
            for _ in range(20):
                async with asyncio.timeout(0.2):
                    await spend(driver)
            answers = await asyncio.gather(*stuck, return_exceptions=True)
            assert {isinstance(answer, OperationalError) for answer in answers} == {True}
        return await spend(driver, "a key", "user_new")

    assert run(work, size=4).quota.quota_remaining == 19
    assert (spent(), spent("user_new")) == (20, 1)


def test_nobody_waits_longer_however_many_rows_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "ATTEMPT_SECONDS", 1)
    opened(*USERS)

    async def work(driver: Batches) -> None:
        await warmed(driver)
        with ExitStack() as stack:
            for user in USERS[:5]:
                stack.enter_context(held(user))
            stuck = [asyncio.create_task(spend(driver, f"key {user}", user)) for user in USERS[:5]]
            async with asyncio.timeout(1.8):
                answers = await asyncio.gather(*stuck, return_exceptions=True)
            assert {type(answer) for answer in answers} == {Overdue}
        for user in USERS[:5]:
            await spend(driver, f"key {user}", user)

    run(work)
    assert [spent(user) for user in USERS[:5]] == [1] * 5


def test_an_error_of_one_is_nobody_elses() -> None:
    opened(*USERS)

    async def work(driver: Batches) -> list[Any]:
        await warmed(driver)
        bad = quotas.consume.steps(USERS[3], metadata={"a": "\x00"})  # which no jsonb can hold
        good = [spend(driver, user_id=user) for user in USERS[:6] if user != USERS[3]]
        return await gathered(driver, [*good[:3], driver.run_steps(bad), *good[3:]])

    answers = run(work)
    assert isinstance(answers[3], DataError)
    assert [spent(user) for user in USERS[:6]] == [1, 1, 1, 0, 1, 1]


def test_an_error_of_one_under_the_lock_is_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    opened(USER)

    async def work(driver: Batches) -> list[Any]:
        await warmed_for_locks(driver, monkeypatch)
        with held():
            stuck = [asyncio.create_task(spend(driver)) for _ in range(3)]
            bad = quotas.consume.steps(USER, metadata={"a": "\x00"})
            stuck.insert(1, asyncio.create_task(driver.run_steps(bad)))
            await until(lambda: len(driver.aside.get((USER, driver._run_locked), [])) == 4)
        return await asyncio.gather(*stuck, return_exceptions=True)

    answers = run(work)
    assert [type(answer) is DataError for answer in answers] == [False, True, False, False]
    assert spent() == 3


def pids_of(driver: Batches) -> set[int]:
    return {session.raw.info.backend_pid for session in driver.connections.sessions}


@pytest.mark.parametrize("users", [[USER], USERS[:8]], ids=["one account", "eight accounts"])
def test_a_batch_whose_connection_dies_during_its_write_is_stored_once(users: list[str]) -> None:
    opened(*USERS)

    async def work(driver: Batches) -> list[Any]:
        await warmed(driver)
        with held_table("ledger_entries", "SHARE"):
            first = asyncio.create_task(spend(driver, user_id="user_first"))
            await until(lambda: len(outside(waiting)) == 1)
            stuck = [asyncio.create_task(spend(driver, user_id=user)) for user in users * 3]
            await until(lambda: len(driver.waiting) == len(stuck))
            outside(lambda: terminate(waiting()))  # the batch is next
            await until(lambda: bool(pids_of(driver) & {*outside(waiting)}))
            outside(lambda: terminate([*pids_of(driver)]))
        await first
        return await asyncio.gather(*stuck)

    receipts = run(work)
    assert len({receipt.entry.id for receipt in receipts}) == len(users) * 3
    assert [spent(user) for user in users] == [3] * len(users)
    assert spent("user_first") == 1


def test_who_gives_up_in_a_batch_takes_nobody_along() -> None:
    opened(*USERS)

    async def work(driver: Batches) -> list[Any]:
        await warmed(driver)
        tasks = await lined_up(driver, [read(driver, user) for user in USERS[:4]])
        tasks[1].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = run(work)
    assert isinstance(found[1], asyncio.CancelledError)
    assert [quota.user_id for quota in found if quota is not found[1]] == [USERS[0], *USERS[2:4]]

"""The driver of an event loop, where no thread waits for the database.

The next connection that is free carries out together all attempts that wait for one: one read, one write. Of
one account they are folded (fold.py). An attempt that must lock its row has a side connection, so that nobody
else waits for that row, and shares it with all that gather for the row meanwhile. Every other step is rare,
or may wait for something else: a thread runs it.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Sequence
from copy import copy
from functools import partial
from time import monotonic
from typing import Any, NamedTuple

from django.db import DataError, IntegrityError

from quotas.rules.values import Snapshot
from quotas.store import sql, thread
from quotas.store.errors import LostRace
from quotas.store.fold import fold
from quotas.store.loop import Connections, LoopSession, RunInThread
from quotas.store.statements import Statement, read_snapshots, statements_of_all, write_changes
from quotas.store.steps import Attempt, Result, Step, Steps

MAX_BATCH = 64
BUSY_SECONDS = 1
MAX_BUSY = 1_000  # rows
ERRORS_OF_ONE = (LostRace, DataError, IntegrityError)  # the statement that raised it had no effect
SIDE_CONNECTIONS = 2  # of all, for attempts that lock; 1 if there are only two


class Job(NamedTuple):
    """An attempt that somebody waits for."""

    attempt: Attempt
    result: asyncio.Future[bool]

    def report(self, is_final: bool) -> None:
        if not self.result.done():
            self.result.set_result(is_final)

    def fail(self, error: Exception) -> None:
        """Raise a copy of the error in whoever waits: raising it changes it."""
        if not self.result.done():
            own = copy(error)
            own.__cause__ = error.__cause__
            self.result.set_exception(own)


class Batches:
    """Drives the steps of one event loop over at most `size` connections, two or more."""

    def __init__(self, size: int, run_in_thread: RunInThread) -> None:
        side = min(SIDE_CONNECTIONS, size - 1)
        self.connections = Connections(run_in_thread)
        self.run_in_thread = run_in_thread
        self.free = size - side
        self.waiting: deque[Job] = deque()
        self.side = asyncio.Semaphore(side)
        self.locking: dict[object, list[Job]] = {}  # by account, until its row is locked
        self.busy_until: dict[str, float] = {}  # by user, of rows for which a race was lost
        self.tasks: set[asyncio.Task[None]] = set()

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
        if not isinstance(step, Attempt):
            return await self.run_in_thread(partial(thread.run_step, step))
        job = Job(step, asyncio.get_running_loop().create_future())
        if self._must_lock(step):
            self._gather(job, step.user_id if _is_foldable(job) else job)
        else:
            self.waiting.append(job)
            if self.free and len(self.waiting) == 1:  # otherwise somebody is about to take all that wait
                self._begin()
        return await job.result

    def _must_lock(self, attempt: Attempt) -> bool:
        """After a lost race, lock a row from the start for a while: the next attempt would lose one too."""
        now = monotonic()
        if attempt.must_lock:
            if len(self.busy_until) >= MAX_BUSY:
                self.busy_until.clear()
            self.busy_until[attempt.user_id] = now + BUSY_SECONDS
        elif attempt.expects_change and now < self.busy_until.get(attempt.user_id, 0):
            attempt.must_lock = True
        return attempt.must_lock

    def _begin(self) -> None:
        self.free -= 1
        self._start(self._run_waiting())

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)  # the loop itself keeps no reference
        task.add_done_callback(self.tasks.discard)

    async def _run_waiting(self) -> None:
        """Carry out together what waits."""
        jobs = self.waiting
        try:
            async with self.connections.use() as session:
                jobs = deque(self.waiting.popleft() for _ in range(min(MAX_BATCH, len(self.waiting))))
                if self.waiting and self.free:
                    self._begin()
                for job in await _try_together(session, jobs):
                    await _run_job(session, job)
        except Exception as error:  # noqa: BLE001 - the attempts handle it, or raise it
            while jobs:
                jobs.popleft().fail(error)
        self.free += 1
        if self.waiting:
            self._begin()

    def _gather(self, job: Job, account: object) -> None:
        """Let the attempt wait for the lock of its row with others of the account."""
        jobs = self.locking.setdefault(account, [])
        jobs.append(job)
        if len(jobs) == 1:
            self._start(self._run_locked(account, job.attempt.user_id))

    async def _run_locked(self, account: object, user_id: str) -> None:
        """Carry out together what has gathered for the account when its row is locked."""
        jobs: list[Job] = []
        done: list[tuple[Job, bool]] = []
        async with self.side:
            try:
                async with self.connections.use() as session:
                    await session.execute(Statement(sql.BEGIN, {}))
                    await session.execute(Statement(sql.LOCK, {"user_id": user_id}))
                    jobs = self.locking.pop(account)
                    if len(jobs) > 1:
                        alone = await _run_together(session, jobs, lambda *result: done.append(result))
                    else:
                        alone, done = [], [(job, await _run(session, job.attempt)) for job in jobs]
                    await session.execute(Statement("COMMIT", {}))
            except Exception as error:  # noqa: BLE001 - the attempts handle it, or raise it
                alone = _rest_after(error, jobs or self.locking.pop(account))
                done = []
        for job, is_final in done:
            job.report(is_final)
        for job in alone:
            self._gather(job, job)


async def _run(session: LoopSession, attempt: Attempt) -> bool:
    steps = attempt.steps()
    return await session.run(statements_of_all(steps, "postgresql", in_transaction=attempt.must_lock))


async def _run_job(session: LoopSession, job: Job) -> None:
    try:
        job.report(await _run(session, job.attempt))
    except Exception as error:  # noqa: BLE001 - the attempt handles it, or raises it
        job.fail(error)


async def _try_together(session: LoopSession, jobs: Sequence[Job]) -> Sequence[Job]:
    """Carry out the jobs together; return those that must go alone."""
    if len(jobs) <= 1:
        return jobs
    try:
        return await _run_together(session, jobs, Job.report)
    except Exception as error:  # noqa: BLE001 - the attempts handle it, or raise it
        return _rest_after(error, jobs)


async def _run_together(
    session: LoopSession, jobs: Sequence[Job], report: Callable[[Job, bool], None]
) -> list[Job]:
    """Read for all jobs, fold those of each account, write what changed; return those that must go alone.

    What rests on nothing new is reported before the write.
    """
    shared = [job for job in jobs if _is_foldable(job)]
    alone = [job for job in jobs if not _is_foldable(job)]
    accounts: defaultdict[str, list[tuple[Job, Snapshot]]] = defaultdict(list)
    snapshots = await session.run(read_snapshots([job.attempt for job in shared]))
    for job, snapshot in zip(shared, snapshots, strict=True):
        if snapshot:
            accounts[job.attempt.user_id].append((job, snapshot))
        else:
            alone.append(job)
    changes, resting = [], []
    for found in accounts.values():
        try:
            change = fold([job.attempt for job, _ in found], [snapshot for _, snapshot in found])
        except Exception:  # noqa: BLE001 - alone, only the one that causes it raises it
            alone += [job for job, _ in found]
            continue
        if change:
            changes.append(change)
        for job, _ in found:
            if job.attempt.sent:
                resting.append(job)
            else:
                report(job, True)
    stored = await session.run(write_changes(changes)) if changes else set()
    for job in resting:
        report(job, job.attempt.user_id in stored)
    return alone


def _rest_after(error: Exception, jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs that go alone after an error that one may have caused; raise any other in all."""
    rest = [job for job in jobs if not job.result.done()]
    if len(jobs) > 1 and isinstance(error, ERRORS_OF_ONE):
        for job in rest:
            job.attempt.sent = None  # it had no effect
        return rest
    for job in rest:
        job.fail(error)
    return []


def _is_foldable(job: Job) -> bool:
    return not job.attempt.query.include

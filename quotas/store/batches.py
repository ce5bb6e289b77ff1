"""The driver of an event loop, where no thread waits for the database.

The next connection that is free carries out together all attempts that wait for one: one read, one write. Of
one account they are folded (fold.py). Those that must lock their row, or must go alone, are set aside for
half of the connections, so that nobody else waits for that row; all that gather for a row share one. Every
other step is rare, or may wait for something else: a thread runs it.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from copy import copy
from functools import partial
from math import inf
from time import monotonic
from typing import Any, NamedTuple

from django.db import DataError, IntegrityError

from quotas.rules.outcomes import Change
from quotas.rules.values import Snapshot
from quotas.store import sql, thread
from quotas.store.errors import LostRace, Overdue
from quotas.store.fold import fold
from quotas.store.loop import Connections, LoopSession, RunInThread, in_time
from quotas.store.statements import Statement, read_snapshots, statements_of_all, write, write_changes
from quotas.store.steps import Attempt, Result, Step, Steps

MAX_BATCH = 64
ATTEMPT_SECONDS = 5  # for an attempt, with the time that it waits for a connection
BUSY_SECONDS = 1  # after a lost race, in which changes of that row lock it first
MAX_BUSY = 1_000  # rows
ERRORS_OF_ONE = (LostRace, DataError, IntegrityError)  # the statement that raised it had no effect


class Job(NamedTuple):
    """An attempt that somebody waits for."""

    attempt: Attempt
    result: asyncio.Future[bool]
    since: float

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.result.done()

    def report(self, is_final: bool) -> None:
        if not self.is_over:
            self.result.set_result(is_final)

    def fail(self, error: Exception) -> None:
        """Raise a copy of the error in whoever waits: raising it changes it."""
        if not self.is_over:
            own = copy(error)
            own.__cause__ = error.__cause__
            self.result.set_exception(own)


RunAside = Callable[[LoopSession, object, list[Job]], Awaitable[None]]


class Batches:
    """Drives the steps of one event loop over at most `size` connections, two or more."""

    def __init__(self, size: int, run_in_thread: RunInThread) -> None:
        side = size // 2
        self.size = size - side
        self.may_share = thread.dialect() != "citus"  # a statement is about the rows of one shard
        self.connections = Connections(run_in_thread, self._watch)
        self.run_in_thread = run_in_thread
        self.under_way = 0  # of these connections
        self.is_beginning = False  # whether one of them is about to take those who wait
        self.jobs: deque[Job] = deque()  # all, in order of arrival; those that are over remain for a while
        self.waiting: deque[Job] = deque()
        self.side = asyncio.Semaphore(side)
        self.aside: dict[object, list[Job]] = {}  # by account, until a side connection takes them
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
            return await in_time(self.run_in_thread(partial(thread.run_step, step)))
        job = Job(step, asyncio.get_running_loop().create_future(), monotonic())
        self.jobs.append(job)
        if self._must_lock(step):
            self._set_aside(job, self._run_locked)
        else:
            self.waiting.append(job)
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

    def _watch(self) -> None:
        """Raise an error in those who have waited too long, whether they were sent or not."""
        while self.jobs and (self.jobs[0].is_over or monotonic() - self.jobs[0].since > ATTEMPT_SECONDS):
            self.jobs.popleft().fail(Overdue("The database did not answer in time."))
        self._begin()

    def _begin(self) -> None:
        """Let those who wait have a connection, if they may.

        One that takes more at once is quicker than several, unless the database is far.
        """
        allowed = self.size if self.connections.is_slow or not self.may_share else 1
        if self.waiting and not self.is_beginning and self.under_way < allowed:
            self.is_beginning = True
            self.under_way += 1
            self._start(self._run_waiting())

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)  # the loop itself keeps no reference
        task.add_done_callback(self.tasks.discard)

    async def _run_waiting(self) -> None:
        """Carry out together what waits."""
        jobs: list[Job] | None = None
        try:
            async with self.connections.use() as session:
                jobs = self._take(MAX_BATCH if self.may_share else 1)
                self.is_beginning = False
                self._begin()
                if jobs and self.may_share:
                    for job in await _run_together(session, jobs, Job.report):
                        self._set_aside(job, self._run_alone)
                else:
                    await _run_each(session, jobs)
        except Exception as error:  # noqa: BLE001 - the attempts handle it, or raise it
            self.is_beginning = False
            self._fail(error, self._take(inf) if jobs is None else jobs, self._run_alone)
        self.under_way -= 1
        self._begin()

    def _take(self, count: float) -> list[Job]:
        """Return the first of those who wait, so many at the most."""
        first = [self.waiting.popleft() for _ in range(int(min(count, len(self.waiting))))]
        return [job for job in first if not job.is_over]

    def _set_aside(self, job: Job, run: RunAside, *, is_shared: bool = True) -> None:
        """Let a side connection carry out the attempt, after or with others of its account."""
        account = (job.attempt.user_id, run) if is_shared and _is_foldable(job) else job
        jobs = self.aside.setdefault(account, [])
        jobs.append(job)
        if len(jobs) == 1:
            self._start(self._run_aside(account, run))

    async def _run_aside(self, account: object, run: RunAside) -> None:
        jobs = self.aside[account]
        async with self.side:
            try:
                async with self.connections.use() as session:
                    await run(session, account, jobs)
            except Exception as error:  # noqa: BLE001 - the attempts handle it, or raise it
                if self.aside.get(account) is jobs:
                    del self.aside[account]
                self._fail(error, jobs, run)

    async def _run_alone(self, session: LoopSession, account: object, jobs: list[Job]) -> None:
        """Carry out the account's attempts one after the other, also those that come meanwhile."""
        await _run_each(session, jobs)
        del self.aside[account]

    async def _run_locked(self, session: LoopSession, account: object, jobs: list[Job]) -> None:
        """Carry out together what has gathered for the account when its row is locked."""
        done: list[tuple[Job, bool]] = []
        alone: list[Job] = []
        await session.execute(Statement(sql.BEGIN, {}))
        await session.execute(Statement(sql.LOCK[thread.dialect()], {"user_id": jobs[0].attempt.user_id}))
        del self.aside[account]
        jobs = [job for job in jobs if not job.is_over]
        if len(jobs) > 1 and self.may_share:
            alone = await _run_together(session, jobs, lambda *result: done.append(result))
        else:
            done = [(job, await _run(session, job.attempt)) for job in jobs]
        await session.execute(Statement(sql.COMMIT, {}))
        for job, is_final in done:
            job.report(is_final)
        for job in alone:
            self._set_aside(job, self._run_locked, is_shared=False)

    def _fail(self, error: Exception, jobs: Iterable[Job], run: RunAside) -> None:
        """Let each go alone after an error that only one of them caused; raise any other error in all."""
        rest = [job for job in jobs if not job.is_over]
        if len(rest) > 1 and isinstance(error, ERRORS_OF_ONE):
            for job in rest:
                job.attempt.sent = None  # it had no effect
                self._set_aside(job, run, is_shared=False)
        else:
            for job in rest:
                job.fail(error)


async def _run(session: LoopSession, attempt: Attempt) -> bool:
    if attempt.sent:  # decided already, by what was read for others too
        return await session.run(write(attempt.sent, thread.dialect(), waits=False))
    steps = attempt.steps()
    return await session.run(statements_of_all(steps, thread.dialect(), in_transaction=attempt.must_lock))


async def _run_each(session: LoopSession, jobs: Iterable[Job]) -> None:
    """Carry out attempts of one account; raise an error of the first that has one."""
    for job in jobs:
        if not job.is_over:
            job.report(await _run(session, job.attempt))


async def _run_together(
    session: LoopSession, jobs: Iterable[Job], report: Callable[[Job, bool], None]
) -> list[Job]:
    """Read for all jobs, fold those of each account, write what changed; return those that must go alone.

    What rests on nothing new is reported before the write.
    """
    shared = [job for job in jobs if _is_foldable(job)]
    alone = [job for job in jobs if not _is_foldable(job)]
    accounts: defaultdict[str, list[tuple[Job, Snapshot]]] = defaultdict(list)
    snapshots = await session.run(read_snapshots([job.attempt for job in shared]))
    for job, snapshot in zip(shared, snapshots, strict=True):
        accounts[job.attempt.user_id].append((job, snapshot))
    changes, resting = [], []
    for found in accounts.values():
        own = [job for job, _ in found]
        is_missing = found[0][1].state is None  # to open the row may wait for somebody who does the same
        try:
            change = None if is_missing and len(own) > 1 else _fold(found)
        except Exception:  # noqa: BLE001 - alone, only the one that causes it raises it
            alone += own
            continue
        if is_missing and (change or len(own) > 1):
            alone += own
        elif change:
            changes.append(change)
            resting += [job for job in own if job.attempt.sent]
        for job in own:
            if job.attempt.outcome and not job.attempt.sent:
                report(job, True)
    stored = await session.run(write_changes(changes)) if changes else set()
    for job in resting:
        report(job, job.attempt.user_id in stored)
    return alone


def _fold(found: Sequence[tuple[Job, Snapshot]]) -> Change | None:
    return fold([job.attempt for job, _ in found], [snapshot for _, snapshot in found])


def _is_foldable(job: Job) -> bool:
    return not job.attempt.query.include

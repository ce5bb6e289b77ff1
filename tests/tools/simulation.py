"""A driver for the steps of the verbs that is a simulation: a database in memory, from a seed, with faults.

Some writers share a few accounts. Each takes the real steps of a verb, and before each step a seeded
scheduler chooses whose is next. So races arise by themselves. In a share of the histories, attempts join
batches (simulated_batches.py). The same seed chooses the faults of the database (simulated_database.py), and
the clock jumps over the ends of periods and back. A client whose request failed retries it with its key, or
gives up if it has none. Now and then a client sends a key that another one is just sending.

By hand: `python -m tests.tools.simulation SEEDS [FIRST]`.
"""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from random import Random
from time import perf_counter
from typing import Any, NamedTuple
from uuid import UUID

from django.db import OperationalError

from quotas.rules.outcomes import Exhausted, Forecast, Refusal
from quotas.rules.values import Actor, Entry, OnChange, Quota, Snapshot
from quotas.store.errors import ConnectionLost
from quotas.store.manager import PlanChange, QuotaManager, Receipt
from quotas.store.steps import Attempt, Lock, Read, Step, Steps, WasWritten, Write
from tests.tools.simulated_batches import Batch, LockedBatch
from tests.tools.simulated_database import CUTS, FAULTS, Account, Database, Transaction, Violation, fail

STAFF = Actor("staff", "a test")
MAX_RETRIES = 6
TICK = timedelta(milliseconds=7)  # of a step
STEPS_PER_SEED = 1_200
BATCHED_SHARES = (0.0, 0.6, 1.0)  # of the writers of a history
CLERK_RATES = (0.01, 0.03, 0.2)  # of its assignments to steps
ALL_FAULTS = (
    *FAULTS,
    *(f"commit {cut}" for cut in CUTS),
    *(f"{place} {fault}" for place in ("batch read", "batch store", "locked batch") for fault in FAULTS),
    *(f"batch commit {cut}" for cut in CUTS),
)
ALL_EVENTS = (
    *("an account twice in a batch", "an account twice in a locked batch"),
    *("a key twice in a batch", "a replay of the same batch", "a key in two batches", "a key twice at once"),
    *("a key again while its write is under way", "one guard of a batch lost, not all"),
    *("a refunded spend: consume", "a refunded spend: consumption"),
    *(f"a batch lost to {other}" for other in ("a client", "a batch", "a locked batch")),
    *(f"a batch lost to {other}" for other in ("Clerk", "a late write")),
    *(f"a client lost to {other}" for other in ("a batch", "a locked batch")),
    *(f"a batch met the lock of {other}" for other in ("a client", "a locked batch")),
    *(f"a locked batch met the lock of {other}" for other in ("a client", "a locked batch")),
    *(f"{other} met the lock of a locked batch" for other in ("a client", "Clerk", "a late write")),
)
SHARED_FIELDS = (
    *("plan", "plan_source", "plan_version", "quota_limit", "period_consumed", "period_given"),
    *("last_reset_date", "anchor_at", "resets_at", "period_seq", "seq"),
)
Answer = Receipt | PlanChange | Quota | Forecast | Refusal
quotas: QuotaManager[Any] = QuotaManager()


class Operation:
    """What a client asked for, as often as it asked."""

    def __init__(self, user_id: str, key: str | None) -> None:
        self.user_id, self.key, self.name = user_id, key, ""
        self.shown: UUID | None = None  # the entry that it asks to see
        self.ask: Callable[[], Steps[Any]]
        self.retries = self.delta = self.running = 0
        self.was_unknown = False
        self.acknowledged: list[Receipt | PlanChange] = []


class Writer:
    """A client that sends one operation after the other."""

    def __init__(self, name: str, loop: dict[str, Batch] | None) -> None:
        self.name, self.loop = name, loop  # the batches that gather in its event loop, if it has any
        self.operation: Operation | None = None
        self.steps: Steps[Any] | None = None
        self.inner: Steps[Any] | None = None  # of an Attempt or a Lock
        self.step: Step | None = None  # to be carried out next
        self.transaction: Transaction | None = None
        self.batch: Batch | None = None  # that carries out its attempt
        self.lost_tries = 0  # of this request, by faults
        self.must_replay = False  # the operation was acknowledged before this request
        self.refunded_before = 0  # of the consumption that this request may replay, or show
        self.must_fail = False  # a new connection failed with nothing sent: the client must get the error


class Simulation:
    def __init__(self, seed: int, *, keeps_story: bool = False) -> None:
        self.random = Random(seed)
        self.chance = self.random.random
        self.keeps_story, self.story = keeps_story, list[str]()
        self.steps = 0
        self.database = Database(self.random)
        self.accounts = self.database.accounts
        self.users = [*self.accounts]
        share = self.random.choice(BATCHED_SHARES)
        loops: list[dict[str, Batch]] = [{} for _ in range(self.random.choice([1, 1, 2]))]
        self.writers = [
            Writer(f"client {number}", self.random.choice(loops) if self.chance() < share else None)
            for number in range(self.random.randint(2, 7))
        ]
        self.clerk_rate = self.random.choice(CLERK_RATES)
        self.in_batches: dict[Attempt, Writer] = {}
        self.operations: list[Operation] = []

    def run(self, steps: int = STEPS_PER_SEED) -> None:
        """Carry out this many steps, then whatever is still under way, and check the ledgers."""
        writers, chance, database = self.writers, self.chance, self.database
        while self.steps < steps:
            if chance() < 0.07:
                self.happen()
            if chance() < self.clerk_rate:
                self.assign()
            self.advance(writers[int(chance() * len(writers))], may_begin=True)
        database.fault_rate = 0.0
        while busy := [writer for writer in writers if writer.steps or database.late]:
            if chance() < 0.5:
                self.arrive()
            self.advance(busy[int(chance() * len(busy))], may_begin=False)
        self.check()

    def record(self, who: str, what: object) -> None:
        if self.keeps_story:
            self.story.append(f"{self.steps:5} {self.database.clock:%d %H:%M:%S} {who}: {what}")

    # What happens besides the steps

    def happen(self) -> None:
        """Let time jump, a plan be edited, or a late write arrive."""
        match int(self.chance() * 9):
            case 0:
                self.database.jump()
                self.record("clock", "jumped")
            case 1 if self.chance() < 0.3:
                self.record("staff", f"gave the plan an allowance of {self.database.edit_plan()}")
            case 2 if self.chance() < 0.3:
                self.record("staff", f"{self.database.archive()} the plan pro")
            case _:
                self.arrive()

    def assign(self) -> None:
        user_id = self.random.choice(self.users)
        if self.database.assign(user_id):
            self.record("Clerk", f"assigned {self.accounts[user_id].assigned or 'none'} to {user_id}")

    def arrive(self) -> None:
        if happened := self.database.arrive():
            self.record("late write", happened)

    # The steps

    def advance(self, writer: Writer, *, may_begin: bool) -> None:
        """Carry out the writer's next step, or its batch's, or let it begin with an operation."""
        if writer.steps is None:
            if may_begin:
                self.begin(writer, self.next_operation())
            return
        if writer.batch:
            self.advance_batch(writer.batch)
            return
        step = writer.step
        assert step is not None
        if self.database.waits(step, writer.transaction):
            return
        self.tick()
        try:
            found = self.carry_out(writer, step)
        except OperationalError as error:
            self.record(writer.name, f"{type(step).__name__} failed: {error}")
            self.raise_into(writer, error)
            return
        if self.keeps_story:
            self.record(writer.name, f"{type(step).__name__} → {shown(found)}")
        self.send(writer, found)

    def tick(self) -> None:
        self.steps += 1
        self.database.clock += TICK

    def carry_out(self, writer: Writer, step: Step) -> Any:
        database = self.database
        fault = database.fault()
        if fault:
            writer.lost_tries += 1
        if isinstance(step, Write):
            return self.write(writer, step, fault)
        writer.must_fail = fault == "new session killed"
        fail(fault)
        if isinstance(step, Read):
            return database.snapshot(step.user_id, step.query)
        if isinstance(step, Lock):
            writer.transaction, writer.inner = database.lock(step.user_id, by="a client"), step.steps
            return None
        assert isinstance(step, WasWritten)
        return step.entry_id in self.accounts[step.user_id].by_id

    def write(self, writer: Writer, step: Write, fault: str) -> bool:
        if writer.transaction:
            fail(fault)
            return self.database.write_in(writer.transaction, step.change)
        [is_stored] = self.database.write([step.change], waits=step.waits, by="a client", fault=fault)
        return is_stored

    def send(self, writer: Writer, found: Any) -> None:
        steps = writer.inner or writer.steps
        assert steps
        self.resume(writer, steps.send, found)

    def raise_into(self, writer: Writer, error: OperationalError) -> None:
        """Raise the error in the steps; the loss of a transaction's session rolls it back first."""
        if writer.transaction:
            self.database.release(writer.transaction)
            writer.transaction = None
        if writer.inner:
            writer.inner.close()
            writer.inner = None
        assert writer.steps
        self.resume(writer, writer.steps.throw, error)

    def resume(self, writer: Writer, resume: Callable[[Any], Step], value: Any) -> None:
        try:
            step = resume(value)
        except StopIteration as stop:
            if writer.inner:
                self.end_inner(writer, stop.value)
            else:
                self.finish(writer, stop.value)
        except Refusal as refusal:
            self.finish(writer, refusal)
        except OperationalError as error:
            self.fail(writer, error)
        else:
            if writer.must_fail:
                raise Violation("The error of a new connection was not passed on.")
            if isinstance(step, Attempt):
                self.take_up(writer, step)
            else:
                writer.step = step

    def end_inner(self, writer: Writer, result: Any) -> None:
        """Send the result of an Attempt or a Lock, once its transaction is committed."""
        transaction, writer.transaction, writer.inner = writer.transaction, None, None
        assert writer.steps
        if transaction:
            fault = self.database.fault("commit ", CUTS)
            self.record(writer.name, f"commit {fault}")
            try:
                self.database.commit(transaction, fault)
            except OperationalError as error:
                writer.lost_tries += 1
                self.resume(writer, writer.steps.throw, error)
                return
        self.resume(writer, writer.steps.send, result)

    # Attempts

    def take_up(self, writer: Writer, attempt: Attempt) -> None:
        """Let the attempt join a batch, or begin with it alone."""
        if writer.loop is None or attempt.query.include or self.chance() < 0.15:
            self.begin_alone(writer, attempt)
        else:
            self.join(writer, writer.loop, attempt)

    def begin_alone(self, writer: Writer, attempt: Attempt) -> None:
        steps = attempt.steps()
        if attempt.must_lock:
            writer.step = Lock(attempt.user_id, steps)
        else:
            writer.inner, writer.step = steps, next(steps)

    def join(self, writer: Writer, loop: dict[str, Batch], attempt: Attempt) -> None:
        place = attempt.user_id if attempt.must_lock else ""
        batch = loop.get(place)
        if not batch or not batch.is_gathering:
            batch = LockedBatch(self.database, place) if attempt.must_lock else Batch(self.database)
            loop[place] = batch
        batch.attempts.append(attempt)
        writer.batch = batch
        self.database.events["a key in two batches"] += any(
            other.batch not in (None, batch) and other.operation is writer.operation for other in self.writers
        )
        self.in_batches[attempt] = writer
        self.record(writer.name, "waits for a locked batch" if attempt.must_lock else "waits for a batch")

    def advance_batch(self, batch: Batch) -> None:
        """Carry out the next statement of the batch, or let it gather or be under way for longer."""
        if self.chance() < 0.7 or batch.waits():
            return
        self.tick()
        names = ", ".join(self.in_batches[attempt].name for attempt in batch.attempts)
        replies = batch.advance()
        self.record(f"batch of {names}", batch.doing)
        for attempt, reply in replies:
            self.deliver(self.in_batches.pop(attempt), attempt, reply)

    def deliver(self, writer: Writer, attempt: Attempt, reply: bool | OperationalError | None) -> None:
        writer.batch = None
        if reply is None:
            self.begin_alone(writer, attempt)
            return
        self.record(writer.name, f"Attempt → {reply}")
        if isinstance(reply, bool):
            self.send(writer, reply)
            return
        writer.lost_tries += 1
        writer.must_fail = isinstance(reply, ConnectionLost) and not reply.repeats and not attempt.sent
        self.raise_into(writer, reply)

    # The clients

    def begin(self, writer: Writer, operation: Operation) -> None:
        events = self.database.events
        events["a key twice at once"] += operation.running > 0
        if operation.was_unknown and operation.key and self.database.is_under_way(operation.key):
            events["a key again while its write is under way"] += 1
        writer.operation, writer.steps = operation, operation.ask()
        operation.running += 1
        writer.lost_tries, writer.must_replay = 0, bool(operation.acknowledged)
        writer.refunded_before = self.refunded(operation)
        self.record(writer.name, f"asks for {operation.name} of {operation.user_id}, key {operation.key}")
        self.resume(writer, writer.steps.send, None)

    def finish(self, writer: Writer, answer: Answer) -> None:
        operation = writer.operation
        assert operation
        self.record(writer.name, f"got {shown(answer)}")
        self.check_answer(writer, operation, answer)
        if isinstance(answer, Receipt | PlanChange) and not operation.shown:
            operation.acknowledged.append(answer)
        self.rest(writer, operation)

    def fail(self, writer: Writer, error: OperationalError) -> None:
        """Let the client retry, with its key; without one it may not."""
        operation = writer.operation
        assert operation
        if writer.lost_tries == 0 and "again and again" in str(error):
            raise Violation(f"{operation.name} lost every race.")
        self.record(writer.name, f"got an error: {error}")
        operation.was_unknown = True
        self.rest(writer, operation)
        operation.retries += 1
        if operation.key and operation.retries <= MAX_RETRIES:
            self.begin(writer, operation)

    def rest(self, writer: Writer, operation: Operation) -> None:
        operation.running -= 1
        writer.steps = writer.operation = None
        writer.must_fail = False

    def next_operation(self) -> Operation:
        """Choose what a client asks for next: something new, or now and then something again with its key."""
        if self.operations and self.chance() < 0.08:
            earlier = self.operations[-1 - int(self.chance() * min(8, len(self.operations)))]
            if earlier.key:
                return earlier
        user_id = self.users[int(self.chance() * len(self.users))]
        key = f"key {len(self.operations)}" if self.chance() < 0.6 else None
        operation = Operation(user_id, key)
        self.operations.append(operation)
        operation.name, operation.ask = self.choose(operation, f"op {len(self.operations) - 1}")
        return operation

    def choose(self, operation: Operation, mark: str) -> tuple[str, Callable[[], Steps[Any]]]:
        """Choose a verb; its entries will bear the mark."""
        user_id, key, chance = operation.user_id, operation.key, self.chance()
        staff: dict[str, Any] = {"reason": mark, "actor": STAFF, "key": key}
        if chance < 0.55:
            cost = 1 + int(self.chance() * 4)
            given: dict[str, Any] = {"metadata": {"mark": mark}, "key": key}
            return "consume", lambda: quotas.consume.steps(user_id, cost, **given)
        if chance < 0.65:
            return "current", lambda: quotas.current.steps(user_id)
        if chance < 0.77 and (
            spends := [entry for entry in self.accounts[user_id].ledger[-30:] if entry.cost]
        ):
            spend = spends[int(self.chance() * len(spends))].id
            amount = None if self.chance() < 0.5 else 1
            return "refund", lambda: quotas.refund.steps(user_id, spend, amount, **staff)
        if chance < 0.79 and (entries := self.accounts[user_id].ledger):
            shown = operation.shown = self.random.choice(entries[-30:]).id
            return "consumption", lambda: quotas.consumption.steps(user_id, shown)
        if chance < 0.81:
            return "forecast", lambda: quotas.forecast.steps(user_id, 3)
        if chance < 0.87:
            delta = operation.delta = self.random.choice([-2, 1, 5])
            return "adjust", lambda: quotas.adjust.steps(user_id, delta, **staff)
        if chance < 0.91:
            return "reset", lambda: quotas.reset.steps(user_id, **staff)
        plan = self.random.choice(["free", "pro", None, None])
        return "change_plan", lambda: quotas.change_plan.steps(user_id, plan, OnChange.RESET, **staff)

    # The promises

    def check_answer(self, writer: Writer, operation: Operation, answer: Answer) -> None:
        """A key that was acknowledged is replayed; what a reply shows of the quota is stored."""
        if writer.must_replay and not (isinstance(answer, Receipt | PlanChange) and answer.is_replay):
            raise Violation(f"{operation.name}, key {operation.key}: acknowledged, but not replayed.")
        if isinstance(answer, Receipt):
            entry, quota = answer.entry, answer.quota
            left = (entry.balance_after, entry.plan, entry.plan_version)
            if (quota.quota_remaining, quota.plan.name, quota.plan.version) != left:
                raise Violation(f"{operation.user_id}: {quota} is not what entry {entry.seq} left.")
            if (answer.is_replay and operation.name == "consume") or operation.shown:
                if not writer.refunded_before <= answer.refunded <= self.refunded(operation):
                    raise Violation(f"{operation.name}: {answer.refunded} is not what was refunded of it.")
                self.database.events[f"a refunded spend: {operation.name}"] += answer.refunded > 0
        shown_quota = answer.quota if isinstance(answer, Exhausted) else answer
        if isinstance(shown_quota, Quota) and not self.accounts[operation.user_id].had(shown_quota):
            raise Violation(f"{operation.user_id}: {shown_quota} was never stored.")
        if isinstance(answer, Forecast):
            quota, left = answer.quota, answer.quota.spendable - answer.cost
            is_of_new_period = (quota.used, quota.given) == (0, 0)  # which no request has begun yet
            if not is_of_new_period and not self.accounts[operation.user_id].had(quota):
                raise Violation(f"{operation.user_id}: {quota} was never stored.")
            if answer.remaining_after != (left if left >= 0 else None):
                raise Violation(f"{operation.user_id}: {answer} does not follow.")

    def refunded(self, operation: Operation) -> int:
        """The units that stored refunds asked for of what the operation spent, or asks to see."""
        account = self.accounts[operation.user_id]
        spent = account.by_key.get(f"consume:user:{operation.key}")
        spend = operation.shown or (spent and spent.id)
        return account.refunded[spend] if spend else 0

    def check(self) -> None:
        for account in self.accounts.values():
            self.check_chain(account)
            self.check_periods(account)
        self.check_operations()

    def check_chain(self, account: Account) -> None:
        """The ledger has no gap, its balances follow from each other, and the row is its newest entry's."""
        balance = 0
        for number, entry in enumerate(account.ledger, start=1):
            if entry.seq != number:
                raise Violation(f"{entry.user_id}: entry {number} has seq {entry.seq}.")
            if entry.balance_after != balance + entry.delta:
                raise Violation(f"{entry.user_id}: the balance of entry {number} does not follow.")
            balance = entry.balance_after
        if account.state:
            last = account.ledger[-1]
            for name in SHARED_FIELDS:
                if getattr(account.state, name) != getattr(last, name):
                    raise Violation(f"{last.user_id}: {name} of the row is not that of its newest entry.")

    def check_periods(self, account: Account) -> None:
        """In each period consumed - refunded <= limit + given, counted from entries and what was asked."""
        consumed, given, period, spends = 0, 0, 0, set[UUID]()
        for entry in account.ledger:
            if entry.period_seq != period:
                consumed, given, period, spends = 0, 0, entry.period_seq, set()
            if entry.kind == "consumed":
                consumed += entry.cost
                spends.add(entry.id)
                if consumed > (entry.quota_limit or 0) + given:
                    raise Violation(f"{entry.user_id}: overspent at entry {entry.seq}.")
            elif entry.refund_of in spends:
                consumed -= entry.cost
            elif entry.kind == "adjusted" and (number := number_of(entry)) is not None:
                given += self.operations[number].delta

    def check_operations(self) -> None:
        """Each acknowledged operation is in the ledger exactly once, any other at most once, none unasked."""
        made: dict[int, list[Entry]] = {}
        for account in self.accounts.values():
            for entry in account.ledger:
                if entry.kind != "refused" and (number := number_of(entry)) is not None:
                    made.setdefault(number, []).append(entry)
        for number, operation in enumerate(self.operations):
            if fault := fault_of(operation, made.pop(number, [])):
                raise Violation(f"op {number}: {fault}.")
        if made:
            raise Violation(f"Nobody asked for {made}.")


def fault_of(operation: Operation, entries: Sequence[Entry]) -> str:
    """Return what is wrong with an operation that made these entries, however often it was sent at once."""
    acknowledged = operation.acknowledged
    fresh = sum(not answer.is_replay for answer in acknowledged)
    if len(entries) > 1:
        return f"made {len(entries)} times"
    if any(isinstance(answer, Receipt) and [answer.entry] != entries for answer in acknowledged):
        return "acknowledged, but lost"
    if operation.key and acknowledged and not entries:
        return "acknowledged, but its key was not kept"
    if fresh > 1:
        return f"{fresh} replies say that they made it"
    if entries and not fresh and not operation.was_unknown:
        return "refused, but made"
    wanted = (operation.user_id, operation.key is None)
    if any((entry.user_id, entry.idempotency_key is None) != wanted for entry in entries):
        return "not as it was asked for"
    return ""


def number_of(entry: Entry) -> int | None:
    """The number of the operation that made the entry; None for an opening or a reset that was due."""
    mark = entry.reason or (entry.metadata or {}).get("mark", "")
    return int(mark.removeprefix("op ")) if mark.startswith("op ") else None


def shown(found: Any) -> str:
    if isinstance(found, Snapshot):
        state = found.state
        return f"seq {state.seq}, {state.quota_remaining} left" if state else "no row"
    if isinstance(found, Receipt):
        return f"{found.entry.kind} at seq {found.entry.seq}, {found.quota.quota_remaining} left"
    return str(found)


class Totals(NamedTuple):
    seeds: int
    steps: int
    seconds: float
    faults: Counter[str]
    events: Counter[str]

    def __str__(self) -> str:
        return (
            f"simulation: {self.seeds:,} seeds, {self.steps:,} steps, {self.steps / self.seconds:,.0f} a s; "
            f"0 lost, 0 double, 0 overspent; faults: {listed(self.faults)}; events: {listed(self.events)}"
        )


def listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.most_common())


def simulate(seeds: int, first: int = 0) -> Totals:
    """Run the seeds. Raises Violation with the whole story of a seed that breaks a promise."""
    began, steps, faults, events = perf_counter(), 0, Counter[str](), Counter[str]()
    for seed in range(first, first + seeds):
        run = Simulation(seed)
        try:
            run.run()
        except Violation as violation:
            raise Violation(f"{violation}\n{story_of(seed)}") from violation
        steps += run.steps
        faults += run.database.faults
        events += run.database.events
    return Totals(seeds, steps, perf_counter() - began, faults, events)


def story_of(seed: int) -> str:
    again = Simulation(seed, keeps_story=True)
    with suppress(Violation):
        again.run()
    return "\n".join([f"The story of seed {seed}:", *again.story])


if __name__ == "__main__":
    print(simulate(*map(int, sys.argv[1:])))

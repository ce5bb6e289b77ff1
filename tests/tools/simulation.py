"""A driver for the steps of the verbs that is a simulated database: in memory, from a seed, with faults.

Some writers share a few accounts. Each takes the real steps of a verb, and before each step a seeded
scheduler chooses whose is next. So races arise by themselves. The same seed chooses faults: a session is
killed before a statement or after it took effect, or its write is still under way and takes effect after its
client got the error; a transaction is rolled back, or its commit arrives late; PostgreSQL refuses a
statement; the clock jumps over the ends of periods and back. A client whose request failed retries it with
its key, or gives up if it has none.

What is left out: the usage that is read from the ledger after a change of plan (plans change by
OnChange.RESET only, and all are rolling); deletions; and the unique index on keys, so that the guard alone
must keep a key single.

By hand: `python -m tests.tools.simulation SEEDS [FIRST]`.
"""

import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random
from time import perf_counter
from typing import Any, NamedTuple
from uuid import UUID

from django.db import OperationalError

from quotas.rules import verbs
from quotas.rules.outcomes import Change, Refusal
from quotas.rules.values import Actor, Entry, OnChange, Plan, Request, Snapshot, State
from quotas.store.errors import ConnectionLost, LostRace
from quotas.store.manager import QuotaManager, Receipt
from quotas.store.steps import Lock, Read, SnapshotQuery, Step, Steps, WasWritten, Write

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
STAFF, CLERK = Actor("staff", "a test"), Actor("webhook", "clerk")
MAX_RETRIES = 6
STEPS_PER_SEED = 1_200
FAULT_RATES = (0.0, 0.02, 0.1, 0.3)
FAULTS = ("cut before", "cut after", "cut while under way", "refused", "new session killed")
SHARED_FIELDS = (
    *("plan", "plan_source", "plan_version", "quota_limit", "period_consumed", "period_given"),
    *("last_reset_date", "anchor_at", "resets_at", "period_seq", "seq"),
)
quotas: QuotaManager[Any] = QuotaManager()


class Violation(AssertionError):
    """The store broke a promise."""


class Account:
    """A user's row, its ledger, and the plan that Clerk assigned."""

    def __init__(self) -> None:
        self.state: State | None = None
        self.ledger: list[Entry] = []
        self.by_id: dict[UUID, Entry] = {}
        self.by_key: dict[str, Entry] = {}
        self.refunded: Counter[UUID] = Counter()
        self.assigned = ""
        self.holder: Any = None  # the transaction that holds the row's lock

    def fits(self, change: Change) -> bool:
        before = change.snapshot.state
        return (before and before.seq) == (self.state and self.state.seq)

    def write(self, change: Change) -> bool:
        """Store the change if the row is still as it was read.

        A plan that staff left to Clerk must be the one that Clerk assigned, which leaves the row's seq.
        """
        if not self.fits(change):
            return False
        self.state = change.state
        for entry in change.entries:
            self.ledger.append(entry)
            self.by_id[entry.id] = entry
            if entry.idempotency_key:
                self.by_key.setdefault(entry.idempotency_key, entry)
            if entry.refund_of:
                self.refunded[entry.refund_of] += entry.cost
        if change.state.plan_source != "staff" and change.state.plan != (self.assigned or "free"):
            raise Violation(
                f"{change.state.user_id}: {change.state.plan} is not the plan that Clerk assigned."
            )
        return True


class Operation:
    """What a client asked for, as often as it asked."""

    def __init__(self, user_id: str, key: str | None) -> None:
        self.user_id, self.key, self.name = user_id, key, ""
        self.ask: Callable[[], Steps[Any]]
        self.retries = self.delta = 0
        self.was_unknown = self.is_running = False
        self.answer: Receipt | Refusal | None = None


class Transaction:
    """The inner steps of a Lock; its one change is visible to others from its commit on."""

    def __init__(self, lock: Lock) -> None:
        self.user_id, self.steps = lock.user_id, lock.steps
        self.change: Change | None = None


class Writer:
    """A client that sends one operation after the other."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.operation: Operation | None = None
        self.steps: Steps[Any] | None = None
        self.step: Step | None = None  # to be carried out next
        self.transaction: Transaction | None = None
        self.lost_tries = 0  # of this attempt, by faults
        self.is_unsure = False  # whether a write of this attempt was sent
        self.must_fail = (
            False  # a new connection failed before anything was sent: the client must get the error
        )


class Late(NamedTuple):
    """A write that is still under way, or a commit: it takes effect after its client got an error."""

    change: Change | None
    transaction: Transaction | None
    account: Account


class Simulation:
    def __init__(self, seed: int, *, keeps_story: bool = False) -> None:
        self.random = Random(seed)
        self.chance = self.random.random
        self.keeps_story, self.story = keeps_story, list[str]()
        self.steps = self.ids = 0
        self.faults: Counter[str] = Counter()
        self.fault_rate = self.random.choice(FAULT_RATES)
        self.clock = BEGIN
        self.versions = {
            "free": [Plan("free", 1, self.random.choice([3, 20]), "rolling", HOUR, "UTC")],
            "pro": [Plan("pro", 1, 50, "rolling", DAY, "UTC")],
        }
        users = [f"user_{number}" for number in range(self.random.choice([1, 1, 2, 3]))]
        self.users = users
        self.accounts = {user_id: Account() for user_id in users}
        self.writers = [Writer(f"client {number}") for number in range(self.random.randint(2, 6))]
        self.late: list[Late] = []
        self.operations: list[Operation] = []

    def run(self, steps: int = STEPS_PER_SEED) -> None:
        """Carry out this many steps, then whatever is still under way, and check the ledgers."""
        writers, chance = self.writers, self.chance
        while self.steps < steps:
            if chance() < 0.06:
                self.happen()
            self.advance(writers[int(chance() * len(writers))], may_begin=True)
        self.fault_rate = 0.0
        while busy := [writer for writer in writers if writer.steps or self.late]:
            if self.late and chance() < 0.5:
                self.arrive()
            self.advance(busy[int(chance() * len(busy))], may_begin=False)
        self.check()

    def record(self, who: str, what: object) -> None:
        if self.keeps_story:
            self.story.append(f"{self.steps:5} {self.clock:%d %H:%M:%S} {who}: {what}")

    # What happens besides the steps

    def happen(self) -> None:
        """Let time jump, a plan be edited, Clerk assign a plan, or a late write arrive."""
        match int(self.chance() * 8):
            case 0:
                self.clock += self.random.choice([HOUR, HOUR, DAY, -HOUR, timedelta(minutes=59)])
                self.record("clock", "jumped")
            case 1 if self.chance() < 0.3:
                allowance = self.random.choice([3, 8, 20])
                versions = self.versions["free"]
                versions.append(replace(versions[-1], version=len(versions) + 1, allowance=allowance))
                self.record("staff", f"gave the plan an allowance of {allowance}")
            case 2 | 3 | 4:
                self.assign(self.random.choice([*self.accounts]))
            case _:
                self.arrive()

    def assign(self, user_id: str) -> None:
        """As assign_plan: note Clerk's assignment and follow it, while the row is locked."""
        account = self.accounts[user_id]
        if not account.state or account.holder:
            return
        account.assigned = self.random.choice(["", "pro"])
        snapshot = self.snapshot(user_id, SnapshotQuery(None, "clerk"))
        outcome = verbs.follow_assignments(snapshot, Request(CLERK, reason="assigned"))
        if isinstance(outcome, Change) and outcome.entries:
            account.write(outcome)
        self.record("Clerk", f"assigned {account.assigned or 'none'} to {user_id}")

    def arrive(self) -> None:
        """Let a write or a commit that is still under way take effect, unless its guard stops it."""
        if not self.late:
            return
        at = int(self.chance() * len(self.late))
        change, transaction, account = self.late[at]
        if account.holder not in (None, transaction):
            return
        del self.late[at]
        if transaction:
            self.release(account, transaction)
        is_written = change is not None and account.write(change)
        self.record("late write", "took effect" if is_written else "was stopped")

    # The clients

    def advance(self, writer: Writer, *, may_begin: bool) -> None:
        """Carry out the writer's next step, or let it begin with an operation."""
        if writer.steps is None:
            if may_begin:
                self.begin(writer, self.next_operation())
            return
        step = writer.step
        assert step is not None
        if self.waits(writer, step):
            return
        self.steps += 1
        self.clock += timedelta(milliseconds=7)
        try:
            found = self.carry_out(writer, step)
        except OperationalError as error:
            self.record(writer.name, f"{type(step).__name__} failed: {error}")
            self.raise_into(writer, error)
        else:
            if self.keeps_story:
                self.record(writer.name, f"{type(step).__name__} → {shown(found)}")
            if not isinstance(step, Lock):
                self.send(writer, found)

    def begin(self, writer: Writer, operation: Operation) -> None:
        writer.operation, writer.steps, operation.is_running = operation, operation.ask(), True
        writer.lost_tries, writer.is_unsure = 0, False
        self.record(writer.name, f"asks for {operation.name} of {operation.user_id}, key {operation.key}")
        self.resume(writer, writer.steps.send, None)

    def send(self, writer: Writer, found: Any) -> None:
        steps = writer.transaction.steps if writer.transaction else writer.steps
        assert steps
        self.resume(writer, steps.send, found)

    def raise_into(self, writer: Writer, error: OperationalError) -> None:
        """Raise the error in the steps; the loss of a transaction's session rolls it back first."""
        if transaction := writer.transaction:
            writer.transaction = None
            self.release(self.accounts[transaction.user_id], transaction)
            transaction.steps.close()
        assert writer.steps
        self.resume(writer, writer.steps.throw, error)

    def resume(self, writer: Writer, resume: Callable[[Any], Step], value: Any) -> None:
        try:
            writer.step = resume(value)
        except StopIteration as stop:
            if transaction := writer.transaction:
                self.commit(writer, transaction, stop.value)
            else:
                self.finish(writer, stop.value)
        except Refusal as refusal:
            self.finish(writer, refusal)
        except OperationalError as error:
            self.fail(writer, error)
        else:
            if writer.must_fail:
                raise Violation("The error of a new connection was not passed on.")

    def finish(self, writer: Writer, answer: Any) -> None:
        assert writer.operation
        if isinstance(answer, Receipt | Refusal):
            writer.operation.answer = answer
        self.record(writer.name, f"got {shown(answer)}")
        writer.operation.is_running = False
        writer.steps = writer.operation = None

    def fail(self, writer: Writer, error: OperationalError) -> None:
        """Let the client retry, with its key; without one it may not."""
        operation = writer.operation
        assert operation
        if writer.lost_tries == 0 and "again and again" in str(error):
            raise Violation(f"{operation.name} lost every race.")
        self.record(writer.name, f"got an error: {error}")
        operation.was_unknown, operation.is_running, writer.must_fail = True, False, False
        writer.steps = writer.operation = None
        operation.retries += 1
        if operation.key and operation.retries <= MAX_RETRIES:
            self.begin(writer, operation)

    def next_operation(self) -> Operation:
        """Choose what a client asks for next: something new, or now and then something again with its key."""
        if self.operations and self.chance() < 0.05:
            earlier = self.operations[-1 - int(self.chance() * min(8, len(self.operations)))]
            if earlier.key and not earlier.is_running:
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
            given = {"metadata": {"mark": mark}, "key": key}
            return "consume", lambda: quotas.consume.steps(user_id, cost, **given)
        if chance < 0.65:
            return "current", lambda: quotas.current.steps(user_id)
        if chance < 0.77 and (
            spends := [entry for entry in self.accounts[user_id].ledger[-30:] if entry.cost]
        ):
            spend = spends[int(self.chance() * len(spends))].id
            amount = None if self.chance() < 0.5 else 1
            return "refund", lambda: quotas.refund.steps(user_id, spend, amount, **staff)
        if chance < 0.87:
            delta = operation.delta = self.random.choice([-2, 1, 5])
            return "adjust", lambda: quotas.adjust.steps(user_id, delta, **staff)
        if chance < 0.91:
            return "reset", lambda: quotas.reset.steps(user_id, **staff)
        plan = self.random.choice(["free", "pro", None, None])
        return "change_plan", lambda: quotas.change_plan.steps(user_id, plan, OnChange.RESET, **staff)

    # The database

    def waits(self, writer: Writer, step: Step) -> bool:
        """Whether another transaction holds the lock that the step needs."""
        if not isinstance(step, Lock | Write):
            return False
        user_id = step.user_id if isinstance(step, Lock) else step.change.state.user_id
        return self.accounts[user_id].holder not in (None, writer.transaction)

    def carry_out(self, writer: Writer, step: Step) -> Any:
        fault = self.fault() if self.chance() < self.fault_rate else ""
        if fault:
            self.faults[fault] += 1
            writer.lost_tries += 1
        if fault == "refused":
            raise LostRace("refused")
        if fault == "new session killed":
            writer.must_fail = isinstance(step, Read) and writer.transaction is None and not writer.is_unsure
            raise lost(repeats=0)
        if isinstance(step, Write):
            return self.write(writer, step.change, fault)
        if fault:
            raise lost()
        if isinstance(step, Lock):
            return self.lock(writer, step)
        if isinstance(step, Read):
            return self.snapshot(step.user_id, step.query)
        assert isinstance(step, WasWritten)
        return step.entry_id in self.accounts[step.user_id].by_id

    def fault(self) -> str:
        return FAULTS[int(self.chance() * len(FAULTS))]

    def lock(self, writer: Writer, lock: Lock) -> None:
        """Begin a transaction; it holds the lock of the row, if there is one, until it ends."""
        transaction = writer.transaction = Transaction(lock)
        account = self.accounts[lock.user_id]
        if account.state:
            account.holder = transaction
        self.resume(writer, transaction.steps.send, None)

    def write(self, writer: Writer, change: Change, fault: str) -> bool:
        account, transaction = self.accounts[change.state.user_id], writer.transaction
        writer.is_unsure = True
        if transaction:
            if fault:
                raise lost()
            if not account.fits(change):
                return False
            account.holder, transaction.change = transaction, change
            return True
        if fault == "cut while under way":
            self.late.append(Late(change, None, account))
        is_written = fault in ("", "cut after") and account.write(change)
        if fault:
            raise lost()
        return is_written

    def commit(self, writer: Writer, transaction: Transaction, result: Any) -> None:
        """End the transaction; its commit may be lost, before it or after it took effect, or arrive late."""
        account, change = self.accounts[transaction.user_id], transaction.change
        fault = self.fault() if self.chance() < self.fault_rate else ""
        if fault in ("refused", "new session killed"):
            fault = "cut before"
        if fault:
            self.faults[f"commit {fault}"] += 1
            writer.lost_tries += 1
        writer.transaction = None
        if fault == "cut while under way":
            self.late.append(Late(change, transaction, account))
        else:
            if change and fault in ("", "cut after"):
                account.write(change)
            self.release(account, transaction)
        self.record(writer.name, f"commit {fault}")
        assert writer.steps
        if fault:
            self.resume(writer, writer.steps.throw, lost())
        else:
            self.resume(writer, writer.steps.send, result)

    def release(self, account: Account, transaction: Transaction) -> None:
        if account.holder is transaction:
            account.holder = None

    def snapshot(self, user_id: str, query: SnapshotQuery) -> Snapshot:
        account, key = self.accounts[user_id], query.idempotency_key
        state = account.state
        newest = self.versions[state.plan if state else "free"][-1]
        entry = account.by_key.get(key) if key else None
        self.ids += 2
        found: dict[str, Any] = {}
        if query.include == "consumption":
            spend = query.argument
            found = {"consumption": account.by_id.get(spend), "refunded": account.refunded[spend]}
        elif query.include:
            plan = query.argument if query.include == "target" else account.assigned or "free"
            source = "staff" if query.include == "target" else "billing" if account.assigned else "default"
            found = {"target": self.versions[plan][-1], "target_source": source}
        return Snapshot(
            user_id=user_id,
            clock=self.clock,
            current_plan=newest,
            plan_in_force=self.versions[state.plan][state.plan_version - 1] if state else newest,
            state=state,
            entry=entry,
            entry_plan=self.versions[entry.plan][entry.plan_version - 1] if entry else None,
            entry_ids=(UUID(int=self.ids), UUID(int=self.ids + 1)),
            **found,
        )

    # The promises

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
            elif entry.kind == "adjusted":
                given += self.operations[number_of(entry)].delta

    def check_operations(self) -> None:
        """Each acknowledged operation is in the ledger exactly once, any other at most once, none unasked."""
        made: dict[int, list[Entry]] = {}
        for account in self.accounts.values():
            for entry in account.ledger:
                if entry.kind != "refused" and (number := number_of(entry)) is not None:
                    made.setdefault(number, []).append(entry)
        for number, operation in enumerate(self.operations):
            entries, answer = made.pop(number, []), operation.answer
            if len(entries) > 1:
                raise Violation(f"op {number}: made {len(entries)} times.")
            if isinstance(answer, Receipt) and [answer.entry] != entries:
                raise Violation(f"op {number}: acknowledged, but lost.")
            if isinstance(answer, Refusal) and entries and not operation.was_unknown:
                raise Violation(f"op {number}: refused, but made.")
            if entries and (entries[0].user_id, entries[0].idempotency_key is None) != (
                operation.user_id,
                operation.key is None,
            ):
                raise Violation(f"op {number}: not as it was asked for.")
        if made:
            raise Violation(f"Nobody asked for {made}.")


def lost(*, repeats: int = ConnectionLost.repeats) -> ConnectionLost:
    error = ConnectionLost("the connection was lost")
    error.repeats = repeats
    return error


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

    def __str__(self) -> str:
        faults = ", ".join(f"{count:,} {fault}" for fault, count in self.faults.most_common())
        return (
            f"simulation: {self.seeds:,} seeds, {self.steps:,} steps, {self.steps / self.seconds:,.0f} a s; "
            f"0 lost, 0 double, 0 overspent; faults: {faults}"
        )


def simulate(seeds: int, first: int = 0) -> Totals:
    """Run the seeds. Raises Violation with the whole story of a seed that breaks a promise."""
    began, steps, faults = perf_counter(), 0, Counter[str]()
    for seed in range(first, first + seeds):
        run = Simulation(seed)
        try:
            run.run()
        except Violation as violation:
            raise Violation(f"{violation}\n{story_of(seed)}") from violation
        steps += run.steps
        faults += run.faults
    return Totals(seeds, steps, perf_counter() - began, faults)


def story_of(seed: int) -> str:
    again = Simulation(seed, keeps_story=True)
    with suppress(Violation):
        again.run()
    return "\n".join([f"The story of seed {seed}:", *again.story])


if __name__ == "__main__":
    print(simulate(*map(int, sys.argv[1:])))

"""The database of the simulation (simulation.py): accounts in memory, row locks, and faults of its sessions.

A session is killed before a statement or after it took effect, or its write is still under way and takes
effect after its client got the error, or gave it up as overdue; a commit is lost in the same ways; PostgreSQL
refuses a statement.

What is left out: the usage that is read from the ledger after a change of plan (plans change by
OnChange.RESET only, and all are rolling); deletions; and the unique index on keys, so that the guard alone
must keep a key single.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, NamedTuple
from uuid import UUID

from quotas.rules import verbs
from quotas.rules.outcomes import Change
from quotas.rules.values import Actor, Entry, Plan, Quota, Request, Snapshot, State
from quotas.store.errors import ConnectionLost, LostRace, Overdue
from quotas.store.steps import Lock, SnapshotQuery, Step, Write

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
CLERK = Actor("webhook", "clerk")
FAULT_RATES = (0.0, 0.02, 0.1, 0.3)
UNDER_WAY = ("cut while under way", "overdue")
CUTS = ("cut before", "cut after", *UNDER_WAY)
FAULTS = (*CUTS, "refused", "new session killed")


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
        self.holder: Transaction | None = None  # of the row's lock
        self.changed_by = ""  # the last change

    def fits(self, change: Change) -> bool:
        before = change.snapshot.state
        return (before and before.seq) == (self.state and self.state.seq)

    def write(self, change: Change, by: str) -> bool:
        """Store the change if the row is still as it was read.

        A plan that staff left to Clerk must be the one that Clerk assigned, which leaves the row's seq.
        """
        if not self.fits(change):
            return False
        self.state, self.changed_by = change.state, by
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

    def had(self, quota: Quota) -> bool:
        """Whether a stored entry left this quota."""
        wanted = (quota.quota_remaining, quota.used, quota.given, quota.quota_limit, quota.resets_at)
        return any(
            wanted
            == (
                *(entry.balance_after, entry.period_consumed, entry.period_given),
                *(entry.quota_limit, entry.resets_at),
            )
            for entry in reversed(self.ledger)
        )


class Transaction:
    """It may hold the lock of an account's row; its one change is visible to others from its commit on."""

    def __init__(self, account: Account, by: str) -> None:
        self.account, self.by = account, by
        self.change: Change | None = None


class Late(NamedTuple):
    """A write that is still under way, or a commit: it takes effect after its client got an error."""

    change: Change | None
    transaction: Transaction | None
    account: Account
    waits: bool = True  # for a lock


class Database:
    def __init__(self, random: Random) -> None:
        self.random, self.chance = random, random.random
        self.fault_rate = random.choice(FAULT_RATES)
        self.faults, self.events = Counter[str](), Counter[str]()
        self.clock = BEGIN
        self.ids = 0
        self.versions = {
            "free": [Plan("free", 1, random.choice([3, 20]), "rolling", HOUR, "UTC")],
            "pro": [Plan("pro", 1, 50, "rolling", DAY, "UTC")],
        }
        users = range(random.choice([1, 1, 2, 3]))
        self.accounts = {f"user_{number}": Account() for number in users}
        self.is_pro_archived = False
        self.late: list[Late] = []

    # Faults

    def fault(self, place: str = "", kinds: Sequence[str] = FAULTS) -> str:
        """Choose the fault of a statement, most often none ("")."""
        if self.chance() >= self.fault_rate:
            return ""
        fault = kinds[int(self.chance() * len(kinds))]
        self.faults[f"{place}{fault}"] += 1
        return fault

    def may_fail(self, place: str) -> None:
        """Choose the fault of a statement that has no effect, or none beyond its transaction."""
        fail(self.fault(place))

    def arrive(self) -> str:
        """Let a write or a commit that is still under way take effect, unless its guard or a lock stops it.

        Return what happened.
        """
        if not self.late:
            return ""
        at = int(self.chance() * len(self.late))
        change, transaction, account, waits = self.late[at]
        if self.is_held(account, transaction, "a late write"):
            if waits:
                return ""
            del self.late[at]
            return "was passed over"
        del self.late[at]
        if transaction:
            self.release(transaction)
        is_written = change is not None and account.write(change, "a late write")
        return "took effect" if is_written else "was stopped"

    def is_under_way(self, key: str) -> bool:
        """Whether a write or a commit of a client's key may still arrive."""
        return any(
            (entry.idempotency_key or "").endswith(f":{key}")
            for late in self.late
            for entry in (late.change.entries if late.change else ())
        )

    # Time, and what others change

    def jump(self) -> None:
        self.clock += self.random.choice([HOUR, HOUR, DAY, -HOUR, timedelta(minutes=59)])

    def edit_plan(self) -> int:
        """Give the plan another version; return its allowance."""
        allowance = self.random.choice([3, 8, 20])
        versions = self.versions["free"]
        versions.append(versions[-1]._replace(version=len(versions) + 1, allowance=allowance))
        return allowance

    def archive(self) -> str:
        """Archive the plan pro, or unarchive it; return which."""
        self.is_pro_archived = not self.is_pro_archived
        return "archived" if self.is_pro_archived else "unarchived"

    def assign(self, user_id: str) -> bool:
        """As assign_plan: note Clerk's assignment and follow it, while the row is locked."""
        account = self.accounts[user_id]
        if not account.state or self.is_held(account, None, "Clerk"):
            return False
        account.assigned = self.random.choice(["", "pro"])
        snapshot = self.snapshot(user_id, SnapshotQuery(None, "clerk"))
        outcome = verbs.follow_assignments(snapshot, Request(CLERK, reason="assigned"))
        if isinstance(outcome, Change) and outcome.entries:
            account.write(outcome, "Clerk")
        return True

    # Statements

    def waits(self, step: Step, transaction: Transaction | None) -> bool:
        """Whether the step must wait for the transaction that holds the row's lock. An insert always does."""
        if isinstance(step, Lock):
            user_id = step.user_id
        elif isinstance(step, Write) and (step.waits or step.change.snapshot.state is None):
            user_id = step.change.state.user_id
        else:
            return False
        return self.is_held(self.accounts[user_id], transaction, "a client")

    def is_held(self, account: Account, transaction: Transaction | None, by: str) -> bool:
        """Whether a transaction other than this one holds the row's lock."""
        holder = account.holder
        if holder is None or holder is transaction:
            return False
        self.events[f"{by} met the lock of {holder.by}"] += 1
        return True

    def snapshot(self, user_id: str, query: SnapshotQuery) -> Snapshot:
        account, key = self.accounts[user_id], query.idempotency_key
        state = account.state
        newest = self.versions[state.plan if state else "free"][-1]
        entry = account.by_key.get(key) if key else None
        self.ids += 2
        found: dict[str, Any] = {}
        if query.include == "consumption":
            spend, refunded = account.by_id.get(query.argument), account.refunded[query.argument]
            found = {"consumption": spend, "consumption_plan": self.plan_of(spend), "refunded": refunded}
        elif query.include:
            plan = query.argument if query.include == "target" else account.assigned or "free"
            source = "staff" if query.include == "target" else "billing" if account.assigned else "default"
            is_hidden = query.include == "target" and plan == "pro" and self.is_pro_archived
            is_known = not is_hidden or (state is not None and state.plan == "pro")
            found = {"target": self.versions[plan][-1] if is_known else None, "target_source": source}
        return Snapshot(
            user_id=user_id,
            clock=self.clock,
            current_plan=newest,
            plan_in_force=self.versions[state.plan][state.plan_version - 1] if state else newest,
            state=state,
            entry=entry,
            entry_plan=self.plan_of(entry),
            entry_ids=(UUID(int=self.ids), UUID(int=self.ids + 1)),
            entry_refunded=account.refunded[entry.id] if entry and entry.kind == "consumed" else 0,
            **found,
        )

    def plan_of(self, entry: Entry | None) -> Plan | None:
        return self.versions[entry.plan][entry.plan_version - 1] if entry else None

    def write(self, changes: Sequence[Change], *, waits: bool, by: str, fault: str) -> list[bool]:
        """Store changes of different accounts in one statement; return of each whether it was stored.

        Those that are still under way take effect one by one: no promise is about two accounts.
        """
        if fault in UNDER_WAY:
            for change in changes:
                is_insert = change.snapshot.state is None
                self.late.append(Late(change, None, self.accounts[change.state.user_id], waits or is_insert))
        are_stored = [fault in ("", "cut after") and self._write(change, by) for change in changes]
        fail(fault)
        return are_stored

    def _write(self, change: Change, by: str) -> bool:
        account = self.accounts[change.state.user_id]
        if self.is_held(account, None, by):
            return False
        if account.write(change, by):
            return True
        self.events[f"{by} lost to {account.changed_by}"] += 1
        return False

    # Transactions

    def lock(self, user_id: str, by: str) -> Transaction:
        """Begin a transaction; it holds the lock of the row, if there is one, until it ends."""
        account = self.accounts[user_id]
        transaction = Transaction(account, by)
        if account.state:
            account.holder = transaction
        return transaction

    def write_in(self, transaction: Transaction, change: Change) -> bool:
        """Write the change, unless it is stopped; only the transaction's commit stores it."""
        account = transaction.account
        if self.is_held(account, transaction, transaction.by) or not account.fits(change):
            return False
        account.holder, transaction.change = transaction, change
        return True

    def commit(self, transaction: Transaction, fault: str) -> None:
        """End the transaction; its commit may be lost, before it or after it took effect, or arrive late."""
        account, change = transaction.account, transaction.change
        if fault in UNDER_WAY:
            self.late.append(Late(change, transaction, account))
        else:
            if change and fault in ("", "cut after"):
                account.write(change, transaction.by)
            self.release(transaction)
        fail(fault)

    def release(self, transaction: Transaction) -> None:
        if transaction.account.holder is transaction:
            transaction.account.holder = None


def fail(fault: str) -> None:
    """Raise the error that the client of a faulty statement gets."""
    if fault == "refused":
        raise LostRace("refused")
    if fault == "overdue":
        raise Overdue("overdue")
    if fault:
        error = ConnectionLost("the connection was lost")
        error.repeats = 0 if fault == "new session killed" else ConnectionLost.repeats
        raise error

"""Attempts that the simulation (simulation.py) carries out together, as a driver with batches does.

A batch does one statement at a time, and anything may happen in between. An error of a statement is raised in
every attempt that is not yet answered; after a lost race of the whole, which had no effect, each goes alone.
"""

from collections.abc import Generator, Iterator, Sequence
from copy import copy

from django.db import OperationalError

from quotas.rules.outcomes import Change, Replay
from quotas.store.errors import LostRace
from quotas.store.fold import fold
from quotas.store.steps import Attempt
from tests.tools.simulated_database import CUTS, Database, Transaction

Reply = tuple[Attempt, bool | OperationalError | None]  # None: carry it out alone


class Batch:
    """Attempts of several accounts: one read for all, then one store for all that changed."""

    name = "a batch"

    def __init__(self, database: Database) -> None:
        self.database = database
        self.attempts: list[Attempt] = []  # that are not answered
        self.alone: list[Attempt] = []  # that cannot be decided with others
        self.is_gathering = True
        self.doing = ""  # the last statement
        self.statements = self.carry_out()

    def waits(self) -> bool:
        """Whether the next statement must wait for the lock of a row."""
        return False

    def advance(self) -> list[Reply]:
        """Carry out the next statement; return the replies that it makes possible."""
        try:
            replies = next(self.statements)
        except OperationalError as error:
            self.is_gathering = False
            replies = [self.failed(attempt, error) for attempt in self.attempts]
        answered = {attempt for attempt, _ in replies}
        self.attempts = [attempt for attempt in self.attempts if attempt not in answered]
        return replies

    def failed(self, attempt: Attempt, error: OperationalError) -> Reply:
        if not isinstance(error, LostRace):
            return attempt, copy(error)
        attempt.sent = None
        return attempt, None

    def done(self, attempt: Attempt, *, is_stored: bool) -> Reply:
        return attempt, None if attempt in self.alone else not attempt.sent or is_stored

    def carry_out(self) -> Iterator[list[Reply]]:
        """Of each statement, yield the replies."""
        self.doing, self.is_gathering = "read", False
        self.database.may_fail("batch read ")
        changes = self.decide()
        yield [self.done(attempt, is_stored=False) for attempt in self.attempts if not attempt.sent]
        self.doing = "store"
        are_stored = self.store(changes)
        yield [(attempt, are_stored[attempt.user_id]) for attempt in self.attempts]

    def decide(self) -> list[Change]:
        """Decide what was read; return the changes, one of each account that changes."""
        by_account: dict[str, list[Attempt]] = {}
        for attempt in self.attempts:
            if self.is_foldable(attempt):
                by_account.setdefault(attempt.user_id, []).append(attempt)
            else:
                self.alone.append(attempt)
        folded = [self.fold(attempts) for attempts in by_account.values()]
        return [change for change in folded if change]

    def is_foldable(self, attempt: Attempt) -> bool:
        """Whether there is a row; and now and then a plan of what was read is not cached."""
        return self.database.accounts[attempt.user_id].state is not None and self.database.chance() < 0.97

    def fold(self, attempts: Sequence[Attempt]) -> Change | None:
        snapshots = [self.database.snapshot(attempt.user_id, attempt.query) for attempt in attempts]
        change, events = fold(attempts, snapshots), self.database.events
        keys = [key for attempt in attempts if (key := attempt.query.idempotency_key)]
        events[f"an account twice in {self.name}"] += len(attempts) > 1
        events["a key twice in a batch"] += len(set(keys)) < len(keys)
        events["a replay of the same batch"] += change is not None and any(
            isinstance(attempt.outcome, Replay) and attempt.outcome.entry in change.entries
            for attempt in attempts
        )
        return change

    def store(self, changes: Sequence[Change]) -> dict[str, bool]:
        """Return of each account whether its change was stored."""
        database = self.database
        is_one_stale = not all(database.accounts[change.state.user_id].fits(change) for change in changes)
        fault = database.fault("batch store ")
        are_stored = database.write(changes, waits=False, by=self.name, fault=fault)
        database.events["one guard of a batch lost, not all"] += is_one_stale and any(are_stored)
        return {change.state.user_id: stored for change, stored in zip(changes, are_stored, strict=True)}


class LockedBatch(Batch):
    """Attempts of one account in one transaction that holds its lock; it gathers until it has the lock."""

    name = "a locked batch"

    def __init__(self, database: Database, user_id: str) -> None:
        super().__init__(database)
        self.user_id = user_id

    def waits(self) -> bool:
        account = self.database.accounts[self.user_id]
        return not self.doing and self.database.is_held(account, None, self.name)

    def carry_out(self) -> Iterator[list[Reply]]:
        self.doing = "lock"
        self.database.may_fail("locked batch ")
        transaction = self.database.lock(self.user_id, by=self.name)
        yield []
        try:
            is_stored = yield from self.read_and_write(transaction)
        except OperationalError:
            self.database.release(transaction)
            raise
        self.doing = "commit"
        self.database.commit(transaction, self.database.fault("batch commit ", CUTS))
        yield [self.done(attempt, is_stored=is_stored) for attempt in self.attempts]

    def read_and_write(self, transaction: Transaction) -> Generator[list[Reply], None, bool]:
        """Return whether the change, if there is one, is in the transaction."""
        self.doing, self.is_gathering = "read", False
        self.database.may_fail("locked batch ")
        changes = self.decide()
        yield []
        for change in changes:
            self.doing = "store"
            self.database.may_fail("locked batch ")
            if not self.database.write_in(transaction, change):
                return False
            yield []
        return True

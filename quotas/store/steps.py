"""The steps of a verb: what it asks of the store's database, and not how a database does it.

A verb is a generator of steps. A driver (thread.py, loop.py) carries out each step and sends its result back
into the generator; the error of a step is raised there.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from quotas.rules.outcomes import Change, Forecast, Outcome
from quotas.rules.values import Snapshot

Result = TypeVar("Result")
Decide = Callable[[Snapshot], Outcome | Forecast]


class SnapshotQuery(NamedTuple):
    """What to read besides the user's row."""

    idempotency_key: str | None = None  # as stored
    include: str = ""  # of sql.INCLUDES,
    argument: Any = None  # and its parameter, if it has one


class Read(NamedTuple):
    """Its result is the user's Snapshot."""

    user_id: str
    query: SnapshotQuery


class Write(NamedTuple):
    """Store the change whole if the row is still as it was read. Its result: whether it was stored.

    If it is not to wait, it also stores nothing while another transaction has locked the row.
    """

    change: Change
    waits: bool = True


class WasWritten(NamedTuple):
    """Its result: whether the user has this ledger entry."""

    user_id: str
    entry_id: UUID


class Lock(NamedTuple):
    """Carry out these steps in a transaction that holds the lock of the user's row. Its result is theirs."""

    user_id: str
    steps: "Steps[Any]"


@dataclass(eq=False, slots=True)
class Attempt:
    """Read, decide, and write the change, if there is one. Its result: whether the outcome is final.

    A driver may read for several attempts at once, decide them one after the other, and write what they
    change together (fold.py).
    """

    user_id: str
    query: SnapshotQuery
    decide: Decide
    expects_change: bool
    must_lock: bool  # hold the lock of the user's row meanwhile; a driver may set it
    outcome: Outcome | Forecast | None = None  # what was decided
    sent: Change | None = None  # what the outcome rests on, from the moment before it is sent

    def steps(self) -> "DatabaseSteps[bool]":
        """Return the steps of an attempt that is carried out alone."""
        self.outcome = self.decide((yield Read(self.user_id, self.query)))
        if not isinstance(self.outcome, Change) or not self.outcome.entries:
            return True
        self.sent = self.outcome
        is_stored: bool = yield Write(self.sent, waits=False)
        return is_stored


class InThread(NamedTuple):
    """Its result is the function's, which may wait: an event loop hands it to a thread.

    The function may be called twice: it is repeated if the thread's connection to the database had died.
    """

    function: Callable[[], Any]


DatabaseStep = Read | Write | WasWritten  # a few statements on any connection
Step = DatabaseStep | Attempt | Lock | InThread
DatabaseSteps = Generator[DatabaseStep, Any, Result]
Steps = Generator[Step, Any, Result]

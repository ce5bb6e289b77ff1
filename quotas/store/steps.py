"""The steps of a verb: what it asks of the store's database, and not how a database does it.

A verb is a generator of steps. A driver (thread.py, loop.py) carries out each step and sends its result back
into the generator; the error of a step is raised there.
"""

from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from quotas.rules.outcomes import Change

Result = TypeVar("Result")


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
    """Store the change whole if the row is still as it was read. Its result: whether it was stored."""

    change: Change


class WasWritten(NamedTuple):
    """Its result: whether the user has this ledger entry."""

    user_id: str
    entry_id: UUID


class Lock(NamedTuple):
    """Carry out these steps in a transaction that holds the lock of the user's row. Its result is theirs."""

    user_id: str
    steps: "Steps[Any]"


class Turn(NamedTuple):
    """Until these steps end, let no other steps of this event loop write to the user's row.

    It avoids lost races, no more: a driver may ignore it.
    """

    user_id: str


class InThread(NamedTuple):
    """Its result is the function's, which may wait: an event loop hands it to a thread.

    The function may be called twice: it is repeated if the thread's connection to the database had died.
    """

    function: Callable[[], Any]


DatabaseStep = Read | Write | WasWritten  # a few statements on any connection
Step = DatabaseStep | Lock | Turn | InThread
Steps = Generator[Step, Any, Result]

"""Read, decide, write: the loop that stores a decision.

If another request changes the row between read and write, the loop starts again; if the reply to a write is
lost, it finds out whether the write was carried out. The deciding function is a parameter: there is no rule
here. How a step reaches a database is the driver's part: there is no SQL here either.
"""

from quotas import metrics
from quotas.rules.outcomes import Change, Forecast, Outcome
from quotas.store.errors import ConnectionLost, LostRace
from quotas.store.steps import Attempt, Decide, Lock, SnapshotQuery, Steps, WasWritten, Write

UNLOCKED_TRIES = 1  # before the row is locked, so that a busy row makes progress too
MAX_TRIES = 10


def commit(
    user_id: str, decide: Decide, query: SnapshotQuery, *, expects_change: bool = True
) -> Steps[Outcome | Forecast]:
    """Return the outcome that `decide` makes of the user's snapshot, once it is stored.

    `decide` must be pure: it may be called several times. A change that is returned is stored whole and
    exactly once, even if a connection died before the reply arrived. Raises OperationalError if the database
    cannot be reached or takes no writes: the change may then be stored or not, but never in part or twice.

    `expects_change`: whether it mostly makes a change. If not, the first attempt waits for no busy row.
    """
    for number in range(MAX_TRIES):
        # Assignments change without bumping seq, so compare-and-swap cannot see it: take the row lock first.
        must_lock = query.include == "clerk" or number >= UNLOCKED_TRIES
        attempt = Attempt(user_id, query, decide, expects_change, must_lock)
        try:
            is_final = yield attempt
        except ConnectionLost as error:
            if not attempt.sent and number >= error.repeats:
                raise
            is_final = attempt.sent and (yield from _settle(attempt.sent, was_locked=attempt.must_lock))
        except LostRace:  # of a database whose default is not READ COMMITTED; a locked try uses that
            is_final = False
        if is_final and attempt.outcome:
            return attempt.outcome
        metrics.LOST_RACES.inc()
    raise LostRace("The row was changed by other requests again and again.")


def _settle(change: Change, *, was_locked: bool) -> Steps[bool]:
    """Return whether a change is stored that may have been written already, or may still be under way.

    The same guarded write waits for the first one and cannot take effect twice. If its guard fails, the id of
    our own entry shows whether the first one succeeded. A transaction that held the row's lock has ended once
    we hold it. If it was rolled back, decide anew: assignments may have changed since.
    """
    if was_locked and change.snapshot.state:
        is_stored: bool = yield Lock(change.state.user_id, _was_written(change))
        return is_stored
    return (yield Write(change)) or (yield from _was_written(change))


def _was_written(change: Change) -> Steps[bool]:
    was_written: bool = yield WasWritten(change.state.user_id, change.entries[-1].id)
    return was_written

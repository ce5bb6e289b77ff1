"""Several attempts of one account as one change: each is decided on what those before it leave."""

from collections.abc import Sequence

from quotas.rules.outcomes import Change
from quotas.rules.values import Entry, Plan, Snapshot
from quotas.store.steps import Attempt


def fold(attempts: Sequence[Attempt], snapshots: Sequence[Snapshot]) -> Change | None:
    """Decide the attempts in their order; return the one change that stores what they decided, if any.

    The snapshots are of the same row, each with the entry of its attempt's key. Every attempt from the first
    change on rests on the whole: its outcome is final once that is stored, and no part of it is stored alone.
    """
    whole: Change | None = None
    resting: list[Attempt] = []  # on the whole
    made: dict[str, tuple[Entry, Plan]] = {}  # by idempotency key
    for attempt, snapshot in zip(attempts, snapshots, strict=True):
        if whole:
            snapshot = _after(whole, snapshot, *made.get(attempt.query.idempotency_key or "", (None, None)))
        attempt.outcome = outcome = attempt.decide(snapshot)
        if isinstance(outcome, Change) and outcome.entries:
            for entry in outcome.entries:
                if entry.idempotency_key:
                    made[entry.idempotency_key] = entry, outcome.plan_in_force
            whole = _joined(whole, outcome) if whole else outcome
        if whole:
            resting.append(attempt)
    for attempt in resting:
        attempt.sent = whole
    return whole


def _after(change: Change, snapshot: Snapshot, entry: Entry | None, entry_plan: Plan | None) -> Snapshot:
    """Return the snapshot as it would be read after the change."""
    return snapshot._replace(
        state=change.state,
        plan_in_force=change.plan_in_force,
        entry=entry or snapshot.entry,
        entry_plan=entry_plan or snapshot.entry_plan,
    )


def _joined(first: Change, second: Change) -> Change:
    return second._replace(snapshot=first.snapshot, entries=first.entries + second.entries)

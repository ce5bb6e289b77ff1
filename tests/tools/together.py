"""Spends of many users at once, by one read and one write, as an event loop carries them out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from quotas.models import Plan
from quotas.rules import verbs
from quotas.rules.values import Actor, Request
from quotas.store import plan_cache
from quotas.store.fold import fold
from quotas.store.statements import read_snapshots, write_changes
from quotas.store.steps import Attempt, SnapshotQuery
from quotas.store.thread import run_statements


@contextmanager
def cached_plan() -> Iterator[None]:
    """Cache the default plan, as a process does that has served a user."""
    plan = Plan.objects.get(is_default=True)
    plan_cache.remember(plan.version_id, plan.value)
    yield
    plan_cache.clear()


def spend_together(user_ids: Sequence[str], key: str) -> None:
    """Spend with the key for each of these users, who have a row of the cached plan."""
    actor = Actor("staff", "a test")
    attempts = [
        Attempt(
            user_id,
            SnapshotQuery(key),
            partial(verbs.consume, request=Request(actor)),
            expects_change=True,
            must_lock=False,
        )
        for user_id in user_ids
    ]
    snapshots = run_statements(read_snapshots(attempts))
    folded = [fold([attempt], [found]) for attempt, found in zip(attempts, snapshots, strict=True)]
    assert run_statements(write_changes([change for change in folded if change])) == {*user_ids}

"""The rules of plans that are known to this process."""

from django.db.backends.signals import connection_created
from django.dispatch import receiver

from quotas.rules.values import Plan
from quotas.store.thread import in_transaction

# The rules of each plan by its name and version, which never change (models.PlanVersion).
_known_plans: dict[tuple[str, int], Plan] = {}
MOST_KNOWN = 1_000


def _know(*plans: Plan | None) -> None:
    """Keep what is committed: a version that is rolled back may come to be with other rules."""
    if not in_transaction():
        if len(_known_plans) >= MOST_KNOWN:
            _known_plans.clear()
        _known_plans.update(((plan.name, plan.version), plan) for plan in plans if plan)


@receiver(connection_created)
def forget_plans(**_: object) -> None:
    """At the other end of a new connection there may be a database that was restored from an earlier time."""
    _known_plans.clear()

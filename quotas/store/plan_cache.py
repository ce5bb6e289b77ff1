"""The plan versions that this process has read. A version never changes (models.PlanVersion)."""

from django.db.backends.signals import connection_created
from django.dispatch import receiver

from quotas.rules.values import Plan

MAX_PLANS = 1_000

_plans: dict[tuple[str, int], Plan] = {}


def get(name: str, version: int) -> Plan | None:
    return _plans.get((name, version))


def remember(*plans: Plan | None) -> None:
    """Cache plans that were read outside a transaction: one that is rolled back may get other rules later."""
    if len(_plans) >= MAX_PLANS:
        _plans.clear()
    _plans.update(((plan.name, plan.version), plan) for plan in plans if plan)


def is_empty() -> bool:
    return not _plans


@receiver(connection_created)
def clear(**_: object) -> None:
    """Forget all plans: a new connection may lead to a database that was restored from a backup."""
    _plans.clear()

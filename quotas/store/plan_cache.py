"""The plan versions that this process has read. A version never changes (models.PlanVersion).

Its number may come again, after a backup was restored beside running processes. So a version is known by the
id of its plan's newest version too: whoever has the same newest version has the same older ones.
"""

from uuid import UUID

from django.db.backends.signals import connection_created
from django.dispatch import receiver

from quotas.rules.values import Plan

MAX_PLANS = 1_000

_plans: dict[tuple[UUID | str | None, str, int], Plan] = {}


def get(newest_id: UUID | str | None, name: str, version: int) -> Plan | None:
    return _plans.get((newest_id, name, version))


def remember(newest_id: UUID | str | None, newest: Plan, *others: Plan | None) -> None:
    """Cache versions of one plan that were read outside a transaction.

    One that is rolled back may get other rules later. Of `others`, those of another plan are left out.
    """
    if len(_plans) >= MAX_PLANS:
        _plans.clear()
    for plan in (newest, *others):
        if plan and plan.name == newest.name:
            _plans[newest_id, plan.name, plan.version] = plan


def is_empty() -> bool:
    return not _plans


@receiver(connection_created)
def clear(**_: object) -> None:
    """Forget all plans: a new connection may lead to another database."""
    _plans.clear()

"""What must hold of a ledger after anything whatever was done to a quota."""

from quotas.models import LedgerEntry
from quotas.reports import audit


def spent(user_id: str) -> int:
    return sum(entry.cost for entry in LedgerEntry.objects.filter(user_id=user_id, kind="consumed"))


def assert_sound(user_id: str) -> None:
    """The audit finds nothing, and there is something to find it in."""
    assert LedgerEntry.objects.filter(user_id=user_id).exists()
    assert list(audit.faults(user_id)) == []

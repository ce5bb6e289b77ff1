"""What must be true of a user's ledger after every test."""

from quotas.models import LedgerEntry
from quotas.reports import audit


def spent(user_id: str) -> int:
    return sum(entry.cost for entry in LedgerEntry.objects.filter(user_id=user_id, kind="consumed"))


def assert_sound(user_id: str) -> None:
    """Assert that the user has ledger entries and the audit finds no fault in them."""
    assert LedgerEntry.objects.filter(user_id=user_id).exists()
    assert list(audit.faults(user_id)) == []

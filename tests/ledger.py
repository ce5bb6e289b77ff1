"""What must hold of a ledger after anything whatever was done to a quota."""

from quotas.models import ChallengeQuota, LedgerEntry


def spent(user_id: str) -> int:
    return sum(entry.cost for entry in LedgerEntry.objects.filter(user_id=user_id, kind="consumed"))


def assert_sound(user_id: str) -> None:
    """No gap, a chain of balances that ends in the row's, and no time that runs back."""
    quota = ChallengeQuota.objects.get(pk=user_id)
    entries = list(LedgerEntry.objects.filter(user_id=user_id).order_by("seq"))
    assert [entry.seq for entry in entries] == list(range(1, quota.seq + 1))
    balance = 0
    for entry in entries:
        balance += entry.delta
        assert entry.balance_after == balance
    assert balance == quota.quota_remaining
    times = [entry.created_at for entry in entries]
    assert times == sorted(times)
    assert times[-1] == quota.updated_at

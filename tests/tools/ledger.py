"""What must be true of a user's ledger after every test, and what its entries say of their usage."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from quotas.models import ChallengeQuota, LedgerEntry
from quotas.reports import audit
from quotas.rules.periods import Lookback
from quotas.rules.values import Entry, Plan, Usage


def spent(user_id: str) -> int:
    return sum(entry.cost for entry in LedgerEntry.objects.filter(user_id=user_id, kind="consumed"))


def assert_sound(user_id: str) -> None:
    """Assert that the user has ledger entries and the audit finds no fault in them."""
    assert LedgerEntry.objects.filter(user_id=user_id).exists()
    assert list(audit.faults(user_id)) == []


def forget_usage() -> None:
    """Leave of all ledgers and rows what a release before 0.2 would have written."""
    unknown = {"period_consumed": None, "period_given": None}
    LedgerEntry.objects.update(**unknown)
    ChallengeQuota.objects.update(**unknown, resets_at=None, left_until=None, usage_seq=None)


def usage_of(ledger: Sequence[Entry], first_seq: int) -> tuple[int, int]:
    """Return what was consumed and given from an entry on, without the ledger's own sums of it.

    A refund counts if its consumption is among them and took units. What staff gave is only known from the
    sum that the entry states: a balance that stays 0 does not show it.
    """
    entries = ledger[first_seq - 1 :]
    consumptions = {
        entry.id: entry
        for entry in entries
        if entry.kind in ("consumed", "imported") and entry.quota_limit is not None
    }
    consumed = sum(entry.cost for entry in consumptions.values())
    refunded = sum(entry.cost for entry in entries if entry.refund_of in consumptions)
    given = sum(
        (entry.period_given or 0) - (ledger[entry.seq - 2].period_given or 0)
        for entry in entries
        if entry.kind in ("adjusted", "imported")
    )
    return consumed - refunded, given


def usage_by_plan(
    ledger: Sequence[Entry], asked: Lookback, version: Callable[[str, int], Plan]
) -> Usage | None:
    """The answer to a Lookback, as store/sql.py gives it, from the entries of one user in memory."""
    begun = [entry for entry in ledger if entry.seq == entry.period_seq]
    refill = next(entry for entry in reversed(begun) if entry.kind != "reset" or entry.reason)
    fresh = ledger[refill.seq - 1 :]
    left_until = max(entry.resets_at for entry in fresh)
    running = [entry for entry in fresh if entry.resets_at > asked.now]
    if left := next((entry for entry in reversed(running) if entry.plan == asked.plan), None):
        plan = version(left.plan, left.plan_version)
        how_it_was_left = (left_until, plan, left.quota_limit, left.resets_at)
        return _usage(left.last_reset_date, ledger, left.period_seq, *how_it_was_left)
    begun_at, begins = refill.last_reset_date, [max(asked.begins_at, refill.last_reset_date)]
    begins.append(asked.next_begin if asked.is_due else begun[-1].last_reset_date)
    for entry in fresh:
        begun_at = entry.last_reset_date if entry in begun else begun_at
        if entry in running:
            begins.append(max(asked.since, entry.last_reset_date if entry.kind == "consumed" else begun_at))
    counted = [entry for entry in fresh if entry.created_at >= min(begins)]
    return _usage(min(begins), ledger, counted[0].seq, left_until) if counted else None


def _usage(begins_at: datetime, ledger: Sequence[Entry], first_seq: int, *rest: Any) -> Usage:
    refusals = [entry.created_at for entry in ledger[first_seq - 1 :] if entry.kind == "refused"]
    return Usage(begins_at, first_seq, *usage_of(ledger, first_seq), max(refusals, default=None), *rest)

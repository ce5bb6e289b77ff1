"""What must be true of a user's ledger after every test, and what its entries say of their usage."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from quotas.models import LedgerEntry
from quotas.reports import audit
from quotas.rules.periods import Lookback
from quotas.rules.values import Entry, Plan, Usage


def spent(user_id: str) -> int:
    return sum(entry.cost for entry in LedgerEntry.objects.filter(user_id=user_id, kind="consumed"))


def assert_sound(user_id: str) -> None:
    """Assert that the user has ledger entries and the audit finds no fault in them."""
    assert LedgerEntry.objects.filter(user_id=user_id).exists()
    assert list(audit.faults(user_id)) == []


def usage_of(entries: Sequence[Entry]) -> tuple[int, int]:
    """Return what was consumed and given in these entries of one user, without their own sums of it.

    A refund counts if its consumption is among them and took units. What staff gave is only known from the
    sum that the entry states: a balance that stays 0 does not show it.
    """
    consumptions = {entry.id: entry for entry in entries if entry.kind == "consumed" and not _is_free(entry)}
    consumed = sum(entry.cost for entry in consumptions.values())
    refunded = sum(entry.cost for entry in entries if entry.refund_of in consumptions)
    before = [None, *entries]
    given = sum(
        (entry.period_given or 0) - (last.period_given or 0) if last else entry.delta
        for last, entry in zip(before, entries, strict=False)
        if entry.kind == "adjusted"
    )
    return consumed - refunded, given


def _is_free(entry: Entry) -> bool:
    return entry.quota_limit is None


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
        return _usage(left.last_reset_date, ledger[left.period_seq - 1 :], *how_it_was_left)
    begun_at, begins = refill.last_reset_date, [max(asked.begins_at, refill.last_reset_date)]
    begins.append(asked.next_begin if asked.is_due else begun[-1].last_reset_date)
    for entry in fresh:
        begun_at = entry.last_reset_date if entry in begun else begun_at
        if entry in running:
            begins.append(max(asked.since, entry.last_reset_date if entry.kind == "consumed" else begun_at))
    counted = [entry for entry in fresh if entry.created_at >= min(begins)]
    return _usage(min(begins), counted, left_until) if counted else None


def _usage(begins_at: datetime, counted: Sequence[Entry], *rest: Any) -> Usage:
    refusals = [entry.created_at for entry in counted if entry.kind == "refused"]
    return Usage(begins_at, counted[0].seq, *usage_of(counted), max(refusals, default=None), *rest)

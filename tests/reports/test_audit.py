"""audit_ledger: it finds all that does not follow from a ledger, and nothing else."""

import io
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Event
from typing import Any
from uuid import UUID

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.models import F, QuerySet
from django.utils import timezone

from quotas.models import ChallengeQuota, LedgerEntry, Plan, PlanVersion
from quotas.reports import audit
from quotas.rules.outcomes import Exhausted
from quotas.rules.values import ImportedUsage, OnChange
from tests.conftest import STAFF, USER
from tests.tools.ledger import forget_usage
from tests.tools.waiting import wait_until

pytestmark = pytest.mark.django_db
quotas = ChallengeQuota.objects
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
NOBODY = UUID(int=1)
Seqs = set[tuple[int, str]]


def row() -> QuerySet[ChallengeQuota]:
    return quotas.filter(pk=USER)


def entries(*seqs: int) -> QuerySet[LedgerEntry]:
    return LedgerEntry.objects.filter(user_id=USER, seq__in=seqs)


def found() -> Seqs:
    """Return the faults, all of them of USER, and the same when only USER is audited."""
    faults = list(audit.faults())
    assert {fault.user_id for fault in faults} <= {USER}
    assert sorted(faults) == sorted(audit.faults(USER))
    return {(fault.seq, fault.kind) for fault in faults}


def refund_late() -> None:
    """Add a new period as 7, and as 8 a refund that comes too late for consumption 2."""
    quotas.reset(USER, reason="a test", actor=STAFF)
    quotas.refund(USER, entries(2).get().id, reason="a test", actor=STAFF)


@pytest.fixture
def ledger(make_quota: Callable[..., ChallengeQuota]) -> None:
    """1 opened with 20, 2 spent 3, 3 spent 5, 4 refunded 2 of it, 5 adjusted by +4, 6 spent 1."""
    make_quota()
    quotas.consume(USER, 3, key="a")
    spend = quotas.consume(USER, 5, key="b").entry
    quotas.refund(USER, spend.id, 2, reason="a test", actor=STAFF, key="c")
    quotas.adjust(USER, 4, reason="a test", actor=STAFF)
    time.sleep(0.002)  # gives the last one a time of its own: SQLite's clock has milliseconds
    quotas.consume(USER, 1)
    quotas.consume("user_2", 2)


@pytest.fixture
def unguarded(ledger: None) -> Iterator[None]:
    """The ledger without the constraints that prevent such faults; the end of the test restores them."""
    with connection.cursor() as cursor:
        cursor.execute("DROP INDEX ledger_key_once")
        if connection.vendor == "sqlite":
            cursor.execute("PRAGMA ignore_check_constraints = ON")
        else:
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
            cursor.execute("ALTER TABLE ledger_entries DROP CONSTRAINT ledger_seq_once")
            cursor.execute("ALTER TABLE ledger_entries DROP CONSTRAINT ledger_balance_in_range")
        yield
        if connection.vendor == "sqlite":
            cursor.execute("PRAGMA ignore_check_constraints = OFF")


FAULTS: dict[str, tuple[Callable[[], object], Seqs]] = {
    "a lost entry": (lambda: entries(5).delete(), {(6, "gap"), (6, "chain")}),
    "a lost beginning": (lambda: entries(1, 2).delete(), {(3, "lost prefix")}),
    "a lost end": (
        lambda: entries(6).delete(),
        {(5, "row's seq"), (5, "row's balance"), (5, "row's state")},
    ),
    "no entry left": (lambda: entries(1, 2, 3, 4, 5, 6).delete(), {(6, "no entries")}),
    "a lost row": (lambda: row().delete(), {(6, "no row")}),
    "a lost tombstone": (
        lambda: (entries(6).update(kind="deleted", delta=0, balance_after=18), row().delete()),
        {(6, "no row")},
    ),
    "a ledger that nothing opened": (
        lambda: entries(1).update(kind="adjusted"),
        {(1, "start"), (1, "period")},
    ),
    "a balance that does not follow": (
        lambda: entries(3).update(balance_after=13),
        {(3, "chain"), (4, "chain")},
    ),
    "a balance below 0": (
        lambda: (entries(6).update(balance_after=-1, delta=-19, cost=19), row().update(quota_remaining=0)),
        {(6, "negative"), (6, "overspend"), (6, "row's balance")},
    ),
    "a period that begins with more than its allowance": (
        lambda: (entries(1).update(quota_limit=19), entries(2, 3, 4, 5, 6).update(quota_limit=19)),
        {(1, "allowance"), (1, "version"), (6, "row's state")},
    ),
    "a spend that took too little": (
        lambda: entries(2).update(cost=4),
        {(2, "amount")},
    ),
    "spends beyond what was there": (
        lambda: entries(2).update(cost=21),
        {(2, "amount"), (6, "overspend")},
    ),
    "a spend of nothing": (
        lambda: (
            entries(6).update(cost=0, delta=0, balance_after=18),
            row().update(quota_remaining=18),
        ),
        {(6, "amount")},
    ),
    "a refusal that takes": (lambda: entries(6).update(kind="refused"), {(6, "amount")}),
    "a deletion that takes": (
        lambda: (entries(6).update(kind="deleted"), row().update(deleted_at=timezone.now())),
        {(6, "amount")},
    ),
    "a reset within a period": (lambda: entries(5).update(kind="reset"), {(5, "period")}),
    "a refund that gives more than it says": (
        lambda: entries(4).update(cost=1),
        {(4, "amount")},
    ),
    "an adjustment with a cost": (lambda: entries(5).update(cost=1), {(5, "amount")}),
    "a change of period without a beginning": (
        lambda: entries(6).update(period_seq=2),
        {(6, "period"), (6, "row's state")},
    ),
    "a spend that begins a period": (
        lambda: (entries(6).update(period_seq=6), row().update(period_seq=6)),
        {(6, "period"), (6, "allowance")},
    ),
    "another plan without plan_changed": (
        lambda: entries(3).update(plan="x"),
        {(3, "state"), (4, "state"), (3, "version")},
    ),
    "another version without plan_changed": (
        lambda: entries(3).update(plan_version=9),
        {(3, "state"), (4, "state"), (3, "version")},
    ),
    "another limit without plan_changed": (
        lambda: entries(4).update(quota_limit=99),
        {(4, "state"), (5, "state")},
    ),
    "unlimited without plan_changed": (
        lambda: entries(5).update(quota_limit=None),
        {(5, "state"), (6, "state")},
    ),
    "a date moved without plan_changed": (
        lambda: entries(3).update(last_reset_date=F("last_reset_date") + HOUR),
        {(3, "state"), (4, "state")},
    ),
    "an anchor moved without plan_changed": (
        lambda: entries(3).update(anchor_at=F("anchor_at") + HOUR),
        {(3, "state"), (4, "state")},
    ),
    "a time that runs back": (lambda: entries(3).update(created_at=F("created_at") - HOUR), {(3, "time")}),
    "an entry after the deletion": (
        lambda: entries(5).update(kind="deleted", delta=0, balance_after=14),
        {(6, "after deletion"), (6, "chain")},
    ),
    "a refund tied to nothing": (lambda: entries(4).update(refund_of=None), {(4, "tie")}),
    "a tie of no refund": (
        lambda: entries(3).update(refund_of=entries(2).get().id),
        {(3, "tie"), (3, "double refund")},
    ),
    "a refund of what is not there": (
        lambda: entries(4).update(refund_of=NOBODY),
        {(4, "refund of nothing")},
    ),
    "a refund of another user's spend": (
        lambda: entries(4).update(refund_of=LedgerEntry.objects.get(user_id="user_2", cost=2).id),
        {(4, "refund of nothing")},
    ),
    "a refund of what was no spend": (
        lambda: entries(4).update(refund_of=entries(1).get().id),
        {(4, "refund of nothing"), (4, "double refund")},
    ),
    "a refund before the spend": (
        lambda: entries(4).update(refund_of=entries(6).get().id),
        {(4, "refund of nothing"), (4, "double refund")},
    ),
    "more refunded than spent": (lambda: entries(4).update(cost=6), {(4, "double refund")}),
    "a key on two entries": (
        lambda: entries(3).update(idempotency_key="consume:user:a"),
        {(3, "duplicate key")},
    ),
    "a row of another seq": (lambda: row().update(seq=7), {(6, "row's seq")}),
    "a row of another balance": (lambda: row().update(quota_remaining=16), {(6, "row's balance")}),
    "a row of another plan": (
        lambda: (Plan(name="pro").save(), row().update(plan="pro")),
        {(6, "row's state")},
    ),
    "a row of another version": (lambda: row().update(plan_version=9), {(6, "row's state")}),
    "a row of another limit": (lambda: row().update(quota_limit=99), {(6, "row's state")}),
    "a row of another period": (lambda: row().update(period_seq=2), {(6, "row's state")}),
    "a row of another date": (
        lambda: row().update(last_reset_date=F("last_reset_date") + HOUR),
        {(6, "row's state")},
    ),
    "a row of another anchor": (lambda: row().update(anchor_at=F("anchor_at") + HOUR), {(6, "row's state")}),
    "a row of another time": (lambda: row().update(updated_at=F("updated_at") + HOUR), {(6, "row's state")}),
    "a tombstone without its entry": (lambda: row().update(deleted_at=timezone.now()), {(6, "row's end")}),
    "a deletion without its tombstone": (
        lambda: entries(6).update(kind="deleted", delta=0, cost=0, balance_after=18),
        {(6, "row's balance"), (6, "row's end")},
    ),
}


# What is found besides in a ledger that states what was consumed and given.
MORE: dict[str, Seqs] = {
    "a lost entry": {(6, "usage")},
    "a lost end": {(6, "row's usage")},
    "a lost tombstone": {(6, "balance"), (6, "usage")},
    "a balance that does not follow": {(3, "balance")},
    "a balance below 0": {(6, "balance"), (6, "usage"), (6, "row's usage")},
    "a period that begins with more than its allowance": {(seq, "balance") for seq in range(1, 7)},
    "a spend that took too little": {(2, "usage"), (6, "row's usage")},
    "spends beyond what was there": {(2, "usage"), (6, "row's usage")},
    "a spend of nothing": {(6, "balance"), (6, "usage"), (6, "row's usage")},
    "a refusal that takes": {(6, "usage"), (6, "row's usage")},
    "a deletion that takes": {(6, "usage"), (6, "row's usage")},
    "a reset within a period": {(5, "usage")},
    "a refund that gives more than it says": {(4, "usage"), (6, "row's usage")},
    "a spend that begins a period": {(6, "usage"), (6, "row's usage")},
    "another limit without plan_changed": {(4, "balance")},
    "unlimited without plan_changed": {(5, "balance")},
    "an entry after the deletion": {(5, "balance"), (5, "usage")},
    "a refund tied to nothing": {(6, "row's usage")},
    "a refund of what is not there": {(6, "row's usage")},
    "a refund of another user's spend": {(6, "row's usage")},
    "more refunded than spent": {(4, "usage"), (6, "row's usage")},
    "a deletion without its tombstone": {(6, "balance"), (6, "usage"), (6, "row's usage")},
}


@pytest.mark.usefixtures("unguarded")
@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found_where_it_is(name: str) -> None:
    assert found() == set()
    plant, expected = FAULTS[name]
    plant()
    assert found() == expected | MORE.get(name, set())


@pytest.mark.usefixtures("unguarded")
@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found_in_a_ledger_that_states_only_the_balance(name: str) -> None:
    """As the releases before 0.2 wrote it."""
    forget_usage()
    assert found() == set()
    plant, expected = FAULTS[name]
    plant()
    assert found() == expected


@pytest.mark.usefixtures("ledger")
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"period_consumed": 8}, {(6, "balance"), (6, "usage"), (6, "row's state")}),
        ({"period_given": 3}, {(6, "balance"), (6, "usage"), (6, "row's state")}),
        ({"resets_at": timezone.now()}, {(6, "state"), (6, "row's state")}),
    ],
)
def test_a_usage_that_does_not_follow_is_found(changes: dict[str, Any], expected: Seqs) -> None:
    entries(6).update(**changes)
    assert found() == expected


@pytest.mark.parametrize(
    ("seq", "changes", "expected"),
    [
        (2, {}, set()),
        (2, {"cost": 14}, {(2, "usage"), (3, "row's usage")}),
        (
            2,
            {"kind": "reset"},
            {(2, "state"), (2, "allowance"), (2, "amount"), (2, "usage"), (3, "row's usage")},
        ),
        (3, {"kind": "imported"}, {(3, "import"), (3, "period"), (3, "usage")}),
        (3, {"cost": 6}, {(3, "amount"), (3, "usage"), (3, "overspend"), (3, "row's usage")}),
    ],
)
def test_a_fault_of_an_import_is_found(seq: int, changes: dict[str, Any], expected: Seqs) -> None:
    usage = ImportedUsage(timezone.now() - HOUR, used=15)
    quotas.import_many({USER: usage}, reason="a test", actor=STAFF)
    quotas.consume(USER, 2)
    entries(seq).update(seq=seq, **changes)
    assert found() == expected


@pytest.mark.usefixtures("ledger")
def test_a_row_that_forgot_what_was_consumed_is_found() -> None:
    """It and its entries agree, and the balance follows from them: only the sum of the costs tells."""
    Plan(name="pro", allowance=100).save()
    quotas.change_plan(USER, "pro", actor=STAFF)
    assert found() == set()
    entries(7).update(period_consumed=0, balance_after=104, delta=F("delta") + 7)
    row().update(period_consumed=0, quota_remaining=104)
    assert found() == {(7, "row's usage")}


@pytest.mark.postgres  # SQLite cannot drop the constraint of a table
@pytest.mark.usefixtures("unguarded")
def test_a_seq_that_is_there_twice_is_found() -> None:
    entries(5).update(seq=4)
    assert found() >= {(4, "duplicate"), (6, "gap")}


@pytest.mark.usefixtures("ledger")
def test_a_second_refund_of_the_same_units_is_found() -> None:
    entries(5).update(kind="refunded", cost=4, refund_of=entries(3).get().id)
    assert found() == {(5, "double refund"), (5, "usage"), (6, "row's usage")}


@pytest.mark.usefixtures("ledger")
def test_a_late_refund_that_gives_units_is_found() -> None:
    refund_late()
    assert found() == set()
    entries(8).update(cost=1)
    assert found() == {(8, "late refund")}
    entries(8).update(cost=0, refund_of=NOBODY)
    assert found() == {(8, "refund of nothing")}


@pytest.mark.usefixtures("ledger")
def test_a_beginning_that_was_lost_lately_is_no_pruning(shift: Callable[[str, timedelta], None]) -> None:
    refund_late()
    entries(1, 2, 3, 4, 5, 6).delete()
    assert found() == {(7, "lost prefix")}
    shift(USER, 36 * DAY)
    assert found() == set()


@pytest.mark.usefixtures("ledger")
def test_half_a_period_is_no_pruning_however_old(shift: Callable[[str, timedelta], None]) -> None:
    entries(1, 2).delete()
    shift(USER, 36 * DAY)
    assert found() == {(3, "lost prefix")}


def test_a_refund_in_another_period_than_its_consumption_is_no_overspend(
    make_quota: Callable[..., ChallengeQuota], shift: Callable[[str, timedelta], None]
) -> None:
    """A change of plan continued an earlier period, in which the refund fell, and another one this."""
    make_quota()
    Plan(name="monthly", allowance=400, reset_policy="monthly").save()
    quotas.consume(USER, 10)
    shift(USER, DAY)
    spend = quotas.consume(USER, 20).entry
    quotas.change_plan(USER, "monthly", actor=STAFF)
    quotas.refund(USER, spend.id, reason="a test", actor=STAFF)
    quotas.change_plan(USER, "free", actor=STAFF)
    quotas.consume(USER, 20)
    assert list(audit.faults()) == []


@pytest.mark.usefixtures("ledger")
def test_an_entry_under_rules_that_the_plan_never_had_is_found() -> None:
    """As after a restore beside processes that went on by what they remembered of later versions."""
    PlanVersion.objects.update(allowance=30)
    quotas.filter(pk="user_2").delete()
    LedgerEntry.objects.filter(user_id="user_2").delete()
    assert found() == {(1, "version")}


@pytest.mark.usefixtures("ledger")
def test_a_period_that_a_clock_ahead_began_is_found_until_staff_reset_it(
    shift: Callable[[str, timedelta], None],
) -> None:
    shift(USER, -3 * DAY)
    assert found() == {(6, "future")}
    quotas.reset(USER, reason="the clock was ahead", actor=STAFF)
    assert found() == set()
    quotas.consume(USER, 5)
    assert found() == set()
    entries(8).update(created_at=F("created_at") - DAY)
    assert found() == {(8, "time"), (8, "row's state")}


def test_a_ledger_of_all_verbs_is_sound(
    make_quota: Callable[..., ChallengeQuota], shift: Callable[[str, timedelta], None]
) -> None:
    make_quota()
    Plan(name="pro", allowance=100).save()
    Plan(name="free-of-limits", allowance=None).save()
    spends = [quotas.consume(USER, 9, key=f"key {n}").entry for n in range(2)]
    for _ in range(2):
        with pytest.raises(Exhausted):
            quotas.consume(USER, 9)
    quotas.refund(USER, spends[0].id, 4, reason="a test", actor=STAFF)
    quotas.refund(USER, spends[0].id, reason="a test", actor=STAFF)
    quotas.adjust(USER, -2, reason="a test", actor=STAFF)
    quotas.change_plan(USER, "pro", OnChange.KEEP, actor=STAFF)
    quotas.change_plan(USER, None, OnChange.PRORATE, actor=STAFF)
    quotas.change_plan(USER, "pro", OnChange.RESET, actor=STAFF)
    quotas.refund(USER, spends[1].id, reason="a test", actor=STAFF)
    quotas.change_plan(USER, "free-of-limits", actor=STAFF)
    quotas.refund(USER, quotas.consume(USER, 1_000).entry.id, 10, reason="a test", actor=STAFF)
    quotas.change_plan(USER, "pro", actor=STAFF)
    shift(USER, 30 * HOUR)
    quotas.consume(USER, 3)
    quotas.reset(USER, reason="a test", actor=STAFF)
    quotas.delete(USER, actor=STAFF)
    quotas.delete("user_2", actor=STAFF)
    assert list(audit.faults()) == []


@pytest.mark.usefixtures("ledger")
def test_a_sound_ledger_is_one_line() -> None:
    out = io.StringIO()
    call_command("audit_ledger", stdout=out)
    line = out.getvalue()
    assert line.startswith("2 users, 8 entries, 0 faults, in ")
    assert line.endswith(" s\n")


@pytest.mark.usefixtures("ledger")
def test_a_fault_is_a_line_with_its_numbers_and_a_failure() -> None:
    entries(3).update(balance_after=13)
    out = io.StringIO()
    with pytest.raises(CommandError, match="2 users, 8 entries, 3 faults") as failure:
        call_command("audit_ledger", stdout=out)
    assert failure.value.returncode == 1
    assert out.getvalue() == (
        "user_1 seq 3: chain: 17 -5 is not 13\n"
        "user_1 seq 3: balance: of 20, with +0 by staff and 8 consumed, 13 are left\n"
        "user_1 seq 4: chain: 13 +2 is not 14\n"
    )


@pytest.mark.usefixtures("ledger")
@pytest.mark.parametrize("is_old", [False, True], ids=["this release", "before 0.2"])
def test_an_overspend_is_told_with_what_was_there(is_old: bool) -> None:
    if is_old:
        forget_usage()
    entries(2).update(cost=21)
    told = [fault.detail for fault in audit.faults(USER) if fault.kind == "overspend"]
    # This release takes the refund of 2 off what was spent, the one before adds it to what was there.
    assert told == ["27 units spent of 26 in period 1" if is_old else "25 units spent of 24 in period 1"]


@pytest.mark.usefixtures("ledger")
def test_one_user_can_be_audited_and_told_as_json() -> None:
    entries(3).update(balance_after=13)
    out = io.StringIO()
    call_command("audit_ledger", "--user", "user_2", "--json", stdout=out)
    summary = json.loads(out.getvalue())
    assert (summary["users"], summary["entries"], summary["faults"]) == (1, 2, 0)
    with pytest.raises(CommandError):
        call_command("audit_ledger", "--json", stdout=(out := io.StringIO()))
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert lines[0] == {"user_id": USER, "seq": 3, "kind": "chain", "detail": "17 -5 is not 13"}
    assert lines[3]["faults"] == 3


@pytest.mark.django_db
def test_a_user_who_does_not_exist_is_not_sound() -> None:
    with pytest.raises(CommandError, match=r"^There is no user user_typo here\.$") as failure:
        call_command("audit_ledger", "--user", "user_typo", "--json")
    assert failure.value.returncode == 2


class Spenders:
    """Eight threads that spend for three users during the block."""

    def __enter__(self) -> None:
        self.over = Event()
        self.threads = ThreadPoolExecutor(8)
        self.futures = [self.threads.submit(self.spend, f"user_{n % 3}") for n in range(8)]

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.threads.shutdown()
        assert all(future.result() > 0 for future in self.futures)

    def spend(self, user_id: str) -> int:
        count = 0
        try:
            while not self.over.is_set():
                quotas.consume(user_id)
                count += 1
        finally:
            connection.close()
        return count


def seems_wrong() -> bool:
    """The control: the row and its newest entry, read one after the other."""
    newest = LedgerEntry.objects.filter(user_id=USER).order_by("seq").last()
    return newest is not None and newest.balance_after != quotas.get(pk=USER).quota_remaining


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True, serialized_rollback=True)
def test_a_busy_ledger_shows_no_fault_that_is_none(make_quota: Callable[..., ChallengeQuota]) -> None:
    make_quota(allowance=1_000_000)
    with Spenders():
        assert any(seems_wrong() for _ in range(500))
        assert [list(audit.faults()) for _ in range(25)] == [[]] * 25
    assert list(audit.faults()) == []


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True, serialized_rollback=True)
def test_what_is_counted_is_what_is_audited(make_quota: Callable[..., ChallengeQuota]) -> None:
    make_quota(allowance=1_000_000)
    with Spenders():
        with audit.one_snapshot():
            counted = audit.census()
            assert list(audit.faults()) == []
            assert audit.census() == counted
        wait_until(lambda: audit.census().entries > counted.entries)

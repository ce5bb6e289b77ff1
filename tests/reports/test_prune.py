"""prune_ledger: old periods go as a whole, and the rest stays sound."""

import io
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command

from quotas.models import ChallengeQuota, LedgerEntry, Plan
from quotas.reports import audit
from quotas.reports import prune as pruning
from quotas.reports.prune import TooYoung, min_days, prune
from quotas.rules import outcomes
from quotas.store.direct import clock
from quotasite.demo.tour import seed_history
from tests.conftest import STAFF, USER

pytestmark = pytest.mark.django_db
quotas = ChallengeQuota.objects
DAY = timedelta(days=1)
Shift = Callable[[str, timedelta], None]


def seqs(user_id: str = USER) -> list[int]:
    return list(LedgerEntry.objects.filter(user_id=user_id).order_by("seq").values_list("seq", flat=True))


def removed(days: int = 35, batch: int = 1_000) -> int:
    return sum(step.entries for step in prune(days, batch=batch))


def command(*options: str) -> str:
    out = io.StringIO()
    call_command("prune_ledger", *options, stdout=out)
    return out.getvalue()


@pytest.fixture
def live(make_quota: Callable[..., ChallengeQuota], shift: Shift) -> Callable[..., None]:
    """Let users spend one unit a day, the last today: with the reset that makes two entries a day."""

    def spend(days: int, *user_ids: str) -> None:
        make_quota()
        for day in range(days):
            for user_id in user_ids or (USER,):
                shift(user_id, DAY)
                quotas.consume(user_id, key=f"day {day}")

    return spend


@pytest.fixture
def old(live: Callable[..., None]) -> None:
    """40 days of a reset and a spend each, the last of them today."""
    live(40)


def sound() -> bool:
    return list(audit.faults()) == []


@pytest.mark.usefixtures("old")
def test_what_was_over_before_the_cut_goes_and_the_period_of_the_cut_stays() -> None:
    whole = seqs()
    count = removed()
    assert 0 < count == whole[-1] - len(seqs())
    first, second, *_ = LedgerEntry.objects.filter(user_id=USER).order_by("seq")
    assert (first.seq, first.kind) == (first.period_seq, "reset")
    assert (second.kind, second.period_seq) == ("consumed", first.seq)
    later = LedgerEntry.objects.filter(user_id=USER, period_seq__gt=first.seq).order_by("seq").first()
    cut = clock() - 35 * DAY
    assert later is not None
    assert first.created_at < cut <= later.created_at
    assert seqs() == whole[count:]
    assert sound()


@pytest.mark.usefixtures("old")
def test_a_second_run_removes_nothing() -> None:
    assert removed() > 0
    assert removed() == 0


@pytest.mark.usefixtures("old")
def test_a_dry_run_tells_the_same_number_and_removes_nothing() -> None:
    before = seqs()
    output = command("--older-than", "35", "--dry-run")
    assert seqs() == before
    assert output.replace("would remove", "removed") == command("--older-than", "35")
    assert output == f"looked at 1 users, would remove {len(before) - len(seqs())} entries\n"


def test_the_running_period_stays_however_old(
    make_quota: Callable[..., ChallengeQuota], shift: Shift
) -> None:
    make_quota()
    for _ in range(5):
        quotas.consume(USER)
    quotas.reset(USER, reason="a test", actor=STAFF)
    quotas.consume(USER)
    shift(USER, 400 * DAY)
    assert removed() == 6
    assert seqs() == [7, 8]
    assert sound()


def test_a_tombstone_keeps_its_last_period(make_quota: Callable[..., ChallengeQuota], shift: Shift) -> None:
    make_quota()
    quotas.delete(USER, actor=STAFF)
    shift(USER, 400 * DAY)
    assert removed() == 0
    assert seqs() == [1, 2]


def test_a_user_loses_only_what_is_their_own(live: Callable[..., None], shift: Shift) -> None:
    live(3, "user_2", "user_3")
    shift("user_2", 100 * DAY)
    before = seqs("user_3")
    assert removed() > 0
    assert seqs("user_3") == before
    assert len(seqs("user_2")) == 2
    assert sound()


def test_more_users_than_one_query_names_are_pruned(
    live: Callable[..., None], shift: Shift, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "USERS_PER_QUERY", 2)
    users = [f"user_{n}" for n in range(1, 6)]
    live(2, *users)
    for user_id in users:
        shift(user_id, 50 * DAY)
    assert sum(step.users for step in prune(35, batch=3)) == 5
    assert {len(seqs(user_id)) for user_id in users} == {2}


def batches(size: int) -> list[list[int]]:
    """Return how periods of 3, 3, 1 and 9 entries are grouped."""
    periods = [pruning.Period(USER, 1, 1, entries) for entries in (3, 3, 1, 9)]
    return [[period.entries for period in batch] for batch in pruning._batches(periods, size)]


def test_many_users_lose_what_each_alone_would_and_are_asked_about_at_once(
    django_assert_num_queries: Callable[[int], AbstractContextManager[object]],
) -> None:
    seed_history()
    users = [user_id for some in pruning._users() for user_id in some]
    cut = clock() - 15 * DAY
    alone = [period for user_id in users for period in pruning._closed([user_id], cut)]
    with django_assert_num_queries(1):
        assert list(pruning._closed(users, cut)) == alone
    assert len({period.user_id for period in alone}) > 200
    others = users[::2]
    of_others = [period for period in alone if period.user_id in others]
    assert list(pruning._closed(others, cut)) == of_others


def test_a_batch_holds_whole_periods_and_one_at_the_least() -> None:
    assert batches(6) == [[3, 3], [1], [9]]
    assert batches(7) == [[3, 3, 1], [9]]
    assert batches(1) == [[3], [3], [1], [9]]


@pytest.mark.usefixtures("old")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupted_run_leaves_a_sound_ledger_and_the_next_one_does_the_rest(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    whole, delete = seqs(), pruning._delete
    planned = sum(step.entries for step in prune(35, batch=1, dry_run=True))
    calls = iter(range(3))

    def delete_twice(periods: list[pruning.Period]) -> int:
        if next(calls) == 2:
            signal.raise_signal(number)
        return delete(periods)

    with monkeypatch.context() as patch:
        patch.setattr(pruning, "_delete", delete_twice)
        with pytest.raises(CommandError, match="Interrupted") as failure:
            command("--older-than", "35", "--batch", "1")
    assert failure.value.returncode == 130
    done = len(whole) - len(seqs())
    assert 0 < done < planned
    assert sound()
    assert removed() == planned - done
    assert sound()


@pytest.mark.parametrize(
    ("reset_policy", "period", "minimum"),
    [
        ("rolling", DAY, 35),
        ("rolling", 20 * DAY, 40),
        ("anchored", 17.75 * DAY, 36),
        ("daily", 300 * DAY, 35),  # the calendar counts, not the period
        ("weekly", DAY, 35),
        ("monthly", DAY, 63),  # twice 31 days and an hour
    ],
)
def test_a_cut_younger_than_two_periods_is_refused(
    reset_policy: str, period: timedelta, minimum: int
) -> None:
    Plan(name="p", reset_policy=reset_policy, period_seconds=int(period.total_seconds())).save()
    assert min_days() == minimum
    with pytest.raises(CommandError, match=f"The minimum age is {minimum} days"):
        command("--older-than", str(minimum - 1))
    assert command("--older-than", str(minimum)) == "looked at 0 users, removed 0 entries\n"


def test_a_plan_counts_as_it_was_too() -> None:
    plan = Plan.objects.get(is_default=True)
    for days in (60, 1):
        plan.period_seconds = int((days * DAY).total_seconds())
        plan.save()
    with pytest.raises(TooYoung, match="120 days"):
        prune(119, batch=1)


@pytest.mark.parametrize("batch", ["0", "-1", "x"])
def test_a_batch_that_is_no_number_is_refused(batch: str) -> None:
    with pytest.raises(CommandError, match="whole number from 1"):
        command("--older-than", "35", f"--batch={batch}")


def test_nothing_but_the_summary_is_written_where_no_terminal_is(
    live: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    live(1)
    command("--older-than", "35")
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("old")
def test_the_verbs_go_on_after_it() -> None:
    last = LedgerEntry.objects.get(user_id=USER, idempotency_key="consume:user:day 39")
    kept = LedgerEntry.objects.get(user_id=USER, idempotency_key="consume:user:day 20")
    gone = LedgerEntry.objects.get(user_id=USER, idempotency_key="consume:user:day 1")
    removed()
    assert quotas.consume(USER, 2).entry.balance_after == 17
    assert quotas.consume(USER, key="day 20").entry.id == kept.id
    assert quotas.refund(USER, last.id, reason="a test", actor=STAFF).entry.delta == 1
    assert quotas.refund(USER, kept.id, reason="a test", actor=STAFF).entry.is_period_closed
    with pytest.raises(outcomes.ConsumptionNotFound):
        quotas.refund(USER, gone.id, reason="a test", actor=STAFF)
    assert sound()


@pytest.mark.usefixtures("old")
def test_a_late_refund_may_outlive_what_it_was_about() -> None:
    spend = LedgerEntry.objects.get(user_id=USER, idempotency_key="consume:user:day 1")
    refund = quotas.refund(USER, spend.id, reason="a test", actor=STAFF).entry
    removed()
    assert not LedgerEntry.objects.filter(pk=spend.pk).exists()
    assert LedgerEntry.objects.filter(pk=refund.id).exists()
    assert sound()


def test_a_spend_and_its_refund_go_together(make_quota: Callable[..., ChallengeQuota], shift: Shift) -> None:
    """The cut is between the two: their period was running then, and stays whole."""
    make_quota()
    quotas.reset(USER, reason="a test", actor=STAFF)
    spend = quotas.consume(USER, 5).entry
    shift(USER, DAY / 2)
    quotas.refund(USER, spend.id, 3, reason="a test", actor=STAFF)
    shift(USER, 34.75 * DAY)
    quotas.consume(USER)
    assert removed() == 1
    assert seqs() == [2, 3, 4, 5, 6]
    assert sound()


@pytest.mark.usefixtures("old")
def test_the_row_is_left_alone() -> None:
    before = quotas.filter(pk=USER).values().get()
    removed()
    assert quotas.filter(pk=USER).values().get() == before


def test_a_period_that_a_change_of_plan_continued_goes_with_all_that_lies_in_it(
    make_quota: Callable[..., ChallengeQuota], shift: Shift
) -> None:
    """Its later entries bear an older period_seq than those before them: the cut must not go through it."""
    make_quota()
    for name, rules in {"long": {"period_seconds": 30 * 86_400}, "brief": {"period_seconds": 2}}.items():
        Plan(name=name, allowance=300, **rules).save()
    quotas.change_plan(USER, "long", actor=STAFF)
    quotas.consume(USER, 200)
    quotas.change_plan(USER, "brief", actor=STAFF)
    shift(USER, timedelta(seconds=3))
    quotas.consume(USER, 7)
    quotas.change_plan(USER, "long", actor=STAFF)
    continued = quotas.consume(USER, 1).entry
    assert (continued.seq, continued.period_seq) == (8, 1)
    shift(USER, 61 * DAY)
    assert removed(days=60) == 0  # it ran until 31 days ago, and it is the period of the cut
    quotas.consume(USER, 1)
    shift(USER, 61 * DAY)
    assert removed(days=60, batch=2) == 8
    assert seqs() == [9, 10]
    assert sound()

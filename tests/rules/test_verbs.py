"""The rules, tested with tables and properties, without a database."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quotas.problems import of_refusal
from quotas.rules import outcomes, values, verbs
from quotas.rules.outcomes import Change, Refusal, Replay
from quotas.rules.values import MAX_UNITS, Actor, ImportedUsage, Plan, Request, Snapshot, State

pytestmark = pytest.mark.once

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
TICK = timedelta(microseconds=1)
FREE = Plan("free", 1, 20, "rolling", DAY, "UTC", {"generate": 3})
UNLIMITED = FREE._replace(name="unlimited", allowance=None)
USER = Request(Actor("user", "user_1"))
STAFF = Request(Actor("staff", "bo"), reason="a gift")


def state_with(remaining: int, limit: int | None = 20, **changes: object) -> State:
    """A running period of a day from NOON, in which `remaining` of `limit` are left."""
    consumed, given = values.usage_shown(limit, remaining)
    state = State(
        user_id="user_1",
        plan="free",
        plan_source="default",
        plan_version=1,
        quota_limit=limit,
        quota_remaining=remaining,
        period_consumed=consumed,
        period_given=given,
        last_reset_date=NOON,
        resets_at=NOON + DAY,
        anchor_at=NOON,
        period_seq=1,
        refused_at=None,
        left_until=None,
        seq=7,
        usage_seq=7,
        updated_at=NOON,
        deleted_at=None,
    )
    return state._replace(**changes)  # type: ignore[arg-type]


def at(
    clock: datetime, state: State | None, plan: Plan = FREE, entry: values.Entry | None = None, **more: Any
) -> Snapshot:
    in_force = more.pop("in_force", plan)
    return Snapshot("user_1", clock, plan, in_force, state, entry, None, (uuid4(), uuid4()), **more)


def changed(outcome: outcomes.Outcome) -> Change:
    assert isinstance(outcome, Change), outcome
    return outcome


@pytest.mark.parametrize(
    ("after", "remaining"), [(DAY - TICK, 3), (DAY, 20), (DAY + TICK, 20), (10_000 * DAY, 20), (-DAY, 3)]
)
def test_a_quota_is_full_again_from_the_very_end_of_its_period(after: timedelta, remaining: int) -> None:
    change = changed(verbs.current(at(NOON + after, state_with(3)), USER))
    assert change.state.quota_remaining == remaining


def test_a_rolling_period_begins_with_the_request_that_found_it_due() -> None:
    change = changed(verbs.current(at(NOON + 3 * DAY, state_with(3)), USER))
    assert change.state.last_reset_date == NOON + 3 * DAY
    assert change.quota.resets_at == NOON + 4 * DAY


def test_a_missing_row_is_opened_in_full() -> None:
    change = changed(verbs.current(at(NOON, None), USER))
    assert (change.state.quota_remaining, change.state.seq, change.state.period_seq) == (20, 1, 1)
    assert [entry.kind for entry in change.entries] == ["opened"]


def test_a_quota_that_is_not_due_is_read_without_a_change() -> None:
    assert changed(verbs.current(at(NOON, state_with(3)), USER)).entries == ()


@pytest.mark.parametrize(
    ("remaining", "cost", "left"), [(20, 1, 19), (1, 1, 0), (20, 20, 0), (30, 25, 5), (5, 5, 0)]
)
def test_what_is_there_can_be_spent(remaining: int, cost: int, left: int) -> None:
    change = changed(verbs.consume(at(NOON, state_with(remaining)), USER, cost))
    assert change.state.quota_remaining == change.entries[-1].balance_after == left
    assert change.entries[-1].delta == -cost


@pytest.mark.parametrize(("remaining", "cost"), [(0, 1), (3, 4), (19, 20)])
def test_what_is_not_there_is_refused_until_the_reset(remaining: int, cost: int) -> None:
    change = changed(verbs.consume(at(NOON, state_with(remaining)), USER, cost))
    assert isinstance(change.refusal, outcomes.Exhausted)
    assert change.refusal.quota.resets_at == NOON + DAY
    assert change.state.quota_remaining == remaining


def test_only_the_first_refusal_of_a_period_is_entered() -> None:
    first = changed(verbs.consume(at(NOON, state_with(0)), USER, 1))
    assert [entry.kind for entry in first.entries] == ["refused"]
    assert isinstance(verbs.consume(at(NOON, first.state), USER, 1), outcomes.Exhausted)


def test_a_new_period_may_have_a_first_refusal_of_its_own() -> None:
    refused = state_with(0, refused_at=NOON)
    assert changed(verbs.current(at(NOON + DAY, refused), USER)).state.refused_at is None


def test_a_refusal_holds_no_key() -> None:
    keyed = USER._replace(idempotency_key="consume:user:k", fingerprint="f")
    entry = changed(verbs.consume(at(NOON, state_with(0)), keyed, 1)).entries[-1]
    assert (entry.idempotency_key, entry.fingerprint) == (None, "")


@pytest.mark.parametrize(
    ("remaining", "allowance", "cost", "is_hopeless"),
    [(0, 20, 20, False), (0, 20, 21, True), (25, 20, 26, True), (0, None, MAX_UNITS, False), (0, 0, 1, True)],
)
def test_a_cost_that_no_period_can_pay_is_told_apart(
    remaining: int, allowance: int | None, cost: int, is_hopeless: bool
) -> None:
    outcome = verbs.consume(at(NOON, state_with(remaining), FREE._replace(allowance=allowance)), USER, cost)
    assert isinstance(outcome, outcomes.CostExceedsLimit) is is_hopeless


def test_an_action_costs_what_the_plan_says_unless_the_caller_says_more() -> None:
    generate = USER._replace(action="generate")
    assert changed(verbs.consume(at(NOON, state_with(20)), generate)).state.quota_remaining == 17
    assert changed(verbs.consume(at(NOON, state_with(20)), generate, 5)).state.quota_remaining == 15
    assert isinstance(
        verbs.consume(at(NOON, state_with(20)), USER._replace(action="x"), 1), outcomes.UnknownAction
    )


def test_a_user_cannot_pay_less_for_an_action_than_the_plan_asks_but_a_service_may() -> None:
    cheap = USER._replace(action="generate")
    by_service = cheap._replace(actor=Actor("service", "key"))
    assert isinstance(verbs.consume(at(NOON, state_with(20)), cheap, 2), outcomes.CostBelowPrice)
    assert changed(verbs.consume(at(NOON, state_with(20)), cheap, 3)).state.quota_remaining == 17
    assert changed(verbs.consume(at(NOON, state_with(20)), by_service, 2)).state.quota_remaining == 18


def test_an_unlimited_quota_counts_the_cost_and_takes_nothing() -> None:
    change = changed(verbs.consume(at(NOON, None, UNLIMITED), USER, 1_000))
    assert (change.state.quota_remaining, change.quota.spendable, change.quota.used) == (0, MAX_UNITS, 0)
    assert [(entry.cost, entry.delta) for entry in change.entries] == [(0, 0), (1_000, 0)]


@pytest.mark.parametrize(("delta", "left"), [(5, 25), (-20, 0), (MAX_UNITS - 20, MAX_UNITS)])
def test_an_adjustment_within_the_range_is_made(delta: int, left: int) -> None:
    assert changed(verbs.adjust(at(NOON, state_with(20)), STAFF, delta)).state.quota_remaining == left


@pytest.mark.parametrize("delta", [-21, MAX_UNITS - 19])
def test_an_adjustment_out_of_the_range_is_refused(delta: int) -> None:
    assert isinstance(verbs.adjust(at(NOON, state_with(20)), STAFF, delta), outcomes.AdjustmentOutOfRange)


def test_there_is_nothing_to_adjust_without_a_limit() -> None:
    assert isinstance(verbs.adjust(at(NOON, None, UNLIMITED), STAFF, 1), outcomes.AdjustmentOutOfRange)


def test_an_adjustment_lasts_until_the_next_reset() -> None:
    assert changed(verbs.current(at(NOON + DAY, state_with(500)), USER)).state.quota_remaining == 20


def test_a_reset_by_staff_refills_before_the_time_and_says_why() -> None:
    change = changed(verbs.reset(at(NOON + TICK, state_with(3)), STAFF))
    assert (change.state.quota_remaining, change.state.last_reset_date) == (20, NOON + TICK)
    assert (change.entries[-1].reason, change.entries[-1].delta) == ("a gift", 17)


def test_a_changed_allowance_takes_effect_at_the_next_reset() -> None:
    richer = FREE._replace(allowance=50)
    assert changed(verbs.current(at(NOON, state_with(3), richer), USER)).state.quota_limit == 20
    assert changed(verbs.current(at(NOON + DAY, state_with(3), richer), USER)).state.quota_limit == 50


def test_a_deleted_user_is_gone_for_every_verb() -> None:
    tombstone = at(NOON + DAY, state_with(3, deleted_at=NOON))
    for verb in (verbs.current, verbs.open_missing, verbs.consume, verbs.reset):
        assert isinstance(verb(tombstone, USER), outcomes.Deleted)
    assert isinstance(verbs.adjust(tombstone, STAFF, 1), outcomes.Deleted)
    assert changed(verbs.delete(tombstone, USER)).entries == ()


def test_a_deletion_keeps_the_balance_and_does_not_reset() -> None:
    change = changed(verbs.delete(at(NOON + 9 * DAY, state_with(3)), USER))
    assert (change.state.quota_remaining, change.state.deleted_at) == (3, NOON + 9 * DAY)


def test_a_user_who_is_deleted_before_they_were_ever_seen_gets_a_tombstone() -> None:
    change = changed(verbs.delete(at(NOON, None), USER))
    assert [entry.kind for entry in change.entries] == ["opened", "deleted"]


def test_opening_leaves_a_due_quota_to_its_user() -> None:
    assert changed(verbs.open_missing(at(NOON + 9 * DAY, state_with(3)), USER)).entries == ()


def imported(usage: ImportedUsage, plan: Plan = FREE, **more: Any) -> Change:
    return changed(verbs.import_usage(at(NOON, None, plan, **more), STAFF, usage))


@pytest.mark.parametrize(
    ("plan", "usage", "left", "used", "given"),
    [
        (FREE, ImportedUsage(NOON - DAY / 3, None, 5), 5, 15, 0),
        (FREE, ImportedUsage(NOON - DAY / 3, None, 26), 26, 0, 6),
        (FREE, ImportedUsage(NOON - DAY / 3, 15), 5, 15, 0),
        (FREE, ImportedUsage(NOON - DAY / 3, 50), 0, 50, 0),
        (UNLIMITED, ImportedUsage(NOON - DAY / 3, 50), 0, 0, 0),
        (UNLIMITED, ImportedUsage(NOON - DAY / 3, None, 5), 0, 0, 0),
    ],
)
def test_an_imported_quota_continues_the_period_that_another_service_began(
    plan: Plan, usage: ImportedUsage, left: int, used: int, given: int
) -> None:
    state = imported(usage, plan).state
    assert (state.quota_remaining, state.period_consumed, state.period_given) == (left, used, given)
    assert (state.last_reset_date, state.resets_at) == (NOON - DAY / 3, NOON + DAY * 2 / 3)


def test_an_import_is_one_entry_after_the_opening() -> None:
    opened, entry = imported(ImportedUsage(NOON - DAY / 3, 15)).entries
    assert (opened.kind, opened.balance_after, opened.last_reset_date) == ("opened", 20, NOON)
    assert (entry.kind, entry.cost, entry.delta, entry.balance_after) == ("imported", 15, -15, 5)
    assert (entry.reason, entry.created_at, entry.period_seq) == ("a gift", NOON, 2)


def test_an_imported_quota_resets_when_its_old_period_is_over() -> None:
    state = imported(ImportedUsage(NOON - DAY, 15)).state
    reset = changed(verbs.current(at(NOON, state), USER))
    assert [entry.kind for entry in reset.entries] == ["reset"]
    assert (reset.state.quota_remaining, reset.state.last_reset_date) == (20, NOON)


def test_the_periods_of_an_imported_quota_are_counted_from_its_old_clock() -> None:
    anchored = FREE._replace(reset_policy="anchored")
    state = imported(ImportedUsage(NOON - DAY / 3, 15), anchored).state
    reset = changed(verbs.current(at(NOON + 2 * DAY, state, anchored), USER))
    assert reset.state.last_reset_date == NOON + DAY * 5 / 3


def test_an_import_under_a_chosen_plan_is_staffs_choice() -> None:
    pro = FREE._replace(name="pro", allowance=50)
    state = imported(ImportedUsage(NOON, 15), target=pro).state
    assert (state.plan, state.plan_source, state.quota_remaining) == ("pro", "staff", 35)


def test_an_import_leaves_an_existing_quota_as_it_is() -> None:
    state = state_with(3)
    change = changed(verbs.import_usage(at(NOON + 2 * DAY, state), STAFF, ImportedUsage(NOON, 15)))
    assert (change.state, change.entries) == (state, ())


def test_a_request_that_was_carried_out_is_replayed_from_its_entry() -> None:
    keyed = USER._replace(idempotency_key="consume:user:k", fingerprint="f")
    done = changed(verbs.consume(at(NOON, state_with(1)), keyed, 1))
    replay = verbs.consume(at(NOON + TICK, done.state, entry=done.entries[-1]), keyed, 1)
    assert isinstance(replay, Replay)
    assert replay.quota == done.quota


def test_a_key_that_served_another_request_is_refused() -> None:
    keyed = USER._replace(idempotency_key="consume:user:k", fingerprint="f")
    entry = changed(verbs.consume(at(NOON, state_with(5)), keyed, 1)).entries[-1]
    other = keyed._replace(fingerprint="g")
    assert isinstance(verbs.consume(at(NOON, state_with(4), entry=entry), other, 2), outcomes.KeyReused)


def test_time_never_falls_as_the_ledger_grows() -> None:
    change = changed(verbs.consume(at(NOON - DAY, state_with(5)), USER, 1))
    assert change.entries[-1].created_at == NOON


@pytest.mark.parametrize(("microsecond", "second"), [(0, "00"), (1, "01"), (999_999, "01")])
def test_the_time_in_a_refusal_is_never_too_early(microsecond: int, second: str) -> None:
    state = state_with(0, resets_at=(NOON + DAY).replace(microsecond=microsecond))
    refusal = changed(verbs.consume(at(NOON, state), USER, 1)).refusal
    assert refusal
    assert f"20 more at 2026-03-02T12:00:{second}Z." in of_refusal(refusal).detail


calls = st.one_of(
    st.tuples(st.just("consume"), st.integers(1, 30)),
    st.tuples(st.just("adjust"), st.integers(-30, 30).filter(bool)),
    st.tuples(st.sampled_from(["current", "reset"]), st.none()),
)
pauses = st.sampled_from([timedelta(0), TICK, DAY / 3, DAY - TICK, DAY, 5 * DAY, -DAY])


@given(allowance=st.none() | st.integers(0, 25), steps=st.lists(st.tuples(calls, pauses), max_size=30))
def test_the_ledger_explains_every_balance(
    allowance: int | None, steps: list[tuple[tuple[str, int | None], timedelta]]
) -> None:
    """For any verbs at any times: gapless, chained, never below 0, and the last entry is the state."""
    plan, clock, state = FREE._replace(allowance=allowance), NOON, None
    ledger: list[values.Entry] = []
    for (verb, units), pause in steps:
        clock += pause
        given_units = () if units is None else (units,)
        outcome = getattr(verbs, verb)(at(clock, state, plan), STAFF, *given_units)
        if isinstance(outcome, Refusal):
            continue
        ledger.extend(outcome.entries)
        state = outcome.state
    assert [entry.seq for entry in ledger] == list(range(1, len(ledger) + 1))
    balance = 0
    for entry in ledger:
        balance += entry.delta
        assert entry.balance_after == balance >= 0
    for before, entry in pairwise(ledger):
        assert entry.created_at >= before.created_at or entry.metadata  # a reset after a clock that was ahead
    if state and ledger:
        last = ledger[-1]
        assert (last.balance_after, last.seq, last.period_seq) == (
            state.quota_remaining,
            state.seq,
            state.period_seq,
        )
    for period in {entry.period_seq for entry in ledger}:
        within = [entry for entry in ledger if entry.period_seq == period and entry.seq > period]
        given_out = (plan.allowance or 0) + sum(e.delta for e in within if e.kind == "adjusted")
        spent = -sum(e.delta for e in within if e.kind == "consumed")
        assert spent <= given_out


def test_an_entry_id_is_used_once() -> None:
    ids = (UUID(int=1), UUID(int=2))
    snapshot = at(NOON + DAY, state_with(3))._replace(entry_ids=ids)
    assert tuple(entry.id for entry in changed(verbs.consume(snapshot, USER, 1)).entries) == ids

"""What was used in a running period stays known, whatever plans come: by examples and by random histories.

Each history runs the verbs of one user in memory, with a ledger but without a database. After each step the
usage that the state keeps is compared with the costs of the entries.
"""

import random
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import permutations
from typing import Any
from uuid import UUID

import pytest

from quotas.rules import periods, values, verbs
from quotas.rules.outcomes import Change, Outcome
from quotas.rules.values import MAX_UNITS, Actor, Entry, OnChange, Plan, Request, Snapshot, State
from tests import ROOT
from tests.tools.ledger import usage_by_plan, usage_of

pytestmark = pytest.mark.once

HOUR, DAY, TICK = timedelta(hours=1), timedelta(days=1), timedelta(microseconds=1)
BEGIN = datetime(2026, 3, 27, 10, 30, tzinfo=UTC)  # before Berlin's short day and the end of a month
USER = Request(Actor("user", "user_1"))
STAFF = Request(Actor("staff", "bo"), reason="a test")
CLERK = Request(Actor("webhook", "clerk"))


def plan(name: str, allowance: int | None, policy: str = "rolling", period: timedelta = DAY) -> Plan:
    return Plan(name, 1, allowance, policy, period, "Europe/Berlin" if period == DAY else "UTC")


PLANS = [
    plan("free", 20),
    plan("pro", 100),
    plan("brief", 50, period=timedelta(seconds=2)),
    plan("5 in 2 s", 5, period=timedelta(seconds=2)),
    plan("long", 300, period=30 * DAY),
    plan("longer", 200, period=45 * DAY),
    plan("weeks", 90, period=7 * DAY),
    plan("hourly", 5, "anchored", HOUR),
    plan("daily", 30, "daily"),
    plan("daily pro", 60, "daily"),
    plan("weekly", 90, "weekly"),
    plan("monthly", 400, "monthly"),
    plan("none", 0),
    plan("unlimited", None),
    plan("huge", MAX_UNITS, "monthly"),
]


@dataclass
class History:
    """One user's state and ledger, and the clock."""

    now: datetime = BEGIN
    state: State | None = None
    ledger: list[Entry] = field(default_factory=list)
    plans: dict[str, Plan] = field(default_factory=lambda: {plan.name: plan for plan in PLANS})
    typed: list[tuple[int, int]] = field(default_factory=list)  # seq of an adjustment, and its units

    def __post_init__(self) -> None:
        self.versions = {name: [plan] for name, plan in self.plans.items()}

    def snapshot(self, **more: Any) -> Snapshot:
        plan = self.plans[self.state.plan if self.state else "free"]
        in_force = self.version(plan.name, self.state.plan_version) if self.state else plan
        ids = (UUID(int=len(self.ledger)), UUID(int=len(self.ledger) + 1))
        snapshot = Snapshot("user_1", self.now, plan, in_force, self.state, None, None, ids, **more)
        if asked := periods.lookback(snapshot):
            return snapshot._replace(usage=usage_by_plan(self.ledger, asked, self.version))
        self.assert_row_tells_all(snapshot)
        return snapshot

    def version(self, name: str, version: int) -> Plan:
        return self.versions[name][version - 1]

    def edit(self, name: str, allowance: int | None) -> None:
        plan = self.plans[name]
        self.plans[name] = plan._replace(version=plan.version + 1, allowance=allowance)
        self.versions[name].append(self.plans[name])

    def assert_row_tells_all(self, snapshot: Snapshot) -> None:
        """Assert that the ledger, had it been asked, would have given the row's own figures."""
        state = self.state and self.state._replace(usage_seq=None)
        asked = periods.lookback(snapshot._replace(state=state))
        if not state or not asked or asked.is_due:
            return
        usage = usage_by_plan(self.ledger, asked, self.version)
        assert usage
        assert (usage.begins_at, usage.period_seq) == (state.last_reset_date, state.period_seq)
        assert (usage.consumed, usage.given) == (state.period_consumed, state.period_given)
        assert usage.refused_at == state.refused_at

    def take(self, outcome: Outcome) -> Change | None:
        if not isinstance(outcome, Change):
            return None
        self.state = outcome.state
        self.ledger.extend(outcome.entries)
        return outcome

    def spend(self, cost: int) -> None:
        self.take(verbs.consume(self.snapshot(), USER, cost))

    def refund(self, consumption: Entry, amount: int | None = None) -> None:
        refunded = sum(entry.cost for entry in self.ledger if entry.refund_of == consumption.id)
        self.take(verbs.refund(self.snapshot(consumption=consumption, refunded=refunded), STAFF, amount))

    def adjust(self, delta: int) -> None:
        if change := self.take(verbs.adjust(self.snapshot(), STAFF, delta)):
            self.typed.append((change.state.seq, delta))

    def change(self, name: str, on_change: OnChange = OnChange.KEEP) -> None:
        self.take(verbs.change_plan(self.snapshot(target=self.plans[name]), STAFF, on_change))

    def deliver(self, name: str) -> None:
        """Follow Clerk's assignment of this plan."""
        moves = self.snapshot(target=self.plans[name], target_source="billing")
        self.take(verbs.follow_assignments(moves, CLERK))

    def reset(self) -> None:
        self.take(verbs.reset(self.snapshot(), STAFF))

    def delete(self) -> None:
        self.take(verbs.delete(self.snapshot(), STAFF))

    @property
    def left(self) -> int:
        return verbs.effective(self.snapshot()).quota_remaining


SAME = (
    "plan",
    "plan_version",
    "quota_limit",
    "quota_remaining",
    "period_consumed",
    "period_given",
    "last_reset_date",
    "resets_at",
    "period_seq",
)


def assert_same(direct: History, roundabout: History, what: object) -> None:
    assert direct.state
    assert roundabout.state
    figures = [[getattr(state, name) for name in SAME] for state in (direct.state, roundabout.state)]
    assert figures[0] == figures[1], what


def test_a_plan_left_and_taken_again_remembers_what_was_used() -> None:
    """The gravest fault of the releases before: 4,500 of 1,000 were spent like this."""
    user = History(plans={plan.name: plan for plan in [plan("free", 20), plan("pro", 1000)]})
    user.change("pro")
    for _ in range(5):
        user.spend(900)
        user.change("free")
        user.change("pro")
    assert (user.left, user.state and user.state.period_consumed) == (100, 900)


@pytest.mark.parametrize(
    "way", [["free"], ["unlimited"], ["brief"], ["none"], ["monthly", "free"], ["hourly"]]
)
@pytest.mark.parametrize("on_change", [OnChange.KEEP, OnChange.PRORATE])
@pytest.mark.parametrize("pause", [timedelta(0), timedelta(seconds=3), 2 * HOUR])
def test_no_way_round_gives_a_unit(way: list[str], on_change: OnChange, pause: timedelta) -> None:
    user = History()
    user.change("long")
    user.spend(250)
    for name in [*way, "long"]:
        user.change(name, on_change)
        user.now += pause
        user.take(verbs.current(user.snapshot(), USER))
    assert user.left <= 50
    assert user.state
    assert user.state.resets_at >= BEGIN + 30 * DAY
    if on_change == OnChange.KEEP:
        assert (user.left, user.state.resets_at) == (50, BEGIN + 30 * DAY)


def test_what_staff_gave_and_took_survives_a_way_round() -> None:
    user = History()
    user.change("long")
    user.spend(200)
    for delta in (-30, 500):
        user.adjust(delta)
        for name in ("brief", "long"):
            user.now += timedelta(seconds=3)
            user.change(name)
    assert user.left == 300 - 200 - 30 + 500


def test_a_longer_plan_counts_what_was_consumed_since_its_period_began() -> None:
    """20 a day, then a month: its days before count. Those of last month do not."""
    user = History()
    for _ in range(8):  # 27 March to 3 April
        user.spend(10)
        user.now += DAY
    user.change("monthly")  # its months begin on the 27th: all of it counts
    assert (user.left, user.state and user.state.last_reset_date) == (400 - 80, BEGIN)


def test_a_shorter_plan_counts_what_was_consumed_within_its_own_length() -> None:
    """On the way the first plan's period was left: no more than a week of it counts against a week."""
    for before, left in ((9 * DAY, 0), (0 * DAY, 90)):
        user = History()
        user.change("long")
        user.now += before
        user.spend(250)
        user.now += 10 * DAY - before
        user.change("brief")
        user.now += timedelta(seconds=3)
        user.change("weeks")
        assert user.left == left


def test_a_month_that_was_in_use_counts_against_a_plan_of_30_days() -> None:
    user = History()
    for _ in range(8):
        user.spend(20)
        user.now += DAY
    user.spend(20)
    user.change("monthly")
    user.spend(220)
    assert user.left == 0
    user.change("long")
    assert (user.left, user.state and user.state.period_consumed) == (0, 400)


def test_a_plan_of_the_same_length_counts_only_the_running_period() -> None:
    user = History()
    for _ in range(3):
        user.spend(20)
        user.now += DAY
    user.spend(5)
    user.change("pro")
    assert user.left == 95


def test_a_refill_by_staff_is_not_taken_back_by_a_longer_plan() -> None:
    user = History()
    user.spend(20)
    user.reset()
    user.spend(3)
    user.change("monthly")
    assert user.left == 397


def test_an_adjustment_first_covers_what_was_used_beyond_the_allowance() -> None:
    user = History()
    user.change("pro")
    user.spend(50)
    user.change("free")  # 30 more than it gives were used
    user.adjust(10)
    assert (user.left, user.ledger[-1].delta, user.state and user.state.period_given) == (0, 0, 10)
    user.adjust(25)
    assert (user.left, user.ledger[-1].delta) == (5, 5)
    user.change("pro")
    assert user.left == 100 + 35 - 50


@pytest.mark.parametrize(
    "names", [["pro", "brief", "long"], ["unlimited", "weekly", "daily"], ["none", "monthly", "pro"]]
)
def test_deliveries_at_one_instant_lead_to_one_balance_in_any_order(names: list[str]) -> None:
    """Whatever comes before it: the last one's plan, with what was used."""
    for order in permutations(names):
        direct, roundabout = History(), History()
        for user, way in ((direct, order[-1:]), (roundabout, order)):
            for day in range(4):
                user.spend(7 + day)
                user.now += DAY
            user.spend(4)
            for name in way:
                user.deliver(name)
        assert_same(direct, roundabout, order)


# The table of docs/rules.md


def examples() -> Iterator[tuple[str, History]]:
    """Yield the text of each row, and the user as it describes them. "And" continues the row above."""

    def opened(*acts: Callable[[History], object]) -> History:
        user = History(now=BEGIN.replace(hour=9))
        user.take(verbs.current(user.snapshot(), USER))
        for act in acts:
            act(user)
        return user

    def spend_15(user: History) -> None:
        user.spend(15)

    def give_10(user: History) -> None:
        user.adjust(10)

    def refund(user: History) -> None:
        user.refund(next(entry for entry in user.ledger if entry.kind == "consumed"))

    def wait(pause: timedelta) -> Callable[[History], object]:
        return lambda user: setattr(user, "now", user.now + pause)

    yield "15 spent", (user := opened(spend_15))
    refund(user)
    yield "and 15 refunded", user
    yield "15 spent, staff add 10", (user := opened(spend_15, give_10))
    refund(user)
    yield "15 spent, staff add 10, 15 refunded", user
    user = opened(spend_15)
    user.change("pro")
    user.spend(80)
    yield "15 spent, `keep` to 100 a day, 80 spent", user
    user.change("free")
    yield "and `keep` back to 20 a day", user
    user.adjust(10)
    yield "and staff add 10", user
    user.change("pro")
    yield "and `keep` to 100 a day", user
    user = opened(lambda user: user.spend(10), wait(12 * HOUR))
    user.change("pro", OnChange.PRORATE)
    yield "10 spent, at 21:00 `prorate` to 100 a day", user
    user = opened(spend_15)
    user.change("unlimited")
    user.spend(500)
    user.change("free")
    yield "15 spent, `keep` to unlimited, 500 spent, `keep` back to 20 a day", user
    user = opened()
    for _ in range(8):
        user.spend(10)
        user.now += DAY
    user.change("monthly")
    yield "10 spent on each of 8 days, `keep` to 400 a month", user
    user = opened(spend_15)
    user.change("5 in 2 s")
    wait(timedelta(seconds=30))(user)
    user.spend(5)
    wait(timedelta(seconds=30))(user)
    user.change("free")
    yield "15 spent, a minute on a plan of 5 units every 2 seconds with 5 spent, `keep` back", user


def test_the_examples_of_the_rules_are_true() -> None:
    table = (ROOT / "docs" / "rules.md").read_text()
    rows = re.findall(r"^\| (.+) \| (\d+) \| (\d+)(?:: .+| of 60: .+)? \|$", table, re.MULTILINE)
    assert len(rows) >= 10
    for (text, used, left), (row, user) in zip(rows, examples(), strict=True):
        assert user.state
        assert (text, int(used), int(left)) == (row, user.state.period_consumed, user.left)


# Random histories


def assert_consistent(user: History) -> None:
    """Assert that the state follows from the entries, and that no period gave more than it had."""
    state, last = user.state, user.ledger[-1]
    assert state
    in_period = user.ledger[state.period_seq - 1 :]
    consumed, given = usage_of(user.ledger, state.period_seq)
    typed = sum(delta for seq, delta in user.typed if seq >= state.period_seq)
    assert (state.period_consumed, state.period_given) == (consumed, given)
    assert given == typed
    assert state.quota_remaining == values.remaining(state.quota_limit, given, consumed)
    assert (last.balance_after, last.period_consumed, last.resets_at) == (
        state.quota_remaining,
        state.period_consumed,
        state.resets_at,
    )
    limits = [entry.quota_limit for entry in in_period if entry.period_seq == state.period_seq]
    if last.kind == "consumed" and state.quota_limit is not None:
        assert consumed <= max(limit or 0 for limit in limits) + given


def random_history(chance: random.Random, steps: int) -> Iterator[History]:
    user = History()
    pauses = [0 * TICK, 0 * TICK, TICK, timedelta(seconds=2), HOUR, 7 * HOUR, DAY, 9 * DAY, 40 * DAY, -HOUR]
    for _ in range(steps):
        user.now += chance.choice(pauses)
        before = len(user.ledger)
        match chance.choice(
            ("spend", "spend", "spend", "change", "change", "deliver", "refund", "adjust", "more")
        ):
            case "spend":
                user.spend(chance.choice((1, 3, 17, 40, max(1, user.left))))
            case "change":
                user.change(chance.choice(PLANS).name, chance.choice(list(OnChange)))
            case "deliver":
                for name in chance.choices([plan.name for plan in PLANS], k=chance.choice((1, 2, 2))):
                    user.deliver(name)
            case "refund":
                spends = [entry for entry in user.ledger[-8:] if entry.kind == "consumed"]
                if spends:
                    user.refund(chance.choice(spends), chance.choice((None, 1)))
            case "adjust":
                user.adjust(chance.choice((-7, -1, 5, 60, MAX_UNITS)))
            case "more":
                edit = partial(user.edit, chance.choice(PLANS).name, chance.choice((None, 0, 20, 70)))
                chance.choice((user.reset, user.reset, edit, edit, user.delete))()
        if len(user.ledger) > before:
            yield user


def assert_order_is_no_matter(user: History, chance: random.Random) -> None:
    """Assert that a way over other plans at one instant is as good as the direct one."""
    state = user.state
    if not state or state.deleted_at or periods.is_due(state, user.snapshot().now):
        return
    names = chance.sample([plan.name for plan in PLANS], 3)
    for last in (names[0], state.plan):
        direct, roundabout = deepcopy(user), deepcopy(user)
        direct.change(last)
        for name in (*names[1:], last):
            roundabout.change(name)
        assert_same(direct, roundabout, (names, last))


def run(histories: int, seed: int) -> int:
    steps = 0
    for number in range(histories):
        chance = random.Random(f"{seed}/{number}")
        try:
            for user in random_history(chance, 12):
                assert_consistent(user)
                steps += 1
            if number % 8 == 0:
                assert_order_is_no_matter(user, chance)
        except AssertionError as error:
            error.add_note(f"history {seed}/{number}")
            raise
    return steps


def test_1000_histories_never_lose_what_was_used() -> None:
    assert run(1_000, seed=1) > 5_000


@pytest.mark.full
def test_100000_histories_never_lose_what_was_used(capsys: pytest.CaptureFixture[str]) -> None:
    steps = run(100_000, seed=2)
    with capsys.disabled():
        print(f"\n100,000 histories, {steps:,} changes: what was used is always the sum of the costs")

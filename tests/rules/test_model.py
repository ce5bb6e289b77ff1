"""The store against a model of it: every verb in any order, and after each step both hold the same.

The model keeps rows, ledger and the plans' versions in memory and asks policy.py itself, so what the
database was asked, what it answered and what it kept are all compared with what they should be. Time
is the machine's: the clock in each snapshot is replaced, so that a step can fall on the very
microsecond at which a period ends.
"""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from django.db import connection
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from quotas import models
from quotas.models import ChallengeQuota, LedgerEntry, PlanVersion
from quotas.rules import outcomes, periods, values, verbs
from quotas.rules.outcomes import Exhausted, Outcome, Refusal
from quotas.rules.values import Actor, Entry, OnChange, Plan, Request, Snapshot, State
from quotas.store import commit, manager, plan_cache
from tests import ROOT
from tests.conftest import STAFF, USER, StepIn
from tests.store.test_races import url_of_the_test_database
from tests.tools.ledger import assert_sound

pytestmark = pytest.mark.django_db(transaction=True, serialized_rollback=True)
TICK, HOUR, DAY = timedelta(microseconds=1), timedelta(hours=1), timedelta(days=1)
USERS = ["user_1", "user_2", "user_3", "user_4"]
PLANS = {
    "free": {"allowance": 20},
    "hourly": {"allowance": 5, "reset_policy": "anchored", "period_seconds": 3_600},
    "daily": {"allowance": 30, "reset_policy": "daily", "timezone": "Europe/Berlin"},
    "weekly": {"allowance": 40, "reset_policy": "weekly", "timezone": "America/Havana"},
    "monthly": {"allowance": 100, "reset_policy": "monthly", "timezone": "Pacific/Apia"},
    "unlimited": {"allowance": None},
}

WEBHOOK = Actor("webhook", "clerk")
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
users = st.sampled_from(USERS)
keys = st.sampled_from([None, "k1", "k2"])
actors = st.sampled_from([Actor("service", "sk_1"), STAFF])
reasons = st.sampled_from(["a gift", "it failed"])
places = st.integers(0, 1_000)  # of an entry in a ledger, counted from the newest
new_rules = st.fixed_dictionaries(
    {},
    optional={
        "allowance": st.sampled_from([None, 0, 1, 20, 50, values.MAX_UNITS]),
        "reset_policy": st.sampled_from(list(periods.RESET_POLICIES)),
        "period_seconds": st.sampled_from([1, 3_600, 86_400, 3_660 * 86_400]),
        "timezone": st.sampled_from(["UTC", "Europe/Berlin", "America/St_Johns"]),
        "actions": st.sampled_from([{}, {"generate": 3}, {"generate": 8}]),
    },
)


class Model:
    """What the database should hold, and what it should find."""

    def __init__(self) -> None:
        self.versions: dict[str | None, list[Plan]] = {}
        self.default: str | None = None
        self.states: dict[str, State] = {}
        self.ledgers: dict[str, list[Entry]] = {user_id: [] for user_id in USERS}
        # Clerk's word on each user's items, and when it was given: (plan, time) by (source, item)
        self.words: dict[str, dict[tuple[str, str], tuple[str, int]]] = {user_id: {} for user_id in USERS}

    def save_plan(self, plan: Plan) -> int:
        known = self.versions.setdefault(plan.name, [])
        if not known or replace(known[-1], version=0) != replace(plan, version=0):
            known.append(replace(plan, version=len(known) + 1))
        return len(known)

    def find(
        self, user_id: str, clock: datetime, ids: tuple[UUID, UUID], look: commit.SnapshotQuery
    ) -> Snapshot:
        state, ledger = self.states.get(user_id), self.ledgers[user_id]
        plan = self.versions[state.plan if state else self.default][-1]
        entry = next((e for e in ledger if look.key and e.idempotency_key == look.key), None)
        found = Snapshot(
            user_id=user_id,
            clock=clock,
            current_plan=plan,
            plan_in_force=self.versions[state.plan][state.plan_version - 1] if state else plan,
            state=state,
            entry=entry,
            entry_plan=self.versions[entry.plan][entry.plan_version - 1] if entry else None,
            entry_ids=ids,
        )
        if look.also == "consumption":
            asked_back = sum(e.cost for e in ledger if e.refund_of == look.what)
            consumption = next((e for e in ledger if e.id == look.what), None)
            return replace(found, consumption=consumption, refunded=asked_back)
        if look.also == "target":
            versions = self.versions.get(look.what)
            return replace(found, target=versions[-1] if versions else None)
        if look.also == "clerk":
            name, source = self.clerks_word(user_id)
            return replace(found, target=self.versions[name][-1], target_source=source)
        return found

    def clerks_word(self, user_id: str) -> tuple[str | None, str]:
        """The plan that Clerk's words lead to, and which of them."""
        for source in ("billing", "metadata"):
            said = [
                (at, plan) for (by, _), (plan, at) in self.words[user_id].items() if by == source and plan
            ]
            if said:
                plan = max(said)[1]
                return (plan, source) if plan in self.versions else (self.default, "default")
        return self.default, "default"

    def note(self, user_id: str, item: tuple[str, str], plan: str, at: int) -> bool:
        """Note the word on an item if it is the latest; at one time the end of it is the last word."""
        last = self.words[user_id].get(item)
        if last and (last[1] > at or (last[1] == at and item[0] == "billing" and plan and not last[0])):
            return False
        self.words[user_id][item] = plan, at
        return True

    def keep(self, outcome: Outcome) -> None:
        if isinstance(outcome, outcomes.Change) and outcome.entries:
            self.states[outcome.state.user_id] = outcome.state
            self.ledgers[outcome.state.user_id].extend(outcome.entries)


class Machine(RuleBasedStateMachine):
    steps: Counter[str] = Counter()  # by what came of them, over all runs

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.seen: Snapshot | None = None
        self.last_step: Callable[[], None] = lambda: None
        self.read, commit._read_snapshot = commit._read_snapshot, self.read_at_our_time
        for table in (models.PlanAssignment, LedgerEntry, ChallengeQuota, PlanVersion, models.Plan):
            table.objects.all().delete()
        plan_cache.clear()  # which are made anew
        for name, rules in PLANS.items():
            self.save(models.Plan(name=name, actions={"generate": 3}, **rules))
        self.make_default("free")

    def teardown(self) -> None:
        commit._read_snapshot = self.read
        for user_id, ledger in self.model.ledgers.items():
            stored = LedgerEntry.objects.filter(user_id=user_id).order_by("seq")
            assert [entry_of(row) for row in stored] == [unmarked(entry) for entry in ledger]
            if ledger:
                assert_sound(user_id)
                assert_fair(ledger)

    def read_at_our_time(self, user_id: str, look: commit.SnapshotQuery) -> commit.Steps[Snapshot]:
        snapshot = yield from self.read(user_id, look)
        assert abs(snapshot.clock - datetime.now(UTC)) < timedelta(minutes=1)
        self.seen = replace(snapshot, clock=self.now)
        return self.seen

    # Time

    @initialize(
        now=st.sampled_from(
            [
                datetime(2026, 1, 31, 11, 30, tzinfo=UTC),
                datetime(2026, 3, 28, 22, 59, 59, 999_999, tzinfo=UTC),  # Berlin's short day is a tick off
                datetime(2011, 12, 29, 12, tzinfo=UTC),  # Samoa is about to skip a day
                datetime(2028, 2, 29, tzinfo=UTC),
            ]
        )
    )
    def begin(self, now: datetime) -> None:
        self.now = now

    @rule(by=st.sampled_from([TICK, HOUR, DAY / 3, DAY, 31 * DAY, 400 * DAY, -TICK, -HOUR, -2 * DAY]))
    def wait(self, by: timedelta) -> None:
        self.now += by

    @rule(user_id=users, late=st.sampled_from([-TICK, 0 * TICK, TICK]))
    def wait_for_the_reset(self, user_id: str, late: timedelta) -> None:
        if ledger := self.model.ledgers[user_id]:
            self.now = ledger[-1].resets_at + late

    # Plans

    @rule(name=st.sampled_from(list(PLANS)), rules=new_rules)
    def edit_plan(self, name: str, rules: dict[str, Any]) -> None:
        plan = models.Plan.objects.get(pk=name)
        for rule_name, value in rules.items():
            setattr(plan, rule_name, value)
        self.save(plan)

    @rule(name=st.sampled_from(list(PLANS)))
    def make_default(self, name: str) -> None:
        models.Plan.objects.filter(is_default=True).update(is_default=False)
        models.Plan.objects.filter(pk=name).update(is_default=True)
        self.model.default = name

    def save(self, plan: models.Plan) -> None:
        plan.save()
        assert plan.version == self.model.save_plan(plan.value)

    # The verbs

    @rule(user_id=users)
    def current(self, user_id: str) -> None:
        self.step("current", user_id, rule=verbs.current)

    @rule(user_id=users, actor=actors)
    def open_missing(self, user_id: str, actor: Actor) -> None:
        self.step("open_missing", user_id, rule=verbs.open_missing, actor=actor)

    @rule(
        user_id=users,
        cost=st.sampled_from([None, 1, 2, 3, 5, 8, 20, 21, 101, values.MAX_UNITS]),
        action=st.sampled_from(["", "", "generate", "unknown"]),
        metadata=st.sampled_from([None, {}, {"job": "ü", "of": [1, None]}]),
        key=keys,
        actor=st.none() | actors,
    )
    def consume(
        self, user_id: str, cost: int | None, action: str, metadata: Any, key: str | None, actor: Actor | None
    ) -> None:
        rule = partial(verbs.consume, cost=cost)
        self.step("consume", user_id, cost, rule=rule, actor=actor, key=key, action=action, metadata=metadata)

    @rule()
    def try_again(self) -> None:
        """Ask for the same as in the last step, as a client does whose answer was lost."""
        self.last_step()

    @rule(user_id=users)
    def consume_all(self, user_id: str) -> None:
        state = self.model.states.get(user_id)
        self.consume(user_id, (state and state.quota_remaining) or 1, "", None, None, None)

    @rule(
        user_id=users,
        place=places,
        whose=st.sampled_from(["his spend", "his spend", "his spend", "his entry", "another's spend"]),
        amount=st.none() | st.integers(1, 6),
        reason=reasons,
        key=keys,
        actor=actors,
    )
    def refund(
        self,
        user_id: str,
        place: int,
        whose: str,
        amount: int | None,
        reason: str,
        key: str | None,
        actor: Actor,
    ) -> None:
        owner = USERS[place % len(USERS)] if whose.startswith("another") else user_id
        entries = [
            entry.id
            for entry in self.model.ledgers[owner]
            if entry.kind == "consumed" or whose == "his entry"
        ]
        consumption = entries[-1 - place % min(4, len(entries))] if entries else UUID(int=place)
        self.step(
            "refund",
            user_id,
            consumption,
            amount,
            rule=partial(verbs.refund, amount=amount),
            look=("consumption", consumption),
            actor=actor,
            key=key,
            reason=reason,
        )

    @rule(
        user_id=users,
        delta=(st.integers(-30, 30) | st.integers(-values.MAX_UNITS, values.MAX_UNITS)).filter(bool),
        reason=reasons,
        key=keys,
        actor=actors,
    )
    def adjust(self, user_id: str, delta: int, reason: str, key: str | None, actor: Actor) -> None:
        rule = partial(verbs.adjust, delta=delta)
        self.step("adjust", user_id, delta, rule=rule, actor=actor, key=key, reason=reason)

    @rule(user_id=users, reason=reasons, key=keys, actor=actors)
    def reset(self, user_id: str, reason: str, key: str | None, actor: Actor) -> None:
        self.step("reset", user_id, rule=verbs.reset, actor=actor, key=key, reason=reason)

    @rule(
        user_id=users,
        plan=st.sampled_from([None, "gold", *PLANS]),
        on_change=st.sampled_from(OnChange),
        key=keys,
        actor=actors,
    )
    def change_plan(
        self, user_id: str, plan: str | None, on_change: OnChange, key: str | None, actor: Actor
    ) -> None:
        rule = partial(verbs.change_plan, on_change=on_change)
        look = ("target", plan) if plan else ("clerk", None)
        self.step("change_plan", user_id, plan, on_change, rule=rule, look=look, actor=actor, key=key)

    @rule(
        user_id=users,
        item=st.sampled_from([("billing", "item_1"), ("billing", "item_2"), ("metadata", "")]),
        plan=st.sampled_from(["", "gold", "hourly", "unlimited", "monthly"]),
        at=st.integers(1, 40),
    )
    def assign_plan(self, user_id: str, item: tuple[str, str], plan: str, at: int) -> None:
        """Clerk says of an item which plan it stands for, in any order of its times."""
        # Two words of one time about one user have no order of their own: each item has its own times.
        at = 4 * at + ["item_1", "item_2", ""].index(item[1])
        self.open_missing(user_id, WEBHOOK)
        state = self.model.states.get(user_id)
        is_open = state is not None and state.deleted_at is None
        is_noted = is_open and self.model.note(user_id, item, plan, at)
        source, external_id = item
        given = {"external_id": external_id, "updated_at": EPOCH + at * HOUR, "actor": WEBHOOK}
        answer = answer_of(
            lambda: ChallengeQuota.objects.assign_plan(user_id, source, plan, **given)  # type: ignore[arg-type]
        )
        if not is_open:
            assert isinstance(answer, outcomes.Deleted)
            return
        assert answer is is_noted
        if not is_noted:
            self.steps["a late word"] += 1
            return
        assert self.seen is not None
        found = self.model.find(user_id, self.now, self.seen.entry_ids, commit.SnapshotQuery(None, "clerk"))
        assert self.seen == found
        outcome = verbs.follow_assignments(found, Request(WEBHOOK))
        self.model.keep(outcome)
        self.steps[f"followed: {name_of(answer, outcome)}"] += 1
        self.compare(user_id)

    @rule(user_id=st.sampled_from(USERS[2:]), actor=actors)
    def delete(self, user_id: str, actor: Actor) -> None:
        self.step("delete", user_id, rule=verbs.delete, actor=actor)

    def step(
        self,
        verb: str,
        user_id: str,
        *asked: Any,
        rule: Callable[[Snapshot, Request], Outcome],
        actor: Actor | None = None,
        key: str | None = None,
        look: tuple[str, Any] = ("", None),
        **remembered: Any,
    ) -> None:
        """Carry out the verb; demand that it found, said and left what the model finds, says and holds."""
        self.last_step = partial(
            self.step, verb, user_id, *asked, rule=rule, actor=actor, key=key, look=look, **remembered
        )
        given = {"actor": actor, "key": key, **remembered}
        answer = answer_of(
            partial(
                getattr(ChallengeQuota.objects, verb),
                user_id,
                *asked,
                **{name: value for name, value in given.items() if value is not None},
            )
        )
        by = actor or Actor("user", user_id)
        request = Request(by, **remembered)
        if key:
            mark = repr((asked, remembered))
            request = replace(request, idempotency_key=f"{verb}:{by.kind}:{key}", fingerprint=mark)
        assert self.seen is not None
        found = self.model.find(
            user_id, self.now, self.seen.entry_ids, commit.SnapshotQuery(request.idempotency_key, *look)
        )
        assert unmarked_snapshot(self.seen) == unmarked_snapshot(found)
        outcome = rule(found, request)
        assert unmarked_answer(answer) == unmarked_answer(expected(verb, outcome))
        self.model.keep(outcome)
        self.steps[name_of(answer, outcome)] += 1
        self.compare(user_id)

    def compare(self, user_id: str) -> None:
        row = ChallengeQuota.objects.filter(pk=user_id).first()
        assert (row and row.state) == self.model.states.get(user_id)
        newest = LedgerEntry.objects.filter(user_id=user_id).order_by("-seq")[:3]
        assert [entry_of(row) for row in newest] == [
            unmarked(entry) for entry in self.model.ledgers[user_id][:-4:-1]
        ]


def answer_of(verb: Callable[[], Any]) -> Any:
    try:
        return verb()
    except Refusal as refusal:
        return refusal


def name_of(answer: Any, outcome: Outcome) -> str:
    """What came of a step: a refusal's name, the last entry's kind, or that nothing was written."""
    if isinstance(answer, Refusal) or isinstance(outcome, outcomes.Replay):
        return type(answer if isinstance(answer, Refusal) else outcome).__name__
    assert isinstance(outcome, outcomes.Change)
    return outcome.entries[-1].kind if outcome.entries else "unchanged"


def expected(verb: str, outcome: Outcome) -> Any:
    """What the manager is to say of the outcome, each verb in its way."""
    if isinstance(outcome, Refusal) or (isinstance(outcome, outcomes.Change) and outcome.refusal):
        return outcome if isinstance(outcome, Refusal) else outcome.refusal
    is_replay = isinstance(outcome, outcomes.Replay)
    match verb:
        case "delete":
            return None
        case "current" | "open_missing":
            return outcome.quota
        case "change_plan":
            return manager.PlanChange(outcome.quota, outcome.quota_now, is_replay)
    entry = outcome.entry if is_replay else outcome.entries[-1]
    return manager.Receipt(entry, outcome.quota, outcome.quota_now, is_replay)


def unmarked_answer(answer: Any) -> Any:
    """The answer in a form that compares: refusals by what they say, entries but for the fingerprint."""
    if isinstance(answer, Refusal):
        return type(answer), str(answer), getattr(answer, "quota", None)
    return answer._replace(entry=unmarked(answer.entry)) if isinstance(answer, manager.Receipt) else answer


def unmarked_snapshot(snapshot: Snapshot) -> Snapshot:
    entry, consumption = unmarked(snapshot.entry), unmarked(snapshot.consumption)
    return replace(snapshot, entry=entry, consumption=consumption)


def unmarked(entry: Entry | None) -> Entry | None:
    """The entry but for its fingerprint, of which the model has its own: is there one?"""
    return entry and replace(entry, fingerprint="some" if entry.fingerprint else "")


def entry_of(row: LedgerEntry) -> Entry | None:
    return unmarked(Entry(**{name: getattr(row, name) for name in Entry.__dataclass_fields__}))


def assert_fair(ledger: list[Entry]) -> None:
    """What must hold whatever the policy says: each period begins full, and no spend comes back twice."""
    keys = [entry.idempotency_key for entry in ledger if entry.idempotency_key]
    assert len(keys) == len(set(keys))
    assert all(entry.kind != "deleted" for entry in ledger[:-1])
    for entry in ledger:
        assert entry.seq != entry.period_seq or entry.balance_after == (entry.quota_limit or 0)
        refunds = [refund for refund in ledger if refund.refund_of == entry.id]
        assert sum(refund.delta for refund in refunds) <= sum(refund.cost for refund in refunds) <= entry.cost
        assert all(refund.delta == 0 for refund in refunds if refund.period_seq != entry.period_seq)
    for period in {entry.period_seq for entry in ledger}:
        kinds = Counter(entry.kind for entry in ledger if entry.period_seq == period)
        assert kinds["refused"] <= 1
        assert kinds["opened"] + kinds["reset"] + kinds["plan_changed"] >= 1


def run_for(verbs: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Run the machine, 50 rules at a time, until so many verbs were compared."""
    Machine.steps.clear()
    while Machine.steps.total() < verbs:
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=max(1, verbs // 50),
                stateful_step_count=50,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    told = ", ".join(f"{count} {name}" for name, count in Machine.steps.most_common())
    with capsys.disabled():
        print(f"\n{connection.vendor}: {Machine.steps.total()} verbs, 0 divergences: {told}")


def test_300_verbs_do_what_the_model_does(capsys: pytest.CaptureFixture[str]) -> None:
    run_for(300, capsys)


@pytest.mark.full
def test_10000_verbs_do_what_the_model_does(capsys: pytest.CaptureFixture[str]) -> None:
    run_for(10_000, capsys)


@pytest.mark.full
@pytest.mark.postgres  # the run on SQLite leaves the long tests out, so this one starts its own
def test_10000_verbs_do_on_sqlite_what_the_model_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = f"{__file__}::test_10000_verbs_do_what_the_model_does"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--full", "-q", test],
        cwd=ROOT,
        env=os.environ | {"DATABASE_URL": f"sqlite:///{tmp_path}/model.sqlite3"},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    with capsys.disabled():
        print("\n" + next(line for line in done.stdout.splitlines() if "divergences" in line))


# Another request steps in between the read and the store


def kinds() -> list[str]:
    return list(LedgerEntry.objects.filter(user_id=USER).order_by("seq").values_list("kind", flat=True))


def test_a_spend_is_decided_anew_if_the_row_was_changed_since(step_in: StepIn) -> None:
    ChallengeQuota.objects.current(USER)
    step_in(lambda: ChallengeQuota.objects.consume(USER, 15))
    with pytest.raises(Exhausted):
        ChallengeQuota.objects.consume(USER, 10)
    assert kinds() == ["opened", "consumed", "refused"]
    assert_sound(USER)


def test_a_row_that_was_opened_since_is_taken_as_it_is(step_in: StepIn) -> None:
    step_in(lambda: ChallengeQuota.objects.consume(USER, 15))
    assert ChallengeQuota.objects.consume(USER, 3).quota.quota_remaining == 2
    assert kinds() == ["opened", "consumed", "consumed"]
    assert_sound(USER)


def test_a_user_who_was_deleted_since_stays_deleted(step_in: StepIn) -> None:
    ChallengeQuota.objects.current(USER)
    step_in(lambda: ChallengeQuota.objects.delete(USER, actor=STAFF))
    with pytest.raises(outcomes.Deleted):
        ChallengeQuota.objects.consume(USER)
    assert kinds() == ["opened", "deleted"]


def test_the_same_key_that_was_spent_since_is_replayed(step_in: StepIn) -> None:
    ChallengeQuota.objects.current(USER)
    step_in(lambda: ChallengeQuota.objects.consume(USER, 3, key="k"))
    assert ChallengeQuota.objects.consume(USER, 3, key="k").is_replay
    assert kinds() == ["opened", "consumed"]


@pytest.mark.postgres
def test_after_some_lost_races_the_row_is_held_from_the_read_on(
    step_in: StepIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(commit.UNLOCKED_TRIES, "postgresql", 0)
    ChallengeQuota.objects.current(USER)

    def find_it_held() -> None:
        with (
            psycopg.connect(url_of_the_test_database()) as other,
            pytest.raises(psycopg.errors.LockNotAvailable),
        ):
            other.execute("SELECT 1 FROM challenge_quotas FOR UPDATE NOWAIT")

    step_in(find_it_held)
    assert ChallengeQuota.objects.consume(USER).quota.quota_remaining == 19


# What the model does not hold


def test_a_deletion_empties_the_email() -> None:
    ChallengeQuota.objects.current(USER)
    ChallengeQuota.objects.note_profile(USER, "me@example.com", datetime(2026, 3, 1, tzinfo=UTC))
    ChallengeQuota.objects.consume(USER)
    assert ChallengeQuota.objects.get(pk=USER).email == "me@example.com"
    ChallengeQuota.objects.delete(USER, actor=STAFF)
    assert ChallengeQuota.objects.get(pk=USER).email == ""

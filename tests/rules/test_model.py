"""The store against a model of it: any verbs in any order, and after each step both hold the same.

The model keeps rows, ledger and plan versions in memory and calls the rules itself. So each snapshot that the
store reads, each outcome and each stored row is compared with what it should be. The state machine sets the
clock of each snapshot, so that a step can fall on the microsecond at which a period ends.
"""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from django.conf import settings as django_settings
from django.db import connection
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from quotas import models
from quotas.models import ChallengeQuota, LedgerEntry, PlanVersion
from quotas.reports import audit
from quotas.rules import outcomes, periods, values, verbs
from quotas.rules.outcomes import Exhausted, Forecast, Outcome, Refusal
from quotas.rules.values import Actor, Entry, ImportedUsage, OnChange, Plan, Request, Snapshot, State
from quotas.store import commit, manager, plan_cache, statements
from quotas.store.steps import SnapshotQuery
from tests import ROOT
from tests.conftest import STAFF, USER, StepIn
from tests.store.test_races import url_of_the_test_database
from tests.tools.ledger import assert_sound, usage_by_plan

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
places = st.integers(0, 1_000)  # positions of an entry in a ledger, counted from the newest
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
    """What the database should hold, and the snapshots that it should return."""

    def __init__(self) -> None:
        self.versions: dict[str | None, list[Plan]] = {}
        self.default: str | None = None
        self.states: dict[str, State] = {}
        self.ledgers: dict[str, list[Entry]] = {user_id: [] for user_id in USERS}
        # Clerk's plan assignments to each user: (plan, time) by (source, item)
        self.assigned: dict[str, dict[tuple[str, str], tuple[str, int]]] = {user_id: {} for user_id in USERS}

    def save_plan(self, plan: Plan) -> int:
        known = self.versions.setdefault(plan.name, [])
        if not known or known[-1]._replace(version=0) != plan._replace(version=0):
            known.append(plan._replace(version=len(known) + 1))
        return len(known)

    def find(self, user_id: str, clock: datetime, ids: tuple[UUID, UUID], query: SnapshotQuery) -> Snapshot:
        state, ledger = self.states.get(user_id), self.ledgers[user_id]
        plan = self.versions[state.plan if state else self.default][-1]
        key = query.idempotency_key
        entry = next((e for e in ledger if key and e.idempotency_key == key), None)
        found = Snapshot(
            user_id=user_id,
            clock=clock,
            current_plan=plan,
            plan_in_force=self.versions[state.plan][state.plan_version - 1] if state else plan,
            state=state,
            entry=entry,
            entry_plan=self.versions[entry.plan][entry.plan_version - 1] if entry else None,
            entry_ids=ids,
            entry_refunded=refunded(ledger, entry.id) if entry and entry.kind == "consumed" else 0,
        )
        if query.include == "consumption":
            spend = next((e for e in ledger if e.id == query.argument), None)
            plan = self.version(spend.plan, spend.plan_version) if spend else None
            asked_back = refunded(ledger, query.argument)
            return found._replace(consumption=spend, consumption_plan=plan, refunded=asked_back)
        if query.include == "target":
            versions = self.versions.get(query.argument)
            found = found._replace(target=versions[-1] if versions else None)
        if query.include == "clerk":
            name, source = self.clerks_assignment(user_id)
            found = found._replace(target=self.versions[name][-1], target_source=source)
        asked = periods.lookback(found)
        return found._replace(usage=usage_by_plan(ledger, asked, self.version)) if asked else found

    def version(self, name: str, version: int) -> Plan:
        return self.versions[name][version - 1]

    def clerks_assignment(self, user_id: str) -> tuple[str | None, str]:
        """Return the plan that Clerk's assignments lead to, and its source."""
        ranked = [
            (-self.rank(source, plan), at, plan, source)
            for (source, _), (plan, at) in self.assigned[user_id].items()
            if plan
        ]
        _, _, plan, source = max(ranked, default=(0, 0, "", ""))
        return (plan, source) if plan in self.versions else (self.default, "default")

    def rank(self, source: str, plan: str) -> int:
        """Billing with a plan of ours, then metadata, then what Clerk Billing gives to each sign-up."""
        is_free = plan == self.default or plan not in self.versions
        return 2 if source == "metadata" else 3 if is_free else 1

    def note(self, user_id: str, item: tuple[str, str], plan: str, at: int) -> bool:
        """Keep the assignment of an item if it is the latest; of two at the same time the item's end wins."""
        last = self.assigned[user_id].get(item)
        if last and (last[1] > at or (last[1] == at and item[0] == "billing" and plan and not last[0])):
            return False
        self.assigned[user_id][item] = plan, at
        return True

    def keep(self, outcome: Outcome | Forecast) -> None:
        if isinstance(outcome, outcomes.Change) and outcome.entries:
            self.states[outcome.state.user_id] = outcome.state
            self.ledgers[outcome.state.user_id].extend(outcome.entries)


def refunded(ledger: list[Entry], consumption: UUID) -> int:
    return sum(entry.cost for entry in ledger if entry.refund_of == consumption)


class Machine(RuleBasedStateMachine):
    steps: Counter[str] = Counter()  # by result, over all runs

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.seen: Snapshot | None = None
        self.last_step: Callable[[], None] = lambda: None
        self.read, statements.read_snapshot = statements.read_snapshot, self.read_and_note
        self.read_row, statements._read_row = statements._read_row, self.read_at_our_time
        for table in (models.PlanAssignment, LedgerEntry, ChallengeQuota, PlanVersion, models.Plan):
            table.objects.all().delete()
        plan_cache.clear()  # the plans are made again
        for name, rules in PLANS.items():
            self.save(models.Plan(name=name, actions={"generate": 3}, **rules))
        self.make_default("free")

    def teardown(self) -> None:
        django_settings.QUOTA_USER_IDS = "any"
        statements.read_snapshot, statements._read_row = self.read, self.read_row
        for user_id, ledger in self.model.ledgers.items():
            stored = LedgerEntry.objects.filter(user_id=user_id).order_by("seq")
            assert [entry_of(row) for row in stored] == [unmarked(entry) for entry in ledger]
            if ledger:
                # The machine's clock may be ahead of the database's.
                assert [fault for fault in audit.faults(user_id) if fault.kind != "future"] == []
                assert_fair(ledger)

    def read_at_our_time(self, *asked: Any, **options: Any) -> statements.Statements[Snapshot]:
        snapshot = yield from self.read_row(*asked, **options)
        assert abs(snapshot.clock - datetime.now(UTC)) < timedelta(minutes=1)
        return snapshot._replace(clock=self.now)

    def read_and_note(self, *asked: Any, **options: Any) -> statements.Statements[Snapshot]:
        self.seen = yield from self.read(*asked, **options)
        return self.seen

    @rule(ids=st.sampled_from(["any", "clerk", "known"]))
    def restrict_services(self, ids: str) -> None:
        django_settings.QUOTA_USER_IDS = ids

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
        since=st.sampled_from([TICK, HOUR, DAY / 3, DAY, 31 * DAY]),
        used=st.none() | st.sampled_from([0, 7, 20, 60]),
        left=st.sampled_from([0, 13, 20, 60, values.MAX_UNITS]),
        plan=st.sampled_from([None, *PLANS]),
    )
    def import_usage(
        self, user_id: str, since: timedelta, used: int | None, left: int, plan: str | None
    ) -> None:
        is_missing = user_id not in self.model.states
        usage = ImportedUsage(self.now - since, used, left)
        opened = ChallengeQuota.objects.import_many({user_id: usage}, plan, reason="moved in", actor=STAFF)
        assert opened.made == is_missing
        if is_missing:
            stored = LedgerEntry.objects.filter(user_id=user_id).order_by("seq").values_list("id", flat=True)
            query = SnapshotQuery(None, "target", plan) if plan else SnapshotQuery()
            found = self.model.find(user_id, self.now, tuple(stored), query)
            request = Request(STAFF, reason="moved in")
            outcome = verbs.import_usage(found, request, usage)
            self.model.keep(outcome)
            self.steps[name_of(None, outcome)] += 1
        self.compare(user_id)

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

    @rule(
        user_id=users,
        cost=st.sampled_from([None, 1, 3, 8, 20, 21, 101]),
        action=st.sampled_from(["", "generate", "unknown"]),
        actor=st.none() | actors,
    )
    def forecast(self, user_id: str, cost: int | None, action: str, actor: Actor | None) -> None:
        rule = partial(verbs.forecast, cost=cost)
        self.step("forecast", user_id, cost, rule=rule, actor=actor, action=action)

    @rule()
    def try_again(self) -> None:
        """Repeat the last step, as a client does after a lost response."""
        self.last_step()

    @rule(user_id=users, key=st.sampled_from(["k1", "k2"]), actor=actors)
    def try_a_refunded_spend_again(self, user_id: str, key: str, actor: Actor) -> None:
        for amount in (1, None):
            self.consume(user_id, 3, "", None, key, actor)
            self.refund(user_id, 0, "own spend", amount, "it failed", None, actor)
        self.consume(user_id, 3, "", None, key, actor)

    @rule(user_id=users)
    def consume_all(self, user_id: str) -> None:
        state = self.model.states.get(user_id)
        self.consume(user_id, (state and state.quota_remaining) or 1, "", None, None, None)

    @rule(
        user_id=users,
        place=places,
        whose=st.sampled_from(["own spend", "own spend", "own spend", "own entry", "another's spend"]),
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
            if entry.kind == "consumed" or whose == "own entry"
        ]
        consumption = entries[-1 - place % min(4, len(entries))] if entries else UUID(int=place)
        self.step(
            "refund",
            user_id,
            consumption,
            amount,
            rule=partial(verbs.refund, amount=amount),
            include=("consumption", consumption),
            actor=actor,
            key=key,
            reason=reason,
        )

    @rule(user_id=users, place=places)
    def consumption(self, user_id: str, place: int) -> None:
        ledger = self.model.ledgers[user_id]
        spends = [entry for entry in ledger if entry.kind == "consumed"] or ledger
        entry = spends[place % len(spends)].id if spends else UUID(int=place)
        include = ("consumption", entry)
        self.step("consumption", user_id, entry, rule=verbs.show_consumption, include=include)

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
        include = ("target", plan) if plan else ("clerk", None)
        if plan is None:  # the verb opens a missing quota first, with an entry of its own
            self.step("open_missing", user_id, rule=verbs.open_missing, actor=actor)
            state = self.model.states.get(user_id)
            if state is None or state.deleted_at:
                return
        self.step("change_plan", user_id, plan, on_change, rule=rule, include=include, actor=actor, key=key)

    @rule(
        user_id=users,
        item=st.sampled_from([("billing", "item_1"), ("billing", "item_2"), ("metadata", "")]),
        plan=st.sampled_from(["", "gold", "hourly", "unlimited", "monthly"]),
        at=st.integers(1, 40),
    )
    def assign_plan(self, user_id: str, item: tuple[str, str], plan: str, at: int) -> None:
        """Clerk assigns the plan of an item, in any order of its times."""
        # Two assignments of the same time to one user have no defined order: give each item times of its own.
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
            self.steps["a late assignment"] += 1
            return
        assert self.seen is not None
        found = self.model.find(user_id, self.now, self.seen.entry_ids, SnapshotQuery(None, "clerk"))
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
        *arguments: Any,
        rule: Callable[[Snapshot, Request], Outcome | Forecast],
        actor: Actor | None = None,
        key: str | None = None,
        include: tuple[str, Any] = ("", None),
        **recorded: Any,
    ) -> None:
        """Call the verb; assert that it read, returned and stored the same as the model."""
        self.last_step = partial(
            self.step, verb, user_id, *arguments, rule=rule, actor=actor, key=key, include=include, **recorded
        )
        given = {"actor": actor, "key": key, **recorded}
        answer = answer_of(
            partial(
                getattr(ChallengeQuota.objects, verb),
                user_id,
                *arguments,
                **{name: value for name, value in given.items() if value is not None},
            )
        )
        by = actor or Actor("user", user_id)
        is_restricted = by.kind == "service" and django_settings.QUOTA_USER_IDS == "known"
        request = Request(by, **recorded, may_open=not is_restricted)
        if key:
            mark = repr((arguments, recorded))
            request = request._replace(idempotency_key=f"{verb}:{by.kind}:{key}", fingerprint=mark)
        assert self.seen is not None
        found = self.model.find(
            user_id, self.now, self.seen.entry_ids, SnapshotQuery(request.idempotency_key, *include)
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


def name_of(answer: Any, outcome: Outcome | Forecast) -> str:
    """The result of a step: the name of a refusal or replay, the kind of the last entry, or "unchanged"."""
    if isinstance(answer, Refusal) or isinstance(outcome, outcomes.Replay):
        return type(answer if isinstance(answer, Refusal) else outcome).__name__
    if isinstance(outcome, Forecast):
        return "forecast: no" if outcome.refusal else "forecast: yes"
    assert isinstance(outcome, outcomes.Change)
    return outcome.entries[-1].kind if outcome.entries else "unchanged"


def expected(verb: str, outcome: Outcome | Forecast) -> Any:
    """What the manager's verb should return or raise for the outcome."""
    if isinstance(outcome, Refusal) or (isinstance(outcome, outcomes.Change) and outcome.refusal):
        return outcome if isinstance(outcome, Refusal) else outcome.refusal
    if isinstance(outcome, Forecast):
        return outcome
    match verb:
        case "delete":
            return None
        case "current" | "open_missing":
            return outcome.quota
        case "change_plan":
            is_replay = isinstance(outcome, outcomes.Replay)
            return manager.PlanChange(outcome.quota, outcome.quota_now, is_replay)
    if isinstance(outcome, outcomes.Replay):
        rest = (outcome.quota_now, verb != "consumption", outcome.refunded)
        return manager.Receipt(outcome.entry, outcome.quota, *rest)
    return manager.Receipt(outcome.entries[-1], outcome.quota, outcome.quota_now, is_replay=False)


def unmarked_answer(answer: Any) -> Any:
    """The answer in a comparable form: refusals by their facts, entries without the fingerprint itself."""
    if isinstance(answer, Refusal):
        return type(answer), vars(answer)
    if isinstance(answer, Forecast):
        return answer._replace(refusal=answer.refusal and unmarked_answer(answer.refusal))
    return answer._replace(entry=unmarked(answer.entry)) if isinstance(answer, manager.Receipt) else answer


def unmarked_snapshot(snapshot: Snapshot) -> Snapshot:
    entry, consumption = unmarked(snapshot.entry), unmarked(snapshot.consumption)
    return snapshot._replace(entry=entry, consumption=consumption)


def unmarked(entry: Entry | None) -> Entry | None:
    """The entry with "some" for any fingerprint: the model computes its own in another way."""
    return entry and entry._replace(fingerprint="some" if entry.fingerprint else "")


def entry_of(row: LedgerEntry) -> Entry | None:
    return unmarked(Entry(**{name: getattr(row, name) for name in Entry._fields}))


def assert_fair(ledger: list[Entry]) -> None:
    """Assert what holds under any rules: each period begins full, and no spend is given back twice."""
    keys = [entry.idempotency_key for entry in ledger if entry.idempotency_key]
    assert len(keys) == len(set(keys))
    assert all(entry.kind != "deleted" for entry in ledger[:-1])
    for entry in ledger:
        if entry.seq == entry.period_seq and entry.kind != "imported":
            assert entry.balance_after == (entry.quota_limit or 0)
        refunds = [refund for refund in ledger if refund.refund_of == entry.id]
        assert sum(refund.delta for refund in refunds) <= sum(refund.cost for refund in refunds) <= entry.cost
        assert all(refund.cost == 0 for refund in refunds if refund.period_seq > entry.seq)
    for period in {entry.period_seq for entry in ledger}:
        kinds = Counter(entry.kind for entry in ledger if entry.period_seq == period)
        assert kinds["refused"] <= 1
        assert kinds["opened"] + kinds["imported"] + kinds["reset"] + kinds["plan_changed"] >= 1


def run_for(verbs: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Run the machine, 50 steps at a time, until this many verbs were compared."""
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
    counts = ", ".join(f"{count} {name}" for name, count in Machine.steps.most_common())
    with capsys.disabled():
        print(f"\n{connection.vendor}: {Machine.steps.total()} verbs, 0 divergences: {counts}")


def test_300_verbs_do_what_the_model_does(capsys: pytest.CaptureFixture[str]) -> None:
    run_for(300, capsys)


@pytest.mark.full
def test_10000_verbs_do_what_the_model_does(capsys: pytest.CaptureFixture[str]) -> None:
    run_for(10_000, capsys)


@pytest.mark.full
@pytest.mark.postgres  # the run on SQLite skips the long tests, so this one starts its own
def test_10000_verbs_do_on_sqlite_what_the_model_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = f"{__file__}::test_10000_verbs_do_what_the_model_does"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--full", "-q", test],
        cwd=ROOT,
        env=os.environ | {"TEST_DATABASE_URL": f"sqlite:///{tmp_path}/model.sqlite3"},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    with capsys.disabled():
        print("\n" + next(line for line in done.stdout.splitlines() if "divergences" in line))


# Another request comes between the read and the write


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
    monkeypatch.setattr(commit, "UNLOCKED_TRIES", 0)
    ChallengeQuota.objects.current(USER)

    def find_it_held() -> None:
        with (
            psycopg.connect(url_of_the_test_database()) as other,
            pytest.raises(psycopg.errors.LockNotAvailable),
        ):
            other.execute("SELECT 1 FROM challenge_quotas FOR UPDATE NOWAIT")

    step_in(find_it_held)
    assert ChallengeQuota.objects.consume(USER).quota.quota_remaining == 19


# What the model leaves out


def test_a_deletion_empties_the_email() -> None:
    ChallengeQuota.objects.current(USER)
    ChallengeQuota.objects.note_profile(USER, "me@example.com", datetime(2026, 3, 1, tzinfo=UTC))
    ChallengeQuota.objects.consume(USER)
    assert ChallengeQuota.objects.get(pk=USER).email == "me@example.com"
    ChallengeQuota.objects.delete(USER, actor=STAFF)
    assert ChallengeQuota.objects.get(pk=USER).email == ""

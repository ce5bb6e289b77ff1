"""Plans change while others change them too, and while Clerk and staff give them to users."""

import io
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier

import pytest
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.db import IntegrityError, OperationalError, connection

from quotas.models import ChallengeQuota, LedgerEntry, Plan, PlanManager, PlanVersion
from quotas.operations import plan_changes
from quotas.reports import waiting
from quotas.reports.waiting import give_plans
from quotas.rules.values import Actor
from tests.conftest import STAFF, StepIn
from tests.tools.ledger import assert_sound

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True, serialized_rollback=True)]
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
CLERK, COMMAND = Actor("webhook", "clerk"), Actor("command", "a test")
ROUNDS = 20


def at_once(*acts: Callable[[], object]) -> Counter[str]:
    """Let the acts begin at the same moment, each in its own session; count how they ended."""
    start = Barrier(len(acts))

    def run(act: Callable[[], object]) -> str:
        try:
            start.wait()
            act()
        except (ValidationError, IntegrityError, OperationalError, CommandError) as error:
            return type(error).__name__
        finally:
            connection.close()
        return "done"

    with ThreadPoolExecutor(len(acts)) as threads:
        return Counter(threads.map(run, acts))


def in_a_session(threads: ThreadPoolExecutor, act: Callable[[], object]) -> Future[object]:
    def run() -> object:
        try:
            return act()
        finally:
            connection.close()

    return threads.submit(run)


def assign(user_id: str, plan: str = "pro") -> None:
    ChallengeQuota.objects.assign_plan(user_id, "metadata", plan, updated_at=NOON, actor=CLERK)


def plan_of(user_id: str) -> tuple[str, str]:
    row = ChallengeQuota.objects.get(pk=user_id)
    return row.plan_id, row.plan_source


def without_lock(manager: PlanManager) -> dict[str, Plan]:
    return {plan.name: plan for plan in manager.all()}


# One default plan


def choose(name: str) -> Callable[[], None]:
    return lambda: Plan.objects.choose_default(name)


def test_whoever_chooses_the_default_at_once_there_is_exactly_one() -> None:
    for name in ("pro", "team"):
        Plan(name=name, allowance=1).save()
    for _ in range(ROUNDS):
        assert at_once(*(choose(name) for name in ("free", "pro", "team", "pro"))) == {"done": 4}
        assert Plan.objects.filter(is_default=True).count() == 1


def test_choosing_it_without_the_lock_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PlanManager, "locked", without_lock)
    for name in ("pro", "team"):
        Plan(name=name, allowance=1).save()
    results = Counter[str]()
    for _ in range(ROUNDS):
        results += at_once(*(choose(name) for name in ("free", "pro", "team", "pro")))
    assert results["IntegrityError"] + results["OperationalError"] > 0  # the index saves us, or a deadlock


def test_a_plan_is_not_archived_and_chosen_as_the_default_at_once() -> None:
    for _ in range(ROUNDS):
        Plan.objects.update(is_default=False)
        for name in ("free", "pro"):
            Plan(name=name, allowance=1, is_default=name == "free").save()
        results = at_once(choose("pro"), lambda: Plan.objects.archive("pro"))
        assert results == {"done": 1, "ValidationError": 1}
        assert not Plan.objects.get(is_default=True).is_archived


# Two files


@pytest.fixture
def apply_slowly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Run apply_plans, which waits between its look at the plans and its first change."""
    path, compare = tmp_path / "plans.toml", plan_changes._compare
    path.write_text("[plans.pro]\nallowance = 100\ndefault = true\n[plans.free]\nallowance = 5\n")

    def compare_and_wait(*plans: object) -> plan_changes.Applied:
        found = compare(*plans)  # type: ignore[arg-type]
        time.sleep(0.3)
        return found

    monkeypatch.setattr(plan_changes, "_compare", compare_and_wait)

    def run() -> str:
        out = io.StringIO()
        call_command("apply_plans", str(path), stdout=out, stderr=io.StringIO())
        return out.getvalue()

    return run


def test_two_runs_at_once_make_the_plans_once_and_give_them_once(apply_slowly: Callable[[], str]) -> None:
    users = [f"user_{number}" for number in range(40)]
    for user_id in users:
        assign(user_id)
    printed: list[str] = []
    assert at_once(*[lambda: printed.append(apply_slowly())] * 2) == {"done": 2}
    assert sum("pro: new" in text for text in printed) == 1
    assert sum("Nothing to do" in text or "waited for it" in text for text in printed) == 2
    assert PlanVersion.objects.count() == 3  # free's first, free's second, pro's
    assert Plan.objects.get(is_default=True).name == "pro"
    assert LedgerEntry.objects.filter(kind="plan_changed").count() == len(users)
    for user_id in users:
        assert plan_of(user_id) == ("pro", "metadata")
        assert_sound(user_id)


def test_two_runs_without_the_lock_collide_and_one_says_so(
    apply_slowly: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PlanManager, "locked", without_lock)
    assert at_once(apply_slowly, apply_slowly) == {"done": 1, "CommandError": 1}


# A delivery that Clerk sends meanwhile


def deliver_while_the_plan_is_made(step_in: StepIn) -> None:
    """Let a delivery look for the plan before it is made, and be stored after users were given it."""

    def make_and_give() -> None:
        Plan(name="pro", allowance=100).save()
        sum(give_plans(COMMAND))

    with ThreadPoolExecutor(1) as threads:
        runs: list[Future[object]] = []

        def begin() -> None:
            runs.append(in_a_session(threads, make_and_give))
            wait(runs, timeout=1)

        step_in(begin, include="clerk")
        assign("user_1")
        runs[0].result()


def test_an_assignment_that_did_not_see_the_new_plan_is_waited_for(step_in: StepIn) -> None:
    deliver_while_the_plan_is_made(step_in)
    assert plan_of("user_1") == ("pro", "metadata")
    assert_sound("user_1")


def test_without_waiting_for_it_the_user_stays_behind(
    step_in: StepIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "await_assignments", lambda: None)
    deliver_while_the_plan_is_made(step_in)
    assert plan_of("user_1") == ("free", "default")


# What staff choose meanwhile


def choose_while_the_plan_is_given() -> Counter[tuple[str, str]]:
    """Let staff choose the plan free for each user who waits for pro, while they are given it."""
    users = [f"user_{number:02}" for number in range(60)]
    for user_id in users:
        assign(user_id)
    Plan(name="pro", allowance=100).save()

    def choose_for_all() -> None:
        for user_id in reversed(users):
            ChallengeQuota.objects.change_plan(user_id, "free", actor=STAFF)

    assert at_once(choose_for_all, lambda: sum(give_plans(COMMAND))) == {"done": 2}
    for user_id in users:
        assert_sound(user_id)
    return Counter(plan_of(user_id) for user_id in users)


def test_what_staff_choose_meanwhile_stays() -> None:
    assert choose_while_the_plan_is_given() == {("free", "staff"): 60}


def test_a_gift_that_does_not_ask_who_chose_would_overwrite_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def give(user_id: str, *, actor: Actor, reason: str) -> bool:
        if actor == COMMAND:
            ChallengeQuota.objects.change_plan(user_id, "pro", actor=actor)
        return True

    monkeypatch.setattr(type(ChallengeQuota.objects), "follow_assignments", staticmethod(give))
    assert choose_while_the_plan_is_given()["pro", "staff"] > 0

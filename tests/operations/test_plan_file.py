"""apply_plans and export_plans: plans from a file, as a whole or not at all, and back."""

import io
import tomllib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pytest
from django.core.management import CommandError, call_command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quotas.models import ChallengeQuota, Plan, PlanVersion
from quotas.operations.plan_file import export, parse
from quotas.reports.waiting import give_plans
from quotas.rules.periods import RESET_POLICIES
from quotas.rules.values import MAX_UNITS, Actor
from tests import ROOT
from tests.conftest import STAFF

pytestmark = pytest.mark.django_db
Make = Callable[..., ChallengeQuota]
EXAMPLE = ROOT / "docs" / "plans.toml"
PRO_ACTIONS = {"generate": 1, "generate:large": 5}
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Run(NamedTuple):
    out: str
    err: str
    error: str  # what manage.py would print last; "" is success


@pytest.fixture
def apply(tmp_path: Path) -> Callable[..., Run]:
    """Run apply_plans with the text as its file."""

    def run(text: str, *options: str) -> Run:
        path, out, err, error = tmp_path / "plans.toml", io.StringIO(), io.StringIO(), ""
        path.write_text(text)
        try:
            call_command("apply_plans", str(path), *options, stdout=out, stderr=err)
        except CommandError as failure:
            error = str(failure).replace(str(path), "FILE")
        return Run(out.getvalue(), err.getvalue(), error)

    return run


def exported() -> str:
    out = io.StringIO()
    call_command("export_plans", stdout=out)
    return out.getvalue()


def columns() -> list[tuple[object, ...]]:
    names = ("name", "allowance", "reset_policy", "period_seconds", "timezone", "actions", "version")
    return [*Plan.objects.values_list(*names, "is_public", "is_default", "is_archived")]


def assign(user_id: str, plan: str) -> None:
    ChallengeQuota.objects.assign_plan(
        user_id, "metadata", plan, updated_at=NOON, actor=Actor("webhook", "clerk")
    )


def test_the_example_makes_its_plans_and_is_exported_as_it_is(apply: Callable[..., Run]) -> None:
    assert apply(EXAMPLE.read_text()).error == ""
    assert columns() == [
        ("early-bird", None, "rolling", 86_400, "UTC", {}, 1, False, False, True),
        ("free", 20, "rolling", 86_400, "UTC", {"generate": 1}, 2, True, True, False),
        ("pro", 500, "monthly", 86_400, "Europe/Berlin", PRO_ACTIONS, 1, True, False, False),
    ]
    assert parse(exported()) == parse(EXAMPLE.read_text())


def test_a_second_run_does_nothing(apply: Callable[..., Run]) -> None:
    apply(EXAMPLE.read_text())
    before = columns()
    assert apply(EXAMPLE.read_text()).out == "Nothing to do: the plans are as in the file.\n"
    assert columns() == before
    assert PlanVersion.objects.count() == 4


def test_a_run_says_what_changes_and_whom_it_touches(apply: Callable[..., Run], make_quota: Make) -> None:
    make_quota("user_1", remaining=3)
    make_quota("user_2")
    Plan(name="team", allowance=500).save()
    assign("user_3", "pro")
    run = apply('[plans.free]\nallowance = 10\nperiod = "1 h 30 min"\n[plans.pro]\nallowance = 100\n')
    assert run.out.splitlines() == [
        "free",
        "  allowance: 20 → 10",
        "  period: 1 d → 1 h 30 min",
        "  3 users have this plan. A running period keeps the rules that it began with. The new rules take "
        "effect at each user’s next reset.",
        "  healthy: 2 now, 2 after saving, 2 if used units counted at once",
        "  low: 1 now, 1 after saving, 0 if used units counted at once",
        "  exhausted: 0 now, 0 after saving, 1 if used units counted at once",
        "  Every user of the plan was evaluated.",
        "pro: new",
        "  allowance: 100",
        "  reset_policy: rolling",
        "  period: 1 d",
        "  timezone: UTC",
        "  actions: none",
        "  public: yes",
        "  default: no",
        "  archived: no",
        "  1 user waited for it: Clerk has assigned it to them.",
        "team is not in the file, and stays.",
        "1 of 1 users who waited for a plan have it now.",
    ]
    assert ChallengeQuota.objects.get(pk="user_3").plan_id == "pro"


def test_a_dry_run_says_the_same_and_writes_nothing(apply: Callable[..., Run], make_quota: Make) -> None:
    make_quota("user_1", remaining=3)
    assign("user_2", "pro")
    text = "[plans.free]\nallowance = 10\n[plans.pro]\nallowance = 100\ndefault = true\n"
    before = (columns(), PlanVersion.objects.count(), ChallengeQuota.objects.get(pk="user_2").plan_id)
    dry = apply(text, "--dry-run").out
    assert (columns(), PlanVersion.objects.count(), ChallengeQuota.objects.get(pk="user_2").plan_id) == before
    wet = apply(text).out
    assert dry.removesuffix("Dry run: nothing was changed.\n") == wet.removesuffix(
        "1 of 1 users who waited for a plan have it now.\n"
    )
    assert "New users get this plan, and users whom Clerk no longer assigns one. 2 users have free" in dry


def test_the_default_is_chosen_and_the_one_before_may_be_archived_at_once(apply: Callable[..., Run]) -> None:
    text = "[plans.free]\nallowance = 20\narchived = true\n[plans.pro]\nallowance = 100\ndefault = true\n"
    assert "  default: yes → no\n  archived: no → yes\n" in apply(text).out
    assert [plan[-2:] for plan in columns()] == [(False, True), (True, False)]
    back = "[plans.free]\nallowance = 20\ndefault = true\n[plans.pro]\nallowance = 100\narchived = true\n"
    assert apply(back).error == ""
    assert [plan[-2:] for plan in columns()] == [(True, False), (False, True)]


def test_a_default_that_the_file_does_not_name_gives_way_to_the_one_that_it_chooses(
    apply: Callable[..., Run],
) -> None:
    run = apply("[plans.pro]\nallowance = 100\ndefault = true\n")
    assert "free\n  default: yes → no\nfree is not in the file, and stays.\n" in run.out
    assert Plan.objects.get(is_default=True).name == "pro"


FAULTY = """
plan = 1
[plans.free]
allowance = -1
archived = true
alowance = 20
[plans."Pro Plan"]
allowance = true
reset_policy = "yearly"
period = "1 w"
timezone = "Mars/Base"
public = "yes"
[plans."Pro Plan".actions]
"to draw" = 1
paint = 0
[plans.team]
period = 0
default = true
archived = true
[plans.more]
allowance = 1
default = true
actions = [1]
"""


def test_every_fault_is_listed_with_its_place_and_fix_and_nothing_is_applied(
    apply: Callable[..., Run],
) -> None:
    before = columns()
    run = apply(FAULTY)
    assert (run.out, columns()) == ("", before)
    number = f"whole number from 0 to {MAX_UNITS}"
    period = "Write a period of 1 s to 3660 d, such as 24 h, 7 d, 30 min or 90 s."
    assert run.error.splitlines() == [
        "FILE: nothing was applied.",
        "plan: unknown; write each plan as [plans.NAME].",
        "plans.free.alowance: unknown; known are allowance, reset_policy, period, timezone, actions, public, "
        "default, archived. Did you mean allowance?",
        f'plans.free.allowance: Write a {number}, or "unlimited".',
        "plans.'Pro Plan': a name has 1 to 40 of the characters a-z 0-9 _ -, as the slug in Clerk.",
        f"plans.'Pro Plan'.allowance: Write a {number}, or \"unlimited\".",
        "plans.'Pro Plan'.reset_policy: Write one of: rolling, anchored, daily, weekly, monthly.",
        f"plans.'Pro Plan'.period: {period}",
        "plans.'Pro Plan'.timezone: Name a time zone such as Europe/Berlin or UTC.",
        "plans.'Pro Plan'.actions: 'to draw': the name must have 1 to 64 of the characters "
        "A-Z a-z 0-9 _ . : -",
        f"plans.'Pro Plan'.actions: 'paint': the cost must be a whole number from 1 to {MAX_UNITS}",
        "plans.'Pro Plan'.public: Write true or false.",
        'plans.team.allowance: It is missing: write a number of units, or "unlimited".',
        f"plans.team.period: {period}",
        "plans.more.actions: Give each action a name and a cost; at most 200 actions.",
        "plans.more.default: team is the default already, and only one plan can be.",
        "plans.team.archived: it is the default plan: write default = true in another plan.",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            "[plans.free",
            "It is not TOML: Expected ']' at the end of a table declaration (at end of document).",
        ),
        ("", "It has no plans: write each plan as [plans.NAME]."),
        ("plans = 1", "It has no plans: write each plan as [plans.NAME]."),
        ("[plans]\nfree = 20", "plans.free: write it as a table, [plans.NAME]."),
        (
            "[plans.free]\nallowance = 20\narchived = true",
            "plans.free.archived: it is the default plan: write default = true in another plan.",
        ),
        (
            "[plans.free]\nallowance = 20\ndefault = false",
            "plans.free.default: it is the default plan: write default = true in another plan.",
        ),
        (
            f"[plans.free]\nallowance = {'9' * 5000}",
            "It is not TOML: Exceeds the limit (4300 digits) for integer string conversion",
        ),
    ],
)
def test_a_file_that_cannot_be_applied_says_why(apply: Callable[..., Run], text: str, fault: str) -> None:
    assert apply(text).error.startswith(f"FILE: nothing was applied.\n{fault}")


def test_a_file_that_is_not_there_or_not_text_is_said(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for name, fault in {
        "nowhere": "It cannot be read: No such file or directory.",
        ".": "It cannot be read: Is a directory.",
        "bytes": "It is not UTF-8: save it in that encoding.",
    }.items():
        with pytest.raises(CommandError, match=fault):
            call_command("apply_plans", str(tmp_path / name))


def test_all_is_rolled_back_if_the_last_step_fails(
    apply: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(type(Plan.objects), "archive", fail)
    before = (columns(), PlanVersion.objects.count())
    with pytest.raises(RuntimeError):
        apply("[plans.free]\nallowance = 1\n[plans.pro]\nallowance = 2\narchived = true\n")
    assert (columns(), PlanVersion.objects.count()) == before


def test_users_of_a_plan_that_was_added_earlier_get_it_too(apply: Callable[..., Run]) -> None:
    assign("user_1", "pro")
    ChallengeQuota.objects.change_plan("user_2", "free", actor=STAFF)
    assign("user_2", "pro")
    assign("user_3", "gold")
    Plan(name="pro", allowance=100).save()
    run = apply("[plans.pro]\nallowance = 100\n")
    assert run.out.splitlines() == [
        "pro",
        "  1 user waited for it: Clerk has assigned it to them.",
        "free is not in the file, and stays.",
        "1 of 1 users who waited for a plan have it now.",
    ]
    assert run.err == "no plan gold: 1 user waits for it; add it with apply_plans or in the admin\n"
    assert [*ChallengeQuota.objects.values_list("plan_id", flat=True)] == ["pro", "free", "free"]


def test_a_run_that_is_cut_off_while_it_gives_a_plan_goes_on_when_it_is_repeated(
    apply: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def give_two(*given: Actor) -> Iterator[bool]:
        yield from islice(give_plans(*given), 2)
        raise KeyboardInterrupt

    for number in range(5):
        assign(f"user_{number}", "pro")
    monkeypatch.setattr("quotas.management.commands.apply_plans.give_plans", give_two)
    assert apply("[plans.pro]\nallowance = 100\n").error == (
        "Interrupted: the plans are applied; 2 users got theirs. Run it again for the rest."
    )
    monkeypatch.undo()
    assert "3 of 3 users who waited for a plan have it now." in apply("[plans.pro]\nallowance = 100\n").out


names = st.from_regex(r"[a-z0-9_-]{1,40}", fullmatch=True)
actions = st.dictionaries(
    st.from_regex(r"[A-Za-z0-9_.:-]{1,64}", fullmatch=True), st.integers(1, MAX_UNITS), max_size=3
)
plans = st.builds(
    Plan,
    name=names,
    allowance=st.none() | st.integers(0, MAX_UNITS),
    reset_policy=st.sampled_from([*RESET_POLICIES]),
    period_seconds=st.integers(1, 3_660 * 86_400),
    timezone=st.sampled_from(["UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires", "Etc/GMT+5"]),
    actions=actions,
    is_public=st.booleans(),
    is_archived=st.booleans(),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=st.lists(plans, min_size=1, max_size=4, unique_by=lambda plan: plan.name))
def test_what_is_exported_is_read_as_it_was(made: list[Plan]) -> None:
    read = parse(export(made))
    assert {plan.name: plan.actions for plan in made} == {
        name: found["actions"] for name, found in read.items()
    }
    for plan in made:
        assert all(getattr(plan, column) == value for column, value in read[plan.name].items())
    assert tomllib.loads(export(made))

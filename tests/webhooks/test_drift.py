"""report_drift: it reports what differs between Clerk and the database, and nothing else."""

import io
import json
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection
from pytest_django import Settings

from quotas.models import ChallengeQuota, Plan
from quotas.reports.waiting import give_plans
from quotas.rules.values import Actor
from tests.tools.clerk_api import CREATED_AT, ClerkAPI, User, make_user, make_users
from webhooks import drift

pytestmark = pytest.mark.django_db
COMMAND = "webhooks.management.commands.report_drift"
ACTOR = Actor("webhook", "clerk")


class Report(NamedTuple):
    lines: list[str]
    error: str  # what manage.py would print last; "" is no drift
    exit_code: int


def report(*options: str) -> Report:
    out, error, code = io.StringIO(), "", 0
    try:
        call_command("report_drift", *options, stdout=out)
    except CommandError as failure:
        error, code = str(failure), failure.returncode
    return Report(out.getvalue().splitlines(), error, code)


def drifts() -> list[dict[str, Any]]:
    """Return the lines of a report, without its summary."""
    return [json.loads(line) for line in report("--json").lines[:-1]]


def kinds() -> dict[str, str]:
    return {drift["user_id"]: drift["kind"] for drift in drifts()}


def is_known(user: User, **changes: Any) -> None:
    """Store a user from Clerk here, as a delivery would; `changes` win."""
    email = changes.get("email", f"user{int(str(user['id'])[5:])}@example.com")
    updated_at = datetime.fromtimestamp((changes.get("updated_at") or user["updated_at"]) / 1_000, UTC)
    ChallengeQuota.objects.open_missing(str(user["id"]), actor=ACTOR)
    ChallengeQuota.objects.note_profile(str(user["id"]), email, updated_at)


def is_closed(user_id: str) -> None:
    ChallengeQuota.objects.delete(user_id, actor=ACTOR)


@pytest.fixture
def clerk(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[ClerkAPI]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("webhooks.backfill.time.sleep", lambda seconds: None)
    with ClerkAPI(make_users(3)) as api:
        settings.CLERK_API_URL, settings.CLERK_SECRET_KEY = api.url, api.key
        yield api


@pytest.fixture
def same(clerk: ClerkAPI) -> ClerkAPI:
    """Three users, who are the same in Clerk and here."""
    for user in clerk.users:
        is_known(user)
    return clerk


@pytest.fixture
def before_the_second_check(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Run a function between the walk and the second check."""

    def arrange(happen: Callable[[], object]) -> None:
        find_users = drift.find_users

        def found(*args: Any, **options: Any) -> list[dict[str, object]]:
            happen()
            return find_users(*args, **options)

        monkeypatch.setattr(drift, "find_users", found)

    return arrange


def test_without_drift_the_figures_are_told(same: ClerkAPI) -> None:
    (line,), error, exit_code = report()
    assert line.startswith(
        "3 users in Clerk, 3 live quotas here, 0 drifts "
        "(missing 0, tombstoned 0, orphan 0, email 0, plan 0, waiting 0), in 0."
    )
    assert (error, exit_code) == ("", 0)


def test_one_who_is_only_in_clerk_is_missing(same: ClerkAPI) -> None:
    same.users = make_users(4)
    assert drifts() == [{"kind": "missing", "user_id": "user_000004", "here": None, "clerk": "live"}]


def test_one_who_is_only_here_is_an_orphan(same: ClerkAPI) -> None:
    same.users = make_users(2)
    assert drifts() == [{"kind": "orphan", "user_id": "user_000003", "here": "live", "clerk": None}]


def test_one_who_is_closed_here_alone_is_told(same: ClerkAPI) -> None:
    is_closed("user_000002")
    assert drifts() == [{"kind": "tombstoned", "user_id": "user_000002", "here": "closed", "clerk": "live"}]


def test_one_who_is_closed_here_and_not_in_clerk_is_no_drift(same: ClerkAPI) -> None:
    is_closed("user_000003")
    same.users = make_users(2)
    assert report().exit_code == 0


def test_another_email_is_told_and_shown_only_on_demand(same: ClerkAPI) -> None:
    emails = [{"id": "idn_2", "email_address": "new@example.com"}]
    same.users[1] = make_user(2, email_addresses=emails)
    drift = {"kind": "email", "user_id": "user_000002", "here": "hidden", "clerk": "hidden"}
    assert drifts() == [drift]
    assert report().lines == ["user_000002: email: the e-mail differs: 'hidden' here, 'hidden' in Clerk"]
    assert report("--show-emails").lines == [
        "user_000002: email: the e-mail differs: 'user2@example.com' here, 'new@example.com' in Clerk"
    ]


def test_that_there_is_no_email_is_no_secret(clerk: ClerkAPI) -> None:
    for user in clerk.users:
        ChallengeQuota.objects.open_missing(str(user["id"]), actor=ACTOR)
    assert report().lines[0] == "user_000001: email: the e-mail differs: none here, 'hidden' in Clerk"


@pytest.mark.parametrize(("later", "exit_code"), [(-1, 1), (0, 1), (1, 0)])
def test_an_email_of_which_a_later_version_is_known_is_no_drift(
    clerk: ClerkAPI, later: int, exit_code: int
) -> None:
    clerk.users = make_users(1)
    is_known(make_user(1), email="other@example.com", updated_at=CREATED_AT + 1_000 + later)
    assert report().exit_code == exit_code


def test_another_plan_in_the_metadata_is_told(same: ClerkAPI, settings: Settings) -> None:
    settings.CLERK_PLAN_METADATA_KEY = "plan"
    Plan(name="pro", allowance=100).save()
    same.users[1] = make_user(2, public_metadata={"plan": "pro"})
    assert drifts() == [{"kind": "plan", "user_id": "user_000002", "here": "", "clerk": "pro"}]
    assert report().lines == [
        "user_000002: plan: the plan in Clerk's metadata differs: none here, 'pro' in Clerk"
    ]
    call_command("backfill_quotas", stdout=io.StringIO())
    assert report().exit_code == 0
    same.users[1] = make_user(2, updated_at=CREATED_AT + 9_000)
    assert drifts() == [{"kind": "plan", "user_id": "user_000002", "here": "pro", "clerk": ""}]


@pytest.mark.parametrize(("later", "exit_code"), [(-1, 1), (0, 1), (1, 0)])
def test_a_plan_of_which_a_later_assignment_is_known_is_no_drift(
    same: ClerkAPI, settings: Settings, later: int, exit_code: int
) -> None:
    settings.CLERK_PLAN_METADATA_KEY = "plan"
    same.users[1] = make_user(2, public_metadata={"plan": "pro"})
    Plan(name="team", allowance=500).save()
    at = datetime.fromtimestamp((CREATED_AT + 2_000 + later) / 1_000, UTC)
    ChallengeQuota.objects.assign_plan("user_000002", "metadata", "team", updated_at=at, actor=ACTOR)
    assert report().exit_code == exit_code


def test_plans_are_not_compared_without_the_setting(same: ClerkAPI) -> None:
    same.users[1] = make_user(2, public_metadata={"plan": "pro"})
    assert report().exit_code == 0


def test_who_waits_for_a_plan_is_a_drift_until_they_have_it(same: ClerkAPI, settings: Settings) -> None:
    settings.CLERK_PLAN_METADATA_KEY = "plan"
    same.users[1] = make_user(2, public_metadata={"plan": "pro"})
    call_command("backfill_quotas", stdout=io.StringIO(), stderr=io.StringIO())
    waiting = {"kind": "waiting", "user_id": "user_000002", "here": "free", "clerk": "pro"}
    assert drifts() == [waiting]
    Plan(name="pro", allowance=100).save()
    assert report().lines == [
        "user_000002: waiting: Clerk assigned another plan, which the user does not have: "
        "'free' here, 'pro' in Clerk"
    ]
    assert sum(give_plans(ACTOR)) == 1
    assert report().exit_code == 0


def test_who_waits_for_what_they_pay_is_a_drift_too(same: ClerkAPI) -> None:
    at = datetime.fromtimestamp(CREATED_AT / 1_000, UTC)
    ChallengeQuota.objects.assign_plan(
        "user_000003", "billing", "gold", external_id="item", updated_at=at, actor=ACTOR
    )
    assert kinds() == {"user_000003": "waiting"}


def test_one_who_is_odd_in_clerk_is_compared_as_far_as_they_can_be_read(same: ClerkAPI) -> None:
    bad = [{"id": "idn_2", "email_address": "a\0@example.com"}]
    same.users = [
        make_user(1),
        make_user(2, email_addresses=bad),
        make_user(3),
        {},
        make_user(4, id="user 4"),
    ]
    last = json.loads(report("--json").lines[-1])
    assert last.pop("seconds") >= 0
    assert last == {
        "users": 5,
        "odd": 2,
        "rows": 3,
        "drifts": 0,
        "missing": 0,
        "tombstoned": 0,
        "orphan": 0,
        "email": 0,
        "plan": 0,
        "waiting": 0,
    }


def test_every_kind_is_told_kind_by_kind_and_counted(same: ClerkAPI) -> None:
    is_known(make_user(9))
    is_closed("user_000002")
    is_known(make_user(3), email="other@example.com", updated_at=CREATED_AT + 3_001)
    same.users = [make_user(1), make_user(2), make_user(3, updated_at=CREATED_AT + 3_002), make_user(5)]
    same.users += [make_user(4)]
    result = report()
    assert [line.rpartition(": ")[0].partition(":")[0] for line in result.lines] == [
        "user_000004",
        "user_000005",
        "user_000002",
        "user_000009",
        "user_000003",
    ]
    assert "5 users in Clerk, 3 live quotas here, 5 drifts" in result.error
    assert "(missing 2, tombstoned 1, orphan 1, email 1, plan 0, waiting 0)" in result.error
    assert result.exit_code == 1


def test_many_users_are_compared_in_pages_and_chunks(clerk: ClerkAPI) -> None:
    clerk.users = make_users(1_100)
    call_command("backfill_quotas", stdout=io.StringIO())
    ChallengeQuota.objects.open_missing("user_1", actor=ACTOR)
    clerk.users = [user for user in make_users(1_101) if user["id"] not in ("user_000500", "user_001001")]
    assert kinds() == {
        "user_001101": "missing",
        "user_000500": "orphan",
        "user_001001": "orphan",
        "user_1": "orphan",
    }


def test_people_get_so_many_lines_of_a_kind_and_programs_all(
    clerk: ClerkAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{COMMAND}.LINES", 2)
    assert report().lines == [
        "user_000001: missing: in Clerk, but no row here",
        "user_000002: missing: in Clerk, but no row here",
        "and 1 more: missing",
    ]
    assert len(drifts()) == 3


def test_one_who_signs_up_during_the_walk_is_no_orphan(
    same: ClerkAPI, before_the_second_check: Callable[[Callable[[], object]], None]
) -> None:
    """They are here before the rows are read, and in Clerk only after the walk of its users has ended."""
    is_known(make_user(4))
    before_the_second_check(lambda: setattr(same, "users", make_users(4)))
    assert report().exit_code == 0


def test_one_whose_delivery_comes_during_the_walk_is_not_missing(
    same: ClerkAPI, before_the_second_check: Callable[[Callable[[], object]], None]
) -> None:
    same.users = make_users(4)
    before_the_second_check(lambda: is_known(make_user(4)))
    assert report().exit_code == 0


def test_one_who_is_deleted_during_the_walk_is_not_missing(
    same: ClerkAPI, before_the_second_check: Callable[[Callable[[], object]], None]
) -> None:
    same.users = make_users(4)
    before_the_second_check(lambda: setattr(same, "users", make_users(3)))
    assert report().exit_code == 0


def test_one_who_is_closed_during_the_walk_is_no_orphan(
    same: ClerkAPI, before_the_second_check: Callable[[Callable[[], object]], None]
) -> None:
    same.users = make_users(2)
    before_the_second_check(lambda: is_closed("user_000003"))
    assert report().exit_code == 0


def test_one_who_differs_in_another_way_at_the_second_look_is_not_told(
    same: ClerkAPI, before_the_second_check: Callable[[Callable[[], object]], None]
) -> None:
    """They were missing, and are closed now: deliveries about them are on their way."""
    same.users = make_users(4)
    before_the_second_check(lambda: is_closed("user_000004"))
    assert report().exit_code == 0


def test_a_report_only_reads(same: ClerkAPI) -> None:
    same.users = [*make_users(2), make_user(5)]
    statements = list[str]()

    def watch(execute: Callable[..., object], sql: str, *rest: object) -> object:
        statements.append(sql.split()[0])
        return execute(sql, *rest)

    with connection.execute_wrapper(watch):
        report()
    assert set(statements) == {"SELECT"}


def test_a_clerk_that_stays_away_is_an_unfinished_report(same: ClerkAPI) -> None:
    same.drop_next(5)
    result = report("--json")
    assert (result.lines, result.exit_code) == ([], 2)
    assert result.error.startswith("Clerk cannot be reached")


def test_without_a_key_the_variable_is_named(clerk: ClerkAPI, settings: Settings) -> None:
    settings.CLERK_SECRET_KEY = ""
    result = report()
    assert (result.exit_code, "CLERK_SECRET_KEY" in result.error) == (2, True)


def test_a_database_that_goes_away_is_an_unfinished_report(
    same: ClerkAPI, before_the_second_check: Callable[[Callable[[], object]], None]
) -> None:
    def go_away() -> None:
        raise OperationalError("connection lost")

    same.users = make_users(4)
    before_the_second_check(go_away)
    result = report()
    assert (result.error, result.exit_code) == (
        "The database (DATABASE_URL) cannot be used: connection lost.",
        2,
    )


def test_sigterm_ends_a_report_tidily(
    same: ClerkAPI, before_the_second_check: Callable[[Callable[[], object]], None]
) -> None:
    same.users = make_users(4)
    before_the_second_check(lambda: signal.raise_signal(signal.SIGTERM))
    assert report() == ([], "Interrupted: the report is incomplete.", 2)

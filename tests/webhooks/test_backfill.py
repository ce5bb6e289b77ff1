"""backfill_quotas: every user without a quota gets one, whatever happens during the run."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import OperationalError
from pytest_django import Settings

from quotas.models import ChallengeQuota, LedgerEntry, Plan, PlanAssignment
from quotas.reports import audit
from quotas.reports.waiting import give_plans
from quotas.rules.values import Actor
from quotas.store import direct
from quotas.store.commit import Decide
from quotas.store.manager import Opened
from quotas.store.steps import SnapshotQuery
from tests.tools.clerk_api import CREATED_AT, ClerkAPI, make_user, make_users
from tests.tools.site import url_of_the_test_database

pytestmark = pytest.mark.django_db
NONE_ELSE = "already there 0, tombstoned 0, odd 0\n"
BACKFILL = "webhooks.backfill"


class Run(NamedTuple):
    out: str
    err: str
    error: str  # what manage.py would print last; "" is success
    exit_code: int


def backfill(*options: str | Path) -> Run:
    out, err, error, code = io.StringIO(), io.StringIO(), "", 0
    try:
        call_command("backfill_quotas", *map(str, options), stdout=out, stderr=err)
    except CommandError as failure:
        error, code = str(failure), failure.returncode
    return Run(out.getvalue(), err.getvalue(), error, code)


def quotas() -> set[str]:
    return set(ChallengeQuota.objects.values_list("user_id", flat=True))


@pytest.fixture
def clerk(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[ClerkAPI]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(f"{BACKFILL}.time.sleep", lambda seconds: None)
    with ClerkAPI() as api:
        settings.CLERK_API_URL, settings.CLERK_SECRET_KEY = api.url, api.key
        yield api


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ids.txt"


def test_every_user_gets_a_quota_in_three_pages(clerk: ClerkAPI) -> None:
    clerk.users = make_users(1_200)
    assert backfill() == ("seen 1200, made 1200, already there 0, tombstoned 0, odd 0\n", "", "", 0)
    assert quotas() == {user["id"] for user in clerk.users}
    assert len(clerk.requests) == 3


def test_a_second_run_makes_nothing(clerk: ClerkAPI) -> None:
    clerk.users = make_users(3)
    backfill()
    assert backfill().out == "seen 3, made 0, already there 3, tombstoned 0, odd 0\n"
    assert LedgerEntry.objects.count() == 3


def test_a_quota_is_opened_by_the_command_with_what_clerk_knows(clerk: ClerkAPI) -> None:
    clerk.users = make_users(1)
    backfill()
    quota, entry = ChallengeQuota.objects.get(), LedgerEntry.objects.get()
    assert (quota.email, quota.clerk_updated_at) == (
        "user1@example.com",
        datetime(2023, 11, 14, 22, 13, 21, tzinfo=UTC),
    )
    assert (entry.kind, entry.actor_kind, entry.actor_id) == ("opened", "command", "backfill_quotas")


def test_a_quota_that_is_there_keeps_its_balance(clerk: ClerkAPI) -> None:
    clerk.users = make_users(2)
    ChallengeQuota.objects.consume("user_000001", 3)
    assert backfill().out == "seen 2, made 1, already there 1, tombstoned 0, odd 0\n"
    assert ChallengeQuota.objects.get(user_id="user_000001").quota_remaining == 17


def test_a_tombstone_stays_one(clerk: ClerkAPI) -> None:
    clerk.users = make_users(2)
    ChallengeQuota.objects.delete("user_000001", actor=Actor("webhook", "msg_1"))
    assert backfill().out == "seen 2, made 1, already there 0, tombstoned 1, odd 0\n"
    closed = ChallengeQuota.objects.get(user_id="user_000001")
    assert closed.deleted_at is not None
    assert closed.email == ""


def test_a_dry_run_tells_the_same_and_makes_nothing(clerk: ClerkAPI) -> None:
    clerk.users = make_users(501)
    ChallengeQuota.objects.current("user_000001")
    assert backfill("--dry-run").out == "seen 501, would make 500, already there 1, tombstoned 0, odd 0\n"
    assert quotas() == {"user_000001"}


def test_an_odd_user_is_told_at_the_end_and_stops_nobody(clerk: ClerkAPI) -> None:
    bad = [{"id": "idn_2", "email_address": "a\0@example.com"}]
    clerk.users = [make_user(1, id="user 1"), make_user(2, email_addresses=bad), {}, make_user(3)]
    run = backfill()
    assert run.out == "seen 4, made 1, already there 0, tombstoned 0, odd 3\n"
    assert run.err.splitlines() == [
        "unusable user 'user 1': the id is not 1 to 128 of the characters A-Z a-z 0-9 _ : . @ -",
        "unusable user 'user_000002': the e-mail holds U+0000 or half of a surrogate pair",
        "unusable user None: the id is missing",
    ]
    assert run.exit_code == 0


def test_a_user_who_comes_twice_in_a_page_is_one_and_the_newest(clerk: ClerkAPI) -> None:
    emails = [{"id": "idn_1", "email_address": "old@example.com"}]
    clerk.users = [make_user(1), make_user(1, updated_at=1_600_000_000_000, email_addresses=emails)]
    assert backfill().out == "seen 1, made 1, already there 0, tombstoned 0, odd 0\n"
    assert ChallengeQuota.objects.get().email == "user1@example.com"


def test_a_wrong_key_is_told_with_code_and_trace_and_nothing_is_made(
    clerk: ClerkAPI, settings: Settings
) -> None:
    clerk.users, settings.CLERK_SECRET_KEY = make_users(2), "sk_test_wrong"
    run = backfill()
    assert run.exit_code == 1
    assert "401" in run.error
    assert "(code authentication_invalid, trace 3f5a9d0c). Check CLERK_SECRET_KEY." in run.error
    assert quotas() == set()


def test_without_a_key_the_variable_is_named(clerk: ClerkAPI, settings: Settings) -> None:
    settings.CLERK_SECRET_KEY = ""
    run = backfill()
    assert run.exit_code == 1
    assert "CLERK_SECRET_KEY" in run.error


def test_a_run_that_clerk_breaks_off_keeps_its_pages_and_is_run_again(clerk: ClerkAPI) -> None:
    clerk.users = make_users(1_200)
    clerk.serve_next(1)
    clerk.drop_next(5)
    run = backfill()
    assert (run.exit_code, "Clerk cannot be reached" in run.error) == (1, True)
    assert run.out == "seen 500, made 500, already there 0, tombstoned 0, odd 0\n"
    assert len(quotas()) == 500
    assert run.error.endswith("Then continue with --after user_000500")
    assert backfill().out == "seen 1200, made 700, already there 500, tombstoned 0, odd 0\n"


@pytest.mark.parametrize(
    ("interruption", "exit_code", "text"),
    [
        (KeyboardInterrupt(), 130, "Interrupted. What was made stays;"),
        (
            OperationalError("connection lost"),
            1,
            "The database (DATABASE_URL) cannot be used: connection lost",
        ),
    ],
)
def test_a_run_that_is_interrupted_within_a_page_leaves_nothing_of_that_page(
    clerk: ClerkAPI,
    monkeypatch: pytest.MonkeyPatch,
    interruption: BaseException,
    exit_code: int,
    text: str,
) -> None:
    clerk.users, made, open_many = make_users(1_200), list[int](), direct.open_many

    def interrupted(user_ids: Iterable[str], decide: Decide, query: SnapshotQuery) -> int:
        made.append(open_many(user_ids, decide, query))
        if len(made) == 2:
            raise interruption
        return made[-1]

    with monkeypatch.context() as patch:
        patch.setattr(direct, "open_many", interrupted)
        run = backfill()
    assert (made, run.exit_code, text in run.error) == ([500, 500], exit_code, True)
    assert run.out == "seen 500, made 500, already there 0, tombstoned 0, odd 0\n"
    assert len(quotas()) == LedgerEntry.objects.count() == 500
    assert run.error.endswith("continue with --after user_000500")
    assert (
        backfill("--after", "user_000500").out == "seen 700, made 700, already there 0, tombstoned 0, odd 0\n"
    )
    assert len(quotas()) == 1_200


def test_a_run_that_ends_before_its_first_page_is_stored_is_run_again(clerk: ClerkAPI) -> None:
    clerk.drop_next(5)
    assert backfill().error.endswith("Then run it again for the rest")


def test_a_run_behind_a_user_that_ends_at_once_is_gone_on_with_behind_the_same(clerk: ClerkAPI) -> None:
    clerk.users = make_users(5)
    clerk.serve_next(1)  # the request for the user to start after
    clerk.drop_next(5)
    assert backfill("--after", "user_000002").error.endswith("continue with --after user_000002")


def test_sigterm_ends_a_run_as_ctrl_c_does(clerk: ClerkAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    clerk.users = make_users(1_200)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    open_many, calls = direct.open_many, list[int]()

    def terminated(user_ids: Iterable[str], decide: Decide, query: SnapshotQuery) -> int:
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return open_many(user_ids, decide, query)

    monkeypatch.setattr(direct, "open_many", terminated)
    run = backfill()
    assert (run.error, run.exit_code) == (
        "Interrupted. What was made stays; continue with --after user_000500",
        130,
    )
    assert len(quotas()) == 500
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_without_a_terminal_the_place_is_told_every_10000_users(
    clerk: ClerkAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{BACKFILL}.USERS_PER_REPORT", 600)
    clerk.users = make_users(1_300)
    assert backfill().err.splitlines() == [
        "1000 users so far; if this run ends early, continue with --after user_001000",
        "1300 users so far; if this run ends early, continue with --after user_001300",
    ]


def test_after_a_user_only_those_behind_them_are_asked_for(clerk: ClerkAPI) -> None:
    clerk.users = make_users(5)
    assert backfill("--after", "user_000003").out.startswith("seen 2, made 2,")
    assert quotas() == {"user_000004", "user_000005"}


def test_since_takes_those_who_signed_up_then_or_later(clerk: ClerkAPI) -> None:
    clerk.users = make_users(5)  # the third of them at 22:13:23 UTC
    assert backfill("--since", "2023-11-15T00:13:23+02:00").out.startswith("seen 3, made 3,")
    assert quotas() == {"user_000003", "user_000004", "user_000005"}


@pytest.mark.parametrize(
    ("since", "seen"), [("2023-11-14", 5), ("2023-11-15", 0), ("2023-11-14T22:13:25", 1)]
)
def test_a_since_without_an_offset_is_utc(clerk: ClerkAPI, since: str, seen: int) -> None:
    clerk.users = make_users(5)
    assert backfill("--since", since).out.startswith(f"seen {seen}, made {seen},")


def test_after_and_since_together_take_those_whom_both_take(clerk: ClerkAPI) -> None:
    clerk.users = make_users(5)
    backfill("--after", "user_000001", "--since", "2023-11-14T22:13:24Z")
    assert quotas() == {"user_000004", "user_000005"}


def test_a_since_that_is_no_time_is_refused_with_an_example(clerk: ClerkAPI) -> None:
    assert backfill("--since", "yesterday").error.endswith(
        "must be a day or an instant, such as 2026-09-24 or 2026-09-24T08:00Z"
    )


def test_after_a_user_who_is_gone_the_fix_is_told(clerk: ClerkAPI) -> None:
    clerk.users = make_users(5)
    run = backfill("--after", "user_000009")
    assert run.exit_code == 1
    assert run.error.startswith(
        "--after user_000009: Clerk has no such user, or no longer. Use --since instead"
    )
    assert quotas() == set()


def test_after_a_user_who_is_gone_a_since_takes_their_place(clerk: ClerkAPI) -> None:
    clerk.users = make_users(5)
    backfill("--after", "user_000009", "--since", "2023-11-14T22:13:24Z")
    assert quotas() == {"user_000004", "user_000005"}


@pytest.mark.parametrize("status", [400, 404, 422])
def test_when_the_user_to_go_on_behind_is_deleted_meanwhile_nobody_is_left_out(
    clerk: ClerkAPI, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """The last users of the page signed up in the same millisecond as those after them."""
    clerk.users = [make_user(n, created_at=CREATED_AT + min(n, 498)) for n in range(1, 503)]
    open_many = ChallengeQuota.objects.open_many

    def deleted_meanwhile(users: Iterable[tuple[str, str, datetime | None]], *, actor: Actor) -> Opened:
        clerk.users = [user for user in clerk.users if user["id"] != "user_000500"]
        return open_many(users, actor=actor)

    monkeypatch.setattr(ChallengeQuota.objects, "open_many", deleted_meanwhile)
    monkeypatch.setattr(clerk, "cursor_refusal", status)
    assert backfill().exit_code == 0
    assert quotas() == {f"user_{number:06}" for number in range(1, 503)}


def test_a_refusal_that_is_not_about_the_cursor_ends_the_run(clerk: ClerkAPI) -> None:
    clerk.users = make_users(1_200)
    clerk.serve_next(1)
    clerk.answer_next(9, status=422, code="form_param_value_invalid")
    run = backfill()
    assert "(code form_param_value_invalid" in run.error
    assert run.error.endswith("Then continue with --after user_000500")
    assert len(clerk.requests) == 3


def test_many_odd_users_are_told_up_to_a_bound(clerk: ClerkAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{BACKFILL}.MAX_UNUSABLE_LISTED", 2)
    clerk.users = [make_user(number, id=f"user {number}") for number in range(1, 6)]
    lines = backfill().err.splitlines()
    assert [line[:22] for line in lines] == [
        "unusable user 'user 1'",
        "unusable user 'user 2'",
        "and 3 more unusable us",
    ]


def test_a_database_that_is_away_is_named_without_a_traceback() -> None:
    run = subprocess.run(
        [sys.executable, "manage.py", "backfill_quotas", "--ids", "-"],
        cwd=settings.BASE_DIR,
        env={**os.environ, "DATABASE_URL": "postgres://nobody@127.0.0.1:1/none", "DEBUG": "1"},
        input="user_1\n",
        text=True,
        capture_output=True,
    )
    assert run.returncode == 1
    assert "CommandError: The database (DATABASE_URL) cannot be used: connection to server" in run.stderr
    assert "Traceback" not in run.stderr


def test_without_a_default_plan_the_fix_is_told(file: Path) -> None:
    Plan.objects.update(is_default=False)
    file.write_text("user_1")
    assert "mark a plan as the default in the admin" in backfill("--ids", file).error


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_progress_bar_up_to_clerks_count(
    clerk: ClerkAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    clerk.users = make_users(501)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    backfill()
    assert "501/501" in terminal.getvalue()
    assert "/v1/users/count" in clerk.requests


def test_the_bar_of_a_run_that_goes_on_is_of_those_who_are_left(
    clerk: ClerkAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    clerk.users = make_users(20)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    backfill("--after", "user_000013")
    assert "7/7" in terminal.getvalue()
    assert "users/s" in terminal.getvalue()


def test_elsewhere_there_is_no_bar_and_nobody_is_counted(
    clerk: ClerkAPI, capsys: pytest.CaptureFixture[str]
) -> None:
    clerk.users = make_users(3)
    backfill()
    assert capsys.readouterr().err == ""
    assert len(clerk.requests) == 1


def test_a_wait_is_told(clerk: ClerkAPI, capsys: pytest.CaptureFixture[str]) -> None:
    clerk.answer_next(1, status=429, headers={"Retry-After": "7"})
    backfill()
    assert capsys.readouterr().err == "Clerk is busy or unreachable: trying again in 7 s.\n"


def test_ids_are_taken_from_a_file_without_asking_clerk(clerk: ClerkAPI, file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbfuser_1\r\n\n  # since March\n\tuser_2 \nuser_1\n")
    summary = "seen 2, made 2, already there 0, tombstoned 0, odd 0\n"
    assert backfill("--ids", file) == (summary, "", "", 0)
    assert quotas() == {"user_1", "user_2"}
    assert clerk.requests == []


def test_bad_lines_are_told_by_number_and_the_others_are_done(file: Path) -> None:
    file.write_bytes(b"user_1\n\nuser 2\n" + b"u" * 129 + b"\nuser_\xff\nuser_\x00\nuser_3 # me\nuser_4")
    run = backfill("--ids", file)
    assert run.out == "seen 2, made 2, already there 0, tombstoned 0, odd 0\n"
    reason = "the id is not 1 to 128 of the characters A-Z a-z 0-9 _ : . @ -"
    assert run.err.splitlines() == [
        f"line 3: 'user 2': {reason}",
        f"line 4: '{'u' * 59}: {reason}",
        f"line 5: 'user_\\\\xff': {reason}",
        f"line 6: 'user_\\x00': {reason}",
        f"line 7: 'user_3 # me': {reason}",
    ]
    assert (run.error, run.exit_code) == ("5 lines hold no valid user id; all others were processed.", 1)


def test_many_ids_are_made_batch_by_batch(file: Path) -> None:
    file.write_text("\n".join(f"user_{number}" for number in range(1_001)))
    assert backfill("--ids", file, "--dry-run").out.startswith("seen 1001, would make 1001,")
    assert backfill("--ids", file).out.startswith("seen 1001, made 1001,")


def test_ids_are_taken_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"user_1\nuser_2\n")))
    assert backfill("--ids", "-").out == "seen 2, made 2, already there 0, tombstoned 0, odd 0\n"


def test_a_file_that_is_not_there_is_named(file: Path) -> None:
    run = backfill("--ids", file)
    assert (run.error, run.exit_code) == (f"--ids {file}: No such file or directory.", 1)


@pytest.mark.parametrize("option", [("--after", "user_1"), ("--since", "2026-09-24")])
def test_ids_go_with_no_option_about_clerk(file: Path, option: tuple[str, str]) -> None:
    file.write_text("user_1")
    run = backfill("--ids", file, *option)
    assert (run.error, run.exit_code) == (
        "--after and --since select users in Clerk: leave them out with --ids.",
        1,
    )
    assert quotas() == set()


@pytest.fixture
def plans(clerk: ClerkAPI, settings: Settings) -> ClerkAPI:
    """Clerk with plans in the metadata, which are read; `pro` is one."""
    settings.CLERK_PLAN_METADATA_KEY = "plan"
    Plan(name="pro", allowance=100).save()
    return clerk


def test_a_plan_in_the_metadata_is_noted_and_followed(plans: ClerkAPI) -> None:
    plans.users = [make_user(1, public_metadata={"plan": "pro"}), make_user(2)]
    assert backfill().out == "seen 2, made 2, already there 0, tombstoned 0, odd 0, plans 1\n"
    assignment = PlanAssignment.objects.get()
    assert (assignment.user_id, assignment.source, assignment.plan) == ("user_000001", "metadata", "pro")
    quota = ChallengeQuota.objects.get(user_id="user_000001")
    assert (quota.plan_id, quota.plan_source, quota.quota_remaining) == ("pro", "metadata", 100)
    entry = LedgerEntry.objects.get(kind="plan_changed")
    assert (entry.actor_kind, entry.actor_id) == ("command", "backfill_quotas")


def test_a_plan_that_is_known_is_not_noted_again(plans: ClerkAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    plans.users = [make_user(1, public_metadata={"plan": "pro"})]
    backfill()
    monkeypatch.setattr(direct, "note_assignment", None)  # not even tried
    assert backfill().out == "seen 1, made 0, already there 1, tombstoned 0, odd 0\n"


@pytest.mark.parametrize(("later", "known"), [(-1, "pro"), (1, "")])
def test_only_a_later_assignment_of_a_plan_counts(plans: ClerkAPI, later: int, known: str) -> None:
    plans.users = [make_user(1, public_metadata={"plan": "pro"})]
    backfill()
    plans.users = [make_user(1, updated_at=CREATED_AT + 1_000 + later)]
    backfill()
    assert PlanAssignment.objects.get().plan == known


def test_a_dry_run_tells_the_plans_and_notes_none(plans: ClerkAPI) -> None:
    plans.users = [make_user(1, public_metadata={"plan": "pro"}), make_user(2)]
    assert (
        backfill("--dry-run").out == "seen 2, would make 2, already there 0, tombstoned 0, odd 0, plans 1\n"
    )
    assert PlanAssignment.objects.count() == 0


@pytest.mark.parametrize("options", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_plans_that_users_wait_for_are_named_at_the_end(plans: ClerkAPI, options: list[str]) -> None:
    names = ["gold", "gold", "pro", "Gold plan", None]
    plans.users = [make_user(number, public_metadata={"plan": name}) for number, name in enumerate(names)]
    run = backfill(*options)
    assert run.err.splitlines() == [
        "no plan gold: 2 users wait for it; add it with apply_plans or in the admin",
        "no plan 'Gold plan': 1 user waits for it; add it with apply_plans or in the admin",
    ]
    assert run.exit_code == 0


def test_a_plan_that_was_added_later_is_named_until_its_users_have_it(plans: ClerkAPI) -> None:
    plans.users = [make_user(number, public_metadata={"plan": "gold"}) for number in range(3)]
    backfill()
    Plan(name="gold", allowance=7).save()
    assert backfill().err == (
        "plan gold: 3 users wait for it; give it with apply_plans or on its page in the admin\n"
    )
    assert sum(give_plans(Actor("command", "a test"))) == 3
    assert backfill().err == ""


def test_a_tombstone_gets_no_plan_and_stops_nobody(plans: ClerkAPI) -> None:
    plans.users = [make_user(number, public_metadata={"plan": "pro"}) for number in (1, 2)]
    ChallengeQuota.objects.delete("user_000001", actor=Actor("webhook", "msg_1"))
    assert backfill().out == "seen 2, made 1, already there 0, tombstoned 1, odd 0, plans 1\n"
    assert PlanAssignment.objects.get().user_id == "user_000002"


def test_ids_of_a_file_say_nothing_of_plans(plans: ClerkAPI, file: Path) -> None:
    plans.users = [make_user(1, public_metadata={"plan": "pro"})]
    backfill()
    file.write_text("user_000001")
    backfill("--ids", file)
    assert PlanAssignment.objects.get().plan == "pro"


class Process(NamedTuple):
    """A finished run of `manage.py backfill_quotas` in its own process."""

    exit_code: int
    out: str
    last_line: str  # of standard error
    seconds: float
    peak: int  # bytes of memory

    def __str__(self) -> str:
        seen = int(self.out.split()[1].rstrip(","))
        speed = f"{seen} users in {self.seconds:.1f} s, {seen / self.seconds:.0f} users/s"
        return f"{self.out.strip()}: {speed}, peak {self.peak / 2**20:.0f} MiB"


def run_process(folder: Path, clerk_url: str, *options: str, interrupt_at: str = "never") -> Process:
    """Run the command to its end, or interrupt it with Ctrl-C once it prints `interrupt_at`."""
    out, err, begun, peak, is_interrupted = folder / "out", folder / "err", time.monotonic(), 0, False
    variables = {
        "DATABASE_URL": url_of_the_test_database(),
        "CLERK_API_URL": clerk_url,
        "CLERK_SECRET_KEY": ClerkAPI.key,
        "NO_PROXY": "127.0.0.1",
        "DEBUG": "1",
    }
    with out.open("w") as stdout, err.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "manage.py", "backfill_quotas", *options],
            cwd=settings.BASE_DIR,
            env={**os.environ, **variables},
            stdout=stdout,
            stderr=stderr,
        )
        while process.poll() is None:
            peak = max(peak, high_water(process.pid))
            if not is_interrupted and interrupt_at in err.read_text():
                process.send_signal(signal.SIGINT)
                is_interrupted = True
            time.sleep(0.02)
    last_line = err.read_text().splitlines()[-1]
    return Process(process.returncode, out.read_text(), last_line, time.monotonic() - begun, peak)


def high_water(pid: int) -> int:
    """Return the peak memory of a process since it began; RUSAGE_CHILDREN would show its parent's."""
    with suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


@contextmanager
def clerk_in_a_process(count: int) -> Iterator[str]:
    """Serve Clerk with `count` users in a process whose memory is not counted with ours; yield its URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.tools.clerk_api", str(count)],
        cwd=settings.BASE_DIR,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:  # it ends when its input does
        assert process.stdout is not None
        yield process.stdout.readline().strip()


@pytest.mark.full
@pytest.mark.postgres
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.django_db(transaction=True, serialized_rollback=True)
def test_100000_users_take_the_memory_of_10000_and_an_interruption_loses_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with clerk_in_a_process(10_000) as url:
        small = run_process(tmp_path, url)
    with clerk_in_a_process(100_000) as url:
        half = run_process(tmp_path, url, interrupt_at="50000 users so far")
        assert half.exit_code == 130
        stored = ChallengeQuota.objects.count()
        resumed = run_process(tmp_path, url, *half.last_line.split()[-2:])
        again = run_process(tmp_path, url)
    runs = (small, half, resumed, again)
    with capsys.disabled():
        print("", *runs, half.last_line, sep="\n", flush=True)
    assert half.last_line == (
        f"CommandError: Interrupted. What was made stays; continue with --after user_{stored:06}"
    )
    assert 50_000 <= stored < 100_000
    assert resumed.out == f"seen {100_000 - stored}, made {100_000 - stored}, {NONE_ELSE}"
    assert again.out == "seen 100000, made 0, already there 100000, tombstoned 0, odd 0\n"
    assert (
        ChallengeQuota.objects.count() == LedgerEntry.objects.filter(kind="opened", seq=1).count() == 100_000
    )
    assert LedgerEntry.objects.count() == 100_000
    assert list(audit.faults(None)) == []
    assert max(run.peak for run in runs) < 150 * 2**20
    assert again.peak < 1.3 * small.peak

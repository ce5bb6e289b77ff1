"""backfill_quotas: who has no quota gets one, whatever happens on the way."""

import io
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import OperationalError
from pytest_django import Settings

from quotas import store
from quotas.models import ChallengeQuota, LedgerEntry, Plan
from quotas.policy import Actor
from tests.clerk_api import ClerkAPI, make_user, make_users

pytestmark = pytest.mark.django_db
COMMAND = "webhooks.management.commands.backfill_quotas"


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
    monkeypatch.setattr(f"{COMMAND}.time.sleep", lambda seconds: None)
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
        "odd user 'user 1': the id is not 1 to 128 of the characters A-Z a-z 0-9 _ : . @ -",
        "odd user 'user_000002': the e-mail holds U+0000 or half of a surrogate pair",
        "odd user None: the id is missing",
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
    assert backfill().out == "seen 1200, made 700, already there 500, tombstoned 0, odd 0\n"


@pytest.mark.parametrize(
    ("interruption", "exit_code", "told"),
    [(KeyboardInterrupt(), 130, "run it again"), (OperationalError("connection lost"), 1, "DATABASE_URL")],
)
def test_a_run_that_is_interrupted_within_a_page_leaves_nothing_of_that_page(
    clerk: ClerkAPI,
    monkeypatch: pytest.MonkeyPatch,
    interruption: BaseException,
    exit_code: int,
    told: str,
) -> None:
    clerk.users, made, open_many = make_users(1_200), list[int](), store.open_many

    def interrupted(user_ids: Iterable[str], decide: store.Decide) -> int:
        made.append(open_many(user_ids, decide))
        if len(made) == 2:
            raise interruption
        return made[-1]

    with monkeypatch.context() as patch:
        patch.setattr(store, "open_many", interrupted)
        run = backfill()
    assert (made, run.exit_code, told in run.error) == ([500, 500], exit_code, True)
    assert run.out == "seen 500, made 500, already there 0, tombstoned 0, odd 0\n"
    assert len(quotas()) == LedgerEntry.objects.count() == 500
    assert backfill().out == "seen 1200, made 700, already there 500, tombstoned 0, odd 0\n"


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
    assert "CommandError: The database (DATABASE_URL) cannot be used: connection failed" in run.stderr
    assert "Traceback" not in run.stderr


def test_without_a_default_plan_the_fix_is_told(file: Path) -> None:
    Plan.objects.update(is_default=False)
    file.write_text("user_1")
    assert "mark one as such in the admin" in backfill("--ids", file).error


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
    assert capsys.readouterr().err == "Clerk is busy or away: asking again in 7 s.\n"


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
    assert (run.error, run.exit_code) == ("5 of the lines hold no user id; the others were done.", 1)


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

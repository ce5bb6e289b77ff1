"""The quotas of users who signed up before the webhook existed, or whose deliveries failed."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from django.db import reset_queries
from tqdm import tqdm

from quotas.models import ChallengeQuota, Plan, PlanAssignment
from quotas.reports.waiting import Waiting, sentences, waiting_for_ours, waiting_for_unknown
from quotas.rules.outcomes import Deleted
from quotas.rules.values import Actor
from quotas.store.manager import Opened
from webhooks.clerk.backend_api import count_users, find_users, last_id, walk_users
from webhooks.clerk.payloads import ClerkUser, UnusablePayload, read_user, signed_up_at
from webhooks.drift import known_assignments, newer_plan

ACTOR = Actor(kind="command", id="backfill_quotas")
USERS_PER_BATCH = 500  # in a transaction
USERS_PER_REPORT = 10_000  # between the progress lines of a run without a terminal
MAX_UNUSABLE_LISTED = 1_000  # at the end; the others are counted
MAX_PLANS_COUNTED = 1_000  # by name, in a dry run
LONG_AGO = datetime.min.replace(tzinfo=UTC)


class CannotBegin(Exception):
    """There is no user to start after, or no file of ids; the text names the option and the fix."""


class Batch(NamedTuple):
    """Users who are stored together: each once, ordered by id so that two runs cannot deadlock."""

    users: list[ClerkUser]
    size: int  # of their page, with unusable and repeated users
    last: str = ""  # the id after which the next page starts


@dataclass(slots=True)
class Backfill:
    """One run, and its counts so far. `report` is called with each line for the operator."""

    dry_run: bool
    report: Callable[[str], object]
    made: int = 0
    present: int = 0
    tombstoned: int = 0
    unusable: int = 0
    unusable_lines: list[str] = field(default_factory=list)
    plans: int = 0  # in Clerk's metadata, and new here
    would_note: Counter[str] = field(default_factory=Counter)  # in a dry run: users by plan
    bad_lines: int = 0  # of a file of ids
    last: str = ""  # every user up to this id is done

    def from_clerk(self, after: str, since: datetime | None) -> None:
        """Open a quota for every user in Clerk. Raises as `walk_users` does, and CannotBegin."""
        if after:
            after, since = self._starting_point(after, since)
        self.last = after

        def total() -> int:  # Clerk's count includes the user to start after
            return count_users(since=since, on_wait=report_and_wait) - bool(after)

        self._store(self._batches_of_clerk(after, since), total)

    def from_ids(self, name: str) -> None:
        """Open a quota for each id in the file (`-` is standard input). Raises CannotBegin."""
        users = self._read_ids(_lines_of(name))
        self._store(_in_batches(users), lambda: len(users))

    def report_unusable(self) -> None:
        for line in self.unusable_lines:
            self.report(line)
        if self.unusable > MAX_UNUSABLE_LISTED:
            self.report(f"and {self.unusable - MAX_UNUSABLE_LISTED} more unusable users")

    def report_waiting(self) -> None:
        """Name the plans that users wait for; in a dry run also those that it would let them wait for."""
        known = {"", *Plan.objects.values_list("name", flat=True)}
        unknown = [Waiting(plan, users) for plan, users in self.would_note.most_common() if plan not in known]
        for sentence in sentences([*waiting_for_ours(), *waiting_for_unknown(), *unknown]):
            self.report(sentence)

    @property
    def summary(self) -> str:
        seen = self.made + self.present + self.tombstoned + self.unusable
        made = "would make" if self.dry_run else "made"
        plans = f", plans {self.plans}" if self.plans else ""
        # "odd" counts the unusable users: the line is published, so its names stay.
        return (
            f"seen {seen}, {made} {self.made}, already there {self.present}, "
            f"tombstoned {self.tombstoned}, odd {self.unusable}{plans}"
        )

    @property
    def rest(self) -> str:
        """The next step after a run that ended early."""
        return f"continue with --after {self.last}" if self.last else "run it again for the rest"

    def _starting_point(self, after: str, since: datetime | None) -> tuple[str, datetime | None]:
        """Return the user to start after, and the time to continue from if they are deleted meanwhile."""
        if found := find_users([after], on_wait=report_and_wait):
            instants = [at for at in (signed_up_at(found[0]), since) if at]
            return after, max(instants, default=None)
        if since is None:
            raise CannotBegin(
                f"--after {after}: Clerk has no such user, or no longer. Use --since instead, with a day "
                "before they signed up, or neither option: existing quotas stay as they are."
            )
        self.report(f"--after {after}: Clerk has no such user, or no longer: starting with --since instead.")
        return "", since

    def _batches_of_clerk(self, after: str, since: datetime | None) -> Iterator[Batch]:
        for page in walk_users(after=after, since=since, on_wait=report_and_wait):
            users = []
            for data in page:
                try:
                    users.append(read_user(data))
                except UnusablePayload as error:
                    self._add_unusable(f"unusable user {data.get('id')!r:.60}: {error}")
            yield Batch(_merged(users), len(page), last_id(page))

    def _read_ids(self, lines: Iterable[str]) -> list[ClerkUser]:
        """Return the users of the lines; report and count each line that holds no user id."""
        users = []
        for number, line in enumerate(lines, start=1):
            user_id = line.strip()
            if not user_id or user_id.startswith("#"):
                continue
            try:
                users.append(read_user({"id": user_id}))
            except UnusablePayload as error:
                self.bad_lines += 1
                self.report(f"line {number}: {user_id!r:.60}: {error}")
        return _merged(users)

    def _store(self, batches: Iterable[Batch], total: Callable[[], int]) -> None:
        """Store one batch after the other: its rows in one transaction, then each plan in its own."""
        with tqdm(unit=" users", disable=None) as bar:  # None: shown on a terminal only
            if not bar.disable:
                bar.total = total()
            done = 0
            for batch in batches:
                self._add_opened(self._open_rows(batch.users))
                self.plans += self._note_plans(batch.users)
                self.last = batch.last or self.last
                reset_queries()  # under DEBUG Django keeps the text of every statement
                done += batch.size
                bar.update(batch.size)
                if bar.disable and done // USERS_PER_REPORT > (done - batch.size) // USERS_PER_REPORT:
                    self.report(f"{done} users so far; if this run ends early, {self.rest}")

    def _open_rows(self, users: list[ClerkUser]) -> Opened:
        if self.dry_run:
            return ChallengeQuota.objects.census(user.user_id for user in users)
        rows = ((user.user_id, user.email, user.updated_at) for user in users)
        return ChallengeQuota.objects.open_many(rows, actor=ACTOR)

    def _note_plans(self, users: list[ClerkUser]) -> int:
        """Store each plan that is in the users' metadata and new here; return how many."""
        known = known_assignments(users)
        newer = ((user.user_id, newer_plan(user, known.get(user.user_id))) for user in users)
        return sum(self._note_plan(user_id, *plan) for user_id, plan in newer if plan)

    def _note_plan(self, user_id: str, plan: str, updated_at: datetime) -> bool:
        if self.dry_run:
            if plan in self.would_note or len(self.would_note) < MAX_PLANS_COUNTED:
                self.would_note[plan] += 1
            return True
        source = PlanAssignment.Source.METADATA
        try:
            return ChallengeQuota.objects.assign_plan(
                user_id, source, plan, updated_at=updated_at, actor=ACTOR
            )
        except Deleted:
            return False

    def _add_opened(self, opened: Opened) -> None:
        self.made += opened.made
        self.present += opened.present
        self.tombstoned += opened.tombstoned

    def _add_unusable(self, line: str) -> None:
        self.unusable += 1
        if self.unusable <= MAX_UNUSABLE_LISTED:
            self.unusable_lines.append(line)


def report_and_wait(seconds: float) -> None:
    tqdm.write(f"Clerk is busy or unreachable: trying again in {seconds:.0f} s.", file=sys.stderr)
    time.sleep(seconds)


def _lines_of(name: str) -> list[str]:
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise CannotBegin(f"--ids {name}: {error.strerror}.") from error
    return content.decode("utf-8-sig", errors="backslashreplace").split("\n")


def _merged(users: Iterable[ClerkUser]) -> list[ClerkUser]:
    """Return the latest version of each user, ordered by id."""
    in_time = sorted(users, key=lambda user: user.updated_at or LONG_AGO)
    return sorted({user.user_id: user for user in in_time}.values(), key=lambda user: user.user_id)


def _in_batches(users: list[ClerkUser]) -> Iterator[Batch]:
    for start in range(0, len(users), USERS_PER_BATCH):
        batch = users[start : start + USERS_PER_BATCH]
        yield Batch(batch, len(batch))

"""Give a quota to everyone who has none: those who signed up before the webhook was there, or past it."""

import signal
import sys
import time
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import InterfaceError, OperationalError, reset_queries
from tqdm import tqdm

from quotas.models import ChallengeQuota, PlanAssignment
from quotas.rules.outcomes import Deleted
from quotas.rules.values import Actor
from quotas.store.errors import NoDefaultPlan
from quotas.store.manager import Opened
from webhooks.clerk.backend_api import ClerkError, count_users, find_users, last_id, walk_users
from webhooks.clerk.payloads import ClerkUser, NotConfigured, OddUser, read_user, signed_up_at
from webhooks.drift import known_words, plan_news

ACTOR = Actor(kind="command", id="backfill_quotas")
BATCH = 500  # users a transaction
MARK = 10_000  # users; how often a run without a terminal tells where it is
ODD_LINES = 1_000  # told at the end; the others are counted
LONG_AGO = datetime.min.replace(tzinfo=UTC)


class Batch(NamedTuple):
    """Users who are settled together: each once, in one order so that two runs cannot deadlock."""

    users: list[ClerkUser]
    size: int  # of the page that they came in, with those who are odd or came twice
    last: str = ""  # the id behind which the next page begins


@dataclass(slots=True)
class Tally:
    """What became of the users so far."""

    made: int = 0
    present: int = 0
    tombstoned: int = 0
    odd: int = 0
    odd_lines: list[str] = field(default_factory=list)
    plans: int = 0  # that Clerk's metadata name, and were not known
    bad_lines: int = 0
    last: str = ""  # the id behind which nobody is settled yet

    @property
    def seen(self) -> int:
        return self.made + self.present + self.tombstoned + self.odd

    def add(self, opened: Opened) -> None:
        self.made += opened.made
        self.present += opened.present
        self.tombstoned += opened.tombstoned

    def add_odd(self, line: str) -> None:
        self.odd += 1
        if self.odd <= ODD_LINES:
            self.odd_lines.append(line)

    def summary(self, *, dry_run: bool) -> str:
        made = "would make" if dry_run else "made"
        plans = f", plans {self.plans}" if self.plans else ""
        return (
            f"seen {self.seen}, {made} {self.made}, already there {self.present}, "
            f"tombstoned {self.tombstoned}, odd {self.odd}{plans}"
        )

    @property
    def rest(self) -> str:
        """What to do after a run that ended early."""
        return f"go on with --after {self.last}" if self.last else "run it again for the rest"


class Command(BaseCommand):
    help = (
        "Make the quota rows that are missing, for each user in Clerk or for each id in a file, and note the "
        "plans that Clerk's metadata name. The rows of a batch are made all or none: the command can be "
        "interrupted, tells then where to go on, and can as well be run again."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--dry-run", action="store_true", help="tell what would be made, and make nothing"
        )
        parser.add_argument(
            "--after", metavar="USER_ID", default="", help="begin behind this user, as an earlier run told"
        )
        parser.add_argument(
            "--since",
            metavar="TIME",
            type=_time,
            help="only users who signed up at this day or instant, or later: 2026-09-24, 2026-09-24T08:00Z",
        )
        parser.add_argument(
            "--ids",
            metavar="FILE",
            help="take user ids from FILE ('-' is standard input), one a line, and do not ask Clerk",
        )

    def handle(
        self, *, dry_run: bool, after: str, since: datetime | None, ids: str | None, **options: Any
    ) -> None:
        if ids is not None and (after or since):
            raise CommandError("--after and --since are about Clerk's users, and not for --ids.")
        tally = Tally()
        terminated = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
        try:
            if ids is None:
                self.backfill_from_clerk(after, since, tally, dry_run=dry_run)
            else:
                users = self.read_ids(ids, tally)
                self.backfill(_in_batches(users), tally, lambda: len(users), dry_run=dry_run)
        except KeyboardInterrupt:
            stays = f"Interrupted. What was made stays; {tally.rest}"
            raise CommandError(stays, returncode=130) from None
        except NotConfigured as error:
            raise CommandError(str(error)) from error
        except (ClerkError, NoDefaultPlan) as error:
            raise CommandError(f"{error} Then {tally.rest}") from error
        except (OperationalError, InterfaceError) as error:
            fault = f"The database (DATABASE_URL) cannot be used: {str(error).strip()}"
            raise CommandError(f"{fault}\nThen {tally.rest}") from error
        finally:
            signal.signal(signal.SIGTERM, terminated)
            self.tell(tally, dry_run=dry_run)
        if tally.bad_lines:
            raise CommandError(f"{tally.bad_lines} of the lines hold no user id; the others were done.")

    def backfill_from_clerk(self, after: str, since: datetime | None, tally: Tally, *, dry_run: bool) -> None:
        if after:
            after, since = self.starting_point(after, since)
        tally.last = after
        batches = _from_clerk(after, since, tally)
        self.backfill(
            batches,
            tally,
            lambda: count_users(since=since, on_wait=tell_and_wait) - bool(after),  # he himself is counted
            dry_run=dry_run,
        )

    def starting_point(self, after: str, since: datetime | None) -> tuple[str, datetime | None]:
        """Return behind whom to begin, and when he signed up, for he may be deleted during the run."""
        found = find_users([after], on_wait=tell_and_wait)
        if found:
            instants = [at for at in (signed_up_at(found[0]), since) if at]
            return after, max(instants, default=None)
        if since is None:
            raise CommandError(
                f"--after {after}: Clerk has no such user, or no longer. Give --since instead, with a day "
                "on which he had not signed up yet, or neither: who has a quota keeps it as it is."
            )
        self.stderr.write(f"--after {after}: Clerk has no such user, or no longer: beginning with --since.")
        return "", since

    def backfill(
        self, batches: Iterable[Batch], tally: Tally, total: Callable[[], int], *, dry_run: bool
    ) -> None:
        """Settle one batch after another: its rows in one transaction, then each plan in one."""
        with tqdm(unit=" users", disable=None) as bar:  # None: shown on a terminal only
            if not bar.disable:
                bar.total = total()
            done = 0
            for batch in batches:
                tally.add(_open(batch.users, dry_run=dry_run))
                tally.plans += _note_plans(batch.users, dry_run=dry_run)
                tally.last = batch.last or tally.last
                reset_queries()  # with DEBUG Django keeps the text of every statement
                done += batch.size
                bar.update(batch.size)
                if bar.disable and done // MARK > (done - batch.size) // MARK:
                    self.stderr.write(f"{done} users so far; if this run ends early, {tally.rest}")

    def tell(self, tally: Tally, *, dry_run: bool) -> None:
        for line in tally.odd_lines:
            self.stderr.write(line)
        if tally.odd > ODD_LINES:
            self.stderr.write(f"and {tally.odd - ODD_LINES} more odd users")
        self.stdout.write(tally.summary(dry_run=dry_run))

    def read_ids(self, name: str, tally: Tally) -> list[ClerkUser]:
        """Read a file of ids; each line that holds none is told with its number, and counted."""
        users = []
        for number, line in enumerate(_lines(name), start=1):
            user_id = line.strip()
            if not user_id or user_id.startswith("#"):
                continue
            try:
                users.append(read_user({"id": user_id}))
            except OddUser as error:
                tally.bad_lines += 1
                self.stderr.write(f"line {number}: {user_id!r:.60}: {error}")
        return _merged(users)


def _time(text: str) -> datetime:
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise ArgumentTypeError("write a day or an instant: 2026-09-24, 2026-09-24T08:00Z") from None
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


def _from_clerk(after: str, since: datetime | None, tally: Tally) -> Iterator[Batch]:
    for page in walk_users(after=after, since=since, on_wait=tell_and_wait):
        users = []
        for data in page:
            try:
                users.append(read_user(data))
            except OddUser as error:
                tally.add_odd(f"odd user {data.get('id')!r:.60}: {error}")
        yield Batch(_merged(users), len(page), last_id(page))


def tell_and_wait(seconds: float) -> None:
    tqdm.write(f"Clerk is busy or away: asking again in {seconds:.0f} s.", file=sys.stderr)
    time.sleep(seconds)


def _lines(name: str) -> list[str]:
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise CommandError(f"--ids {name}: {error.strerror}.") from error
    return content.decode("utf-8-sig", errors="backslashreplace").split("\n")


def _merged(users: Iterable[ClerkUser]) -> list[ClerkUser]:
    in_time = sorted(users, key=lambda user: user.updated_at or LONG_AGO)
    return sorted({user.user_id: user for user in in_time}.values(), key=lambda user: user.user_id)


def _in_batches(users: list[ClerkUser]) -> Iterator[Batch]:
    for start in range(0, len(users), BATCH):
        batch = users[start : start + BATCH]
        yield Batch(batch, len(batch))


def _open(users: list[ClerkUser], *, dry_run: bool) -> Opened:
    if dry_run:
        return ChallengeQuota.objects.census(user.user_id for user in users)
    rows = ((user.user_id, user.email, user.updated_at) for user in users)
    return ChallengeQuota.objects.open_many(rows, actor=ACTOR)


def _note_plans(users: list[ClerkUser], *, dry_run: bool) -> int:
    """Note each plan in their metadata that is news; return how many were."""
    words = known_words(users)
    told = ((user.user_id, plan_news(user, words.get(user.user_id))) for user in users)
    return sum(dry_run or _note_plan(user_id, *news) for user_id, news in told if news)


def _note_plan(user_id: str, plan: str, updated_at: datetime) -> bool:
    source = PlanAssignment.Source.METADATA
    try:
        return ChallengeQuota.objects.assign_plan(user_id, source, plan, updated_at=updated_at, actor=ACTOR)
    except Deleted:
        return False

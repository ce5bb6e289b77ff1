"""Give a quota to everyone who has none: those who signed up before the webhook was there, or past it."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import InterfaceError, OperationalError
from tqdm import tqdm

from quotas.models import ChallengeQuota, Opened
from quotas.policy import Actor
from quotas.store import NoDefaultPlan
from webhooks.clerk import ClerkError, ClerkUser, NotConfigured, OddUser, count_users, read_user, walk_users

ACTOR = Actor(kind="command", id="backfill_quotas")
BATCH = 500  # users a transaction
LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(slots=True)
class Tally:
    """What became of the users so far."""

    made: int = 0
    present: int = 0
    tombstoned: int = 0
    odd: list[str] = field(default_factory=list)  # a line for each
    bad_lines: int = 0

    def add(self, opened: Opened) -> None:
        self.made += opened.made
        self.present += opened.present
        self.tombstoned += opened.tombstoned

    def summary(self, *, dry_run: bool) -> str:
        seen = self.made + self.present + self.tombstoned + len(self.odd)
        made = "would make" if dry_run else "made"
        return (
            f"seen {seen}, {made} {self.made}, already there {self.present}, "
            f"tombstoned {self.tombstoned}, odd {len(self.odd)}"
        )


class Command(BaseCommand):
    help = (
        "Make the quota rows that are missing, for each user in Clerk or for each id in a file. Every "
        "batch is stored whole or not at all: the command can be interrupted, and run again."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--dry-run", action="store_true", help="tell what would be made, and make nothing"
        )
        parser.add_argument(
            "--ids",
            metavar="FILE",
            help="take user ids from FILE ('-' is standard input), one a line, and do not ask Clerk",
        )

    def handle(self, *, dry_run: bool, ids: str | None, **options: Any) -> None:
        tally = Tally()
        try:
            if ids is None:
                self.backfill(_from_clerk(tally), tally, count_users, dry_run=dry_run)
            else:
                users = self.read_ids(ids, tally)
                self.backfill(_in_batches(users), tally, lambda: len(users), dry_run=dry_run)
        except KeyboardInterrupt:
            stays = "Interrupted. What was made stays; run it again for the rest."
            raise CommandError(stays, returncode=130) from None
        except (ClerkError, NotConfigured, NoDefaultPlan) as error:
            raise CommandError(str(error)) from error
        except (OperationalError, InterfaceError) as error:
            raise CommandError(f"The database (DATABASE_URL) cannot be used: {error}".strip()) from error
        finally:
            for line in tally.odd:
                self.stderr.write(line)
            self.stdout.write(tally.summary(dry_run=dry_run))
        if tally.bad_lines:
            raise CommandError(f"{tally.bad_lines} of the lines hold no user id; the others were done.")

    def backfill(
        self, batches: Iterable[list[ClerkUser]], tally: Tally, total: Callable[[], int], *, dry_run: bool
    ) -> None:
        """Settle one batch after another, each in a transaction of its own."""
        with tqdm(unit=" users", disable=None) as bar:  # None: shown on a terminal only
            if not bar.disable:
                bar.total = total()
            for users in batches:
                tally.add(_open(users, dry_run=dry_run))
                bar.update(len(users))

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


def _from_clerk(tally: Tally) -> Iterator[list[ClerkUser]]:
    for page in walk_users(on_wait=_wait):
        users = []
        for data in page:
            try:
                users.append(read_user(data))
            except OddUser as error:
                tally.odd.append(f"odd user {data.get('id')!r:.60}: {error}")
        yield _merged(users)


def _wait(seconds: float) -> None:
    tqdm.write(f"Clerk is busy or away: asking again in {seconds:.0f} s.", file=sys.stderr)
    time.sleep(seconds)


def _lines(name: str) -> list[str]:
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise CommandError(f"--ids {name}: {error.strerror}.") from error
    return content.decode("utf-8-sig", errors="backslashreplace").split("\n")


def _merged(users: Iterable[ClerkUser]) -> list[ClerkUser]:
    """Return each user once, as Clerk knew him last, in one order so that two runs cannot deadlock."""
    in_time = sorted(users, key=lambda user: user.updated_at or LONG_AGO)
    return sorted({user.user_id: user for user in in_time}.values(), key=lambda user: user.user_id)


def _in_batches(users: list[ClerkUser]) -> Iterator[list[ClerkUser]]:
    return (users[start : start + BATCH] for start in range(0, len(users), BATCH))


def _open(users: list[ClerkUser], *, dry_run: bool) -> Opened:
    if dry_run:
        return ChallengeQuota.objects.census(user.user_id for user in users)
    rows = ((user.user_id, user.email, user.updated_at) for user in users)
    return ChallengeQuota.objects.open_many(rows, actor=ACTOR)

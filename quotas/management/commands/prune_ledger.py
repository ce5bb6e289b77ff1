"""Remove the history that nobody needs any more."""

from argparse import ArgumentTypeError
from collections.abc import Iterator
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import InterfaceError, OperationalError
from tqdm import tqdm

from quotas.models import ChallengeQuota
from quotas.reports.prune import Step, TooYoung, prune

BATCH = 5_000  # entries a transaction


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError("give a whole number from 1")
    return int(text)


class Command(BaseCommand):
    help = (
        "Remove the entries of periods that were over DAYS ago. The running period stays, and so does the "
        "one that ran at that time. It can be interrupted, and run again."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--older-than", type=positive, metavar="DAYS", required=True)
        parser.add_argument("--dry-run", action="store_true", help="tell what would go, and remove nothing")
        parser.add_argument(
            "--batch", type=positive, metavar="N", default=BATCH, help="entries a transaction (%(default)s)"
        )

    def handle(self, *, older_than: int, dry_run: bool, batch: int, **options: Any) -> None:
        self.users = self.entries = 0
        try:
            self.follow(prune(older_than, batch=batch, dry_run=dry_run))
        except TooYoung as error:
            raise CommandError(str(error)) from error
        except KeyboardInterrupt:
            stays = f"Interrupted: {self.summary(dry_run=dry_run)}. Run it again for the rest."
            raise CommandError(stays, returncode=130) from None
        except (OperationalError, InterfaceError) as error:
            raise CommandError(f"The database (DATABASE_URL) cannot be used: {error}".strip()) from error
        self.stdout.write(self.summary(dry_run=dry_run))

    def follow(self, steps: Iterator[Step]) -> None:
        with tqdm(unit=" users", disable=None) as bar:  # None: shown on a terminal only
            if not bar.disable:
                bar.total = ChallengeQuota.objects.count()
            for step in steps:
                self.users += step.users
                self.entries += step.entries
                bar.update(step.users)

    def summary(self, *, dry_run: bool) -> str:
        removed = "would remove" if dry_run else "removed"
        return f"looked at {self.users} users, {removed} {self.entries} entries"

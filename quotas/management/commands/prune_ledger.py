"""Remove old history from the ledger."""

from collections.abc import Iterator
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from tqdm import tqdm

from quotas.management.arguments import positive
from quotas.management.failures import explain_database_errors, explain_interrupt
from quotas.models import ChallengeQuota
from quotas.reports.prune import PruneProgress, TooYoung, prune

ENTRIES_PER_TRANSACTION = 5_000


class Command(BaseCommand):
    help = (
        "Remove the entries of periods that had ended DAYS ago. The running period stays, and so does the "
        "period that was running then. The command can be interrupted, and run again."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--older-than",
            type=positive,
            metavar="DAYS",
            required=True,
            help="remove periods that ended more than DAYS ago: at least 35, or twice the longest period",
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="count what would be removed, and remove nothing"
        )
        parser.add_argument(
            "--batch",
            type=positive,
            metavar="N",
            default=ENTRIES_PER_TRANSACTION,
            help="entries per transaction (default: %(default)s)",
        )

    def handle(self, *, older_than: int, dry_run: bool, batch: int, **options: Any) -> None:
        self.users = self.entries = 0
        try:
            with explain_interrupt(lambda: self.progress(dry_run=dry_run)), explain_database_errors():
                self.follow(prune(older_than, batch=batch, dry_run=dry_run))
        except TooYoung as error:
            raise CommandError(str(error)) from error
        self.stdout.write(self.summary(dry_run=dry_run))

    def progress(self, *, dry_run: bool) -> str:
        return f": {self.summary(dry_run=dry_run)}. Run it again for the rest."

    def follow(self, steps: Iterator[PruneProgress]) -> None:
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

"""Forget deliveries that were handled long ago."""

from datetime import UTC, datetime, timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from quotas.management.arguments import positive
from quotas.management.failures import explain_database_errors
from webhooks.models import WebhookEvent

MIN_AGE_DAYS = 7  # days; Clerk sends an event again for little more than one
ROWS_PER_DELETE = 5_000  # rows a statement


class Command(BaseCommand):
    help = (
        "Remove deliveries that were handled over DAYS ago. One that comes again after that is handled "
        "again, which changes nothing: handlers go by Clerk's own times. It can be interrupted and repeated."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--older-than", type=positive, metavar="DAYS", required=True)
        parser.add_argument("--dry-run", action="store_true", help="tell what would go, and remove nothing")

    def handle(self, *, older_than: int, dry_run: bool, **options: Any) -> None:
        if older_than < MIN_AGE_DAYS:
            raise CommandError(f"The least age is {MIN_AGE_DAYS} days.")
        removed = 0
        try:
            cut = datetime.now(UTC) - timedelta(days=older_than)
        except OverflowError:
            raise CommandError("There is no time that long ago.") from None
        old = WebhookEvent.objects.filter(handled_at__lt=cut)
        try:
            with explain_database_errors():
                if dry_run:
                    removed = old.count()
                while not dry_run and (
                    batch := list(old.order_by("handled_at").values_list("pk", flat=True)[:ROWS_PER_DELETE])
                ):
                    removed += WebhookEvent.objects.filter(pk__in=batch).delete()[0]
        finally:
            self.stdout.write(f"{'would remove' if dry_run else 'removed'} {removed} deliveries")

"""Remove deliveries that were handled long ago."""

from datetime import UTC, datetime, timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from quotas.management.arguments import positive
from quotas.management.failures import explain_database_errors
from webhooks.models import DeliveryRefusals, WebhookEvent

MIN_AGE_DAYS = 7  # Clerk resends an event for little more than one day
ROWS_PER_DELETE = 5_000


class Command(BaseCommand):
    help = (
        "Remove deliveries that were handled over DAYS ago. One that arrives again after that is handled "
        "again, which changes nothing: handlers order events by Clerk's own times. The command can be "
        "interrupted, and run again."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--older-than",
            type=positive,
            metavar="DAYS",
            required=True,
            help=f"remove deliveries that were handled more than DAYS ago: at least {MIN_AGE_DAYS}",
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="count what would be removed, and remove nothing"
        )

    def handle(self, *, older_than: int, dry_run: bool, **options: Any) -> None:
        if older_than < MIN_AGE_DAYS:
            raise CommandError(f"The minimum age is {MIN_AGE_DAYS} days.")
        removed = 0
        try:
            cut = datetime.now(UTC) - timedelta(days=older_than)
            old = WebhookEvent.objects.filter(handled_at__lt=cut)
            with explain_database_errors():
                if dry_run:
                    removed = old.count()
                else:
                    DeliveryRefusals.objects.filter(day__lt=cut.date()).delete()
                while not dry_run and (
                    batch := list(old.order_by("handled_at").values_list("pk", flat=True)[:ROWS_PER_DELETE])
                ):
                    removed += WebhookEvent.objects.filter(pk__in=batch).delete()[0]
        except OverflowError:
            too_large = "--older-than is too large: the calendar does not reach back that far."
            raise CommandError(too_large) from None
        finally:
            self.stdout.write(f"{'would remove' if dry_run else 'removed'} {removed} deliveries")

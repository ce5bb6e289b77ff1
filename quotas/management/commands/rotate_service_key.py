"""Replace a service key without an outage."""

from datetime import UTC, datetime, timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from quotas.management.arguments import whole
from quotas.management.failures import explain_database_errors
from quotas.management.service_keys import KEY_HELP, MAX_DAYS, find_key, show_once
from quotas.models import CannotRotate
from quotas.rules.values import rfc3339

OVERLAP_HOURS, MAX_OVERLAP_HOURS = 24, 24 * 366


class Command(BaseCommand):
    help = (
        "Create a service key with the name and scopes of an active one, and print it. The old key works "
        "until the overlap ends: give the new one to your servers before then. Retries with an "
        "Idempotency-Key stay safe, whichever of the two keys sends them."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("key", metavar="NAME|ID", help=KEY_HELP)
        parser.add_argument(
            "--overlap",
            type=whole(0, MAX_OVERLAP_HOURS),
            default=OVERLAP_HOURS,
            metavar="HOURS",
            help="how long the old key still works; 0: seconds at most (default: %(default)s)",
        )
        parser.add_argument(
            "--days",
            type=whole(1, MAX_DAYS),
            help="days until the new key expires (default: never; required if the old one expires)",
        )

    def handle(self, *, key: str, overlap: int, days: int | None, **options: Any) -> None:
        expires_at = datetime.now(UTC) + timedelta(days=days) if days else None
        try:
            with explain_database_errors():
                old = find_key(key)
                new, text, ends_at = old.rotate(timedelta(hours=overlap), expires_at)
        except CannotRotate as error:
            raise CommandError(str(error)) from error
        show_once(self, new, text)
        self.stderr.write(
            f"The old key, {old}, works until {rfc3339(ends_at)}. To end it earlier: "
            f"manage.py revoke_service_key qs_{old.prefix}"
        )

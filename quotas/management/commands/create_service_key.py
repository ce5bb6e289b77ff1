"""Create a key for one of the product's own servers, and print it once."""

from datetime import UTC, datetime, timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from quotas.management.arguments import whole
from quotas.management.failures import explain_database_errors
from quotas.management.service_keys import MAX_DAYS, show_once
from quotas.models import ServiceKey


class Command(BaseCommand):
    help = "Create a service key and print it. Only its hash is stored, so it can never be shown again."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", help="what uses it, such as 'api server'")
        parser.add_argument(
            "--scopes",
            nargs="+",
            required=True,
            choices=ServiceKey.SCOPES,
            metavar="SCOPE",
            help=f"what it may do: {', '.join(ServiceKey.SCOPES)} (docs/api.md); grant no more than it needs",
        )
        parser.add_argument("--days", type=whole(1, MAX_DAYS), help="days until it expires (default: never)")

    def handle(self, *, name: str, scopes: list[str], days: int | None, **options: Any) -> None:
        if not 1 <= len(name) <= 100 or not name.isprintable():
            raise CommandError("The name must have 1 to 100 characters, all of them printable.")
        expires_at = datetime.now(UTC) + timedelta(days=days) if days else None
        with explain_database_errors():
            show_once(self, *ServiceKey.make(name, set(scopes), expires_at))

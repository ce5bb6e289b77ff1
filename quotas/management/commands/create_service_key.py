"""Create a key for one of the product's own servers, and print it once."""

from datetime import UTC, datetime, timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from quotas.management.failures import explain_database_errors
from quotas.models import ServiceKey


class Command(BaseCommand):
    help = "Create a service key and print it. Only its hash is stored, so it can never be shown again."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", help="what uses it, such as 'api server'")
        parser.add_argument("--scopes", nargs="+", required=True, choices=ServiceKey.SCOPES, metavar="SCOPE")
        parser.add_argument("--days", type=int, help="days until it expires (default: never)")

    def handle(self, *, name: str, scopes: list[str], days: int | None, **options: Any) -> None:
        if not 1 <= len(name) <= 100:
            raise CommandError("The name must have 1 to 100 characters.")
        if days is not None and not 1 <= days <= 3_660:
            raise CommandError("--days must be from 1 to 3660.")
        expires_at = datetime.now(UTC) + timedelta(days=days) if days else None
        with explain_database_errors():
            key, text = ServiceKey.make(name, set(scopes), expires_at)
        self.stderr.write(f"{key}: {', '.join(key.scopes)}. Store it now, it is not shown again:")
        self.stdout.write(text)

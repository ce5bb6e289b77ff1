"""End a service key at once."""

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from quotas.access.service_keys import KEY_CACHE_SECONDS
from quotas.management.failures import explain_database_errors
from quotas.management.service_keys import KEY_HELP, find_key


class Command(BaseCommand):
    help = (
        f"Revoke a service key, for good. The service remembers keys for {KEY_CACHE_SECONDS} seconds, so it "
        "stops working within that time; no restart is needed."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("key", metavar="NAME|ID", help=KEY_HELP)

    def handle(self, *, key: str, **options: Any) -> None:
        with explain_database_errors():
            found = find_key(key)
            is_new = found.revoke()
        then = (
            f"revoked, and stops working within {KEY_CACHE_SECONDS} seconds" if is_new else "revoked already"
        )
        self.stdout.write(f"{found} is {then}.")

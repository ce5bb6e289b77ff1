"""List the service keys, without their secrets."""

import json
from collections.abc import Iterator
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from quotas.management.failures import explain_database_errors
from quotas.models import ServiceKey
from quotas.rules.values import rfc3339

INSTANTS = ("created_at", "last_used_at", "expires_at", "revoked_at")
HEADER = ("NAME", "KEY", "SCOPES", "STATE", "CREATED", "LAST USED", "EXPIRES")


class Command(BaseCommand):
    help = (
        "List all service keys: what each may do, and whether it is active, expired or revoked. A key itself "
        "cannot be shown. Times are in UTC; the last use is recorded at most once a minute."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--json", action="store_true", dest="as_json", help="print one JSON object per key and line"
        )

    def handle(self, *, as_json: bool, **options: Any) -> None:
        with explain_database_errors():
            keys = list(ServiceKey.objects.order_by("name", "id"))
        for line in map(json.dumps, map(members, keys)) if as_json else table(keys):
            self.stdout.write(line)


def members(key: ServiceKey) -> dict[str, Any]:
    instants = {name: (at := getattr(key, name)) and rfc3339(at) for name in INSTANTS}
    known = {"id": str(key.id), "name": key.name, "prefix": f"qs_{key.prefix}", "scopes": key.scopes}
    return {**known, "state": key.state, **instants}


def table(keys: list[ServiceKey]) -> Iterator[str]:
    """Yield lines of aligned columns."""
    rows = [HEADER, *map(cells, keys)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def cells(key: ServiceKey) -> tuple[str, ...]:
    name = key.name if key.name.isprintable() else ascii(key.name)  # no escape sequence for the terminal
    instants = (key.created_at, key.last_used_at, key.expires_at)
    times = (f"{at:%Y-%m-%d %H:%M}" if at else "never" for at in instants)
    return (name, f"qs_{key.prefix}", ", ".join(key.scopes), key.state, *times)

"""Export everything that the database holds of one person."""

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connection
from django.db.models import Model

from quotas.console.csv_export import chunks_of
from quotas.management.arguments import user_id
from quotas.management.failures import explain_database_errors
from quotas.models import ChallengeQuota, LedgerEntry, PlanAssignment
from quotas.operations import old_table
from quotas.rules.values import rfc3339
from webhooks.models import WebhookEvent

# Each table with a person's rows, and the unique column that gives their order.
TABLES: tuple[tuple[type[Model], str], ...] = (
    (ChallengeQuota, "pk"),
    (PlanAssignment, "pk"),
    (WebhookEvent, "pk"),
    (LedgerEntry, "seq"),
)


class Command(BaseCommand):
    help = (
        "Print all rows of one user as JSON: the quota, the plans that Clerk assigned, the deliveries, the "
        "ledger. The entries name the staff who made them. Of a deleted user it prints what is left. The "
        "exit code is 1 if there are no rows."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("user_id", type=user_id, metavar="ID", help="the user's id in Clerk: user_…")

    def handle(self, *, user_id: str, **options: Any) -> None:
        with explain_database_errors():
            if not any(next(rows, None) for _, rows in tables(user_id)):
                raise CommandError(f"There is no user {user_id} here.")
            for part in document(user_id):
                self.stdout.write(part, ending="")


def document(user_id: str) -> Iterator[str]:
    """Yield the JSON text in parts: a ledger may be longer than the memory."""
    yield f'{{\n"user_id": {json.dumps(user_id)}'
    for name, rows in tables(user_id):
        yield f',\n"{name}": ['
        separator = "\n"
        for row in rows:
            yield separator + json.dumps(row, default=in_json)
            separator = ",\n"
        yield "]"
    yield "\n}\n"


def tables(user_id: str) -> Iterator[tuple[str, Iterator[dict[str, Any]]]]:
    """Yield the name of each table with the user's rows in it."""
    for table, order in TABLES:
        chunks = chunks_of(table._default_manager.filter(user_id=user_id), order)
        yield table._meta.db_table, (columns(row) for chunk in chunks for row in chunk)
    if old_table.is_kept():  # by import_quotas --in-place
        yield old_table.KEPT_TABLE, kept_rows(user_id)


def columns(row: Model) -> dict[str, Any]:
    return {field.attname: getattr(row, field.attname) for field in row._meta.concrete_fields}


def kept_rows(user_id: str) -> Iterator[dict[str, Any]]:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT * FROM {old_table.KEPT_TABLE} WHERE user_id = %s", [user_id])  # noqa: S608 - a constant
        names = [column[0] for column in cursor.description]
        yield from (dict(zip(names, row, strict=True)) for row in cursor)


def in_json(value: object) -> str:
    return rfc3339(value) if isinstance(value, datetime) and value.tzinfo else str(value)

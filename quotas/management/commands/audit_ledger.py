"""Prove that every balance follows from its ledger, or say where it does not."""

import json
import time
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from quotas.management.failures import explain_database_errors
from quotas.reports import audit


class Command(BaseCommand):
    help = (
        "Check every ledger: no gap, a chain of balances that ends in the row's, nothing overspent, nothing "
        "refunded twice. Writes nothing. Each fault is a line; the exit code is 1 if there is one."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--user", metavar="ID", help="audit this user alone")
        parser.add_argument(
            "--json", action="store_true", dest="as_json", help="write every line as a JSON object"
        )

    def handle(self, *, user: str | None, as_json: bool, **options: Any) -> None:
        begun = time.monotonic()
        count = 0
        with explain_database_errors(), audit.one_snapshot():
            users, entries = audit.census(user)
            for fault in audit.faults(user):
                count += 1
                self.tell(str(fault), fault._asdict(), as_json=as_json)
        seconds = time.monotonic() - begun
        summary = f"{users} users, {entries} entries, {count} faults, in {seconds:.1f} s"
        told = {"users": users, "entries": entries, "faults": count, "seconds": round(seconds, 3)}
        if as_json or not count:
            self.tell(summary, told, as_json=as_json)
        if count:
            raise CommandError(summary)

    def tell(self, line: str, told: dict[str, Any], *, as_json: bool) -> None:
        self.stdout.write(json.dumps(told) if as_json else line)

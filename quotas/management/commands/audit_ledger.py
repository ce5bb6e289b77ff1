"""Verify that every balance follows from its ledger, and report where it does not."""

import json
import time
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from quotas.management.arguments import user_id
from quotas.management.failures import explain_database_errors
from quotas.reports import audit

NO_SUCH_USER = 2  # the exit code


class Command(BaseCommand):
    help = (
        "Verify every ledger: no gap, a chain of balances that ends in the row's, nothing overspent, nothing "
        "refunded twice. Writes nothing. Prints one line per fault; the exit code is 1 if there is any, and "
        "2 if there is no user of that id."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--user", type=user_id, metavar="ID", help="audit only this user")
        parser.add_argument(
            "--json", action="store_true", dest="as_json", help="print each line as a JSON object"
        )

    def handle(self, *, user: str | None, as_json: bool, **options: Any) -> None:
        begun = time.monotonic()
        count = 0
        with explain_database_errors(), audit.one_snapshot():
            users, entries = audit.census(user)
            if user and not users + entries:
                raise CommandError(f"There is no user {user} here.", returncode=NO_SUCH_USER)
            for fault in audit.faults(user):
                count += 1
                self.report(str(fault), fault._asdict(), as_json=as_json)
        seconds = time.monotonic() - begun
        summary = f"{users} users, {entries} entries, {count} faults, in {seconds:.1f} s"
        figures = {"users": users, "entries": entries, "faults": count, "seconds": round(seconds, 3)}
        if as_json or not count:
            self.report(summary, figures, as_json=as_json)
        if count:
            raise CommandError(summary)

    def report(self, text: str, fields: dict[str, Any], *, as_json: bool) -> None:
        self.stdout.write(json.dumps(fields) if as_json else text)

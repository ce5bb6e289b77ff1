"""Report where users in Clerk and quotas here differ: lost deliveries, quotas without a user."""

import json
import time
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from tqdm import tqdm

from quotas.management.failures import explain_database_errors, explain_interrupt
from webhooks.backfill import report_and_wait
from webhooks.clerk.backend_api import ClerkError, count_users
from webhooks.clerk.payloads import NotConfigured
from webhooks.drift import Comparison

LINES, UNFINISHED = 100, 2  # per kind without --json; the exit code


class Command(BaseCommand):
    help = (
        "Compare all users in Clerk with all quotas here, and report users without a quota, quotas without a "
        "user, users who are closed only here, and users whose e-mail or plan differs. Writes nothing. The "
        "exit code is 0 without drift, 1 with it, and 2 if the comparison could not be finished."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--json", action="store_true", dest="as_json", help="print one JSON object per line"
        )
        parser.add_argument("--show-emails", action="store_true", help="show the e-mails that differ")

    def handle(self, *, as_json: bool, show_emails: bool, **options: Any) -> None:
        begun = time.monotonic()
        try:
            found = self.compare(as_json=as_json, show_emails=show_emails)
        except (ClerkError, NotConfigured) as error:
            raise CommandError(str(error), returncode=UNFINISHED) from error
        seconds = time.monotonic() - begun
        if as_json:
            self.stdout.write(json.dumps({**found.figures, "seconds": round(seconds, 3)}))
        for kind in () if as_json else found.counts:
            if (more := found.counts[kind] - LINES) > 0:
                self.stdout.write(f"and {more} more: {kind}")
        summary = f"{found.summary}, in {seconds:.1f} s"
        if found.total:
            raise CommandError(summary)
        if not as_json:
            self.stdout.write(summary)

    @explain_interrupt(lambda: ": the report is incomplete.", returncode=UNFINISHED)
    @explain_database_errors(returncode=UNFINISHED)
    def compare(self, *, as_json: bool, show_emails: bool) -> Comparison:
        with tqdm(unit=" users", disable=None, leave=False) as bar:  # None: shown on a terminal only
            if not bar.disable:
                bar.total = count_users(on_wait=report_and_wait)
            comparison = Comparison(on_page=bar.update, on_wait=report_and_wait)
            for drift in comparison.drifts():
                if as_json or comparison.counts[drift.kind] <= LINES:
                    bar.clear()
                    shown = drift if show_emails else drift.without_email
                    self.stdout.write(json.dumps(shown._asdict()) if as_json else str(shown))
        return comparison

"""Tell where Clerk's users and the quotas have drifted apart: deliveries that never came, rows of nobody."""

import json
import signal
import time
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import InterfaceError, OperationalError
from tqdm import tqdm

from webhooks.clerk.backend_api import ClerkError, count_users
from webhooks.clerk.payloads import NotConfigured
from webhooks.drift import KINDS, Comparison, Drift
from webhooks.management.commands.backfill_quotas import tell_and_wait

LINES = 100  # of a kind; the others are counted, and told with --json
UNFINISHED = 2  # exit code


class Command(BaseCommand):
    help = (
        "Compare all of Clerk's users with the quotas, and tell who is in Clerk and not here, here and not "
        "in Clerk, closed here alone, or known with another e-mail or plan. Writes nothing. The exit code is "
        "0 without drift, 1 with it, and 2 if the comparison could not be finished."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--json",
            action="store_true",
            dest="as_json",
            help="write every drift as a JSON object on a line of its own, and the summary as the last",
        )
        parser.add_argument("--show-emails", action="store_true", help="tell the e-mails that differ")

    def handle(self, *, as_json: bool, show_emails: bool, **options: Any) -> None:
        begun = time.monotonic()
        counts = dict.fromkeys(KINDS, 0)
        terminated = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
        try:
            with tqdm(unit=" users", disable=None, leave=False) as bar:  # None: shown on a terminal only
                if not bar.disable:
                    bar.total = count_users(on_wait=tell_and_wait)
                comparison = Comparison(on_page=bar.update, on_wait=tell_and_wait)
                for drift in comparison.drifts():
                    counts[drift.kind] += 1
                    if as_json or counts[drift.kind] <= LINES:
                        bar.clear()
                        self.tell(drift if show_emails else _discreet(drift), as_json=as_json)
        except KeyboardInterrupt:
            raise CommandError("Interrupted: the report is not whole.", returncode=UNFINISHED) from None
        except (ClerkError, NotConfigured) as error:
            raise CommandError(str(error), returncode=UNFINISHED) from error
        except (OperationalError, InterfaceError) as error:
            fault = f"The database (DATABASE_URL) cannot be used: {error}".strip()
            raise CommandError(fault, returncode=UNFINISHED) from error
        finally:
            signal.signal(signal.SIGTERM, terminated)
        self.sum_up(comparison, counts, time.monotonic() - begun, as_json=as_json)

    def tell(self, drift: Drift, *, as_json: bool) -> None:
        if as_json:
            self.stdout.write(json.dumps(drift._asdict()))
            return
        both = drift.kind in ("email", "plan")
        values = f": {_shown(drift.here)} here, {_shown(drift.clerk)} in Clerk" if both else ""
        self.stdout.write(f"{drift.user_id}: {drift.kind}: {KINDS[drift.kind]}{values}")

    def sum_up(
        self, comparison: Comparison, counts: dict[str, int], seconds: float, *, as_json: bool
    ) -> None:
        """Tell the figures, and exit with 1 if anything has drifted."""
        drifts = sum(counts.values())
        kinds = ", ".join(f"{kind} {count}" for kind, count in counts.items())
        summary = (
            f"{comparison.users} users in Clerk, {comparison.rows} live quotas here, {drifts} drifts "
            f"({kinds}), in {seconds:.1f} s"
        )
        if as_json:
            figures = {"users": comparison.users, "odd": comparison.odd, "rows": comparison.rows}
            rest = {"drifts": drifts, **counts, "seconds": round(seconds, 3)}
            self.stdout.write(json.dumps(figures | rest))
        else:
            for kind, count in counts.items():
                if count > LINES:
                    self.stdout.write(f"and {count - LINES} more: {kind}")
        if drifts:
            raise CommandError(summary)
        if not as_json:
            self.stdout.write(summary)


def _discreet(drift: Drift) -> Drift:
    """An e-mail is personal: tell no more of it than whether there is one."""
    if drift.kind != "email":
        return drift
    return drift._replace(here=drift.here and "hidden", clerk=drift.clerk and "hidden")


def _shown(value: str | None) -> str:
    return repr(value) if value else "none"

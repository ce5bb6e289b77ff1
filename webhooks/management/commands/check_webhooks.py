"""Report whether Clerk's deliveries arrive, and what to do if they do not."""

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from quotas.management.failures import explain_database_errors
from quotas.rules.durations import duration_in_words
from quotas.rules.values import rfc3339
from webhooks.arrivals import DAYS, OPENED_BY, Arrivals
from webhooks.causes import CAUSES


class Command(BaseCommand):
    help = (
        f"Report who opened the quotas of the last {DAYS.days} days, when Clerk's last delivery arrived, and "
        "which were refused. Writes nothing. The exit code is 1 if something is probably wrong; then the "
        "causes are listed, each with what one sees and what to do."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", dest="as_json", help="print one JSON object")

    @explain_database_errors()
    def handle(self, *, as_json: bool, **options: Any) -> None:
        arrivals = Arrivals.now()
        self.stdout.write(json.dumps(_figures(arrivals)) if as_json else "\n".join(_lines(arrivals)))
        if not arrivals.faults:
            return
        if not as_json:
            for cause in CAUSES:
                self.stdout.write(f"\nCause  {cause.cause}\n  see  {cause.seen}\n  do   {cause.remedy}")
        raise CommandError(" ".join(arrivals.faults))


def _lines(arrivals: Arrivals) -> list[str]:
    lines = [f"Quotas opened in the last {DAYS.days} days:"]
    lines += [f"  {count:>9}  {label}" for label, count in arrivals.rows]
    lines += [
        f"Refused deliveries in the last {DAYS.days} days: {'at least' if arrivals.refused else 'none'}"
    ]
    lines += [f"  {count:>9}  {why}; last {at:%Y-%m-%d %H:%M} UTC" for why, count, at in arrivals.refusals]
    if arrivals.last is None or arrivals.age is None:
        return [*lines, "Last verified delivery: none in the inbox"]
    ago = duration_in_words(int(arrivals.age.total_seconds()) // 60 * 60)
    return [*lines, f"Last verified delivery: {arrivals.last:%Y-%m-%d %H:%M} UTC, {ago} ago"]


def _figures(arrivals: Arrivals) -> dict[str, Any]:
    return {
        "opened": {opener: arrivals.opened[opener] for opener in OPENED_BY},
        "last_delivery_at": arrivals.last and rfc3339(arrivals.last),
        "last_delivery_age_seconds": arrivals.age and int(arrivals.age.total_seconds()),
        "refused": {
            reason: {"times": each.times, "last_at": rfc3339(each.last)}
            for reason, each in arrivals.refused.items()
        },
        "faults": arrivals.faults,
    }

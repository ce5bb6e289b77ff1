"""Open the missing quotas, of users who signed up before the webhook existed or whose delivery failed."""

from datetime import datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from quotas.management.arguments import FORMS, instant
from quotas.management.failures import explain_database_errors, explain_interrupt
from quotas.problems import NO_DEFAULT_PLAN
from quotas.store.errors import NoDefaultPlan
from webhooks.backfill import Backfill, CannotBegin
from webhooks.clerk.backend_api import ClerkError
from webhooks.clerk.payloads import NotConfigured

ARGUMENTS: dict[str, dict[str, Any]] = {
    "--dry-run": {"action": "store_true", "help": "count what would be made, and make nothing"},
    "--after": {
        "metavar": "USER_ID",
        "default": "",
        "help": "start after this user, as printed by an earlier run",
    },
    "--since": {
        "metavar": "TIME",
        "type": instant,
        "help": f"only users who signed up then or later, such as {FORMS}",
    },
    "--ids": {
        "metavar": "FILE",
        "help": "read ids from FILE ('-' is standard input), one per line, instead of asking Clerk",
    },
}


class Command(BaseCommand):
    help = (
        "Make the missing quota rows, for each user in Clerk or for each id in a file, and store the plans "
        "from Clerk's metadata. The rows of a batch are made all or none: the command can be interrupted, "
        "prints where to continue, and can be run again. Its last line counts the users it has seen: made, "
        "already there, tombstoned (deleted, so left closed), odd (unusable, each "
        "listed with its reason), and plans (stored from the metadata)."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        for name, options in ARGUMENTS.items():
            parser.add_argument(name, **options)

    def handle(self, *, after: str, since: datetime | None, ids: str | None, **options: Any) -> None:
        if ids is not None and (after or since):
            raise CommandError("--after and --since select users in Clerk: leave them out with --ids.")
        run = Backfill(options["dry_run"], self.stderr.write)
        try:
            with (
                explain_interrupt(lambda: f". What was made stays; {run.rest}"),
                explain_database_errors(then=lambda: run.rest),
            ):
                run.from_clerk(after, since) if ids is None else run.from_ids(ids)
                run.report_waiting()
        except (NotConfigured, CannotBegin) as error:
            raise CommandError(str(error)) from error
        except ClerkError as error:
            raise CommandError(f"{error} Then {run.rest}") from error
        except NoDefaultPlan as error:
            raise CommandError(f"{NO_DEFAULT_PLAN.sentence} Then {run.rest}") from error
        finally:
            run.report_unusable()
            self.stdout.write(run.summary)
        if run.bad_lines:
            raise CommandError(f"{run.bad_lines} lines hold no valid user id; all others were processed.")

"""Take over the users' quotas of another service, such as an app's own table challenge_quotas."""

from collections.abc import Iterator
from typing import Any
from zoneinfo import ZoneInfo

from django.core.management.base import BaseCommand, CommandError, CommandParser

from quotas.management.arguments import time_zone
from quotas.management.failures import explain_database_errors, explain_interrupt
from quotas.operations import old_table
from quotas.operations.import_sources import CannotRead, SourceRow, csv_rows, table_rows
from quotas.operations.importing import Import, destination
from quotas.problems import NO_DEFAULT_PLAN
from quotas.rules.outcomes import UnknownPlan
from quotas.store.errors import NoDefaultPlan

NEXT = "run it again; what was imported stays."


class Command(BaseCommand):
    help = (
        "Open a quota for each user of another service, in the same period and with the same units left. A "
        "quota that exists here stays as it is, so the command can be interrupted, and run again. Rows that "
        "cannot be imported are listed with the reason, and the exit code is 1."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        source = parser.add_mutually_exclusive_group(required=True)
        source.add_argument("--from", metavar="URL", dest="url", help="sqlite:///PATH or postgresql://…")
        source.add_argument(
            "--csv", metavar="FILE", help="a CSV file with a line of names; '-' is standard input"
        )
        source.add_argument(
            "--in-place",
            action="store_true",
            help=f"a table {old_table.TABLE} in our own database: it is kept as {old_table.KEPT_TABLE}",
        )
        parser.add_argument(
            "--despite-sessions",
            action="store_true",
            help="with --in-place: take the table over although other sessions of the database are open",
        )
        parser.add_argument("--table", default=old_table.TABLE, help="with --from (default: %(default)s)")
        parser.add_argument(
            "--timezone", type=time_zone, default="UTC", help="of instants without one (default: %(default)s)"
        )
        parser.add_argument("--plan", help="the plan of all of them (default: the default plan)")
        parser.add_argument("--dry-run", action="store_true", help="count what would be imported")

    def handle(self, *, plan: str | None, timezone: ZoneInfo, dry_run: bool, **options: Any) -> None:
        run = Import(timezone, self.stderr.write)
        try:
            with explain_interrupt(lambda: f": {NEXT}"), explain_database_errors(then=lambda: NEXT):
                if options["in_place"]:
                    old_table.standing()  # before the plans are looked for, whose table may not exist either
                source = "CSV" if options["csv"] else options["table"]
                store, allowance = destination(plan, source, dry_run=dry_run)
                run.run(self.rows(dry_run=dry_run, **options), store, allowance)
        except (CannotRead, old_table.CannotTakeOver) as error:
            raise CommandError(str(error)) from error
        except UnknownPlan as error:
            raise CommandError(f"There is no plan {plan}: add it first, or leave --plan out.") from error
        except NoDefaultPlan as error:
            raise CommandError(NO_DEFAULT_PLAN.sentence) from error
        finally:
            self.stdout.write(f"{'dry run: ' * dry_run}{run.summary}")
        if faults := " ".join(run.faults):
            raise CommandError(faults)

    def rows(
        self, *, url: str | None, csv: str | None, table: str, dry_run: bool, **options: Any
    ) -> Iterator[SourceRow]:
        if url is not None:
            return table_rows(url, table)
        if csv is not None:
            return csv_rows(csv)
        return old_table.rows(dry_run=dry_run, despite_sessions=options["despite_sessions"])

"""Make the plans as a file says, and give them to the users who wait for them."""

from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import IntegrityError
from tqdm import tqdm

from quotas.management.failures import explain_database_errors, explain_interrupt
from quotas.operations import plan_changes
from quotas.operations.plan_file import BadPlanFile, read_plans
from quotas.reports.counts import users_in_words
from quotas.reports.waiting import give_plans, sentences, waiting_for_ours, waiting_for_unknown
from quotas.rules.values import Actor

ACTOR = Actor("command", "apply_plans")
MEANWHILE = "Another session changed the plans meanwhile, so nothing was applied: run it again."


class Command(BaseCommand):
    help = (
        "Make the plans as in FILE (docs/plans.toml is an example): add, change and archive them, all or "
        "none, and choose the default. Plans that FILE does not name stay. Then give each plan to "
        "the users who wait for it because Clerk assigned it before it existed here. A second run does "
        "nothing."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", metavar="FILE", help="such as plans.toml; '-' is standard input")
        parser.add_argument("--dry-run", action="store_true", help="print the same, and change nothing")

    def handle(self, *, file: str, dry_run: bool, **options: Any) -> None:
        self.given, self.is_applied = 0, False
        try:
            with explain_interrupt(self.progress), explain_database_errors(then=lambda: "run it again."):
                wanted = read_plans(file)
                changes = plan_changes.compare(wanted) if dry_run else plan_changes.apply(wanted)
                self.is_applied = not dry_run
                self.stdout.write("\n".join(plan_changes.lines_of(changes, dry_run=dry_run)))
                if not dry_run:
                    self.give()
                unknown = [found for found in waiting_for_unknown() if found.plan not in wanted]
                self.stderr.write("\n".join(sentences(unknown)), ending="\n" if unknown else "")
        except BadPlanFile as error:
            raise CommandError(f"{file}: nothing was applied.\n{error}") from error
        except (IntegrityError, ValidationError) as error:
            raise CommandError(MEANWHILE) from error

    def progress(self) -> str:
        if not self.is_applied:
            return ": nothing was applied."
        return f": the plans are applied; {users_in_words(self.given)} got theirs. Run it again for the rest."

    def give(self) -> None:
        if not (total := sum(found.users for found in waiting_for_ours())):
            return
        for was_given in tqdm(give_plans(ACTOR), total=total, unit=" users", disable=None):
            self.given += was_given
        self.stdout.write(f"{self.given} of {total} users who waited for a plan have it now.")

"""Distribute the tables over the nodes of a Citus cluster."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, connection

from quotas.management.failures import explain_database_errors
from quotas.operations import citus


class Command(BaseCommand):
    help = (
        "Put all rows of a user on one shard of a Citus cluster, and copy all other tables of the schema to "
        "each node, in one transaction. Spends wait for it, so stop the service meanwhile. A second run does "
        "nothing."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--dry-run", action="store_true", help="print the statements for psql, and change nothing"
        )

    def handle(self, *, dry_run: bool, **options: Any) -> None:
        if connection.vendor != "postgresql":
            raise CommandError(
                "Citus is an extension of PostgreSQL: set DATABASE_URL to a PostgreSQL database."
            )
        try:
            with explain_database_errors():
                self.distribute(dry_run=dry_run)
        except citus.CannotDistribute as error:
            raise CommandError(f"{error} Nothing was changed.") from error

    def distribute(self, *, dry_run: bool) -> None:
        statements = citus.distribution(citus.read_schema())
        has_citus = citus.has_extension()
        if dry_run:
            self.show(statements, has_citus=has_citus)
        elif not has_citus:
            raise CommandError(
                "This database has no extension citus, so nothing was changed: run CREATE EXTENSION citus on "
                "the coordinator of a cluster. --dry-run prints the statements that would then be run."
            )
        else:
            self.run_statements(statements)

    def show(self, statements: list[str], *, has_citus: bool) -> None:
        if not has_citus:
            self.stderr.write("This database has no extension citus: with it, these statements would be run.")
        if statements:
            self.stdout.write("\n".join(f"{statement};" for statement in ["BEGIN", *statements, "COMMIT"]))
            self.stdout.write(citus.SETTINGS)

    def run_statements(self, statements: list[str]) -> None:
        try:
            citus.carry_out(statements, self.stdout.write)
        except DatabaseError as error:
            raise CommandError(f"This statement failed, so nothing was changed: {error}".strip()) from error
        self.stdout.write(
            "All tables are distributed." if statements else "All tables were already distributed."
        )
        self.stdout.write(citus.SETTINGS)

"""Spread the tables over the nodes of a Citus cluster."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, connection, transaction

from quotas.management.failures import explain_database_errors
from quotas.operations import citus


class Command(BaseCommand):
    help = (
        "Keep each user's rows on one shard of a Citus cluster, and plans on all nodes. One transaction, all "
        "or nothing; spends wait for it, so stop the service meanwhile. Once it is done it does nothing more."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--dry-run", action="store_true", help="write the statements, as psql takes them; change nothing"
        )

    def handle(self, *, dry_run: bool, **options: Any) -> None:
        if connection.vendor != "postgresql":
            raise CommandError("Citus is an extension of PostgreSQL, and DATABASE_URL names a SQLite file.")
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
                "This PostgreSQL has no extension citus, so nothing was changed. On the coordinator of a "
                "cluster, CREATE EXTENSION citus makes it; --dry-run shows what would be done then."
            )
        else:
            self.carry_out(statements)

    def show(self, statements: list[str], *, has_citus: bool) -> None:
        if not has_citus:
            self.stderr.write("This PostgreSQL has no extension citus: where it is, this would be done.")
        if statements:
            self.stdout.write("\n".join(f"{it};" for it in ["BEGIN", *statements, "COMMIT"]))

    def carry_out(self, statements: list[str]) -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            for statement in statements:
                self.stdout.write(f"{statement};")
                try:
                    cursor.execute(statement)
                except DatabaseError as error:
                    raise CommandError(f"That failed, so nothing was changed: {error}".strip()) from error
        self.stdout.write("All is distributed." if statements else "All was distributed already.")

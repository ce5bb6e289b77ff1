"""Django's migrate, one at a time: two at once on an empty database would both create its tables."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.core.management import CommandError
from django.core.management.commands import migrate
from django.db import OperationalError, connections
from django.db.migrations.exceptions import IrreversibleError

from quotas.store.errors import LOCK_NOT_AVAILABLE, sqlstate

WAIT = "10min"  # for another migrate; then this one fails, and can be run again
LOCK_KEY = 5_117_020_923  # of this purpose; any number that no other program uses

# The lock ends with its transaction, in a session of its own: one of the session would stay behind in a
# pooler. The transaction is idle meanwhile, whatever limit the role has for that.
LIMITS = """
    SELECT set_config('lock_timeout', %s, true), set_config('statement_timeout', '0', true),
        set_config('idle_in_transaction_session_timeout', '0', true)
"""


class Command(migrate.Command):
    def handle(self, *args: Any, **options: Any) -> None:
        try:
            with one_at_a_time(options["database"]):
                super().handle(*args, **options)
        except IrreversibleError as error:
            raise CommandError(str(error)) from error


@contextmanager
def one_at_a_time(alias: str) -> Iterator[None]:
    """Hold the lock of migrate during the block; SQLite has none."""
    if connections[alias].vendor != "postgresql":
        yield
        return
    holder = connections[alias].copy()
    try:
        holder.set_autocommit(False)
        with holder.cursor() as cursor:
            cursor.execute(LIMITS, [WAIT])
            try:
                cursor.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK_KEY])
            except OperationalError as error:
                if sqlstate(error) != LOCK_NOT_AVAILABLE:
                    raise
                text = f"Another migrate has been at work for {WAIT}: run this one again."
                raise CommandError(text) from error
        yield
    finally:
        holder.close()

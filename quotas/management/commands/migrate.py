"""Django's migrate, one at a time: two at once on an empty database would both create its tables."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from django.core.management import CommandError
from django.core.management.commands import migrate
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.exceptions import IrreversibleError

from quotas.operations.old_table import MIGRATE_LOCK

WAIT_SECONDS = 600  # for another migrate; then this one fails, and can be run again
SECONDS_BETWEEN_TRIES = 0.5


class Command(migrate.Command):
    def check(self, *args: Any, **options: Any) -> None:
        for alias in options.get("databases") or ():
            connections[alias].ensure_connection()  # if this fails, no other check has anything to add
        super().check(*args, **options)

    def handle(self, *args: Any, **options: Any) -> None:
        if options["plan"] or options["check_unapplied"]:  # it changes nothing
            super().handle(*args, **options)
            return
        try:
            with one_at_a_time(options["database"], self.stderr.write):
                super().handle(*args, **options)
        except IrreversibleError as error:
            raise CommandError(str(error)) from error


@contextmanager
def one_at_a_time(alias: str, write: Callable[[str], object]) -> Iterator[None]:
    """Hold the lock of migrate during the block; SQLite has none. Raises CommandError if another keeps it.

    The lock ends with its transaction, in a session of its own: one of the session would stay behind in a
    pooler. Whoever waits holds no session: a pooler may have few. Django's cursor sends no parameters:
    PostgreSQL would keep the snapshot of a statement that has some, and a concurrent index waits for its end.
    """
    if connections[alias].vendor != "postgresql":
        yield
        return
    deadline = time.monotonic() + WAIT_SECONDS
    with closing(connections[alias].copy()) as holder:
        holder.set_autocommit(False)
        if not _try_lock(holder):
            write("Another migrate is at work: waiting for its end.")
            while not _try_lock(holder):
                if time.monotonic() > deadline:
                    raise CommandError("Another migrate is still at work: run this one again.")
                time.sleep(SECONDS_BETWEEN_TRIES)
        yield


def _try_lock(holder: BaseDatabaseWrapper) -> bool:
    with holder.cursor() as cursor:
        # The transaction is idle while the migrations run, whatever limit the role has for that.
        cursor.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [MIGRATE_LOCK])
        is_ours: bool = cursor.fetchone()[0]
    if not is_ours:
        holder.rollback()
    return is_ours

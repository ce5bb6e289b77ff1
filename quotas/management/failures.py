"""The errors with which every command ends when the database fails or an operator stops it."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread

from django.conf import settings
from django.core.management.base import CommandError
from django.db import Error

from quotas.store.errors import is_not_migrated, is_unavailable

NO_DATABASE_URL = (
    "DATABASE_URL is not set, so this is the SQLite file in the project. The demo has a database of its own, "
    "and prints a service key for it."
)


@contextmanager
def explain_database_errors(*, then: Callable[[], str] = str, returncode: int = 1) -> Iterator[None]:
    """Turn a database error into a CommandError that names the variable; `then` returns the next step."""
    try:
        yield
    except Error as error:
        if not (fault := database_fault(error)):
            raise
        advice = f"\nThen {rest}" if (rest := then()) else ""
        raise CommandError(f"{fault}{advice}", returncode=returncode) from error


def database_fault(error: Exception) -> str:
    """Return what is wrong with the database, for an operator; "" if the error is a bug."""
    if is_not_migrated(error):
        missing = str(error).strip().partition("\n")[0]
        rest = "" if settings.DATABASE_URL_IS_SET else f" {NO_DATABASE_URL}"
        return f"The database (DATABASE_URL) lacks migrations ({missing}): run manage.py migrate.{rest}"
    if is_unavailable(error):
        return f"The database (DATABASE_URL) cannot be used: {str(error).strip()}"
    return ""


@contextmanager
def explain_interrupt(explanation: Callable[[], str], *, returncode: int = 130) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into a CommandError; `explanation` returns what is done and what remains."""
    takes_signals = current_thread() is main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if takes_signals else None
    try:
        yield
    except KeyboardInterrupt:
        raise CommandError(f"Interrupted{explanation()}", returncode=returncode) from None
    finally:
        if takes_signals:
            signal.signal(signal.SIGTERM, before)

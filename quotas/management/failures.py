"""The errors with which every command ends when the database fails or an operator stops it."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from typing import Any

from django.core.management import ManagementUtility
from django.core.management.base import BaseCommand, CommandError
from django.db import Error

from quotas.operations.database_faults import database_fault


class CommandLine(ManagementUtility):
    """Django's; but each command, Django's own too, ends with one line if the database cannot be used."""

    def fetch_command(self, subcommand: str) -> BaseCommand:
        command = super().fetch_command(subcommand)
        execute = command.execute

        def explained(*args: Any, **options: Any) -> str | None:
            try:
                return execute(*args, **options)
            except Exception as error:
                fault = database_fault(error)
                if not fault or fault in str(error):
                    raise
                raise CommandError(fault, returncode=getattr(error, "returncode", 1)) from error

        command.execute = explained  # type: ignore[method-assign] # of this object
        return command


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

"""Django's runserver, which ends with one line if the database cannot be used."""

import os
from typing import Any

from django.contrib.staticfiles.management.commands import runserver
from django.db import Error

from quotas.operations.database_faults import database_fault


class Command(runserver.Command):
    def inner_run(self, *args: Any, **options: Any) -> None:
        try:
            super().inner_run(*args, **options)
        except Error as error:
            if not (fault := database_fault(error)):
                raise
            self.stderr.write(f"CommandError: {fault}")
            os._exit(1)  # as Django does for a port in use: this may be the reloader's thread

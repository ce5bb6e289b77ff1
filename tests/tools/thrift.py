"""What need not be paid for by each test anew: a plugin (pyproject.toml), without which all tests pass too.

It saves work whose outcome is the same every time, and changes nothing that a test looks at.
"""

from io import StringIO

import pytest
from django.conf import settings
from django.contrib.auth.hashers import PBKDF2PasswordHasher
from django.core.serializers import deserialize
from django.db.backends.base.creation import BaseDatabaseCreation
from django.db.transaction import atomic
from whitenoise.middleware import WhiteNoiseMiddleware

STATIC = ("STATIC", "WHITENOISE_")


def pytest_configure(config: pytest.Config) -> None:
    PBKDF2PasswordHasher.iterations = 1_000  # a million of them is half a second for each user that is made
    list_static_files_once()
    put_rows_back_together()


def list_static_files_once() -> None:
    """Let the clients share the list of static files: to make it anew takes longer than most tests.

    Each test client builds the middleware of its own, and WhiteNoise's looks at each static file while it
    is built. The list is made anew where the settings that it depends on are other ones.
    """
    look, known = WhiteNoiseMiddleware.add_files_from_finders, {}

    def add_files(self: WhiteNoiseMiddleware) -> None:
        told = {name: getattr(settings, name) for name in dir(settings) if name.startswith(STATIC)}
        depends_on = f"{told} {settings.DEBUG} {settings.FORCE_SCRIPT_NAME} {settings.INSTALLED_APPS}"
        if depends_on not in known:
            look(self)
            known[depends_on] = dict(self.files)
        self.files.update(known[depends_on])

    WhiteNoiseMiddleware.add_files_from_finders = add_files


def put_rows_back_together() -> None:
    """Bring the rows of the migrations back table by table: Django saves two hundred of them one by one."""

    def put_back(self: BaseDatabaseCreation, data: str) -> None:
        alias = self.connection.alias
        rows = [*deserialize("json", StringIO(data), using=alias)]
        tables = {type(row.object): [] for row in rows}
        for row in rows:
            tables[type(row.object)].append(row.object)
        with atomic(alias), self.connection.constraint_checks_disabled():
            for model, objects in tables.items():
                model._base_manager.using(alias).bulk_create(objects, ignore_conflicts=True)
            for row in rows:
                for name, related in (row.m2m_data or {}).items():
                    getattr(row.object, name).set(related)
        self.connection.check_constraints(model._meta.db_table for model in tables)

    BaseDatabaseCreation.deserialize_db_from_string = put_back

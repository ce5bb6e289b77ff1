"""A plugin (pyproject.toml) that makes the suite faster; all tests pass without it too.

It saves work that has the same result for every test, and changes nothing that a test checks.
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
    PBKDF2PasswordHasher.iterations = 1_000  # Django's million takes half a second for each user created
    list_static_files_once()
    put_rows_back_together()


def list_static_files_once() -> None:
    """Let test clients share the list of static files: building it takes longer than most tests.

    Each test client builds its own middleware, and WhiteNoise's then inspects every static file. The list is
    built again if a setting that it depends on has another value.
    """
    list_files, cache = WhiteNoiseMiddleware.add_files_from_finders, {}

    def add_files(self: WhiteNoiseMiddleware) -> None:
        static = {name: getattr(settings, name) for name in dir(settings) if name.startswith(STATIC)}
        key = f"{static} {settings.DEBUG} {settings.FORCE_SCRIPT_NAME} {settings.INSTALLED_APPS}"
        if key not in cache:
            list_files(self)
            cache[key] = dict(self.files)
        self.files.update(cache[key])

    WhiteNoiseMiddleware.add_files_from_finders = add_files


def put_rows_back_together() -> None:
    """Restore the rows of the migrations table by table: Django saves each of the two hundred separately."""

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

"""No migration locks a table in use for long, or removes what the previous release still reads."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from django.apps import apps
from django.conf import settings
from django_migration_linter import MigrationLinter
from pytest_django import Settings

pytestmark = [pytest.mark.django_db, pytest.mark.postgres, pytest.mark.once]

OURS = ("quotas", "webhooks")
NO_DANGER = ["RUNPYTHON_MODEL_VARIABLE_NAME"]  # the names of a migration's variables are a matter of taste

UNSAFE = {
    "0002_drop_column": 'migrations.RemoveField("thing", "dropped")',
    "0003_required_column": 'migrations.AddField("thing", "added", models.IntegerField(default=1))',
    "0004_index": 'migrations.AddIndex("thing", models.Index(fields=["indexed"], name="an_index"))',
    "0005_rename_column": 'migrations.RenameField("thing", "renamed", "named")',
    "0006_column_type": 'migrations.AlterField("thing", "retyped", models.TextField())',
    "0007_unique": 'migrations.AlterField("thing", "single", models.IntegerField(unique=True))',
    "0008_one_way": "migrations.RunPython(lambda apps, schema_editor: None)",
    "0009_drop_table": 'migrations.DeleteModel("thing")',
}
FIRST = """migrations.CreateModel("thing", [
        ("id", models.BigAutoField(primary_key=True)), ("retyped", models.IntegerField()),
        *((name, models.IntegerField()) for name in ("dropped", "indexed", "renamed", "single")),
    ])"""


def faults(app: str) -> Iterator[str]:
    """Yield the migrations of an app that the linter objects to."""
    linter = MigrationLinter(
        include_apps=[app],
        exclude_migration_tests=NO_DANGER,
        all_warnings_as_errors=True,
        no_cache=True,
        analyser_string="postgresql",
    )
    on_disk = linter.migration_loader.disk_migrations.values()
    of_app = [migration for migration in on_disk if migration.app_label == app]
    assert of_app
    for migration in of_app:
        before = linter.nb_erroneous
        linter.lint_migration(migration)
        if linter.nb_erroneous > before:
            yield migration.name


@pytest.mark.parametrize("app", OURS)
def test_a_migration_can_run_while_the_service_is_used(app: str) -> None:
    assert list(faults(app)) == []


def test_each_app_of_ours_with_migrations_is_looked_at() -> None:
    root = Path(settings.BASE_DIR)
    with_migrations = {
        app.label
        for app in apps.get_app_configs()
        if Path(app.path, "migrations").is_dir()
        if Path(app.path).parent == root
    }
    assert with_migrations == set(OURS)


def test_an_unsafe_migration_is_flagged(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "unsafe_app" / "migrations"
    folder.mkdir(parents=True)
    for package in (folder.parent, folder):
        (package / "__init__.py").touch()
    needs = "[]"
    for name, operation in {"0001_initial": FIRST, **UNSAFE}.items():
        (folder / f"{name}.py").write_text(
            "from django.db import migrations, models\n\nclass Migration(migrations.Migration):\n"
            f"    dependencies = {needs}\n    operations = [{operation}]\n"
        )
        needs = f'[("unsafe_app", "{name}")]'
    monkeypatch.syspath_prepend(str(tmp_path))
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "unsafe_app"]
    assert sorted(faults("unsafe_app")) == sorted(UNSAFE)

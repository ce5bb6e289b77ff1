from django.apps.registry import Apps
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor


def freeze_at_once(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """Let the first vacuum freeze entries, which never change: freezing them later would read them all again."""
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute("ALTER TABLE ledger_entries SET (autovacuum_freeze_min_age = 0)")


def freeze_as_usual(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute("ALTER TABLE ledger_entries RESET (autovacuum_freeze_min_age)")


class Migration(migrations.Migration):
    dependencies = [("quotas", "0011_kinds_index")]

    operations = [migrations.RunPython(freeze_at_once, freeze_as_usual)]

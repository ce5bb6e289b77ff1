from django.apps.registry import Apps
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.exceptions import IrreversibleError

from quotas.operations.live_checks import ReplaceCheck

KINDS = [
    "opened",
    "imported",
    "reset",
    "consumed",
    "refused",
    "refunded",
    "adjusted",
    "plan_changed",
    "deleted",
]


def keep_imports(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """Refuse to go back if a ledger has an entry that an earlier release cannot read."""
    if apps.get_model("quotas", "LedgerEntry").objects.filter(kind="imported").exists():
        raise IrreversibleError(
            "quotas 0015 holds quotas that import_quotas made, which an earlier release cannot read. Go back no "
            "further, or restore a backup of that time."
        )


class Migration(migrations.Migration):
    atomic = False

    dependencies = [("quotas", "0014_ids_of_newest_versions")]

    operations = [
        ReplaceCheck(
            "ledgerentry",
            "ledger_kind_known",
            models.CheckConstraint(condition=models.Q(kind__in=KINDS), name="ledger_kind_known"),
        ),
        migrations.AlterField(
            "ledgerentry", "kind", models.CharField(max_length=16, choices=[(kind, kind) for kind in KINDS])
        ),
        migrations.RunPython(migrations.RunPython.noop, keep_imports),
    ]

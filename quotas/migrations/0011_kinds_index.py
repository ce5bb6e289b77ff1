from django.db import migrations, models

from quotas.operations import concurrent_indexes


class Migration(migrations.Migration):
    atomic = False  # no index can be created concurrently within a transaction

    dependencies = [("quotas", "0010_deleted_index")]

    operations = [
        concurrent_indexes.AddIndex(
            model_name="ledgerentry",
            index=models.Index(
                fields=["kind", "id"],
                name="ledger_kinds",
                condition=models.Q(("kind", "consumed"), _negated=True),
            ),
        ),
    ]

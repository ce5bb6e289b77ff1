from django.db import migrations, models

from quotas.operations import concurrent_indexes


class Migration(migrations.Migration):
    atomic = False  # no index can be created concurrently within a transaction

    dependencies = [("quotas", "0008_support_group")]

    operations = [
        concurrent_indexes.AddIndex(
            model_name="ledgerentry",
            index=models.Index(
                fields=["created_at", "user"], name="ledger_refusals", condition=models.Q(("kind", "refused"))
            ),
        ),
    ]

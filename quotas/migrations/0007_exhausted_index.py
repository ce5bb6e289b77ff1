from django.db import migrations, models

from quotas.operations import concurrent_indexes


class Migration(migrations.Migration):
    atomic = False  # no index can be created concurrently within a transaction

    dependencies = [("quotas", "0006_hourly_totals")]

    operations = [
        concurrent_indexes.AddIndex(
            model_name="ledgerentry",
            index=models.Index(
                fields=["resets_at", "user", "seq"],
                name="ledger_exhausted",
                condition=models.Q(("balance_after", 0), ("quota_limit__isnull", False)),
            ),
        ),
    ]

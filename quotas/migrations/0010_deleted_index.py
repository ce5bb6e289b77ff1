from django.db import migrations, models

from quotas.operations import concurrent_indexes


class Migration(migrations.Migration):
    atomic = False  # no index can be created concurrently within a transaction

    dependencies = [("quotas", "0009_refusals_index")]

    operations = [
        concurrent_indexes.AddIndex(
            model_name="challengequota",
            index=models.Index(
                fields=["user_id"], name="quotas_deleted", condition=models.Q(("deleted_at__isnull", False))
            ),
        ),
    ]

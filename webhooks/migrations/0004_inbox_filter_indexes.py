from django.db import migrations, models

from quotas.operations import concurrent_indexes


class Migration(migrations.Migration):
    atomic = False  # no index can be created concurrently within a transaction

    dependencies = [("webhooks", "0003_inbox_prefix_index")]

    operations = [
        concurrent_indexes.AddIndex(
            model_name="webhookevent",
            index=models.Index(fields=["type", "-handled_at"], name="webhook_events_type"),
        ),
        concurrent_indexes.AddIndex(
            model_name="webhookevent",
            index=models.Index(
                fields=["status", "-handled_at"],
                name="webhook_events_unusual",
                condition=models.Q(("status__in", ["ignored", "warning"])),
            ),
        ),
    ]

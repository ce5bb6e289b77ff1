from django.db import migrations, models

from quotas.operations import concurrent_indexes


class Migration(migrations.Migration):
    atomic = False  # no index can be created concurrently within a transaction

    dependencies = [("webhooks", "0002_what_handlers_read")]

    operations = [
        concurrent_indexes.AddIndex(
            model_name="webhookevent",
            index=models.Index(
                fields=["user_id"], name="webhook_events_prefix", opclasses=["varchar_pattern_ops"]
            ),
        ),
        concurrent_indexes.RemoveIndex(model_name="webhookevent", name="webhook_events_user"),
    ]

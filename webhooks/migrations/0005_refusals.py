from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("webhooks", "0004_inbox_filter_indexes")]

    operations = [
        migrations.CreateModel(
            name="DeliveryRefusals",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("day", models.DateField()),
                ("reason", models.CharField(max_length=16)),
                ("times", models.BigIntegerField()),
                ("last_at", models.DateTimeField()),
            ],
            options={
                "db_table": "webhook_refusals",
                "default_permissions": (),
                "constraints": [
                    models.UniqueConstraint(fields=("day", "reason"), name="webhook_refusals_day_reason")
                ],
            },
        ),
    ]

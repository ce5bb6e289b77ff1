from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("quotas", "0005_plan_assignments")]

    operations = [
        migrations.CreateModel(
            name="HourlyTotal",
            fields=[
                ("hour", models.DateTimeField(primary_key=True, serialize=False)),
                ("spent", models.BigIntegerField()),
                ("refused", models.BigIntegerField()),
            ],
            options={"db_table": "hourly_totals"},
        ),
    ]

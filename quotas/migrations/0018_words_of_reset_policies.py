from django.db import migrations, models

CHOICES = [
    ("rolling", "rolling: a period after the last reset"),
    ("anchored", "anchored: every period since the user’s first day, at the same time"),
    ("daily", "daily: every day at midnight"),
    ("weekly", "weekly: every Monday at midnight"),
    ("monthly", "monthly: at midnight, on the day of the month on which the user began"),
]


class Migration(migrations.Migration):
    """Only words for people: the database is not touched."""

    dependencies = [("quotas", "0017_free_items")]

    operations = [
        migrations.AlterField(
            model, "reset_policy", models.CharField(choices=CHOICES, default="rolling", max_length=16)
        )
        for model in ("plan", "planversion")
    ]

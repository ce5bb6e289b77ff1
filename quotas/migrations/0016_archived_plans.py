from django.db import migrations, models


class Migration(migrations.Migration):
    """The database default lets the previous release add plans during a deploy."""

    dependencies = [("quotas", "0015_imported_entries")]

    operations = [
        migrations.AddField(
            "plan",
            "is_archived",
            models.BooleanField(db_default=False, default=False, verbose_name="archived"),
        ),
        migrations.AddConstraint(
            "plan",
            models.CheckConstraint(
                condition=models.Q(("is_archived", True), ("is_default", True), _negated=True),
                name="plans_default_not_archived",
            ),
        ),
    ]

from django.db import migrations, models


class Migration(migrations.Migration):
    """The database default lets the previous release note assignments during a deploy."""

    dependencies = [("quotas", "0016_archived_plans")]

    operations = [
        migrations.AddField(
            "planassignment", "is_free", models.BooleanField(db_default=False, default=False)
        ),
    ]

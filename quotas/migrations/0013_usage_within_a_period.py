from django.db import migrations, models

QUOTA_COLUMNS: dict[str, models.Field] = {  # type: ignore[type-arg]
    "period_consumed": models.BigIntegerField(null=True),
    "period_given": models.BigIntegerField(null=True),
    "resets_at": models.DateTimeField(null=True),
    "left_until": models.DateTimeField(null=True),
    "usage_seq": models.BigIntegerField(null=True),
}
ENTRY_COLUMNS: dict[str, models.Field] = {  # type: ignore[type-arg]
    "period_consumed": models.BigIntegerField(null=True),
    "period_given": models.BigIntegerField(null=True),
}


class Migration(migrations.Migration):
    """Columns without values: a row gets them at its next write, from its ledger. So no row is rewritten here."""

    dependencies = [("quotas", "0012_freeze_the_ledger")]

    operations = [
        *(migrations.AddField("challengequota", name, field) for name, field in QUOTA_COLUMNS.items()),
        *(migrations.AddField("ledgerentry", name, field) for name, field in ENTRY_COLUMNS.items()),
    ]

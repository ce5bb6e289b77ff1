from django.apps.registry import Apps
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor


def remember_staff(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """Set the source of every plan but the default to staff: so far only they could assign one."""
    if not apps.get_model("quotas", "Plan").objects.filter(is_default=True).exists():
        return
    for model, plan in (("ChallengeQuota", "plan_id"), ("LedgerEntry", "plan")):
        chosen = apps.get_model("quotas", model).objects.exclude(
            **{f"{plan}__in": apps.get_model("quotas", "Plan").objects.filter(is_default=True)}
        )
        chosen.update(plan_source="staff")


class Migration(migrations.Migration):
    dependencies = [("quotas", "0003_fillfactor")]

    operations = [
        migrations.AddField(
            model_name="challengequota",
            name="plan_source",
            field=models.CharField(db_default="default", max_length=8),
        ),
        migrations.AddField(
            model_name="ledgerentry",
            name="plan_source",
            field=models.CharField(db_default="default", max_length=8),
        ),
        migrations.RunPython(remember_staff, migrations.RunPython.noop),
    ]

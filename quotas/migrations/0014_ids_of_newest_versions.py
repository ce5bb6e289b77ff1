from django.apps.registry import Apps
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.models import OuterRef, Subquery


def name_the_newest(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    plans, versions = apps.get_model("quotas", "Plan"), apps.get_model("quotas", "PlanVersion")
    newest = versions.objects.filter(plan=OuterRef("pk"), version=OuterRef("version"))
    plans.objects.update(version_id=Subquery(newest.values("id")[:1]))


class Migration(migrations.Migration):
    dependencies = [("quotas", "0013_usage_within_a_period")]

    operations = [
        migrations.AddField("plan", "version_id", models.UUIDField(editable=False, null=True)),
        migrations.RunPython(name_the_newest, migrations.RunPython.noop),
    ]

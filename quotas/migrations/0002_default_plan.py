from django.apps.registry import Apps
from django.conf import settings
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.models.functions import Now
from uuid_utils.compat import uuid7


def make_default_plan(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """Create the default plan and its first version, unless there is a default plan."""
    plans, versions = apps.get_model("quotas", "Plan"), apps.get_model("quotas", "PlanVersion")
    if plans.objects.filter(is_default=True).exists():
        return
    allowance = settings.QUOTA_DEFAULT_ALLOWANCE
    plan = plans.objects.create(name="free", allowance=allowance, is_default=True)
    versions.objects.create(id=uuid7(), plan=plan, allowance=allowance, valid_from=Now())


class Migration(migrations.Migration):
    dependencies = [("quotas", "0001_plans_quotas_and_ledger")]

    operations = [migrations.RunPython(make_default_plan, migrations.RunPython.noop)]

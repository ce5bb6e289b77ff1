from django.apps.registry import Apps
from django.conf import settings
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor


def make_default_plan(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    plans = apps.get_model("quotas", "Plan").objects
    if not plans.filter(is_default=True).exists():
        plans.create(name="free", allowance=settings.QUOTA_DEFAULT_ALLOWANCE, is_default=True)


class Migration(migrations.Migration):
    dependencies = [("quotas", "0001_plans_quotas_and_ledger")]

    operations = [migrations.RunPython(make_default_plan, migrations.RunPython.noop)]

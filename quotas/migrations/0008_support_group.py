from django.apps.registry import Apps
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

GROUP = "Support"
MAY = [
    ("quotas", "challengequota", "view_challengequota", "Can view quota"),
    ("quotas", "challengequota", "change_challengequota", "Can change quota"),  # adjust and reset
    ("quotas", "ledgerentry", "view_ledgerentry", "Can view ledger entry"),
    ("quotas", "plan", "view_plan", "Can view plan"),
    ("webhooks", "webhookevent", "view_webhookevent", "Can view webhook event"),
]


def make_group(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """Create the group and its permissions, which Django would create only after all migrations.

    An existing group of that name is left as it is.
    """
    group, is_new = apps.get_model("auth", "Group").objects.get_or_create(name=GROUP)
    for app_label, model, codename, name in MAY if is_new else ():
        of, _ = apps.get_model("contenttypes", "ContentType").objects.get_or_create(
            app_label=app_label, model=model
        )
        permission, _ = apps.get_model("auth", "Permission").objects.get_or_create(
            content_type=of, codename=codename, defaults={"name": name}
        )
        group.permissions.add(permission)


def remove_group(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """Remove the group if its permissions are unchanged and it has no members."""
    group = apps.get_model("auth", "Group").objects.filter(name=GROUP).first()
    is_used = apps.get_model("auth", "User").objects.filter(groups=group).exists()
    if group and not is_used and {it.codename for it in group.permissions.all()} == {it[2] for it in MAY}:
        group.delete()


class Migration(migrations.Migration):
    dependencies = [
        ("auth", "0012_alter_user_first_name_max_length"),
        ("contenttypes", "0002_remove_content_type_name"),
        ("quotas", "0007_exhausted_index"),
    ]

    operations = [
        migrations.AlterModelOptions(
            name="challengequota",
            options={
                "ordering": ["user_id"],
                "permissions": [("change_plan_of_quota", "Can change the plan of a quota")],
                "verbose_name": "quota",
            },
        ),
        migrations.RunPython(make_group, remove_group),
    ]

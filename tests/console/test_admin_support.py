"""The group Support, made by a migration: its members can view, adjust and reset, and nothing else."""

import re
from collections.abc import Callable
from uuid import uuid4

import pytest
from django.contrib.auth.models import Group, Permission
from django.core.management import call_command
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.test import Client

from quotas.models import ChallengeQuota, LedgerEntry, Plan, ServiceKey
from tests.tools.staff import LIST, confirm, sign_in, text
from webhooks.models import WebhookEvent

pytestmark = pytest.mark.django_db
Make = Callable[..., ChallengeQuota]

KEY = "00000000-0000-7000-8000-000000000000"
LOOKS = ["view_challengequota", "change_challengequota", "view_ledgerentry", "view_plan", "view_webhookevent"]


@pytest.fixture
def support(make_quota: Make) -> Client:
    make_quota("user_1", remaining=7)
    Plan(name="pro", allowance=50).save()
    WebhookEvent.objects.create(svix_id="msg", type="user.created", status="success")
    ServiceKey(pk=KEY, name="a key", prefix="00000000", digest="0", scopes=["read"]).save()
    return sign_in(group="Support")


def test_a_migration_makes_the_group_with_just_these_permissions() -> None:
    held = Group.objects.get(name="Support").permissions
    assert set(held.values_list("codename", flat=True)) == set(LOOKS)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("", 200),
        ("quotas/", 200),
        ("webhooks/", 200),
        ("quotas/challengequota/", 200),
        ("quotas/challengequota/?state=exhausted", 200),
        ("quotas/challengequota/csv/", 200),
        ("quotas/challengequota/user_5F1/change/", 200),
        ("quotas/challengequota/user_5F1/ledger.csv", 200),
        ("quotas/challengequota/user_5F1/delete/", 403),
        ("quotas/challengequota/add/", 403),
        ("quotas/ledgerentry/", 200),
        ("quotas/ledgerentry/add/", 403),
        ("quotas/plan/", 200),
        ("quotas/plan/free/change/", 200),
        ("quotas/plan/free/delete/", 403),
        ("quotas/plan/add/", 403),
        ("webhooks/webhookevent/", 200),
        ("webhooks/webhookevent/msg/change/", 200),
        ("webhooks/webhookevent/msg/delete/", 403),
        ("quotas/servicekey/", 403),
        (f"quotas/servicekey/{KEY}/change/", 403),
        ("quotas/servicekey/add/", 403),
        ("auth/user/", 403),
        ("auth/user/add/", 403),
        ("auth/group/", 403),
        ("auth/group/add/", 403),
    ],
)
def test_support_may_look_at_what_it_needs(support: Client, path: str, status: int) -> None:
    answer = support.get(f"/admin/{path}")
    assert (answer.status_code, "Traceback" in text(answer)) == (status, False)


def test_the_bar_of_sections_leads_support_to_what_it_may_see(support: Client) -> None:
    bar = text(support.get(LIST)).partition('<nav id="sections"')[2].partition("</nav>")[0]
    assert re.findall(r'href="/admin/\w+/(\w+)/"', bar) == [
        "ledgerentry",
        "plan",
        "challengequota",
        "webhookevent",
    ]
    assert bar.count("aria-current") == 1


def test_support_adjusts_and_resets(support: Client) -> None:
    confirm(support, "adjust", "user_1", delta="3")
    assert ChallengeQuota.objects.get().quota_remaining == 10
    confirm(support, "reset_now", "user_1")
    assert ChallengeQuota.objects.get().quota_remaining == 20
    assert LedgerEntry.objects.latest("seq").actor_id == "alice"


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        (LIST, {"action": "change_plan", "_selected_action": "user_1", "plan": "pro", "on_change": "keep"}),
        (LIST, {"action": "delete_selected", "_selected_action": "user_1", "post": "yes"}),
        (f"{LIST}add/", {"user_id": "user_2"}),
        (f"{LIST}user_5F1/change/", {"quota_remaining": "99"}),
        (f"{LIST}user_5F1/delete/", {"post": "yes"}),
        ("/admin/quotas/ledgerentry/", {"action": "delete_selected", "_selected_action": KEY}),
        ("/admin/quotas/plan/add/", {"name": "gold"}),
        ("/admin/quotas/plan/free/change/", {"allowance": "99", "confirmed": "1"}),
        ("/admin/quotas/plan/free/delete/", {"post": "yes"}),
        ("/admin/quotas/servicekey/", {"action": "revoke", "_selected_action": KEY}),
        ("/admin/quotas/servicekey/add/", {"name": "mine", "scopes": "admin"}),
        ("/admin/auth/user/add/", {"username": "bob", "password1": "x", "password2": "x"}),
        ("/admin/webhooks/webhookevent/msg/delete/", {"post": "yes"}),
    ],
)
def test_support_does_nothing_else(support: Client, path: str, sent: dict[str, str]) -> None:
    def all_there_is() -> list[object]:
        of = (ChallengeQuota, LedgerEntry, Plan, ServiceKey, WebhookEvent, Permission)
        return [list(model.objects.order_by("pk").values()) for model in of]

    before = all_there_is()
    form = {"token": uuid4(), "reason": "because", "confirmed": "1", **sent}
    assert support.post(path, form).status_code in (200, 302, 403)
    assert all_there_is() == before


@pytest.mark.django_db(transaction=True, serialized_rollback=True)
def test_the_group_can_be_unmade_and_made_on_a_database_without_permissions() -> None:
    executor = MigrationExecutor(connection)
    latest = executor.loader.graph.leaf_nodes()
    try:
        [before] = executor.loader.graph.node_map[("quotas", "0008_support_group")].parents - {
            node for node in executor.loader.graph.nodes if node[0] != "quotas"
        }
        executor.migrate([before])
        assert not Group.objects.filter(name="Support").exists()
        Permission.objects.all().delete()
    finally:
        executor = MigrationExecutor(connection)
        executor.migrate(latest)
    assert Group.objects.get(name="Support").permissions.count() == len(LOOKS)
    call_command("migrate", verbosity=0)  # makes what is missing, and makes nothing twice
    assert Permission.objects.filter(codename__in=LOOKS).count() == len(LOOKS)
    assert Permission.objects.filter(codename="change_plan_of_quota").count() == 1

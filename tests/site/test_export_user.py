"""Everything that is held of a person: exported, and what stays of it after their deletion."""

import json
import re
from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.http import HttpResponse

from quotas.console import csv_export
from quotas.models import ChallengeQuota, LedgerEntry, Plan, ServiceKey
from quotas.operations.old_table import KEPT_TABLE
from quotasite.management.commands.export_user import TABLES
from tests import ROOT
from tests.api.test_service import Service
from tests.conftest import STAFF
from tests.tools.ledger import assert_sound
from tests.tools.staff import send, sign_in

pytestmark = pytest.mark.django_db
USER, OTHER, EMAIL = "user_exported_2abc", "user_other", "person@example.com"
GUIDE = (ROOT / "docs/operations.md").read_text()
EXPORTED = {table._meta.db_table for table, _ in TABLES}
# Every other table, and why it holds no person of the product. A new table belongs to one of the two.
NOT_OF_A_PERSON = {
    "auth_group": "permissions",
    "auth_group_permissions": "permissions",
    "auth_permission": "permissions",
    "auth_user": "staff",
    "auth_user_groups": "staff",
    "auth_user_user_permissions": "staff",
    "axes_accessattempt": "log-ins of staff",
    "axes_accessattemptexpiration": "log-ins of staff",
    "axes_accessfailurelog": "log-ins of staff",
    "axes_accesslog": "log-ins of staff",
    "django_admin_log": "what staff did to plans, keys and accounts; of quotas the ledger has it",
    "django_content_type": "names of tables",
    "django_migrations": "names of migrations",
    "django_session": "staff",
    "hourly_totals": "sums over all users",
    "plan_versions": "plans",
    "plans": "plans",
    "service_keys": "servers",
    "webhook_refusals": "counts by day and reason",
}


def export(user_id: str) -> Any:
    out = StringIO()
    call_command("export_user", user_id, stdout=out)
    return json.loads(out.getvalue())


@pytest.fixture
def person(deliver: Callable[..., HttpResponse], settings: Any) -> str:
    """A person with rows in every part of the service."""
    settings.CLERK_PLAN_METADATA_KEY = "plan"
    Plan.objects.create(name="pro", allowance=500, actions={"draw": 2})
    addresses = [{"id": "idn_1", "email_address": EMAIL}]
    clerk = {"id": USER, "updated_at": 1_700_000_000_000, "primary_email_address_id": "idn_1"}
    metadata = {"public_metadata": {"plan": "pro"}}
    deliver("user.created", {**clerk, "email_addresses": addresses, **metadata})
    service = Service(ServiceKey.make("worker", ["consume", "refund"])[1], USER)
    spent = service.post("consume", {"action": "draw", "metadata": {"job": "j-7"}}, key="order-17").json()[
        "id"
    ]
    service.refund(spent, amount=1)
    ChallengeQuota.objects.adjust(USER, 5, reason="a kind word", actor=STAFF)
    send(sign_in(is_superuser=True), "reset", USER, reason="a second word", confirmed="1", token="t")
    ChallengeQuota.objects.consume(OTHER)
    return USER


def test_every_table_is_exported_or_holds_no_person() -> None:
    """A new table fails this until it is in TABLES, or listed above with its reason."""
    assert EXPORTED | set(NOT_OF_A_PERSON) == set(connection.introspection.table_names())


def places(*wanted: str) -> set[str]:
    """Return each TABLE.COLUMN in which one of the texts occurs, whatever the column's type."""
    found = set()
    with connection.cursor() as cursor:
        for table in connection.introspection.table_names():
            for column in connection.introspection.get_table_description(cursor, table):
                text = f'CAST("{column.name}" AS text) LIKE %s'
                condition = " OR ".join([text] * len(wanted))
                cursor.execute(
                    f'SELECT 1 FROM "{table}" WHERE {condition} LIMIT 1', [f"%{one}%" for one in wanted]
                )
                if cursor.fetchone():
                    found.add(f"{table}.{column.name}")
    return found


def test_no_column_elsewhere_holds_a_person(person: str) -> None:
    found = places(person, EMAIL, "order-17", "j-7", "kind word")
    assert {place.partition(".")[0] for place in found} == EXPORTED


def test_the_export_has_every_row_of_the_person_and_of_nobody_else(person: str) -> None:
    exported = export(person)
    assert exported.pop("user_id") == person
    assert set(exported) == EXPORTED
    for table, rows in exported.items():
        with connection.cursor() as cursor:
            cursor.execute(f'SELECT COUNT(*) FROM "{table}" WHERE user_id = %s', [person])
            assert (table, len(rows)) == (table, cursor.fetchone()[0])
        assert {row["user_id"] for row in rows} == {person}


def test_the_export_says_what_happened(person: str) -> None:
    exported = export(person)
    [quota], [assignment] = exported["challenge_quotas"], exported["plan_assignments"]
    assert (quota["email"], quota["plan_id"], assignment["plan"]) == (EMAIL, "pro", "pro")
    entries = exported["ledger_entries"]
    assert [entry["seq"] for entry in entries] == list(range(1, len(entries) + 1))
    [spent] = [entry for entry in entries if entry["kind"] == "consumed"]
    assert (spent["action"], spent["metadata"]) == ("draw", {"job": "j-7"})
    assert spent["idempotency_key"].endswith(":order-17")
    assert spent["created_at"].endswith("Z")


def test_a_deletion_erases_the_email_and_leaves_the_rest(
    person: str, deliver: Callable[..., HttpResponse]
) -> None:
    before = places(person)
    deliver("user.deleted", {"id": person, "deleted": True})
    assert places(EMAIL) == set()
    assert places(person) == before
    exported = export(person)
    assert exported["challenge_quotas"][0]["deleted_at"]
    assert exported["ledger_entries"][-1]["kind"] == "deleted"
    assert "a kind word" in json.dumps(exported)


def test_the_guide_erases_what_a_deletion_leaves(person: str, deliver: Callable[..., HttpResponse]) -> None:
    deliver("user.deleted", {"id": person, "deleted": True})
    [erasure] = re.findall(r"```sql\n(UPDATE ledger_entries.*?)```", GUIDE, re.DOTALL)
    with connection.cursor() as cursor:
        for statement in erasure.replace("user_2abc", person).split(";")[:-1]:
            cursor.execute(statement)
    assert places("order-17", "j-7", "kind word") == set()
    assert {place.partition(".")[0] for place in places(person)} == {"challenge_quotas", "ledger_entries"}
    assert_sound(person)
    deliver("user.updated", {"id": person, "updated_at": 1_800_000_000_000, "email_addresses": []})
    assert ChallengeQuota.objects.get(pk=person).deleted_at


def test_a_person_without_a_row_is_exported_too(deliver: Callable[..., HttpResponse]) -> None:
    """A delivery that made no quota is held all the same."""
    deliver(
        "subscriptionItem.canceled", {"id": "item_1", "payer": {"user_id": USER}, "plan": {"slug": "pro"}}
    )
    exported = export(USER)
    assert (len(exported["webhook_events"]), exported["challenge_quotas"]) == (1, [])


def test_the_old_table_of_an_import_in_place_is_exported_while_it_is_kept() -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {KEPT_TABLE} (user_id varchar(128), quota_remaining integer)")
        cursor.execute(f"INSERT INTO {KEPT_TABLE} VALUES ('{USER}', 7), ('{OTHER}', 8)")
    assert export(USER)[KEPT_TABLE] == [{"user_id": USER, "quota_remaining": 7}]


def test_an_unknown_id_is_said_in_one_line() -> None:
    with pytest.raises(CommandError, match=r"^There is no user user_typo here\.$") as refused:
        export("user_typo")
    assert refused.value.returncode == 1


@pytest.mark.parametrize("wrong", ["", "user 1", "x" * 129, "\udcff"])
def test_what_is_no_id_is_refused(wrong: str) -> None:
    with pytest.raises(CommandError, match="must be a user's id"):
        export(wrong)


def test_a_long_ledger_is_read_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_export, "ROWS_AT_ONCE", 3)
    for _ in range(10):
        ChallengeQuota.objects.consume(USER)
    assert len(export(USER)["ledger_entries"]) == LedgerEntry.objects.filter(user_id=USER).count() == 11

"""distribute_tables: the statements for a Citus cluster, and that each user's rows can be found on one shard.

There is no Citus on these machines. In a real PostgreSQL, two functions named as Citus' own stand in for it,
and record their calls. What Citus would do with these calls is not tested here.
"""

import asyncio
import io
import json
import re
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.apps import apps
from django.core.checks import run_checks
from django.core.management import CommandError, call_command
from django.db import connection
from django.http import HttpResponse

from quotas.models import ChallengeQuota
from quotas.operations import citus
from quotas.operations.citus import CannotDistribute, distribution, read_schema
from quotas.reports import audit
from quotas.reports.prune import DELETE
from quotas.store import sql
from quotas.store.batches import Batches
from tests.conftest import USER
from tests.tools.forked import manage
from tests.tools.in_loop import read, run, spend, spent, statements_sent
from tests.tools.overheard import Sent, overheard

pytestmark = [pytest.mark.postgres, pytest.mark.django_db]
quotas = ChallengeQuota.objects

STAND_IN = """
    CREATE TEMP TABLE pg_dist_partition (logicalrelid regclass PRIMARY KEY, partmethod "char");
    CREATE FUNCTION create_reference_table(name regclass) RETURNS void LANGUAGE sql AS
        $$ INSERT INTO pg_dist_partition VALUES (name, 'n') $$;
    CREATE FUNCTION create_distributed_table(name regclass, by text, colocate_with text) RETURNS void
        LANGUAGE sql AS $$ INSERT INTO pg_dist_partition VALUES (name, 'h') $$;
"""
COPIED = [
    *("auth_group", "auth_group_permissions", "auth_permission", "auth_user", "auth_user_groups"),
    *("auth_user_user_permissions", "axes_accessattempt", "axes_accessattemptexpiration"),
    *("axes_accessfailurelog", "axes_accesslog", "django_admin_log", "django_content_type"),
    *("django_migrations", "django_session", "hourly_totals", "plan_versions", "plans", "service_keys"),
    "webhook_refusals",
]
FOREIGN_KEYS = [
    ("auth_group_permissions", "auth_group_permissio_permission_id_*_fk_auth_perm", "auth_permission(id)"),
    ("auth_group_permissions", "auth_group_permissions_group_id_*_fk_auth_group_id", "auth_group(id)"),
    ("auth_permission", "auth_permission_content_type_id_*_fk_django_co", "django_content_type(id)"),
    ("auth_user_groups", "auth_user_groups_group_id_*_fk_auth_group_id", "auth_group(id)"),
    ("auth_user_groups", "auth_user_groups_user_id_*_fk_auth_user_id", "auth_user(id)"),
    (
        "auth_user_user_permissions",
        "auth_user_user_permi_permission_id_*_fk_auth_perm",
        "auth_permission(id)",
    ),
    ("auth_user_user_permissions", "auth_user_user_permissions_user_id_*_fk_auth_user_id", "auth_user(id)"),
    (
        "axes_accessattemptexpiration",
        "axes_accessattemptex_access_attempt_id_*_fk_axes_acce",
        "axes_accessattempt(id)",
    ),
    ("challenge_quotas", "challenge_quotas_plan_id_*_fk_plans_name", "plans(name)"),
    ("django_admin_log", "django_admin_log_content_type_id_*_fk_django_co", "django_content_type(id)"),
    ("django_admin_log", "django_admin_log_user_id_*_fk_auth_user_id", "auth_user(id)"),
    ("plan_versions", "plan_versions_plan_id_*_fk_plans_name", "plans(name)"),
]
NARROW_IDS = [
    *("auth_group.id", "auth_group_permissions.group_id", "auth_group_permissions.permission_id"),
    *("auth_permission.content_type_id", "auth_permission.id", "auth_user.id"),
    *("auth_user_groups.group_id", "auth_user_groups.user_id"),
    *("auth_user_user_permissions.permission_id", "auth_user_user_permissions.user_id"),
    *("axes_accessattempt.id", "axes_accessattemptexpiration.access_attempt_id"),
    *("axes_accessfailurelog.id", "axes_accesslog.id", "django_admin_log.content_type_id"),
    *("django_admin_log.id", "django_admin_log.user_id", "django_content_type.id"),
]


def column_of(name: str) -> str:
    """Return what a foreign key's name has after its table's, which is cut if it is long."""
    columns = ("access_attempt", "content_type", "permission", "group", "user", "plan")
    return next(f"{column}_id" for column in columns if f"_{column}_id_*" in name)


def as_added(table: str, name: str, target: str) -> str:
    key = f"FOREIGN KEY ({column_of(name)}) REFERENCES {target} DEFERRABLE INITIALLY DEFERRED"
    return f'ALTER TABLE {table} ADD CONSTRAINT "{name}" {key}'


STATEMENTS = [
    "SET LOCAL lock_timeout TO '500ms'",
    "LOCK TABLE challenge_quotas, ledger_entries, plan_assignments, webhook_events, "
    f"{', '.join(COPIED)} IN ACCESS EXCLUSIVE MODE",
    "SET LOCAL lock_timeout TO DEFAULT",
    "SET LOCAL citus.multi_shard_modify_mode TO 'sequential'",
    *(f'ALTER TABLE {table} DROP CONSTRAINT "{name}"' for table, name, _ in FOREIGN_KEYS),
    *("ALTER TABLE {} ALTER COLUMN {} TYPE bigint".format(*name.split(".")) for name in NARROW_IDS),
    *(f"SELECT create_reference_table('{table}')" for table in COPIED),
    'ALTER TABLE ledger_entries DROP CONSTRAINT "ledger_entries_pkey", '
    'ADD CONSTRAINT "ledger_entries_pkey" PRIMARY KEY (id, user_id)',
    'ALTER TABLE plan_assignments DROP CONSTRAINT "plan_assignments_pkey", '
    'ADD CONSTRAINT "plan_assignments_pkey" PRIMARY KEY (id, user_id)',
    'ALTER TABLE webhook_events DROP CONSTRAINT "webhook_events_pkey", '
    'ADD CONSTRAINT "webhook_events_pkey" PRIMARY KEY (svix_id, user_id)',
    "SELECT create_distributed_table('challenge_quotas', 'user_id', colocate_with => 'none')",
    "SELECT create_distributed_table('ledger_entries', 'user_id', colocate_with => 'challenge_quotas')",
    "SELECT create_distributed_table('plan_assignments', 'user_id', colocate_with => 'challenge_quotas')",
    "SELECT create_distributed_table('webhook_events', 'user_id', colocate_with => 'challenge_quotas')",
    *(as_added(*foreign_key) for foreign_key in FOREIGN_KEYS),
]
SETTINGS = citus.SETTINGS.splitlines()


def execute(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


def command(*options: str) -> str:
    out = io.StringIO()
    call_command("distribute_tables", *options, stdout=out, stderr=out)
    return re.sub(r"_id_[0-9a-f]{8}_fk", "_id_*_fk", out.getvalue())


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Record calls to Citus, and check for an extension that every PostgreSQL has instead."""
    execute(STAND_IN)
    has_extension = citus.has_extension
    monkeypatch.setattr(citus, "has_extension", lambda: has_extension("plpgsql"))


def test_the_dry_run_writes_the_statements_in_their_order() -> None:
    lines = command("--dry-run").splitlines()
    assert lines == [
        "This database has no extension citus: with it, these statements would be run.",
        *(f"{statement};" for statement in ["BEGIN", *STATEMENTS, "COMMIT"]),
        *SETTINGS,
    ]
    assert "ALTER SYSTEM SET citus.recover_2pc_interval = '5s';" in lines


def test_the_dry_run_changes_nothing() -> None:
    before = read_schema()
    command("--dry-run")
    assert read_schema() == before


def test_without_citus_it_says_so_and_changes_nothing() -> None:
    before = read_schema()
    with pytest.raises(CommandError, match="no extension citus, so nothing was changed") as caught:
        command()
    assert caught.value.returncode == 1
    assert read_schema() == before


@pytest.mark.once
def test_on_sqlite_it_says_that_it_is_not_for_that() -> None:
    done = manage("distribute_tables", "--dry-run", DATABASE_URL="sqlite://:memory:")
    assert done.returncode == 1
    assert "Citus is an extension of PostgreSQL" in done.stderr


@pytest.mark.usefixtures("stand_in")
def test_it_carries_out_what_the_dry_run_shows() -> None:
    shown = command("--dry-run").splitlines()[1 : -1 - len(SETTINGS)]
    assert command().splitlines() == [*shown, "All tables are distributed.", *SETTINGS]
    schema = read_schema()
    assert schema.places == dict.fromkeys(citus.DISTRIBUTED_TABLES, "h") | dict.fromkeys(COPIED, "n")
    assert schema.narrow_ids == []


@pytest.mark.usefixtures("stand_in")
def test_a_second_run_does_nothing() -> None:
    command()
    assert command().startswith("All tables were already distributed.\n")
    assert command("--dry-run") == ""


@pytest.mark.usefixtures("stand_in")
def test_afterwards_every_key_of_a_users_rows_has_the_user_in_it_and_the_references_are_back() -> None:
    references = read_schema().references
    command()
    schema = read_schema()
    assert all("user_id" in key.columns for key in schema.keys if key.table in citus.DISTRIBUTED_TABLES)
    assert schema.references == references


@pytest.mark.usefixtures("stand_in")
def test_it_is_done_whole_or_not_at_all() -> None:
    execute("DROP FUNCTION create_distributed_table")
    before = read_schema()
    with pytest.raises(CommandError, match="nothing was changed: function create_distributed_table"):
        command()
    assert read_schema() == before


@pytest.mark.usefixtures("stand_in")
def test_with_the_wider_keys_spends_are_still_made_once_and_deliveries_taken_once(
    make_quota: Callable[..., ChallengeQuota], deliver: Callable[..., HttpResponse]
) -> None:
    command()
    make_quota(remaining=5)
    assert [quotas.consume(USER, key="one").is_replay for _ in range(2)] == [False, True]
    user = {"id": "user_2", "email_addresses": [], "updated_at": 1_700_000_000_000}
    assert [deliver("user.created", user, svix_id="msg_1").status_code for _ in range(2)] == [200, 200]
    assert list(audit.faults()) == []


def test_every_table_with_a_users_id_has_its_place() -> None:
    of_users = {
        model._meta.db_table
        for model in apps.get_models()
        for field in model._meta.local_concrete_fields
        if field.column == "user_id" and "varchar" in (field.db_type(connection) or "")
    }
    assert of_users == set(citus.DISTRIBUTED_TABLES)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("CREATE TABLE pools (user_id varchar(128))", "pools has a user_id"),
        ("CREATE TABLE pools (user_id text)", "pools has a user_id"),
        (
            "CREATE UNIQUE INDEX one ON ledger_entries (idempotency_key)",
            "index one on ledger_entries has no key column user_id",
        ),
        (
            "CREATE UNIQUE INDEX one ON challenge_quotas (lower(user_id))",
            "one on challenge_quotas has no key column",
        ),
        (
            "CREATE UNIQUE INDEX one ON challenge_quotas (email) INCLUDE (user_id)",
            "one on challenge_quotas has no key column",
        ),
        ("ALTER TABLE plan_assignments ALTER user_id TYPE text", "must have one type"),
        ("ALTER TABLE webhook_events RENAME TO inbox", "no table webhook_events"),
        (
            "ALTER TABLE ledger_entries ADD CONSTRAINT tie FOREIGN KEY (refund_of) REFERENCES ledger_entries",
            "tie: Citus does not support a foreign key from ledger_entries to ledger_entries",
        ),
        (
            "ALTER TABLE plans ADD COLUMN owner varchar(128), "
            "ADD CONSTRAINT tie FOREIGN KEY (owner) REFERENCES challenge_quotas",
            "tie: Citus does not support a foreign key from plans to challenge_quotas",
        ),
    ],
)
def test_what_citus_would_refuse_is_refused_before_anything_is_changed(change: str, fault: str) -> None:
    execute(change)
    with pytest.raises(CommandError, match=f"{re.escape(fault)}.*Nothing was changed"):
        command("--dry-run")


def test_a_reference_from_user_to_user_is_kept() -> None:
    execute("ALTER TABLE ledger_entries ADD CONSTRAINT tie FOREIGN KEY (user_id) REFERENCES challenge_quotas")
    assert sum('"tie"' in statement for statement in distribution(read_schema())) == 2


@pytest.mark.usefixtures("stand_in")
def test_a_table_that_is_distributed_in_another_way_is_refused() -> None:
    execute("SELECT create_reference_table('ledger_entries')")
    with pytest.raises(CannotDistribute, match="ledger_entries is already distributed in another way"):
        distribution(read_schema())


# Citus sends a statement to one shard if PostgreSQL's planner finds `user_id = …` for every table of users'
# rows by itself, and no condition that can never hold. Both can be seen in any PostgreSQL's plan.
CHANGE = dict.fromkeys(sql.STATE_COLUMNS) | {"user_id": USER, "seq_read": 1}
KEYED = {"user_id": USER, "key": "a key"}
ONE_USERS = {
    "lock": (lambda: sql.LOCK["citus"], {"user_id": USER}),
    "profile": (lambda: sql.NOTE_PROFILE, {"email": "", "user_id": USER, "at": "2026-01-01"}),
    "update": (lambda: sql.UPDATE_ROW["citus"], CHANGE),
    "entry": (lambda: sql.ENTRY_EXISTS, {"user_id": USER, "entry_id": uuid.uuid4()}),
    "prune": (lambda: DELETE, [USER, 1]),
    "snapshot": (lambda: sql.snapshot_query("postgresql", keyed=False), {"user_id": USER}),
    "keyed": (lambda: sql.snapshot_query("postgresql"), KEYED),
    "refund": (lambda: sql.snapshot_query("postgresql", "consumption"), KEYED | {"argument": uuid.uuid4()}),
    "plan": (lambda: sql.snapshot_query("postgresql", "target"), KEYED | {"argument": "free"}),
    "clerk": (lambda: sql.snapshot_query("postgresql", "clerk", keyed=False), {"user_id": USER}),
}


def scans(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the nodes of a plan that read a table of users' rows."""
    if node.get("Relation Name") in citus.DISTRIBUTED_TABLES and node["Node Type"] != "ModifyTable":
        yield node
    for child in node.get("Plans", []):
        yield from scans(child)


@pytest.mark.parametrize(("statement", "values"), ONE_USERS.values(), ids=ONE_USERS)
def test_the_planner_sees_whose_rows_each_statement_is_about(
    statement: Callable[[], str], values: Any
) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (FORMAT JSON) {statement()}", values)
        [found] = cursor.fetchone()[0]
    assert '": "false"' not in json.dumps(found), "it has a condition that can never hold"
    nodes = list(scans(found["Plan"]))
    assert nodes
    for node in nodes:
        conditions = " ".join(str(node.get(name)) for name in ("Index Cond", "Filter", "Recheck Cond"))
        assert f"((user_id)::text = '{USER}'::text)" in conditions, node


def test_each_form_of_the_snapshot_is_looked_at() -> None:
    assert set(sql.INCLUDES) == {"", "consumption", "target", "clerk"}


def written(sent: list[Sent]) -> list[str]:
    """Return the first words of the statements that write, in their order."""
    return [" ".join(text.split()[:2]) for text, _ in sent if text.split()[0] in ("INSERT", "UPDATE", "WITH")]


def test_a_spend_of_distributed_tables_is_an_update_and_an_insert_of_values(settings: Any) -> None:
    """Citus pulls an INSERT … SELECT over a WITH to the coordinator and makes a two-phase commit of it."""
    settings.DATABASE_IS_DISTRIBUTED = True
    with overheard() as sent:
        quotas.consume(USER, key="a key")
        quotas.consume(USER)
    row, entry = "INSERT INTO", "INSERT INTO"
    assert written(sent) == [row, entry, entry, "UPDATE challenge_quotas", entry]
    assert all(" VALUES (" in text for text, _ in sent if text.split()[0] == "INSERT")


@pytest.mark.django_db(transaction=True, serialized_rollback=True)
def test_in_the_event_loop_a_spend_of_distributed_tables_is_one_transaction(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.DATABASE_IS_DISTRIBUTED = True
    quotas.current(USER)

    async def work(driver: Batches) -> list[str]:
        await read(driver)  # caches the plan
        with statements_sent(monkeypatch) as texts:
            await spend(driver)
        await asyncio.gather(*(spend(driver, f"key {number % 9}") for number in range(25)))
        return texts

    assert run(work, size=6) == ["read", "begin", "update", "insert", "commit"]
    assert spent() == 10
    call_command("audit_ledger")


def test_distributed_tables_are_reported_unless_the_setting_says_so(settings: Any, stand_in: None) -> None:
    execute("SELECT create_distributed_table('challenge_quotas', 'user_id', 'none')")

    def found() -> set[str | None]:
        return {each.id for each in run_checks(databases=["default"])}

    assert "quotas.W009" in found()
    settings.DATABASE_IS_DISTRIBUTED = True
    assert "quotas.W009" not in found()

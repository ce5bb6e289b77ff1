"""The statements of a verb cost the same for any number of users and any length of a ledger.

Each statement is explained as it was sent, for a user with 5,000 entries among 25,000 users. The rows are in
temporary copies of the tables: PostgreSQL finds those first, and they vanish with the transaction.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

import psycopg
import pytest
from django.db import connection, transaction

from quotas.models import ChallengeQuota, LedgerEntry
from quotas.reports import users
from quotas.rules import outcomes, values, verbs
from quotas.rules.outcomes import Change
from quotas.rules.values import Actor, Request
from quotas.store import direct
from quotas.store.commit import _settle
from quotas.store.steps import SnapshotQuery
from quotas.store.thread import run_steps
from tests.tools.overheard import ENTRIES, GROWING, QUOTAS, WORDS, Sent, copying, explained, overheard, scans
from tests.tools.together import cached_plan, spend_together

pytestmark = [pytest.mark.postgres, pytest.mark.django_db]

USERS, ENTRIES_OF_ONE = 25_000, 5_000
MAX_ROWS, MAX_BLOCKS = 4, 16  # of one look-up; even the smallest index has hundreds of blocks
BUSY, IDLE = "user_busy", "user_idle"
STAFF, CLERK = Actor("staff", "a test"), Actor("webhook", "a test")
NOW = datetime(2026, 9, 1, tzinfo=UTC)

quotas = ChallengeQuota.objects


@pytest.fixture(scope="module")
def crowd(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    with django_db_blocker.unblock():
        connection.close()  # statements that are prepared already would still use the real tables
        with transaction.atomic():
            gather()
            yield
            transaction.set_rollback(True)
        connection.close()


def gather() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL temp_buffers = '100MB'")
        for table in GROWING:
            cursor.execute(f"CREATE TEMP TABLE {table} (LIKE {table} INCLUDING ALL) ON COMMIT DROP")
        spend = quotas.consume(BUSY, 2, key="first").entry
        quotas.refund(BUSY, spend.id, 1, reason="for a test", actor=STAFF)
        quotas.assign_plan(BUSY, "metadata", "free", updated_at=NOW, actor=CLERK)
        copy_rows(QUOTAS, "TRUE", range(USERS))
        copy_rows(WORDS, "TRUE", range(USERS))
        copy_rows(ENTRIES, "kind = 'consumed'", range(USERS))
        busy = f"user_id = '{BUSY}' AND kind IN ('consumed', 'refunded')"
        later = range(-ENTRIES_OF_ONE // 2, 0)  # other numbers, for other ids
        copy_rows(ENTRIES, busy, later, user_id="user_id", seq="seq + 2 - 2 * copy")
        newest = f"SELECT MAX(seq) FROM {ENTRIES} WHERE user_id = '{BUSY}'"
        both = f"(seq, usage_seq) = (SELECT n, n FROM ({newest}) AS m (n))"
        cursor.execute(f"UPDATE {QUOTAS} SET {both} WHERE user_id = '{BUSY}'")
        cursor.execute(f"ANALYZE {', '.join(GROWING)}")


def copy_rows(table: str, which: str, copies: range, **changed: str) -> None:
    played = f"(SELECT * FROM {table} WHERE {which}) AS played"
    with connection.cursor() as cursor:
        columns = [column.name for column in connection.introspection.get_table_description(cursor, table)]
        copied = copying(columns, played, **changed)
        cursor.execute(f"INSERT INTO {table} ({', '.join(columns)}) {copied}", [copies[0], copies[-1]])


def each_verb() -> dict[str, Callable[[], object]]:
    """Each verb, and the other paths through the store."""
    spend = LedgerEntry.objects.filter(user_id=BUSY, kind=values.EntryKind.CONSUMED).latest("seq").pk
    by_staff = {"reason": "for a test", "actor": STAFF}
    return {
        "read": lambda: quotas.current(BUSY),
        "read of a missing row": lambda: quotas.current(IDLE),
        "spend": lambda: quotas.consume(BUSY),
        "spend with a key": lambda: quotas.consume(BUSY, key="second"),
        "replay": lambda: quotas.consume(BUSY, 2, key="first"),
        "read with a cached plan": with_cached_plan(lambda: quotas.current(BUSY)),
        "spend with a key and a cached plan": with_cached_plan(lambda: quotas.consume(BUSY, key="lean")),
        "replay with a cached plan": with_cached_plan(lambda: quotas.consume(BUSY, 2, key="first")),
        "first refusal": lambda: refused(lambda: quotas.consume(BUSY, 20)),
        "refund": lambda: quotas.refund(BUSY, spend, key="third", **by_staff),
        "adjustment": lambda: quotas.adjust(BUSY, 1, key="fourth", **by_staff),
        "reset": lambda: quotas.reset(BUSY, key="fifth", **by_staff),
        "change of plan": lambda: quotas.change_plan(BUSY, "free", key="sixth", **by_staff),
        "return to Clerk's plan": lambda: quotas.change_plan(BUSY, None, **by_staff),
        "Clerk's assignment of a plan": lambda: quotas.assign_plan(
            BUSY, "billing", "pro", updated_at=NOW, actor=CLERK
        ),
        "Clerk's update of a profile": lambda: quotas.note_profile(BUSY, "a@example.com", NOW),
        "batch of users": lambda: quotas.open_many([(BUSY, "", NOW), (IDLE, "", NOW)], actor=CLERK),
        "deletion": lambda: quotas.delete(BUSY, actor=CLERK),
        "store after a lost answer": store_twice,
    }


def with_cached_plan(act: Callable[[], object]) -> Callable[[], None]:
    def lean() -> None:
        with cached_plan():
            act()

    return lean


def refused(spend: Callable[[], object]) -> None:
    with pytest.raises(outcomes.Exhausted):
        spend()


def store_twice() -> None:
    """Write again as after a lost reply: the guard fails the second time, and the entry is looked up."""
    change = verbs.consume(direct.read_snapshot(BUSY, SnapshotQuery()), Request(STAFF))
    assert isinstance(change, Change)
    for _ in range(2):
        assert run_steps(_settle(change, was_locked=False))


def unmade(act: Callable[[], object]) -> list[Sent]:
    """Return the statements that the function sends; its changes are rolled back."""
    with transaction.atomic(), overheard() as sent:
        act()
        transaction.set_rollback(True)
    return sent


def faults(sent: Sent, *, generic: bool, users: int = 1) -> list[str]:
    """Return the expensive scans in PostgreSQL's plan of a statement about so many users, or its error."""
    try:
        with transaction.atomic():
            plan = explained(connection.connection, sent, generic=generic)
            transaction.set_rollback(True)
    except psycopg.Error as error:
        return [str(error)]
    return [
        str(scan)
        for scan in scans(plan)
        if scan.kind == "Seq Scan" or scan.rows > MAX_ROWS * users or scan.blocks > MAX_BLOCKS * users
    ]


def test_a_page_of_users_looks_at_a_limited_number_of_rows(
    crowd: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(users, "MAX_ROWS_PER_PAGE", 100)
    middle = f"user_{USERS // 2:027}"
    filters = [
        *(users.UserFilter(), users.UserFilter(plan="free"), users.UserFilter(is_deleted=True)),
        *(users.UserFilter(is_exhausted=asked) for asked in (True, False)),
        users.UserFilter(seen_since=datetime(9999, 1, 1, tzinfo=UTC)),
    ]
    for wanted in filters:
        for sent in unmade(partial(users.users_page, wanted, after=middle, limit=50)):
            with transaction.atomic():
                plan = explained(connection.connection, sent, generic=False)
                transaction.set_rollback(True)
            assert max(scan.rows for scan in scans(plan)) <= 100, (wanted, plan)


@pytest.mark.parametrize("generic", [False, True], ids=["planned for its values", "prepared for any"])
def test_every_statement_of_every_verb_looks_up_a_few_rows(crowd: None, generic: bool) -> None:
    for verb, act in each_verb().items():
        sent = unmade(act)
        assert sent, f"{verb}: no statement was seen"
        for statement in sent:
            assert faults(statement, generic=generic) == [], f"{verb}: {statement.text}"


@pytest.mark.parametrize("count", [1, 64])
@pytest.mark.parametrize("generic", [False, True], ids=["planned for its values", "prepared for any"])
def test_many_users_at_once_are_looked_up_one_by_one(crowd: None, generic: bool, count: int) -> None:
    users = [f"user_{number:027}" for number in range(0, USERS, USERS // count)][:count]
    sent = unmade(with_cached_plan(lambda: spend_together(users, "a key")))
    assert len(sent) == 2
    for statement in sent:
        assert faults(statement, generic=generic, users=count) == []


@pytest.mark.parametrize(
    ("verb", "table", "columns"),
    [
        ("read", QUOTAS, "(user_id)"),
        ("replay", ENTRIES, "(user_id, idempotency_key)"),
        ("refund", ENTRIES, "(id)"),
        ("refund", ENTRIES, "(user_id, refund_of)"),
        ("store after a lost answer", ENTRIES, "(id)"),
        ("return to Clerk's plan", WORDS, "(user_id, source, external_id)"),
    ],
)
def test_a_lost_index_is_told(crowd: None, verb: str, table: str, columns: str) -> None:
    sent = unmade(each_verb()[verb])
    with transaction.atomic():
        drop_index(table, columns)
        assert any(faults(statement, generic=False) for statement in sent)
        assert any(faults(statement, generic=True) for statement in sent)
        transaction.set_rollback(True)


def drop_index(table: str, columns: str) -> None:
    """Drop all indexes on these columns in this order, and the constraints that use them."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT indexrelid::regclass, conname FROM pg_index "
            "LEFT JOIN pg_constraint ON conindid = indexrelid WHERE indrelid = %s::regclass "
            "AND replace(pg_get_indexdef(indexrelid), ' varchar_pattern_ops', '') LIKE %s",
            [table, f"%USING btree {columns}%"],
        )
        found = cursor.fetchall()
        assert found
        for index, constraint in found:
            cursor.execute(
                f"ALTER TABLE {table} DROP CONSTRAINT {constraint}" if constraint else f"DROP INDEX {index}"
            )

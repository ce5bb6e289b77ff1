"""Figures 1 and 2: many at once on one quota, and the same keys again."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

from bench.chaos.client import Client
from bench.chaos.ground import Database, Finding, served

Told = TypeVar("Told")
CLIENTS, UNITS = 64, 50
# As quotasite.demo.shift moves a user's rows: to the product it is as if he had waited.
WAIT = (
    """UPDATE challenge_quotas SET last_reset_date = last_reset_date - '25h'::interval,
        anchor_at = anchor_at - '25h'::interval, refused_at = refused_at - '25h'::interval,
        updated_at = updated_at - '25h'::interval WHERE user_id = %s""",
    """UPDATE ledger_entries SET last_reset_date = last_reset_date - '25h'::interval,
        anchor_at = anchor_at - '25h'::interval, resets_at = resets_at - '25h'::interval,
        created_at = created_at - '25h'::interval WHERE user_id = %s""",
)


def overspend(database: Database) -> Finding:
    """64 clients, 10 spends each, on 50 units, in three states of the row; and a naive control."""
    granted = {}
    with served(database.url, workers=3) as site:
        first = Client(site.port)
        first.get("user_fresh")
        first.consume("user_expired", cost=30)
        for statement in WAIT:
            database.rows(statement, "user_expired")
        for user in ("user_missing", "user_fresh", "user_expired"):
            statuses = Counter(sum(at_once(CLIENTS, lambda _: spend_ten(site.port, user)), []))  # noqa: B023, RUF017
            granted[user] = statuses[201], statuses[429], sum(statuses.values())
    naive = naively(database)
    spent = database.one("SELECT sum(cost) FROM ledger_entries WHERE kind = 'consumed'")
    is_exact = set(granted.values()) == {(UNITS, CLIENTS * 10 - UNITS, CLIENTS * 10)}
    told = ", ".join(f"{state.removeprefix('user_')} {units[0]}" for state, units in granted.items())
    return Finding(
        f"granted of {UNITS}: {told}; the control without a guard {naive}",
        is_exact and spent == 3 * UNITS + 30 and naive > UNITS,
    )


def spend_ten(port: int, user: str) -> list[int]:
    client = Client(port, timeout=60)
    return [client.consume(user, cost=1).status for _ in range(10)]


def naively(database: Database) -> int:
    """What the service exists to replace: read, check, write. Return how many were granted of 50."""
    database.rows("CREATE TABLE naive AS SELECT 50 AS remaining")

    def spend(_: int) -> int:
        granted = 0
        with database.connect() as session:
            start.wait()
            for _ in range(10):
                row = session.execute("SELECT remaining FROM naive").fetchone()
                if row and row[0] > 0:
                    session.execute("UPDATE naive SET remaining = %s", [row[0] - 1])
                    granted += 1
        return granted

    start = Barrier(CLIENTS)
    return sum(at_once(CLIENTS, spend))


def same_keys(database: Database) -> Finding:
    """16 clients send the same 20 keys to a quota of 20, so that one of them empties it."""
    with served(database.url, workers=3) as site:

        def client(_: int) -> list[tuple[int, bool]]:
            mine = Client(site.port, timeout=60)
            answers = [mine.consume("user_1", f"k-{number}", cost=1) for number in range(20)]
            return [(answer.status, "Idempotent-Replayed" in answer.headers) for answer in answers]

        told = Counter(sum(at_once(16, client), []))  # noqa: RUF017
    first, again = told[201, False], told[201, True]
    spent = database.one("SELECT sum(cost) FROM ledger_entries WHERE kind = 'consumed'")
    left = database.one("SELECT quota_remaining FROM challenge_quotas")
    return Finding(
        f"{spent} units spent, {first} first answers, {again} replays, {320 - first - again} others",
        (spent, left, first, again) == (20, 0, 20, 300),
    )


def at_once(count: int, act: Callable[[int], Told]) -> list[Told]:
    with ThreadPoolExecutor(count) as threads:
        return [future.result() for future in [threads.submit(act, number) for number in range(count)]]

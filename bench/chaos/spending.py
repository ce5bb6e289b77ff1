"""Figures 1 and 2: many clients at once on one quota, and many with the same keys."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

from bench.chaos.client import Client
from bench.chaos.ground import Database, Finding, served
from bench.time_travel import age_by

Result = TypeVar("Result")
CLIENTS, UNITS = 64, 50


def overspend(database: Database) -> Finding:
    """Let 64 clients send 10 spends each at 50 units, for three states of the row; and a naive control."""
    granted = {}
    with served(database.url, workers=3) as site:
        first = Client(site.port)
        first.get("user_fresh")
        first.consume("user_expired", cost=30)
        for statement in age_by("25 hours"):
            database.rows(statement, "user_expired")
        for user in ("user_missing", "user_fresh", "user_expired"):
            statuses = Counter(sum(at_once(CLIENTS, lambda _: spend_ten(site.port, user)), []))  # noqa: B023, RUF017
            granted[user] = statuses[201], statuses[429], sum(statuses.values())
    naive = naively(database)
    spent = database.one("SELECT sum(cost) FROM ledger_entries WHERE kind = 'consumed'")
    is_exact = set(granted.values()) == {(UNITS, CLIENTS * 10 - UNITS, CLIENTS * 10)}
    counts = ", ".join(f"{state.removeprefix('user_')} {units[0]}" for state, units in granted.items())
    return Finding(
        f"granted of {UNITS}: {counts}; the control without a guard {naive}",
        is_exact and spent == 3 * UNITS + 30 and naive > UNITS,
    )


def spend_ten(port: int, user: str) -> list[int]:
    client = Client(port, timeout=60)
    return [client.consume(user, cost=1).status for _ in range(10)]


def naively(database: Database) -> int:
    """Read, check and write without a guard; return how many spends were granted of 50."""
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
    """Let 16 clients send the same 20 keys to a quota of 20: one spend for each key empties it."""
    with served(database.url, workers=3) as site:

        def client(_: int) -> list[tuple[int, bool]]:
            http = Client(site.port, timeout=60)
            answers = [http.consume("user_1", f"k-{number}", cost=1) for number in range(20)]
            return [(answer.status, "Idempotent-Replayed" in answer.headers) for answer in answers]

        answers = Counter(sum(at_once(16, client), []))  # noqa: RUF017
    first, again = answers[201, False], answers[201, True]
    spent = database.one("SELECT sum(cost) FROM ledger_entries WHERE kind = 'consumed'")
    left = database.one("SELECT quota_remaining FROM challenge_quotas")
    return Finding(
        f"{spent} units spent, {first} first answers, {again} replays, {320 - first - again} others",
        (spent, left, first, again) == (20, 0, 20, 300),
    )


def at_once(count: int, function: Callable[[int], Result]) -> list[Result]:
    with ThreadPoolExecutor(count) as threads:
        return [future.result() for future in [threads.submit(function, number) for number in range(count)]]

"""Figure 16: one account that everybody uses, while sessions, workers and the server are ended."""

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from threading import Event, Thread

import psycopg

from bench.chaos.client import LOST, Answer, Client, Load, wait_until
from bench.chaos.crashes import faults
from bench.chaos.ground import Database, Finding, Site, manage, served

SECONDS = 60
HOT, SCARCE = "user_hot", "user_scarce"
OTHERS = [f"user_{number}" for number in range(16)]
UNITS = 50  # that the scarce account has at the start
KILLS_EVERY, TERMINATES_EVERY = 8, 0.7  # seconds; a worker that dies within 5.5 s ends the server
RESTARTS_AT = (20, 40)  # seconds after the start
MAX_SECONDS = 15  # from the first try of a spend to its success
AWAY = (OSError, psycopg.Error)


class Adjustments(Load):
    """A service that adds one unit after the other."""

    def ask(self, client: Client, user: str, key: str) -> Answer:
        return client.adjust(user, key, 1)


@dataclass
class Keyless(Load):
    """Clients that spend without keys, so that they may not retry."""

    ids: set[str] = field(default_factory=set)  # of the spends that were answered
    unanswered: int = 0  # whether they were carried out is unknown

    def _spend(self, client: Client, user: str, key: str, number: int) -> None:
        try:
            answer = self._timed(number, lambda: client.consume(user, cost=1))
        except LOST:
            self.unanswered += 1
            return
        if answer.status == 201:
            self.ids.add(json.loads(answer.body)["id"])
        elif answer.is_unavailable:
            self.unanswered += 1
            time.sleep(self.pause)
        else:
            self.failures.append(f"{answer.status} {answer.body[:200]!r}")

    def faults(self, database: Database) -> str:
        """Return how many answered spends are lost, and how many more are stored than were ever sent."""
        query = "SELECT id::text FROM ledger_entries WHERE kind = 'consumed' AND idempotency_key IS NULL"
        stored = {entry for (entry,) in database.rows(query)}
        lost, unasked = len(self.ids - stored), len(stored - self.ids) - self.unanswered
        return f"without keys: lost {lost}, unasked {unasked}" if lost or unasked > 0 else ""


def hot_account(database: Database) -> Finding:
    """Spend and adjust over 64 connections, most of them on one account, during all these faults."""
    key = service_key(database)
    with served(database.url) as site:
        Client(site.port, service_key=key).adjust(SCARCE, "first", UNITS - 1_000_000)
        hot = Load(site.port, [HOT], clients=24, name="hot")
        keyless = Keyless(site.port, [HOT], clients=8, name="keyless")
        scarce = Load(site.port, [SCARCE], clients=4, name="scarce", may_run_out=True)
        others = Load(site.port, OTHERS, clients=22, name="other", reads=True)
        added = Adjustments(site.port, [HOT, SCARCE], clients=6, name="added", service_key=key, think=0.05)
        loads = (hot, keyless, scarce, others, added)
        with ExitStack() as running:
            for load in loads:
                running.enter_context(load)
            counts = harm(database, site)
    added.acknowledged["first"] = SCARCE, False
    found = ", ".join(filter(None, (faults(database, *loads), keyless.faults(database))))
    longest = max(load.longest for load in loads)
    least = database.one("SELECT min(quota_remaining) FROM challenge_quotas")
    done = {
        "spends with keys": hot,
        "of the scarce account": scarce,
        "of others": others,
        "adjustments": added,
    }
    sums = ", ".join(f"{len(load.acknowledged)} {name}" for name, load in done.items())
    replays = sum(is_replay for load in loads for _, is_replay in load.acknowledged.values())
    return Finding(
        f"{counts}; {sums} ({replays} by replay), {len(keyless.ids)} without keys "
        f"({keyless.unanswered} unanswered), {scarce.refusals} refused; "
        f"{found or 'lost 0, double 0, overspent 0'}; "
        f"longest silence {others.silence():.1f} s, slowest spend {longest:.1f} s",
        not found and least >= 0 and longest < MAX_SECONDS and scarce.refusals > 0,
    )


def service_key(database: Database) -> str:
    done = manage(database.url, "create_service_key", "chaos", "--scopes", "adjust")
    return done.stdout.strip()


def harm(database: Database, site: Site) -> str:
    """End sessions, workers and PostgreSQL for SECONDS; return how many."""
    began, kills = time.monotonic(), 0
    with repeated(lambda: terminate_one(database), TERMINATES_EVERY) as ended, ExitStack() as restarts:
        for at in RESTARTS_AT:
            later = repeated(database.server.restart, at, times=1)
            restarts.enter_context(later)
        while time.monotonic() - began < SECONDS - KILLS_EVERY:
            time.sleep(KILLS_EVERY)
            os.kill(site.workers[0], signal.SIGKILL)
            kills += 1
        time.sleep(KILLS_EVERY)
    wait_until(lambda: len(site.workers) == 2)
    restarts_done = f"PostgreSQL restarted {len(RESTARTS_AT)} times"
    return f"{sum(ended)} sessions terminated, {kills} workers killed, {restarts_done}"


def terminate_one(database: Database) -> int:
    """Terminate one of the site's sessions, chosen at random; return how many there were to end."""
    query = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid() AND backend_type = 'client backend' ORDER BY random() LIMIT 1"
    )
    with suppress(*AWAY):
        return len(database.rows(query))
    return 0


@contextmanager
def repeated(function: Callable[[], object], seconds: float, *, times: int = 0) -> Iterator[list[int]]:
    """Call the function again and again until the block ends; yield the numbers that it returns."""
    stop, results = Event(), list[int]()

    def run() -> None:
        while not stop.wait(seconds * random.uniform(0.8, 1.2)):
            results.append(int(function() or 0))  # type: ignore[call-overload]
            if len(results) == times:
                return

    thread = Thread(target=run, daemon=True)
    thread.start()
    try:
        yield results
    finally:
        stop.set()
        thread.join(60)

"""Figures 18 and 19: a session of PostgreSQL, or the whole server, that hangs and keeps its connections."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread

from bench.chaos.client import Client, Load
from bench.chaos.crashes import faults
from bench.chaos.ground import Database, Finding, children, served
from tests.tools.postgres import Server

USERS = [f"user_{number}" for number in range(32)]
NEW_USERS = [f"user_new_{number}" for number in range(100_000)]
SESSION_SECONDS, SERVER_SECONDS = 10, 12  # a server that hangs for longer than any answer may take
MAX_SERVED_AGAIN = 1.5  # seconds until those are served whose statement does not hang
MAX_ANSWER = 6  # of those whose statement hangs
MAX_ANSWER_OF_ALL = 8  # if all hang
MIN_RATE = 0.9
THINK = 0.1  # seconds
PROBE_SECONDS = 0.3
TRIES = 20


def hung_session(database: Database) -> Finding:
    """Stop one session of the site: only the users of the requests that it carries out wait, and get a 503.

    The rows that it has locked stay locked until it goes on, so each client has a user of its own, and the
    rate before and during is that of the clients that are not hit. They pause between requests: with idle
    processors, only waiting slows them.
    """
    with served(database.url) as site:
        open_users(site.port)
        with Load(site.port, USERS, clients=32, reads=True, has_own_user=True, think=THINK) as load:
            load.wait_for(1_000)
            began = time.monotonic()
            time.sleep(SESSION_SECONDS)
            with stopped_session(database) as (state, stopped_at):
                time.sleep(max(0, stopped_at + SESSION_SECONDS - time.monotonic()))
            load.wait_for(500)
    during = load.replies_within(stopped_at, SESSION_SECONDS)
    hung = {reply.client for reply in during if reply.status not in (200, 201)}
    before, rate = (
        sum(reply.client not in hung for reply in replies) / SESSION_SECONDS
        for replies in (load.replies_within(began, SESSION_SECONDS), during)
    )
    again = max((reply.seconds for reply in during if reply.client not in hung), default=SESSION_SECONDS)
    slowest = max(reply.seconds for reply in load.replies)
    statuses = sorted({reply.status for reply in load.replies} - {200, 201})
    found = faults(database, load)
    return Finding(
        f"stopped {state}: {before:.0f} answers a second of the others before, {rate:.0f} during "
        f"({rate / before:.2f}); "
        f"{len(hung)} of 32 clients were answered by {statuses}, after at most {slowest:.1f} s; the others "
        f"waited at most {again:.1f} s; {found or 'lost 0, double 0'}",
        rate >= MIN_RATE * before
        and again < MAX_SERVED_AGAIN
        and slowest < MAX_ANSWER
        and statuses in ([], [503])
        and not found,
    )


def hung_server(database: Database) -> Finding:
    """Stop all processes of PostgreSQL: all requests get a 503 in time, and afterwards all are served."""
    with served(database.url) as site:
        open_users(site.port)
        load = Load(site.port, USERS, clients=24, reads=True)
        opening = Load(site.port, NEW_USERS, clients=8, name="new")
        with load, opening:
            load.wait_for(1_000)
            with stopped_server(database.server):
                began = time.monotonic()
                time.sleep(SERVER_SECONDS)
            continued = time.monotonic()
            load.wait_for(500)
            opening.wait_for(10)
    replies = [*load.replies, *opening.replies]
    failed = [reply for reply in replies if reply.status not in (200, 201)]
    slowest = max(reply.seconds for reply in replies)
    back = min(at for at in load.successes if at > continued) - continued
    found = faults(database, load, opening)
    return Finding(
        f"stopped for {continued - began:.1f} s: {len(failed)} answers of "
        f"{sorted({reply.status for reply in failed})}, the slowest answer {slowest:.1f} s, the last 503 "
        f"{max(reply.at for reply in failed) - continued:.1f} s after it went on; first spend {back:.2f} s "
        f"after that; {len(load.acknowledged) + len(opening.acknowledged)} acknowledged, "
        f"{found or 'lost 0, double 0'}",
        slowest < MAX_ANSWER_OF_ALL and {reply.status for reply in failed} == {503} and not found,
    )


def open_users(port: int) -> None:
    client = Client(port)
    for user in USERS:
        client.get(user)


@contextmanager
def stopped_session(database: Database) -> Iterator[tuple[str, float]]:
    """Stop the process of a session that works; yield what it did, and when it was stopped.

    One that holds a lock of the server itself, as of its log, would stop every writer: take another one then.
    """
    busy = (
        "SELECT pid, state FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid() AND backend_type = 'client backend' "
        "ORDER BY state = 'active' DESC, state_change DESC LIMIT 1"
    )
    database.rows("CREATE TABLE probe (number int)")
    for _ in range(TRIES):
        pid, state = database.rows(busy)[0]
        with stopped([pid]):
            stopped_at = time.monotonic()
            probe = Thread(target=database.rows, args=("INSERT INTO probe VALUES (1)",), daemon=True)
            probe.start()
            probe.join(PROBE_SECONDS)  # no time-out of PostgreSQL ends the wait for such a lock
            if not probe.is_alive():
                yield state, stopped_at
                return
        probe.join()
    raise TimeoutError("every session that was stopped held a lock of the server")


@contextmanager
def stopped_server(server: Server) -> Iterator[None]:
    assert server.process
    postmaster = server.process.pid
    with stopped([postmaster]), stopped(children(postmaster)):  # in this order: it starts no new ones
        yield


@contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

"""Figure 17: a row that another session holds delays its own clients, and nobody else."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import psycopg

from bench.chaos.client import Client, Load, wait_until
from bench.chaos.crashes import faults
from bench.chaos.ground import Database, Finding, served
from bench.internals import LOCK_SECONDS
from tests.tools.holds import row_half_opened, row_held

SECONDS = 12
HELD, FREE = "user_held", "user_free"
OTHERS = [f"user_{number}" for number in range(16)]
CLIENTS, OTHER_CLIENTS = 24, 16
THINK = 0.05  # seconds between two requests of the others: with idle processors, only waiting slows them
MAX_ANSWER = 6  # seconds
MIN_RATE = 0.9  # of the rate without the hold

Hold = Callable[[], AbstractContextManager[None]]


def held_row(database: Database) -> Finding:
    return despite(partial(row_held, database.url, HELD), database)


def uncommitted_row(database: Database) -> Finding:
    hold = partial(row_half_opened, database.url, HELD, like=OTHERS[0])
    return despite(hold, database, exists=False)


def prepared_row(database: Database) -> Finding:
    """Hold the row by a prepared transaction, which no session runs."""
    database.rows("ALTER SYSTEM SET max_prepared_transactions = 2")
    database.server.restart()
    try:
        return despite(partial(prepared, database), database)
    finally:
        database.rows("ALTER SYSTEM RESET max_prepared_transactions")
        database.server.restart()


@contextmanager
def prepared(database: Database) -> Iterator[None]:
    with psycopg.connect(database.url) as holder:
        transaction = holder.xid(1, "held", "row")
        holder.tpc_begin(transaction)
        holder.execute("SELECT 1 FROM challenge_quotas WHERE user_id = %s FOR UPDATE", [HELD])
        holder.tpc_prepare()
        yield
        holder.tpc_rollback()


def despite(hold: Hold, database: Database, *, exists: bool = True) -> Finding:
    """Compare the others' rate while the row is held with that before and after.

    The control: as many clients spend from a row that is free, each as seldom as one is answered that waits
    for the held row.
    """
    with served(database.url) as site:
        for user in [*OTHERS, FREE, *([HELD] if exists else [])]:
            Client(site.port, keep_alive=False).get(user)
        with Load(site.port, OTHERS, clients=OTHER_CLIENTS, name="other", reads=True, think=THINK) as others:
            others.wait_for(500)
            controls = [
                Load(site.port, [FREE], CLIENTS, name=name, think=LOCK_SECONDS) for name in ("a", "b")
            ]
            before = rate_beside(controls[0], others)
            kept = Load(site.port, [HELD], clients=CLIENTS, name="held", timeout=60)
            with hold():
                began = time.monotonic()
                kept.start()
                time.sleep(SECONDS)
            released = time.monotonic()
            wait_until(lambda: len(kept.acknowledged) >= CLIENTS)
            kept.stop()
            after = rate_beside(controls[1], others)
    during = others.replies_within(began, SECONDS)
    unserved = sum(reply.status not in (200, 201) for reply in during)
    share = 2 * len(during) / SECONDS / (before + after)
    waited = kept.replies_within(began, released - began)
    statuses = sorted({reply.status for reply in waited})
    longest = max(reply.seconds for reply in kept.replies)
    found = faults(database, others, kept, *controls)
    return Finding(
        f"others: {before:.0f} answers a second before, {len(during) / SECONDS:.0f} during the hold "
        f"({share:.2f}), {after:.0f} after; {unserved} of them unserved, the slowest answer "
        f"{max(reply.seconds for reply in during):.1f} s; the row's own: {len(waited)} answers of "
        f"{statuses}, the slowest {longest:.1f} s, then {len(kept.acknowledged)} spent, "
        f"{found or 'lost 0, double 0'}",
        share >= MIN_RATE and not unserved and statuses == [503] and longest < MAX_ANSWER and not found,
    )


def rate_beside(control: Load, others: Load) -> float:
    """Return how many answers a second the others get beside this load."""
    with control:
        began = time.monotonic()
        time.sleep(SECONDS)
    return len(others.replies_within(began, SECONDS)) / SECONDS

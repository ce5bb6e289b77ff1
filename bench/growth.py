"""Whether a request costs more with more users, or with a longer history: `python -m bench.growth`.

Starts a throw-away PostgreSQL with a database of each size, and sends each hot statement, prepared, to all of
them in rotation, so that the ratios hold on a busy machine. "First" is a user that no statement has read
since the server started, as if every user were equally likely; "again" is right after that, as for active
users. "Planned" counts the calls out of 100 for which PostgreSQL made a plan. A statement for many users at
once is given by its cost for one of them. Most of the time is spent on creating 5,000,000 users with
20,000,000 entries, 11 GB; `--users` lowers that, `--quick` takes a minute.
"""

import argparse
import os
import random
import secrets
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import Any, NamedTuple

import django
import psycopg
from django.db import connection, transaction
from psycopg.pq import Format
from psycopg.types.json import JsonbDumper
from psycopg.types.numeric import Int8Dumper

from bench.crowd import BulkLoad, copy, multiply, run, sizes, use
from bench.internals import MAX_BATCH, Actor
from tests.tools.overheard import ENTRIES, QUOTAS, USER, Sent, blocks, explained, numbered, overheard
from tests.tools.postgres import Server, engine

SIZES, QUICK_SIZES = (1_000, 100_000, 5_000_000), (1_000, 10_000, 100_000)
LONG, QUICK_LONG = 100_000, 10_000  # entries of one user in the largest database
CALLS = 100  # of each statement in each database
WARM_UP = 15  # calls that are explained for their blocks, and not timed
COMMITTED = "swap with its commit"
READ, WRITE = BATCHES = f"snapshot, {MAX_BATCH} at once", f"swap, {MAX_BATCH} at once"
STAFF = Actor("staff", "a bench")

Pair = tuple[Sent, Sent]  # the statement for a user the first time, and again
Samples = dict[str, tuple[str, dict[str, list[Pair]]]]  # by size: a database, and its pairs by statement


class Costs(NamedTuple):
    """The costs of a statement: microseconds, blocks that PostgreSQL uses, and plans that it makes."""

    first: float
    again: float
    blocks: float
    planned: int  # calls out of 100 that got a plan of their own


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.growth", allow_abbrev=False, description=__doc__)
    parser.add_argument("--quick", action="store_true", help="100,000 users in the largest database")
    parser.add_argument(
        "--users", type=int, default=SIZES[-1], help="in the largest database, %(default)s by default"
    )
    options = parser.parse_args()
    users, long = (QUICK_SIZES, QUICK_LONG) if options.quick else ((*SIZES[:-1], options.users), LONG)
    with Server() as server:
        os.environ.update(
            DATABASE_URL=server.url, DJANGO_SETTINGS_MODULE="quotasite.settings", SECRET_KEY="of a bench"
        )
        django.setup()
        print(engine(server.url), flush=True)
        fill(server, users, long)
        rng = random.Random(20)
        alone = CALLS * len(statements())
        needed = alone + CALLS * MAX_BATCH * len(BATCHES)
        samples = {
            f"{count:,}": sample(count, rng.sample(range(2, count), min(needed, count - 2)))
            for count in users
        } | {"one long": sample(users[-1], [1] * alone)}
        connection.close()
        server.restart()  # empties the server's own cache; the system's keeps much
        report(measure(server, samples))
    return 0


def fill(server: Server, users: tuple[int, ...], long: int) -> None:
    """Create a database for each number of users, with four entries for each user and many for one."""
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    with BulkLoad(server):
        play()
        for count in users:
            use("postgres")
            run(f"CREATE DATABASE {database(count)} TEMPLATE quotasite")
            use(database(count))
            print(f"\n{count:,} users, made in {multiply(count):.0f} s", flush=True)
            if count == users[-1]:
                lengthen(long)
            print(*sizes(), sep="\n", flush=True)


def play() -> None:
    """Write the history that every user gets: two spends, and the refund of one."""
    from quotas.models import ChallengeQuota, Plan

    plan = Plan.objects.get(is_default=True)
    plan.allowance = 1_000_000
    plan.save()
    spend = ChallengeQuota.objects.consume("user_played", 2, key="first").entry
    ChallengeQuota.objects.refund("user_played", spend.id, 1, reason="for a bench", actor=STAFF)
    ChallengeQuota.objects.consume("user_played", 2, key="second")


def lengthen(entries: int) -> None:
    """Give the first user so many entries."""
    (user_id,) = user_ids([1])
    originals = f"(SELECT * FROM {ENTRIES} WHERE user_id = '{user_id}' AND seq IN (2, 3)) AS originals"
    copy(ENTRIES, originals, entries // 2, user_id="user_id", seq="seq + 1 + 2 * copy")
    newest = entries + 4
    run(f"UPDATE {QUOTAS} SET seq = {newest}, usage_seq = {newest} WHERE user_id = %s", [user_id])
    run(f"VACUUM (ANALYZE) {QUOTAS}, {ENTRIES}")


def database(users: int) -> str:
    return f"of_{users}"


def user_ids(numbers: Sequence[int]) -> list[str]:
    rows = run(f"SELECT {USER.format(number='number')} FROM unnest(%s::int[]) AS number", [list(numbers)])
    return [user_id for (user_id,) in rows]


def statements() -> dict[str, Callable[[str], Pair]]:
    """Return functions that capture each statement of a request for a user; call them in a transaction."""
    from quotas.models import ChallengeQuota, LedgerEntry
    from tests.tools.together import cached_plan

    quotas = ChallengeQuota.objects

    def spend(user_id: str) -> None:
        quotas.consume(user_id, key=secrets.token_hex())

    def spend_with_cached_plan(user_id: str) -> None:
        with cached_plan():
            spend(user_id)

    def refund(user_id: str) -> None:
        consumption = LedgerEntry.objects.filter(user_id=user_id, cost=2).latest("seq")
        quotas.refund(user_id, consumption.pk, reason="for a bench", actor=STAFF)

    def follow_clerk(user_id: str) -> None:
        quotas.change_plan(user_id, None, actor=STAFF)  # takes the row lock first

    def swap(user_id: str) -> Pair:
        with overheard() as sent:
            spend(user_id)
            spend(user_id)
        return sent[1], sent[3]

    def open_two(user_id: str) -> Pair:
        with overheard() as sent:
            for _ in range(2):
                quotas.current(f"user_{secrets.token_hex(13)}")
        return sent[1], sent[3]

    return {
        "snapshot (GET)": capturing(quotas.current),
        "snapshot with a key": capturing(spend),
        "the same without plans": capturing(spend_with_cached_plan),
        "snapshot for a refund": capturing(refund, 1),
        "lock": capturing(follow_clerk),
        "swap with one entry": swap,
        COMMITTED: swap,
        "open": open_two,
    }


def statements_of_a_batch() -> dict[str, Callable[[list[str]], Pair]]:
    """The same for the statements that an event loop sends for several users at once."""
    from tests.tools.together import cached_plan, spend_together

    def capture(user_ids: list[str]) -> list[Sent]:
        with cached_plan(), overheard() as sent:
            for _ in range(2):
                spend_together(user_ids, secrets.token_hex())
        return sent

    def read(user_ids: list[str]) -> Pair:
        with transaction.atomic():
            sent = capture(user_ids)
            transaction.set_rollback(True)
        return sent[0], sent[0]

    def write(user_ids: list[str]) -> Pair:
        sent = capture(user_ids)
        return sent[1], sent[3]

    return {READ: read, WRITE: write}


def capturing(verb: Callable[[str], object], place: int = 0) -> Callable[[str], Pair]:
    """Return a function that runs the verb for a user, undoes it, and returns one of its statements twice."""

    def capture(user_id: str) -> Pair:
        with transaction.atomic(), overheard() as sent:
            verb(user_id)
            transaction.set_rollback(True)
        return sent[place], sent[place]

    return capture


def sample(users: int, numbers: Sequence[int]) -> tuple[str, dict[str, list[Pair]]]:
    """Return a database, and each statement for CALLS of these users; no two statements share a user.

    The rest of the users are for batches, which come back to them in the smallest database.
    """
    use(database(users))
    ids = iter(user_ids(numbers))
    pairs = {}
    for name, capture in statements().items():
        with transaction.atomic():
            pairs[name] = [capture(user_id) for user_id in islice(ids, CALLS)]
            transaction.set_rollback(True)
    if rest := [*ids]:
        several = cycle(rest)
        for name, capture_batch in statements_of_a_batch().items():
            with transaction.atomic():
                pairs[name] = [capture_batch([*islice(several, MAX_BATCH)]) for _ in range(CALLS)]
                transaction.set_rollback(True)
    run(f"VACUUM {QUOTAS}, {ENTRIES}")  # what was rolled back
    return database(users), pairs


def connect(server: Server, database: str) -> psycopg.Connection[Any]:
    address = server.url.rpartition("/")[0]
    session = psycopg.connect(f"{address}/{database}", autocommit=True)
    session.adapters.register_dumper(int, Int8Dumper)  # one type for every integer: one prepared statement
    session.adapters.register_dumper(dict, JsonbDumper)
    return session


def measure(server: Server, samples: Samples) -> dict[str, dict[str, Costs]]:
    """Return the costs of each statement in each database, taking the databases in rotation.

    Roll nothing back between timed calls: after a ROLLBACK psycopg prepares every statement again.
    """
    connections = {size: connect(server, name) for size, (name, _) in samples.items()}
    costs: dict[str, dict[str, Costs]] = {}
    names = next(iter(samples.values()))[1]
    for name in names:
        users = MAX_BATCH if name in BATCHES else 1
        pairs = {
            size: of[name]
            for size, (_, of) in samples.items()
            if name in of and (size, name) != ("one long", COMMITTED)
        }
        times: dict[str, list[tuple[float, float]]] = {size: [] for size in pairs}
        blocks_used = {  # the spends of one user form a chain: only the first can be explained
            size: statistics.median(blocks_of(connections[size], sent) for sent, _ in of_size[:count])
            for size, of_size in pairs.items()
            for count in [1 if size == "one long" or name in BATCHES else WARM_UP]
        }
        for session in connections.values():
            session.execute(f"SET synchronous_commit = {'on' if name == COMMITTED else 'off'}")
        for call in range(CALLS):
            for size, of_size in pairs.items():
                first, again = (microseconds(connections[size], sent, users) for sent in of_size[call])
                times[size].append((first, again))
        costs[name] = {
            size: Costs(
                *(statistics.median(column[WARM_UP:]) / users for column in zip(*of_size, strict=True)),
                blocks_used[size] / users,
                planned(connections[size], pairs[size][0][0]),
            )
            for size, of_size in times.items()
        }
    return costs


def microseconds(session: psycopg.Connection[Any], sent: Sent, rows: int) -> float:
    with psycopg.RawCursor(session) as cursor:
        cursor.format = Format.BINARY
        began = time.perf_counter()
        cursor.execute(numbered(sent.text), sent.values, prepare=True)
        seconds = time.perf_counter() - began
        assert cursor.rowcount == rows, "the statement found or wrote nothing for a user"
    return 1e6 * seconds


def blocks_of(session: psycopg.Connection[Any], sent: Sent) -> int:
    with session.transaction(force_rollback=True):
        plan = explained(session, sent, generic=True)
    # PostgreSQL counts for the whole no INSERT of a WITH whose result nothing reads.
    unread = [node for node in plan.get("Plans", []) if node.get("Subplan Name") == "CTE entered"]
    return blocks(plan) + sum(blocks(node) for node in unread)


def planned(session: psycopg.Connection[Any], sent: Sent) -> int:
    """Return how many calls out of 100 PostgreSQL planned for their values instead of by the generic plan."""
    query = "SELECT SUM(custom_plans), SUM(generic_plans) FROM pg_prepared_statements WHERE statement = %s"
    with psycopg.ClientCursor(session) as cursor:
        custom, generic = cursor.execute(query, [numbered(sent.text)]).fetchone() or (0, 0)
    return round(100 * custom / (custom + generic))


def report(costs: dict[str, dict[str, Costs]]) -> None:
    """Print a line for each statement and size, with the ratio to the smallest size."""
    titles = f"{'first µs':>11}{'ratio':>7}{'again µs':>11}{'ratio':>7}{'blocks':>8}{'planned %':>11}"
    print(f"\n{'statement':<24}{'users':>11}{titles}")
    for name, of_name in costs.items():
        smallest = next(iter(of_name.values()))
        for size, cost in of_name.items():
            first = f"{cost.first:>11.0f}{cost.first / smallest.first:>7.2f}"
            again = f"{cost.again:>11.0f}{cost.again / smallest.again:>7.2f}"
            print(f"{name:<24}{size:>11}{first}{again}{cost.blocks:>8.1f}{cost.planned:>11}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

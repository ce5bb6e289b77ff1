"""Whether a request costs more among more users, or after a longer history: `python -m bench.growth`.

Starts a throw-away PostgreSQL with a database of each size, and sends each hot statement, prepared, to
all of them in turns, so that the ratios hold on a noisy machine. "First" is a user who was not asked
about since the server started, as if every user were equally likely; "again" is right after that, as for
the users who are active. "Planned" is for how many calls out of 100 PostgreSQL made a plan. Most of the
time goes into making 5,000,000 users with 20,000,000 entries, 11 GB; `--most` makes that less, and
`--quick` takes two minutes.
"""

import argparse
import os
import random
import secrets
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, NamedTuple
from uuid import UUID

import django
import psycopg
from django.db import connection, transaction
from psycopg.types.json import JsonbDumper
from psycopg.types.numeric import Int8Dumper

from bench.crowd import Hurry, copy, multiply, run, sizes, use
from tests.tools.overheard import ENTRIES, QUOTAS, USER, Sent, blocks, explained, numbered, overheard
from tests.tools.postgres import Server, engine

SIZES, QUICK_SIZES = (1_000, 100_000, 5_000_000), (1_000, 10_000, 100_000)
LONG, QUICK_LONG = 100_000, 10_000  # entries of one user, in the largest
CALLS = 120  # of each statement in each database
WARM = 15  # of these, explained for the blocks, and not timed
COMMITTED = "swap with its commit"


Pair = tuple[Sent, Sent]  # what is sent for a user at first, and again
Samples = dict[str, tuple[str, dict[str, list[Pair]]]]  # by size: a database, and its pairs by statement


class Costs(NamedTuple):
    """What a statement costs: microseconds, blocks that PostgreSQL touches, and plans that it makes."""

    first: float
    again: float
    blocks: float
    planned: int  # of 100 calls: those for which it was planned anew


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.growth", allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="the largest has 100,000 users")
    parser.add_argument("--most", type=int, default=SIZES[-1], help="users of the largest (%(default)s)")
    options = parser.parse_args()
    users, long = (QUICK_SIZES, QUICK_LONG) if options.quick else ((*SIZES[:-1], options.most), LONG)
    with Server() as server:
        os.environ.update(
            DATABASE_URL=server.url, DJANGO_SETTINGS_MODULE="quotasite.settings", SECRET_KEY="of a bench"
        )
        django.setup()
        print(engine(server.url), flush=True)
        fill(server, users, long)
        chance = random.Random(20)
        wanted = CALLS * len(statements())
        samples = {
            f"{count:,}": sampled(count, chance.sample(range(2, count), wanted)) for count in users
        } | {"one long": sampled(users[-1], [1] * wanted)}
        connection.close()
        server.restart()  # now nothing is in its own memory, and much in the system's
        tell(measured(server, samples))
    return 0


def fill(server: Server, users: tuple[int, ...], long: int) -> None:
    """Make a database for each number of users, with four entries for each, and many for one."""
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    with Hurry(server):
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
    """The life that all users have led: two spends, and the refund of one."""
    from quotas.models import ChallengeQuota, Plan
    from quotas.rules.values import Actor

    plan = Plan.objects.get(is_default=True)
    plan.allowance = 1_000_000
    plan.save()
    spend = ChallengeQuota.objects.consume("user_played", 2, key="first").entry
    staff = Actor("staff", "a bench")
    ChallengeQuota.objects.refund("user_played", spend.id, 1, reason="for a bench", actor=staff)
    ChallengeQuota.objects.consume("user_played", 2, key="second")


def lengthen(entries: int) -> None:
    """Let the first user have so many entries."""
    (user_id,) = user_ids([1])
    his = f"(SELECT * FROM {ENTRIES} WHERE user_id = '{user_id}' AND seq IN (2, 3)) AS his"
    copy(ENTRIES, his, entries // 2, user_id="user_id", seq="seq + 1 + 2 * copy")
    run(f"UPDATE {QUOTAS} SET seq = {entries} + 4 WHERE user_id = %s", [user_id])
    run(f"VACUUM (ANALYZE) {QUOTAS}, {ENTRIES}")


def database(users: int) -> str:
    return f"of_{users}"


def user_ids(numbers: Sequence[int]) -> list[str]:
    found = run(f"SELECT {USER.format(number='it')} FROM unnest(%s::int[]) AS it", [list(numbers)])
    return [user_id for (user_id,) in found]


def statements() -> dict[str, Callable[[str], Pair]]:
    """The statements of a request, as they are sent for a user; to be called in a transaction."""
    from quotas.models import ChallengeQuota, LedgerEntry
    from quotas.rules.values import Actor
    from quotas.store import commit

    quotas = ChallengeQuota.objects
    spends: dict[str, UUID] = {}

    def read(act: Callable[[str], object]) -> Callable[[str], Pair]:
        def pair(user_id: str) -> Pair:
            spends[user_id] = LedgerEntry.objects.filter(user_id=user_id, cost=2).latest("seq").pk
            with transaction.atomic(), overheard() as sent:
                act(user_id)
                transaction.set_rollback(True)
            return sent[0], sent[0]

        return pair

    def spend(user_id: str) -> None:
        quotas.consume(user_id, key=secrets.token_hex())

    def refund(user_id: str) -> None:
        quotas.refund(user_id, spends[user_id], reason="for a bench", actor=Actor("staff", "a bench"))

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
        "snapshot (GET)": read(quotas.current),
        "snapshot with a key": read(spend),
        "snapshot for a refund": read(refund),
        "lock": read(commit.lock),
        "swap with one entry": swap,
        COMMITTED: swap,
        "open": open_two,
    }


def sampled(users: int, numbers: Sequence[int]) -> tuple[str, dict[str, list[Pair]]]:
    """A database, and each statement for CALLS of these users, other ones for each."""
    use(database(users))
    ids = iter(user_ids(numbers))
    found = {}
    for name, statement in statements().items():
        with transaction.atomic():
            found[name] = [statement(user_id) for user_id in islice(ids, CALLS)]
            transaction.set_rollback(True)
    return database(users), found


def connected(server: Server, database: str) -> psycopg.Connection[Any]:
    address = server.url.rpartition("/")[0]
    made = psycopg.connect(f"{address}/{database}", autocommit=True)
    made.adapters.register_dumper(int, Int8Dumper)  # one type for all sizes, and so one prepared statement
    made.adapters.register_dumper(dict, JsonbDumper)
    return made


def measured(server: Server, samples: Samples) -> dict[str, dict[str, Costs]]:
    """What each statement costs in each database; the databases are asked in turns.

    There is no ROLLBACK among what is timed, for after one psycopg prepares all statements anew.
    """
    connections = {size: connected(server, name) for size, (name, _) in samples.items()}
    costs: dict[str, dict[str, Costs]] = {}
    for name in samples["one long"][1]:
        pairs = {
            size: of[name] for size, (_, of) in samples.items() if (size, name) != ("one long", COMMITTED)
        }
        times: dict[str, list[tuple[float, float]]] = {size: [] for size in pairs}
        touched = {  # the spends of the one are a chain: only the first can be tried
            size: statistics.median(blocks_of(connections[size], sent) for sent, _ in some[:tried])
            for size, some in pairs.items()
            for tried in [1 if size == "one long" else WARM]
        }
        for to in connections.values():
            to.execute(f"SET synchronous_commit = {'on' if name == COMMITTED else 'off'}")
        for call in range(CALLS):
            for size, some in pairs.items():
                first, again = (timed(connections[size], sent) for sent in some[call])
                times[size].append((first, again))
        costs[name] = {
            size: Costs(
                *(statistics.median(column[WARM:]) for column in zip(*of_size, strict=True)),
                touched[size],
                planned(connections[size], pairs[size][0][0]),
            )
            for size, of_size in times.items()
        }
    return costs


def timed(to: psycopg.Connection[Any], sent: Sent) -> float:
    """The microseconds of a statement."""
    with to.cursor(binary=True) as cursor:
        began = time.perf_counter()
        cursor.execute(sent.text, sent.values, prepare=True)
        seconds = time.perf_counter() - began
        assert cursor.rowcount == 1, "it found nothing, or wrote nothing"
    return 1e6 * seconds


def blocks_of(to: psycopg.Connection[Any], sent: Sent) -> int:
    with to.transaction(force_rollback=True):
        return blocks(explained(to, sent, generic=True))


def planned(to: psycopg.Connection[Any], sent: Sent) -> int:
    """How often PostgreSQL planned the statement for its values, instead of once for all."""
    of_one = "SELECT SUM(custom_plans), SUM(generic_plans) FROM pg_prepared_statements WHERE statement = %s"
    with psycopg.ClientCursor(to) as cursor:
        custom, generic = cursor.execute(of_one, [numbered(sent.text)]).fetchone() or (0, 0)
    return round(100 * custom / (custom + generic))


def tell(costs: dict[str, dict[str, Costs]]) -> None:
    """Print a line for each statement and size, with the ratio to the smallest size."""
    titles = f"{'first µs':>11}{'ratio':>7}{'again µs':>11}{'ratio':>7}{'blocks':>8}{'planned %':>11}"
    print(f"\n{'statement':<24}{'users':>11}{titles}")
    for name, of_name in costs.items():
        least = next(iter(of_name.values()))
        for size, it in of_name.items():
            first = f"{it.first:>11.0f}{it.first / least.first:>7.2f}"
            again = f"{it.again:>11.0f}{it.again / least.again:>7.2f}"
            print(f"{name:<24}{size:>11}{first}{again}{it.blocks:>8.0f}{it.planned:>11}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

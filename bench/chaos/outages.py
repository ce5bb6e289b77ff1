"""Figure 5: a database that is stopped, silent, full, slow or read-only, or has no session left."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from statistics import median

import psycopg

from bench.chaos.client import Answer, Client
from bench.chaos.ground import Database, Finding, Site, served

USER = "user_1"
FULL_DISK = """
    CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN RAISE 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$;
    CREATE TRIGGER full_disk BEFORE INSERT ON ledger_entries EXECUTE FUNCTION full_disk()
"""


def timed(send: Callable[[], Answer]) -> tuple[float, bool]:
    """Return how many milliseconds the answer took, and whether it is a 503 with Retry-After."""
    began = time.monotonic()
    answer = send()
    return 1_000 * (time.monotonic() - began), answer.is_unavailable


def read_and_spend(site: Site, count: int = 10) -> tuple[list[float], bool]:
    """Alternate reads and spends; return the milliseconds of each, and whether all were answered by a 503."""
    client = Client(site.port, keep_alive=False)
    sends = [lambda: client.get(USER), lambda: client.consume(USER, "k-during", cost=3)]
    answers = [timed(sends[number % 2]) for number in range(count)]
    return [ms for ms, _ in answers], all(is_unavailable for _, is_unavailable in answers)


def stopped(database: Database) -> Finding:
    """Stop PostgreSQL: a 503 at once if its port is closed, within seconds if the host does not answer."""
    with served(database.url) as site:
        client, before = Client(site.port, keep_alive=False), site.workers
        for _ in range(10):
            client.consume(USER, cost=1)
        database.server.stop()
        refused, is_clear = read_and_spend(site, 20)
        database.server.start()
        back = client.consume(USER, cost=1).status
        is_same = site.workers == before
    with silent() as port, served(database.url_by(port)) as site:
        quiet, is_clear_too = read_and_spend(site, 2)
    return Finding(
        f"refused port: 503 in {median(refused):.0f} ms, at most {max(refused):.0f}; silent host: 503 in "
        f"{max(quiet) / 1_000:.1f} s; first spend after the return {back}"
        f"{'' if is_same else ', but the workers had to restart'}",
        is_clear and is_clear_too and is_same and back == 201 and max(refused) < 2_000 and max(quiet) < 6_000,
    )


@contextmanager
def silent() -> Iterator[int]:
    """Accept connections and never answer, like a host whose firewall drops packets."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as host:
        yield host.getsockname()[1]


def spend_during(
    fault: Callable[[Database], AbstractContextManager[None]], database: Database, note: str
) -> Finding:
    """Spend during a fault: it gets a 503, nothing is stored, and afterwards the same key spends once."""
    with served(database.url, workers=1) as site:
        client = Client(site.port, keep_alive=False)
        client.get(USER)
        before = stored(database)
        with fault(database):
            ms, is_unavailable = timed(lambda: client.consume(USER, "k-1", cost=3))
        is_unchanged = stored(database) == before
        answer = client.consume(USER, "k-1", cost=3)
        first = answer.status == 201 and "Idempotent-Replayed" not in answer.headers
        again = client.consume(USER, "k-1", cost=3).headers.get("Idempotent-Replayed") == "true"
        left = database.one("SELECT quota_remaining FROM challenge_quotas WHERE user_id = %s", USER)
    return Finding(
        f"{note}: {'503 with Retry-After' if is_unavailable else 'NO 503'} in {ms:.0f} ms, "
        f"{'nothing' if is_unchanged else 'SOMETHING'} stored; the same key afterwards: {answer.status}",
        is_unavailable and is_unchanged and first and again and left == 17,
    )


def stored(database: Database) -> list[tuple[object, ...]]:
    return database.rows(
        "SELECT user_id, seq, quota_remaining, (SELECT count(*) FROM ledger_entries) FROM challenge_quotas"
    )


def disk_full(database: Database) -> Finding:
    return spend_during(full_disk, database, "SQLSTATE 53100 at the entry's INSERT")


@contextmanager
def full_disk(database: Database) -> Iterator[None]:
    database.rows(FULL_DISK)
    yield
    database.rows("DROP FUNCTION full_disk CASCADE")


def became_a_standby(database: Database) -> Finding:
    return spend_during(read_only, database, "SQLSTATE 25006, open sessions that may only read")


@contextmanager
def read_only(database: Database) -> Iterator[None]:
    """Make every session read-only, as those that stay open after a fail-over are permanently."""
    name = psycopg.sql.Identifier(database.name)
    change = psycopg.sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name)
    back = psycopg.sql.SQL("ALTER DATABASE {} RESET default_transaction_read_only").format(name)
    with psycopg.connect(database.url, autocommit=True) as session:
        session.execute(change)
        query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        session.execute(query + " AND datname = current_database()")
    yield
    with psycopg.connect(
        database.url, autocommit=True, options="-c default_transaction_read_only=off"
    ) as session:
        session.execute(back)


def waits_too_long(database: Database) -> Finding:
    with psycopg.connect(database.url, autocommit=True) as session:
        role = psycopg.sql.SQL("ALTER ROLE quotasite IN DATABASE {} SET statement_timeout = '500ms'")
        session.execute(role.format(psycopg.sql.Identifier(database.name)))
    return spend_during(locked_row, database, "statement_timeout 500 ms, the row held by another")


@contextmanager
def locked_row(database: Database) -> Iterator[None]:
    with psycopg.connect(database.url) as holder:
        holder.execute("SELECT 1 FROM challenge_quotas FOR UPDATE")
        yield


def no_session_left(database: Database) -> Finding:
    """Use up max_connections: a 503 at once, and a success as soon as sessions are free again."""
    with served(database.url) as site:
        with ExitStack() as held:
            taken = 0
            with suppress(psycopg.OperationalError):
                while True:
                    held.enter_context(psycopg.connect(database.url))
                    taken += 1
            ms, is_clear = read_and_spend(site)
        back = Client(site.port, keep_alive=False).consume(USER, "k-1", cost=3).status
    return Finding(
        f"{taken} sessions held: 503 with Retry-After in {median(ms):.0f} ms, at most {max(ms):.0f}; "
        f"first spend afterwards {back}",
        is_clear and back == 201,
    )

"""Figures 3 and 4: processes are killed and answers lost while clients spend and retry."""

import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Lock, Thread

from bench.chaos.client import LOST, Client, Load, wait_until
from bench.chaos.ground import Database, Finding, Site, kill_postgres, served
from bench.chaos.proxy import Proxy
from tests.tools.wire import Wire

USERS = [f"user_{number}" for number in range(4)]  # for 8 clients: two spend from each row at a time
SHARE = 0.05  # of the answers that are cut
MAX_SECONDS = 5  # of silence, and from the database's return to the next success


def faults(database: Database, *loads: Load) -> str:
    """Return what was lost, done twice, or answered by neither a success nor a retry; '' if nothing was."""
    stored = dict(
        database.rows(
            "SELECT split_part(idempotency_key, ':', 3), "
            "sum(CASE kind WHEN 'consumed' THEN cost ELSE 1 END)::bigint FROM ledger_entries "
            "WHERE kind IN ('consumed', 'adjusted') AND idempotency_key IS NOT NULL GROUP BY 1"
        )
    )
    spent = database.one(
        "SELECT coalesce(sum(CASE kind WHEN 'consumed' THEN cost WHEN 'adjusted' THEN -delta END), 0) "
        "FROM ledger_entries"
    )
    taken = database.one("SELECT sum(quota_limit - quota_remaining) FROM challenge_quotas")
    acknowledged = {key for load in loads for key in load.acknowledged}
    failures = [failure for load in loads for failure in load.failures]
    lost = acknowledged - stored.keys()
    double = sum(stored.values()) - len(stored)
    unasked = stored.keys() - acknowledged
    found = {"lost": len(lost), "double": double, "unasked": len(unasked), "off the rows": taken - spent}
    found["failed"] = len(failures)
    counts = ", ".join(f"{name} {number}" for name, number in found.items() if number)
    return counts + (f" ({failures[0]})" if failures else "")


def postgres_killed(database: Database, *, times: int = 3) -> Finding:
    """Kill PostgreSQL and all its sessions under load, start it again, and time the recovery."""
    starts, recoveries = [], []
    with served(database.url) as site, Load(site.port, USERS) as load:
        before = site.workers
        for _ in range(times):
            load.wait_for(100)
            kill_postgres(database.server)
            killed = time.monotonic()
            database.server.start()
            ready = time.monotonic()
            starts.append(ready - killed)
            load.wait_for(1)
            recoveries.append(next(at for at in sorted(load.successes) if at > killed) - ready)
        load.wait_for(50)
        is_same = site.workers == before
    found = faults(database, load)
    return Finding(
        f"{times} kills, {len(load.acknowledged)} acknowledged, {found or 'lost 0, double 0'}; "
        f"PostgreSQL's own start {max(starts):.1f} s, then a success after {max(max(recoveries), 0):.2f} s; "
        f"slowest spend {load.longest:.1f} s{'' if is_same else '; the site had to restart'}",
        not found and max(recoveries) < MAX_SECONDS and is_same,
    )


def workers_killed(database: Database, *, times: int = 4) -> Finding:
    """Kill the oldest web worker under load, and the next once the replacement serves."""
    returns = []
    with served(database.url) as site, Load(site.port, USERS) as load:
        for _ in range(times):
            load.wait_for(50)
            returns.append(_kill_oldest(site))
            time.sleep(2)
        load.wait_for(50)
    found = faults(database, load)
    return Finding(
        f"{times} kills, {len(load.acknowledged)} acknowledged, {found or 'lost 0, double 0'}; longest "
        f"silence {load.silence():.2f} s, slowest spend {load.longest:.1f} s, "
        f"another worker serves after at most {max(returns):.1f} s",
        not found and load.silence() < MAX_SECONDS and load.longest < 2 * MAX_SECONDS,
    )


def _kill_oldest(site: Site) -> float:
    before = site.workers
    os.kill(before[0], signal.SIGKILL)
    return wait_until(lambda: len(set(site.serving) - {before[0]}) >= len(before), 60)


def answers_cut(database: Database) -> Finding:
    """Cut 5 % of the answers after the commit: the database's to the site, and the site's to its clients."""
    rng = random.Random(20)  # the same each time
    cut = [0]

    def is_unlucky(statement: bytes) -> bool:
        is_cut = b"INSERT INTO ledger_entries" in statement and rng.random() < SHARE
        cut[0] += is_cut
        return is_cut

    with Wire("127.0.0.1", database.server.port) as wire, served(database.url_by(wire.port)) as site:
        wire.drop_reply_when = is_unlucky
        with cutting(site.port, rng) as proxy, Load(proxy.port, USERS) as load:
            load.wait_for(600, seconds=90)
        wire.drop_reply_when = None
    found = faults(database, load)
    replays = sum(is_replay for _, is_replay in load.acknowledged.values())
    twice = without_keys(database)
    return Finding(
        f"{cut[0]} answers of the database and {proxy.cut} of the site cut, {len(load.acknowledged)} "
        f"acknowledged ({replays} by replay), {found or 'lost 0, double 0'}; the control without keys: "
        f"double {twice}",
        not found and min(cut[0], proxy.cut, replays, twice) > 0,
    )


def without_keys(database: Database) -> int:
    """Spend 100 times with retries but without keys, through such a proxy; return how many units too many."""
    with served(database.url) as site, cutting(site.port, random.Random(20)) as proxy:
        client = Client(proxy.port)
        for _ in range(100):
            while True:
                with suppress(*LOST):
                    if client.consume("user_without", cost=1).status == 201:
                        break
    query = "SELECT count(*) FROM ledger_entries WHERE kind = 'consumed' AND user_id = 'user_without'"
    return int(database.one(query)) - 100


class Cutter(Proxy):
    """An HTTP proxy that closes some connections instead of forwarding the answer."""

    def __init__(self, port: int, rng: random.Random) -> None:
        self.cut = 0
        self._target, self._rng, self._lock = port, rng, Lock()
        super().__init__()

    def _pass(self, client: socket.socket) -> None:
        """Forward the exchanges; a piece that starts with HTTP/ counts as an answer, and may be cut."""
        with client, socket.create_connection(("127.0.0.1", self._target)) as server, suppress(OSError):
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            requests = Thread(target=_pump, args=(client, server), daemon=True)
            requests.start()
            while answer := server.recv(65_536):
                with self._lock:
                    is_cut = answer.startswith(b"HTTP/") and self._rng.random() < SHARE
                    self.cut += is_cut
                if is_cut:
                    break
                client.sendall(answer)
            for end in (client, server):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            requests.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(65_536):
            sink.sendall(piece)
        sink.shutdown(socket.SHUT_WR)


@contextmanager
def cutting(port: int, rng: random.Random) -> Iterator[Cutter]:
    proxy = Cutter(port, rng)
    try:
        yield proxy
    finally:
        proxy.close()

"""What a fail-over costs the clients: `python -m bench.failover`, about a minute.

Clients spend with an Idempotency-Key and retry each spend until it is answered, as docs/api.md requires.
Meanwhile the primary's process is killed, and then the next primary's whole machine. Each acknowledged spend
must be in the ledger of the new primary, and none twice. Needs etcd, Patroni, HAProxy and Debian's
PostgreSQL.
"""

import argparse
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from itertools import pairwise
from threading import Event, Thread
from typing import NamedTuple

import psycopg

from bench.patroni import LOOP_WAIT, RETRY_TIMEOUT, TTL, Cluster, missing_programs
from tests import ROOT
from tests.tools import keys
from tests.tools.site import served

CLIENTS = 8
PAUSE = 0.03  # seconds between two spends of a client
STEADY = 4.0  # seconds of undisturbed spending before a kill, and after the cluster is complete again
ANSWER_TIMEOUT = 4.0  # seconds until a client retries
TOKEN_SECONDS = 20  # for which a client uses a token
MAX_GAP = 5.0  # seconds without a spend after the primary's process is killed
SPEND = "/api/v1/quota/consume"


@dataclass
class Spender(Thread):
    """One user's client, which retries each spend until it is answered."""

    port: int
    user_id: str
    stop: Event
    acknowledged: dict[str, float] = field(default_factory=dict)  # by key: the instant of its answer
    begun: int = 0
    slowest: float = 0.0
    unexpected: set[int] = field(default_factory=set)  # statuses that no client should get

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self._token, self._until = "", 0.0

    def __hash__(self) -> int:  # threading needs one, and @dataclass removes Thread's
        return id(self)

    def run(self) -> None:
        while not self.stop.is_set():
            self.begun += 1
            key, began = f"{self.user_id}-{self.begun}", time.monotonic()
            while (status := self._send(key)) != 201:
                if status not in (0, 503):
                    self.unexpected.add(status)
                if self.stop.is_set() and time.monotonic() - began > 60:
                    return
                time.sleep(0.05 + random.random() * 0.1)
            self.acknowledged[key] = time.monotonic()
            self.slowest = max(self.slowest, time.monotonic() - began)
            time.sleep(PAUSE)

    def _send(self, key: str) -> int:
        """Return the answer's status, or 0 if no answer came."""
        if time.monotonic() > self._until:
            self._token, self._until = keys.mint(sub=self.user_id), time.monotonic() + TOKEN_SECONDS
        client = HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_TIMEOUT)
        try:
            headers = {"Authorization": f"Bearer {self._token}", "Idempotency-Key": key}
            client.request("POST", SPEND, b'{"cost": 1}', {**headers, "Content-Type": "application/json"})
            answer = client.getresponse()
            answer.read()
            return answer.status
        except (OSError, HTTPException):
            return 0
        finally:
            client.close()


@contextmanager
def spending(port: int) -> Iterator[list[Spender]]:
    stop = Event()
    spenders = [Spender(port, f"user_{number}", stop) for number in range(CLIENTS)]
    for spender in spenders:
        spender.start()
    try:
        yield spenders
    finally:
        stop.set()
        for spender in spenders:
            spender.join(90)


def gap(spenders: list[Spender], after: float, until: float) -> float:
    """Return the longest time without an acknowledged spend between two instants, in seconds."""
    instants = sorted(at for spender in spenders for at in list(spender.acknowledged.values()))
    within = [after, *(at for at in instants if after <= at <= until), until]
    return max(later - earlier for earlier, later in pairwise(within))


def manage(url: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "DATABASE_URL": url, "QUOTA_DEFAULT_ALLOWANCE": "1000000"},
        capture_output=True,
        text=True,
    )
    print(done.stdout.strip() or done.stderr.strip(), flush=True)
    return done.stdout if done.returncode == 0 else ""


def wait(seconds: float, *, since: float) -> None:
    time.sleep(max(0.0, since + seconds - time.monotonic()))


class Result(NamedTuple):
    """How the spends survived; a gap is the longest time, in seconds, in which none was granted."""

    acknowledged: int
    lost: int
    double: int
    unexpected: set[int]  # statuses other than 201 and 503
    is_sound: bool  # whether the ledger's audit found no fault
    gaps: dict[str, float]


def run() -> Result:
    """Kill the primary's process, then the next primary's machine, and print what each costs."""
    with Cluster() as cluster:
        print(
            f"three nodes, ttl {TTL} s, loop_wait {LOOP_WAIT} s, retry_timeout {RETRY_TIMEOUT} s, synchronous"
        )
        manage(cluster.url, "migrate", "-v0")
        with served(cluster.url, workers=2) as port, spending(port) as spenders:
            time.sleep(STEADY)
            gaps = {what: kill(cluster, spenders, what) for what in ("process", "machine")}
        acknowledged = {key for spender in spenders for key in spender.acknowledged}
        lost, double = compare(cluster.url, acknowledged)
        unexpected = {status for spender in spenders for status in spender.unexpected}
        slowest = max(spender.slowest for spender in spenders)
        print(
            f"{len(acknowledged):,} spends acknowledged, the slowest {slowest:.1f} s after it was first sent"
        )
        print(
            f"acknowledged and lost: {lost}, spent twice: {double}, "
            f"answers other than 201 and 503: {unexpected or 'none'}"
        )
        is_sound = bool(manage(cluster.url, "audit_ledger"))
    return Result(len(acknowledged), lost, double, unexpected, is_sound, gaps)


def kill(cluster: Cluster, spenders: list[Spender], what: str) -> float:
    """Kill the primary's process or machine; return the seconds in which no spend was granted."""
    cluster.wait_until_complete()
    node, began = cluster.primary(), time.monotonic()
    (node.kill_postgres if what == "process" else node.kill_machine)()
    wait(12, since=began)
    cluster.wait_until_complete(standbys=2 if what == "process" else 1)
    assert cluster.primary() is not node, "the killed primary is still the primary"
    seconds = gap(spenders, began, time.monotonic())
    print(f"killed {what}: no spend granted for {seconds:.1f} s", flush=True)
    time.sleep(STEADY)
    return seconds


def compare(url: str, acknowledged: set[str]) -> tuple[int, int]:
    """Return how many acknowledged spends the ledger lacks, and how many units were spent twice."""
    with psycopg.connect(url) as session:
        rows = session.execute(
            "SELECT idempotency_key, cost FROM ledger_entries WHERE kind = 'consumed'"
        ).fetchall()
        taken = session.execute("SELECT sum(quota_limit - quota_remaining) FROM challenge_quotas").fetchone()
    in_ledger = {key.rpartition(":")[2] for key, _ in rows}
    assert taken
    return len(acknowledged - in_ledger), int(taken[0]) - len(in_ledger)


def main() -> int:
    argparse.ArgumentParser(prog="python -m bench.failover", description=__doc__).parse_args()
    if missing := missing_programs():
        print(f"Skipped: not installed here: {missing}.")
        return 0
    result = run()
    is_right = (result.lost, result.double, result.unexpected, result.is_sound) == (0, 0, set(), True)
    return 0 if is_right and result.gaps["process"] < MAX_GAP else 1


if __name__ == "__main__":
    sys.exit(main())

"""Figure 15: clients that begin a request and never finish it."""

import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import NamedTuple

from bench.chaos.client import CONSUME, LOST, Client, token
from bench.chaos.ground import Database, Finding, served
from tests.tools.nginx import nginx

HEAD = "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
KINDS = {
    "consume": HEAD.format(path=CONSUME) + "Authorization: Bearer {token}\r\nContent-Length: 100\r\n\r\n",
    "webhook": HEAD.format(path="/webhooks/clerk")
    + "svix-id: msg_1\r\nsvix-timestamp: {now}\r\nsvix-signature: v1,AAAA\r\nContent-Length: 100\r\n\r\n",
    "chunks": HEAD.format(path=CONSUME)
    + "Authorization: Bearer {token}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n     \r\n5\r\n ",
    "half a header": HEAD.format(path=CONSUME) + "X-Half: ",
}


@contextmanager
def stalled(port: int, count: int, kind: str) -> Iterator[list[socket.socket]]:
    """Hold so many connections that have sent the beginning of a request and send nothing more."""
    beginning = KINDS[kind].format(token=token("user_stalled"), now=int(time.time())).encode()
    held = []
    try:
        for _ in range(count):
            client = socket.create_connection(("127.0.0.1", port), timeout=10)
            client.sendall(beginning)
            held.append(client)
        yield held
    finally:
        for client in held:
            client.close()


class Latency(NamedTuple):
    """What an honest client measured: milliseconds, and how many requests got no answer."""

    p50: float
    max: float
    answered: int
    lost: int

    def __str__(self) -> str:
        lost = f", {self.lost} unanswered" if self.lost else ""
        return f"p50 {self.p50:.0f} ms, at most {self.max:.0f} ms of {self.answered}{lost}"


def honest(port: int, *, seconds: float, timeout: float = 5, user: str = "user_honest") -> Latency:
    """Alternate reads and spends, each on a new connection."""
    times, lost, requests = [], 0, 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        client = Client(port, timeout=timeout, keep_alive=False)
        began = time.monotonic()
        try:
            answer = client.consume(user) if requests % 2 else client.get(user)
            assert answer.status in (200, 201), answer
            times.append(1_000 * (time.monotonic() - began))
        except LOST:
            lost += 1
        finally:
            client.http.close()
        requests += 1
        time.sleep(0.01)
    return Latency(median(times) if times else 0, max(times, default=0), len(times), lost)


def straight(database: Database) -> Finding:
    """Hold stalled clients at the site alone: 50 must not harm others; the effect of 400 is only reported."""
    with served(database.url) as site:
        few = {kind: honest_despite(kind, 50, site.port) for kind in KINDS}
        many = {kind: honest_despite(kind, 400, site.port) for kind in KINDS}
    return Finding(f"50: {listed(few)}; 400: {listed(many)}", all(map(is_unharmed, few.values())))


def behind_nginx(database: Database) -> Finding:
    """Hold stalled clients at nginx (deploy/nginx.conf) in front of the site: 400 must not harm others."""
    if not shutil.which("nginx"):
        return Finding("not run: nginx is not installed (apt-get install nginx-light)", False)
    with served(database.url) as site, nginx(site.port, tls=False) as ports:
        many = {kind: honest_despite(kind, 400, ports.https) for kind in KINDS}
    return Finding(f"400: {listed(many)}", all(map(is_unharmed, many.values())))


def honest_despite(kind: str, count: int, port: int) -> Latency:
    """Measure an honest client while so many stalled clients hold their connections."""
    with stalled(port, count, kind):
        time.sleep(0.5)
        return honest(port, seconds=3)


def is_unharmed(latency: Latency) -> bool:
    return latency.answered > 0 and not latency.lost


def listed(latencies: dict[str, Latency]) -> str:
    return ", ".join(f"{kind} {latency}" for kind, latency in latencies.items())

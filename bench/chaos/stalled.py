"""Figure 15: clients that begin a request and never end it."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bench.chaos.client import CONSUME, LOST, Client, token, wait_until
from bench.chaos.ground import Database, Finding, served
from tests.tools.postgres import free_port
from tests.tools.site import ROOT

HEAD = "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
KINDS = {
    "consume": HEAD.format(path=CONSUME) + "Authorization: Bearer {token}\r\nContent-Length: 100\r\n\r\n",
    "webhook": HEAD.format(path="/webhooks/clerk")
    + "svix-id: msg_1\r\nsvix-timestamp: {now}\r\nsvix-signature: v1,AAAA\r\nContent-Length: 100\r\n\r\n",
    "half a header": HEAD.format(path=CONSUME) + "X-Half: ",
}


@contextmanager
def stalled(port: int, count: int, kind: str) -> Iterator[list[socket.socket]]:
    """Hold so many connections that have sent the beginning of a request, and send no more."""
    beginning = KINDS[kind].format(token=token("user_stalled"), now=int(time.time())).encode()
    held = []
    try:
        for _ in range(count):
            one = socket.create_connection(("127.0.0.1", port), timeout=10)
            one.sendall(beginning)
            held.append(one)
        yield held
    finally:
        for one in held:
            one.close()


class Seen(NamedTuple):
    """What an honest client saw: milliseconds, and how many requests got no answer."""

    p50: float
    most: float
    answered: int
    lost: int

    def __str__(self) -> str:
        lost = f", {self.lost} unanswered" if self.lost else ""
        return f"p50 {self.p50:.0f} ms, at most {self.most:.0f} ms of {self.answered}{lost}"


def honest(port: int, *, seconds: float, timeout: float = 5, user: str = "user_honest") -> Seen:
    """Read and spend by turns, each on a new connection."""
    times, lost, turn = [], 0, 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        client = Client(port, timeout=timeout, keep=False)
        began = time.monotonic()
        try:
            answer = client.consume(user) if turn % 2 else client.get(user)
            assert answer.status in (200, 201), answer
            times.append(1_000 * (time.monotonic() - began))
        except LOST:
            lost += 1
        finally:
            client.http.close()
        turn += 1
        time.sleep(0.01)
    return Seen(median(times) if times else 0, max(times, default=0), len(times), lost)


def straight(database: Database) -> Finding:
    """The site alone: 50 stalled clients must not hurt; what 400 do is shown."""
    with served(database.url) as site:
        few = {kind: beside(site.port, 50, kind) for kind in KINDS}
        crowd = {kind: beside(site.port, 400, kind) for kind in KINDS}
    return Finding(f"50: {told(few)}; 400: {told(crowd)}", all(is_well(seen) for seen in few.values()))


def behind_nginx(database: Database) -> Finding:
    """The same behind deploy/nginx.conf: 400 stalled clients must not hurt."""
    if not shutil.which("nginx"):
        return Finding("not run: there is no nginx here (apt-get install nginx-light)", False)
    with served(database.url) as site, nginx(site.port) as port:
        crowd = {kind: beside(port, 400, kind) for kind in KINDS}
    return Finding(f"400: {told(crowd)}", all(is_well(seen) for seen in crowd.values()))


def beside(port: int, count: int, kind: str) -> Seen:
    with stalled(port, count, kind):
        time.sleep(0.5)
        return honest(port, seconds=3)


def is_well(seen: Seen) -> bool:
    return seen.answered > 0 and not seen.lost


def told(cells: dict[str, Seen]) -> str:
    return ", ".join(f"{kind} {seen}" for kind, seen in cells.items())


@contextmanager
def nginx(site: int) -> Iterator[int]:
    """Run nginx by deploy/nginx.conf, but for its ports; give the port it listens on."""
    port = free_port()
    conf = (ROOT / "deploy/nginx.conf").read_text()
    conf = conf.replace("127.0.0.1:8000", f"127.0.0.1:{site}").replace(
        "listen 80;", f"listen 127.0.0.1:{port};"
    )
    with tempfile.TemporaryDirectory(prefix="quotasite-nginx-") as scratch:
        paths = "".join(
            f"{name}_temp_path {scratch}/{name};\n"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        user = "user root;" if os.geteuid() == 0 else ""
        whole = (
            f"daemon off; worker_processes 1; pid {scratch}/pid; error_log {scratch}/errors; {user}\n"
            f"events {{ worker_connections 2048; }}\nhttp {{ access_log off;\n{paths}{conf}}}\n"
        )
        file = Path(scratch, "nginx.conf")
        file.write_text(whole)
        process = subprocess.Popen(["nginx", "-p", scratch, "-c", str(file)], stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: is_open(port))
            yield port
        finally:
            process.terminate()
            process.wait(30)


def is_open(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False

"""Figure 6: a server that reloads its workers or shuts down answers the requests that it has received."""

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import BinaryIO

from bench.chaos.client import LOST, Client, wait_until
from bench.chaos.ground import Database, Finding, served
from bench.chaos.proxy import Proxy


@dataclass
class Clients:
    """Clients that spend without a pause and never retry; what gets no answer is counted.

    Half of them open a connection for each request, half reuse theirs. `refused` requests were never sent,
    because no server listened: a load balancer tries another one then. `closed` counts reused connections
    that the server closed instead of answering, as it may between two requests. All else is `dropped`.
    """

    port: int
    count: int = 8
    answered: int = 0
    refused: int = 0
    closed: int = 0
    dropped: list[str] = field(default_factory=list)
    unexpected: list[int] = field(default_factory=list)  # statuses other than 201
    _stop: Event = field(default_factory=Event)
    _threads: list[Thread] = field(default_factory=list)

    def __enter__(self) -> "Clients":
        self._threads = [Thread(target=self._run, args=(n,), daemon=True) for n in range(self.count)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(40)

    def _run(self, number: int) -> None:
        client = Client(self.port, timeout=30, keep_alive=number % 2 == 0)
        while not self._stop.is_set():
            is_reused = client.http.sock is not None
            try:
                status = client.consume(f"user_{number}", cost=1).status
            except LOST as error:
                self._count(error, is_reused)
                time.sleep(0.02)
                continue
            self.answered += 1
            if status != 201:
                self.unexpected.append(status)

    def _count(self, error: Exception, is_reused: bool) -> None:
        if isinstance(error, ConnectionRefusedError):
            self.refused += 1
        elif is_reused and isinstance(error, ConnectionError):
            self.closed += 1
        else:
            self.dropped.append(f"{type(error).__name__} {error}")

    @property
    def is_served(self) -> bool:
        return not (self.dropped or self.closed or self.refused or self.unexpected)

    def __str__(self) -> str:
        return (
            f"{self.answered} answered, {len(self.dropped)} dropped, "
            f"{self.closed} reused connections closed, {self.refused} refused"
            f"{f', unexpected {self.unexpected[:3]}' if self.unexpected else ''}"
        )


def reloaded(database: Database) -> Finding:
    """Send SIGHUP under load: the workers are replaced, and no client notices."""
    with served(database.url) as site:
        before = site.workers
        with Clients(site.port) as clients:
            time.sleep(2)
            site.master.send_signal(signal.SIGHUP)
            seconds = wait_until(lambda: not set(before) & set(site.workers), 120)
            time.sleep(2)
    return Finding(
        f"{clients}; the last old worker left after {seconds:.1f} s",
        clients.is_served and is_complete(database, clients),
    )


def ended(database: Database) -> Finding:
    """Send SIGTERM under load: to a server that the balancer has taken out before, then without warning.

    A platform that replaces an instance first stops sending to it. Otherwise connections that the kernel has
    accepted and no worker reads are reset; the server has read nothing of their requests.
    """
    with served(database.url) as one, served(database.url) as other:
        with balanced(one.port, other.port) as balancer, Clients(balancer.port) as clients:
            time.sleep(2)
            balancer.targets.remove(one.port)
            one.master.send_signal(signal.SIGTERM)
            one.master.wait(60)
            time.sleep(1)
        complete = is_complete(database, clients)
        before = database.one("SELECT count(*) FROM ledger_entries WHERE kind = 'consumed'")
        with Clients(other.port) as unwarned:
            time.sleep(2)
            other.master.send_signal(signal.SIGTERM)
            other.master.wait(60)
    spent = database.one("SELECT count(*) FROM ledger_entries WHERE kind = 'consumed'") - before
    return Finding(
        f"taken out of the balancer first: {clients}; without a warning: {unwarned}, of the unanswered "
        f"{spent - unwarned.answered} were spent",
        clients.is_served and complete and spent == unwarned.answered,
    )


def is_complete(database: Database, clients: Clients) -> bool:
    """Return whether there are as many entries as answers."""
    count = database.one("SELECT count(*) FROM ledger_entries WHERE kind = 'consumed'")
    return bool(clients.answered == count)


class Balancer(Proxy):
    """An HTTP proxy in front of several servers: each request goes to the next of `targets`.

    Each exchange has its own connection to a server, so a server that is taken out of `targets` still
    answers the request that it has.
    """

    def __init__(self, *ports: int) -> None:
        self.targets = list(ports)
        self._requests = 0
        super().__init__()

    def _pass(self, client: socket.socket) -> None:
        """Forward whole exchanges, each over a new connection to one of the current targets."""
        with client, client.makefile("rb") as requests, suppress(OSError):
            while request := read_message(requests):
                self._requests += 1
                target = self.targets[self._requests % len(self.targets)]
                with socket.create_connection(("127.0.0.1", target)) as server:
                    server.sendall(request)
                    with server.makefile("rb") as answers:
                        client.sendall(read_message(answers))


def read_message(stream: BinaryIO) -> bytes:
    """Read one HTTP message that has a Content-Length or no body; b"" at the end of the stream."""
    head, length = b"", 0
    while line := stream.readline():
        head += line
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
        if line == b"\r\n":
            return head + stream.read(length)
    return b""


@contextmanager
def balanced(*ports: int) -> Iterator[Balancer]:
    balancer = Balancer(*ports)
    try:
        yield balancer
    finally:
        balancer.close()

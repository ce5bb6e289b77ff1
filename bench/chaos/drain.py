"""Figure 6: a server that is told to end, or to start its workers anew, answers what it has been asked."""

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
class Askers:
    """Clients that spend without a pause and never repeat anything: what gets no answer is counted.

    Half of them make a connection for each request, half keep theirs. `refused` was never sent, since
    nobody listened: a balancer asks another server then. `closed` is a kept connection that the server
    closed between two requests, without a word of an answer. All else is `dropped`.
    """

    port: int
    clients: int = 8
    answered: int = 0
    refused: int = 0
    closed: int = 0
    dropped: list[str] = field(default_factory=list)
    odd: list[int] = field(default_factory=list)
    when: list[float] = field(default_factory=list)  # of each loss, by time.monotonic
    _stop: Event = field(default_factory=Event)
    _threads: list[Thread] = field(default_factory=list)

    def __enter__(self) -> "Askers":
        self._threads = [Thread(target=self._run, args=(n,), daemon=True) for n in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(40)

    def _run(self, number: int) -> None:
        keeps = number % 2 == 0
        client = Client(self.port, timeout=30, keep=keeps)
        while not self._stop.is_set():
            is_kept = client.http.sock is not None
            try:
                status = client.consume(f"user_{number}", cost=1).status
            except LOST as error:
                self._count(error, is_kept)
                time.sleep(0.02)
                continue
            self.answered += 1
            if status != 201:
                self.odd.append(status)

    def _count(self, error: Exception, is_kept: bool) -> None:
        if isinstance(error, ConnectionRefusedError):
            self.refused += 1
            return
        self.when.append(time.monotonic())
        if is_kept and isinstance(error, ConnectionError):
            self.closed += 1
        else:
            self.dropped.append(f"{type(error).__name__} {error}")

    @property
    def is_served(self) -> bool:
        return not (self.dropped or self.closed or self.refused or self.odd)

    def __str__(self) -> str:
        return (
            f"{self.answered} answered, {len(self.dropped)} dropped, {self.closed} kept connections closed, "
            f"{self.refused} refused{f', odd {self.odd[:3]}' if self.odd else ''}"
        )


def reloaded(database: Database) -> Finding:
    """SIGHUP under load: the workers are replaced, and nobody notices."""
    with served(database.url) as site:
        before = site.workers
        with Askers(site.port) as askers:
            time.sleep(2)
            site.master.send_signal(signal.SIGHUP)
            seconds = wait_until(lambda: not set(before) & set(site.workers), 120)
            time.sleep(2)
    return Finding(
        f"{askers}; the last old worker left after {seconds:.1f} s",
        not (askers.dropped or askers.closed or askers.refused or askers.odd)
        and is_complete(database, askers),
    )


def ended(database: Database) -> Finding:
    """SIGTERM under load: behind a balancer that was told before, and then without a warning.

    A platform that replaces an instance stops sending to it first. Without that, connections that the
    kernel has taken for a server that takes no more are reset; their requests were never read.
    """
    with served(database.url) as one, served(database.url) as other:
        with balanced(one.port, other.port) as balancer, Askers(balancer.port) as askers:
            time.sleep(2)
            balancer.targets.remove(one.port)
            one.master.send_signal(signal.SIGTERM)
            one.master.wait(60)
            time.sleep(1)
        complete = is_complete(database, askers)
        before = database.one("SELECT count(*) FROM ledger_entries WHERE kind = 'consumed'")
        with Askers(other.port) as unwarned:
            time.sleep(2)
            other.master.send_signal(signal.SIGTERM)
            other.master.wait(60)
    spent = database.one("SELECT count(*) FROM ledger_entries WHERE kind = 'consumed'") - before
    return Finding(
        f"taken out of the balancer first: {askers}; without a warning: {unwarned}, of the unanswered "
        f"{spent - unwarned.answered} were spent",
        askers.is_served and complete and spent == unwarned.answered,
    )


def is_complete(database: Database, askers: Askers) -> bool:
    """Whether each answer is an entry, and each entry was answered."""
    count = database.one("SELECT count(*) FROM ledger_entries WHERE kind = 'consumed'")
    return bool(askers.answered == count)


class Balancer(Proxy):
    """A proxy of TCP before several servers, each new connection to the next of `targets`.

    A connection to a server that was taken out lives until its request is answered: it is closed
    between two exchanges, which is when a balancer that speaks HTTP may close it too.
    """

    def __init__(self, *ports: int) -> None:
        self.targets = list(ports)
        self._turn = 0
        super().__init__()

    def _pass(self, client: socket.socket) -> None:
        """Carry whole exchanges, each over a connection of its own to a server of this moment."""
        with client, client.makefile("rb") as requests, suppress(OSError):
            while request := read_message(requests):
                self._turn += 1
                target = self.targets[self._turn % len(self.targets)]
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

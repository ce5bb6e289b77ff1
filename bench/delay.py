"""A distant database: a proxy that delays each packet, in both directions.

It runs in its own process and waits with select(), whose time-out is exact to about 0.05 ms; Python's event
loops round theirs up to whole milliseconds. Loopback only, at most MAX_CONNECTIONS connections.
"""

import multiprocessing
import select
import socket
import time
from collections import deque
from contextlib import suppress
from ctypes import c_double
from types import TracebackType
from typing import Any, Self

from tests.tools.postgres import free_port

MAX_CONNECTIONS = 200  # select() can watch 1,024 sockets
CHUNK = 1 << 16  # bytes


class Proxy:
    """Listens on `port` while the `with` block lasts; `delay` is in seconds, each way."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        spawn = multiprocessing.get_context("spawn")
        self._delay: Any = spawn.Value(c_double, 0.0)
        self._process = spawn.Process(
            target=forward, args=(self.port, target, self._delay), daemon=True, name="delay"
        )

    @property
    def delay(self) -> float:
        return float(self._delay.value)

    @delay.setter
    def delay(self, seconds: float) -> None:
        self._delay.value = seconds

    def __enter__(self) -> Self:
        self._process.start()
        deadline = time.monotonic() + 30
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=5):
                return self
            if time.monotonic() > deadline:
                raise RuntimeError("The delay proxy did not start.")
            time.sleep(0.02)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.join(10)


def forward(port: int, target: int, delay: Any) -> None:
    """Forward each piece of data `delay` seconds after it arrived; never returns."""
    listener = socket.create_server(("127.0.0.1", port))
    other: dict[socket.socket, socket.socket] = {}
    held: deque[tuple[float, socket.socket, bytes]] = deque()  # due time, receiver, data; b"": end
    while True:
        now = time.monotonic()
        while held and held[0][0] <= now:
            _pass_on(*held.popleft()[1:], other)
        wait = max(0.0, held[0][0] - time.monotonic()) if held else None
        readable, _, _ = select.select([listener, *other], [], [], wait)
        due = time.monotonic() + delay.value
        for source in readable:
            if source is listener:
                _accept(listener, target, other)
            elif source in other:
                held.append((due, other[source], _received(source)))
                if not held[-1][2]:
                    del other[source]


def _accept(listener: socket.socket, target: int, other: dict[socket.socket, socket.socket]) -> None:
    client, _ = listener.accept()
    if len(other) >= 2 * MAX_CONNECTIONS:
        client.close()
        return
    server = socket.create_connection(("127.0.0.1", target), timeout=5)
    for end in (client, server):
        end.settimeout(5)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    other[client], other[server] = server, client


def _received(source: socket.socket) -> bytes:
    try:
        return source.recv(CHUNK)
    except OSError:
        return b""


def _pass_on(to: socket.socket, data: bytes, other: dict[socket.socket, socket.socket]) -> None:
    try:
        if data:
            to.sendall(data)
        else:
            to.shutdown(socket.SHUT_WR)
    except OSError:
        other.pop(to, None)
        to.close()

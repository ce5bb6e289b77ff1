"""Graceful shutdown of a worker: for one second each response closes its connection, then the worker exits.

Granian alone exits at once and closes every connection without a response under way, although a request may
be on its way: on a reused connection, or on one that was opened a moment ago.
"""

import asyncio
import ctypes
import os
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import parent_process
from pathlib import Path

DRAIN_SECONDS = 1.0
CONNECTION_CLOSE = ("Connection", "close")
LISTENS = "0A"  # TCP_LISTEN in /proc/net/tcp
RETURN = 0x06  # BPF_RET | BPF_K, an operation of a packet filter
SO_ATTACH_REUSEPORT_CBPF, SO_DETACH_REUSEPORT_BPF = 51, 68  # not in Python's socket module

if parent_process():
    # A worker is a fork of Granian's master: until it is loaded it would handle SIGTERM as the master does.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Drain:
    """Delays Granian's shutdown of a worker. While `is_draining`, add CONNECTION_CLOSE to each response."""

    is_draining = False

    def listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """Handle SIGTERM, which the master sends, in place of Granian; its handler of SIGINT ends the worker.

        uvloop loses a signal that arrives before the loop runs. Until then the worker serves no request, so
        SIGTERM may kill it.
        """
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        loop.call_later(DRAIN_SECONDS, send_new_connections_to_all)
        loop.call_soon(loop.add_signal_handler, signal.SIGTERM, self._begin, loop)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.is_draining:  # systemd signals each worker, and then the master does
            return
        self.is_draining = True
        loop.call_later(DRAIN_SECONDS, signal.raise_signal, signal.SIGINT)
        with suppress(OSError):  # not Linux: a connection opened in the last instant may be lost
            send_new_connections_to_the_newest()


def send_new_connections_to_the_newest() -> None:
    """Let the kernel give new connections to the worker that began to listen last: it replaces this one.

    Each worker listens on its own socket (SO_REUSEPORT). The kernel picks one by a hash, unless a filter
    returns an index. The newest socket has the highest index, and with an index out of range the kernel falls
    back to the hash. So the filter is in force until this worker exits, or until the next one starts
    (send_new_connections_to_all). If all workers end at once, the newest is one of them and drains as long.
    """
    for listener in own_listeners():
        newest = (listeners(listener.getsockname()[1], listener.family) - 1) & 0xFFFFFFFF
        code = ctypes.create_string_buffer(struct.pack("HBBI", RETURN, 0, 0, newest))
        program = struct.pack("HP", 1, ctypes.addressof(code))
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, program)


def send_new_connections_to_all() -> None:
    """Remove such a filter: with one worker more, its index would be valid again."""
    with suppress(OSError):  # usually there is none
        for listener in own_listeners():
            listener.setsockopt(socket.SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, 0)


def own_listeners() -> Iterator[socket.socket]:
    for entry in filter(Path.is_socket, Path("/proc/self/fd").iterdir()):
        with suppress(OSError), socket.socket(fileno=os.dup(int(entry.name))) as copy:
            if copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                yield copy


def listeners(port: int, family: int = socket.AF_INET) -> int:
    """Return the number of sockets that listen on a port, of all processes."""
    table = "tcp6" if family == socket.AF_INET6 else "tcp"
    rows = (line.split() for line in Path("/proc/net", table).read_text().splitlines()[1:])
    return sum(row[3] == LISTENS and int(row[1][-4:], 16) == port for row in rows)

"""The end of a worker: first each answer tells that it is the last of its connection; a second later it goes.

Granian alone goes at once, and closes each connection on which nothing is being answered, though a request
may be on its way: on one that is kept, or on one that was made a moment ago.
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
LISTENS = "0A"  # in /proc/net/tcp
RETURN = 0x06  # a packet filter's operation
SO_ATTACH_REUSEPORT_CBPF, SO_DETACH_REUSEPORT_BPF = 51, 68  # Python does not name them

if parent_process():
    # A worker is a copy of Granian's master, and would take a SIGTERM for the master's until it is loaded.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Drain:
    """Stands before Granian's end of a worker. Answers that are sent while `is_on` need the header LAST."""

    is_draining = False

    def listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take SIGTERM from Granian, which the master sends; SIGINT, which does the same, stays Granian's.

        uvloop forgets a signal that comes before it runs. Until then SIGTERM simply ends the worker, which
        serves nobody yet.
        """
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        loop.call_later(DRAIN_SECONDS, send_new_connections_to_all)
        loop.call_soon(loop.add_signal_handler, signal.SIGTERM, self._begin, loop)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.is_draining:  # systemd tells each worker, and then the master does
            return
        self.is_draining = True
        loop.call_later(DRAIN_SECONDS, signal.raise_signal, signal.SIGINT)
        with suppress(OSError):  # not Linux; then a connection made in the last instant may be lost
            send_new_connections_to_the_newest()


def send_new_connections_to_the_newest() -> None:
    """Let the kernel give new connections to the worker that began to listen last: it takes this one's place.

    Each worker listens by a socket of its own (SO_REUSEPORT), and the kernel chooses one by chance, unless a
    filter tells it a number. The newest has the highest, and one above that makes it go back to chance: so
    the filter counts until this worker is gone, or another one begins (send_new_connections_to_all). If all
    end at once, the newest is one of them, and serves as long.
    """
    for own in own_listeners():
        newest = (listeners(own.getsockname()[1]) - 1) & 0xFFFFFFFF
        code = ctypes.create_string_buffer(struct.pack("HBBI", RETURN, 0, 0, newest))
        program = struct.pack("HP", 1, ctypes.addressof(code))
        own.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, program)


def send_new_connections_to_all() -> None:
    """Take such a filter away: with one worker more, its number would be somebody's again."""
    with suppress(OSError):  # there is none, as a rule
        for own in own_listeners():
            own.setsockopt(socket.SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, 0)


def own_listeners() -> Iterator[socket.socket]:
    for entry in filter(Path.is_socket, Path("/proc/self/fd").iterdir()):
        with suppress(OSError), socket.socket(fileno=os.dup(int(entry.name))) as found:
            if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                yield found


def listeners(port: int) -> int:
    """Count the sockets that wait for connections to a port."""
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return sum(row[3] == LISTENS and int(row[1][-4:], 16) == port for row in rows)

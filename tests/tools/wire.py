"""A proxy in front of PostgreSQL that counts round trips, and drops replies on request."""

import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from threading import Lock, Thread
from typing import BinaryIO, Self

ENCRYPTION_REQUESTS = (80_877_103, 80_877_104)  # SSLRequest, GSSENCRequest


def messages(stream: BinaryIO) -> Iterator[bytes]:
    """Yield each whole message: a type byte, a length of four bytes that counts itself, the body."""
    while len(head := stream.read(5)) == 5:
        yield head + stream.read(int.from_bytes(head[1:]) - 4)


class Statements:
    """Finds the statement that each message of one client executes, prepared statements included."""

    def __init__(self) -> None:
        self._prepared: dict[bytes, bytes] = {}

    def executed_by(self, message: bytes) -> bytes | None:
        match message[:1]:
            case b"Q":
                return message[5:-1]
            case b"P":
                name, text, _ = message[5:].split(b"\0", 2)
                if not name:
                    return text
                self._prepared[name] = text
            case b"B":
                _, name, _ = message[5:].split(b"\0", 2)
                return self._prepared.get(name)
        return None


class Wire:
    """Listens on 127.0.0.1:`port` and forwards everything to PostgreSQL at `host`:`port`.

    `round_trips` counts the messages whose reply a client waits for: Query and Sync, not the start of a
    connection. A message is counted before it is forwarded, so the count is exact when its reply arrives.

    `on_query` is called with each statement before the server gets it. If `drop_reply_when` returns True for
    one, the server executes it, but the client sees its connection close instead of the reply. While `refuse`
    is true, new connections are closed at once.
    """

    def __init__(self, host: str, port: int) -> None:
        self.round_trips = 0
        self.refuse = False
        self.on_query: Callable[[bytes], None] | None = None
        self.drop_reply_when: Callable[[bytes], bool] | None = None
        self._target = (host, port)
        self._lock = Lock()
        self._links: list[Link] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._acceptor = Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def reset(self) -> None:
        with self._lock:
            self.round_trips = 0

    def cut(self) -> None:
        """Close all current connections, whatever they are doing."""
        for link in list(self._links):
            link.cut()

    def close(self) -> None:
        self.refuse = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept, which close alone does not
        self._acceptor.join()
        self._listener.close()
        for link in list(self._links):
            link.cut()
            link.join()

    def _accept(self) -> None:
        with suppress(OSError):  # the listener was closed
            while True:
                client, _ = self._listener.accept()
                if self.refuse or not self._connect(client):
                    client.close()

    def _connect(self, client: socket.socket) -> bool:
        try:
            server = socket.create_connection(self._target)
        except OSError:
            return False
        link = Link(self, client, server)
        self._links = [*(old for old in self._links if old.is_alive()), link]
        link.start()
        return True

    def _passes(self, message: bytes, text: bytes | None) -> bool:
        """Count a message, call the hook with its statement, and return whether its reply may pass."""
        if message[:1] in (b"Q", b"S"):
            with self._lock:
                self.round_trips += 1
        if text is None:
            return True
        if self.on_query:
            self.on_query(text)
        return not (self.drop_reply_when and self.drop_reply_when(text))


class Link(Thread):
    """One client's connection: this thread forwards requests, another one replies."""

    def __init__(self, wire: Wire, client: socket.socket, server: socket.socket) -> None:
        super().__init__(daemon=True)
        self._wire = wire
        self._client = client
        self._server = server
        self._muted = False
        self._statements = Statements()
        for end in (client, server):  # a message is sent in parts: none may wait for the others
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def cut(self) -> None:
        for end in (self._client, self._server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def run(self) -> None:
        replies = Thread(target=self._pass_replies, daemon=True)
        with self._client, self._server:
            replies.start()
            try:
                self._pass_requests()
            finally:
                self.cut()
                replies.join()

    def _pass_requests(self) -> None:
        with self._client.makefile("rb") as stream, suppress(OSError):
            self._server.sendall(self._startup(stream))
            for message in messages(stream):
                # Before it is sent: its reply may arrive before the next line runs.
                text = self._statements.executed_by(message)
                self._muted = not self._wire._passes(message, text) or self._muted
                self._server.sendall(message)

    def _startup(self, stream: BinaryIO) -> bytes:
        """Return the first packet, which has no type byte. Decline encryption, which would hide the rest."""
        while len(head := stream.read(8)) == 8:
            packet = head + stream.read(int.from_bytes(head[:4]) - 8)
            if int.from_bytes(head[4:]) not in ENCRYPTION_REQUESTS:
                return packet
            self._client.sendall(b"N")
        return b""

    def _pass_replies(self) -> None:
        with self._server.makefile("rb") as stream, suppress(OSError):
            for message in messages(stream):
                if not self._muted:
                    self._client.sendall(message)
                elif message[:1] == b"Z":  # ReadyForQuery: executed, and committed if that was due
                    break
        self.cut()

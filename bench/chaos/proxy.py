"""The base of the scenarios' proxies."""

import socket
from abc import ABC, abstractmethod
from contextlib import suppress
from threading import Thread


class Proxy(ABC):
    """Listens on a free `port` of 127.0.0.1, and runs `_pass` for each connection in its own thread."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                Thread(target=self._pass, args=(client,), daemon=True).start()

    @abstractmethod
    def _pass(self, client: socket.socket) -> None:
        """Forward what the client sends, and close the connection at the end."""

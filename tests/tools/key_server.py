"""A loopback server of public keys, whose responses a test sets, and which counts the requests."""

import json
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from tests.tools.keys import key_set_of

PIECE = 1_000  # bytes that are sent before each pause


class KeyServer(ThreadingHTTPServer):
    """Serves a key set at `url` during the `with` block."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), KeyHandler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/.well-known/jwks.json"
        self.status, self.headers, self.fetches, self.pause = 200, dict[str, str](), 0, 0.0
        self.asked: Any = None  # the headers of the last request
        self.release = threading.Event()  # while it is not set, requests hang (up to 10 s)
        self.release.set()
        self.publish(key_set_of())

    def publish(self, value: object) -> None:
        self.body = json.dumps(value).encode()

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.01,)).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self.shutdown()
        self.server_close()


class KeyHandler(BaseHTTPRequestHandler):
    server: KeyServer

    def do_GET(self) -> None:
        self.server.fetches += 1
        self.server.asked = self.headers
        self.server.release.wait(10)
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        for start in range(0, len(self.server.body), PIECE):
            self.wfile.write(self.server.body[start : start + PIECE])
            time.sleep(self.server.pause)

    def handle(self) -> None:
        with suppress(ConnectionError):  # the client may disconnect
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: it would mix with the test's output."""

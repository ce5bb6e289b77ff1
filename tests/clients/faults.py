"""A proxy in front of the site that applies one fault to each request in turn, and then passes all on."""

import http.client
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any, NamedTuple


class Fault(NamedTuple):
    """An answer instead of the service's."""

    status: int
    headers: dict[str, str]
    body: bytes = b""


CUT = "cut"  # the service carries the request out, but its answer is lost
LATE = "late"  # as CUT, but the connection stays open until the proxy ends
HANG = "hang"  # no answer, until the proxy ends
CUT_BODY = "cut body"  # the headers of the answer arrive, and half of its body


LEFT_OUT = ("content-length", "connection", "transfer-encoding", "date", "server")


class Seen(NamedTuple):
    method: str
    key: str | None
    at: float
    headers: dict[str, str]


@dataclass
class Proxy:
    base_url: str
    seen: list[Seen] = field(default_factory=list)


MakeProxy = Callable[..., Proxy]


def unavailable(retry_after: int) -> Fault:
    """The answer of the service while its database is away."""
    problem = {
        "type": "about:blank",
        "title": "Service Unavailable",
        "status": 503,
        "code": "database_unavailable",
        "detail": "The database is unavailable: try again.",
    }
    headers = {"Content-Type": "application/problem+json", "Retry-After": str(retry_after)}
    return Fault(503, headers, json.dumps(problem).encode())


@contextmanager
def faulty(port: int, faults: Sequence[Fault | str] = (), *, listen_on: int = 0) -> Iterator[Proxy]:
    ended = Event()
    left = list(faults)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = left.pop(0) if left else None
            headers = dict(self.headers)
            proxy.seen.append(Seen(self.command, headers.get("Idempotency-Key"), time.monotonic(), headers))
            if fault == HANG:
                ended.wait(30)
                self.close_connection = True
            elif isinstance(fault, Fault):
                self._send(fault.status, fault.headers, fault.body)
            else:
                self._forward(body, headers, fault)

        do_GET = do_POST = do_PUT = _pass

        def _forward(self, body: bytes, headers: dict[str, str], fault: str | None) -> None:
            service = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            service.request(self.command, self.path, body, headers)
            answer = service.getresponse()
            content = answer.read()
            service.close()
            kept = {name: value for name, value in answer.getheaders() if name.lower() not in LEFT_OUT}
            if fault in (CUT, LATE):
                self.close_connection = True
                ended.wait(30 if fault == LATE else 0)
            elif fault == CUT_BODY:
                self._send(answer.status, kept, content, share=0.5)
                self.close_connection = True
            else:
                self._send(answer.status, kept, content)

        def _send(self, status: int, headers: dict[str, str], body: bytes, share: float = 1) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: int(len(body) * share)])

        def log_message(self, *_: Any) -> None:
            """Log nothing, to keep the output of the tests clean."""

    with ThreadingHTTPServer(("127.0.0.1", listen_on), Handler) as server:
        server.daemon_threads = True
        proxy = Proxy(f"http://127.0.0.1:{server.server_port}")
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield proxy
        finally:
            ended.set()
            server.shutdown()

"""The site as it is deployed: the Procfile's `web:` line, in processes of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

from django.db import connection

from tests import keys
from tests.postgres import free_port

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def served(
    database_url: str, *, workers: int = 3, port: int | None = None, **environment: str
) -> Iterator[int]:
    """Serve until the block ends; give the port on 127.0.0.1, a free one if none is asked for."""
    port = port or free_port()
    line = next(line for line in (ROOT / "Procfile").read_text().splitlines() if line.startswith("web:"))
    process = subprocess.Popen(
        ["/bin/sh", "-c", "exec " + line.removeprefix("web:").strip()],
        cwd=ROOT,
        env={
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DATABASE_URL": database_url,
            "PORT": str(port),
            "WEB_CONCURRENCY": str(workers),
            "ALLOWED_HOSTS": "127.0.0.1",
            "CLERK_JWT_KEY": keys.public_pem,
            "CLERK_ISSUER": keys.ISSUER,
            "CLERK_AUTHORIZED_PARTIES": keys.PARTY,
            **environment,
        },
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_until_alive(port, process)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def url_of_the_test_database() -> str:
    """Return what a process of its own needs to see the data of the running test."""
    told = connection.settings_dict
    return f"postgres://{told['USER']}:{told['PASSWORD']}@{told['HOST']}:{told['PORT']}/{told['NAME']}"


def ask(client: HTTPConnection, method: str, path: str, user_id: str, body: bytes | None = None) -> int:
    """Send one request of a signed-in user, and return its status; the connection is kept."""
    headers = {"Authorization": f"Bearer {keys.mint(sub=user_id)}", "Content-Type": "application/json"}
    client.request(method, path, body, headers)
    response = client.getresponse()
    response.read()
    return response.status


def _wait_until_alive(port: int, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(200):
        client = HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            client.request("GET", "/healthz")
            if client.getresponse().status == 200:
                return
        except OSError:
            assert process.poll() is None, "the server ended at once"
            time.sleep(0.05)
        finally:
            client.close()
    raise AssertionError("the server did not come up within 10 s")

"""The site as it is deployed: the Procfile's `web:` line, in processes of its own."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory

from django.db import connection

from tests import ROOT
from tests.tools import keys
from tests.tools.forked import coverage_variables
from tests.tools.postgres import free_port

# A session token, a service key, a webhook's secret, a database password.
SECRET = re.compile(rb"eyJ[\w-]{8,}|qs_[0-9a-f]{8}_|whsec_\w|://(?!USER:PASSWORD)[^\s/\"]+@")


@contextmanager
def served(
    database_url: str, *, workers: int = 3, port: int | None = None, **environment: str
) -> Iterator[int]:
    """Serve until the block ends; yield the port on 127.0.0.1, a free one if none is given."""
    with running(database_url, workers=workers, port=port, **environment) as (port, _):
        yield port


@contextmanager
def running(
    database_url: str,
    *,
    workers: int = 3,
    port: int | None = None,
    line: str = "",
    folder: Path = ROOT,
    log: Path | None = None,
    **environment: str,
) -> Iterator[tuple[int, "subprocess.Popen[bytes]"]]:
    """As `served`, but yield the master process too, which the block may end. `line` replaces the Procfile's,
    and `folder` the checkout.

    The output goes to `log`, if that is given, and must never contain a secret.
    """
    port = port or free_port()
    line = line or web_line()
    with TemporaryDirectory() as scratch, (log or Path(scratch) / "log").open("w+b") as output:
        process = subprocess.Popen(
            ["/bin/sh", "-c", "exec " + line],
            cwd=folder,
            env={
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "TMPDIR": scratch,
                "ENV_FILE": "",
                "DATABASE_URL": database_url,
                "PORT": str(port),
                "WEB_CONCURRENCY": str(workers),
                "ALLOWED_HOSTS": "127.0.0.1",
                "CLERK_JWT_KEY": keys.public_pem,
                "CLERK_ISSUER": keys.ISSUER,
                "CLERK_AUTHORIZED_PARTIES": keys.PARTY,
                **coverage_variables(),
                **environment,
            },
            stdout=output,
            stderr=output,
        )
        try:
            _wait_until_alive(port, process)
            yield port, process
        finally:
            process.terminate()
            process.wait(30)
        output.seek(0)
        assert not [line for line in output if SECRET.search(line)]


def web_line() -> str:
    lines = (ROOT / "Procfile").read_text().splitlines()
    return next(line.removeprefix("web:").strip() for line in lines if line.startswith("web:"))


def url_of_the_test_database() -> str:
    """Return the DATABASE_URL with which another process sees the running test's data."""
    db = connection.settings_dict
    return f"postgres://{db['USER']}:{db['PASSWORD']}@{db['HOST']}:{db['PORT']}/{db['NAME']}"


def ask(client: HTTPConnection, method: str, path: str, user_id: str, body: bytes | None = None) -> int:
    """Send one request of a signed-in user, and return its status; the connection stays open."""
    headers = {"Authorization": f"Bearer {keys.mint(sub=user_id)}", "Content-Type": "application/json"}
    client.request(method, path, body, headers)
    response = client.getresponse()
    response.read()
    return response.status


def _wait_until_alive(port: int, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(600):
        client = HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            client.request("GET", "/healthz")
            if client.getresponse().status == 200:
                return
        except OSError:
            assert process.poll() is None, "the server exited during its start"
            time.sleep(0.05)
        finally:
            client.close()
    raise AssertionError("the server did not start within 30 s")

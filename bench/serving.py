"""The product and its peers, each served by its own processes on loopback."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import NamedTuple

from bench.process import tree
from tests.tools import keys
from tests.tools.postgres import free_port

ROOT = Path(__file__).resolve().parent.parent
WORKERS = 2
ALLOWANCE = 2_000_000_000  # of every user; no run uses it up
START_SECONDS = 30

UVICORN = (
    "uvicorn {app} --host 127.0.0.1 --port $PORT --workers $WEB_CONCURRENCY --log-level warning "
    "--no-access-log"
)
COMMANDS = {
    "seed": UVICORN.format(app="bench.peers.seed:app"),
    "asyncpg": UVICORN.format(app="bench.peers.tuned:app") + " --loop uvloop --http httptools",
    # One thread a worker is as fast for a GET, but its spends wait for the disk one after the other.
    "floor": "granian --interface wsgi bench.peers.floor:application --host 127.0.0.1 --port $PORT "
    "--workers $WEB_CONCURRENCY --blocking-threads ${WEB_THREADS:-8} --blocking-threads-idle-timeout 600 "
    "--log-level warning",
}


class Site(NamedTuple):
    pid: int
    port: int
    seconds: float  # from the start of the process to its first answer
    database: str  # its name


def command(server: str, checkout: Path = ROOT) -> str:
    """Return the shell command that starts a server; for the product, the `web:` line of its Procfile."""
    if server in COMMANDS:
        return COMMANDS[server]
    lines = (checkout / "Procfile").read_text().splitlines()
    return next(line.removeprefix("web:").strip() for line in lines if line.startswith("web:"))


@contextmanager
def served(server: str, database_url: str, *, checkout: Path = ROOT, **environment: str) -> Iterator[Site]:
    """Serve the code of a checkout until the block ends, with more environment variables if given."""
    port = free_port()
    began = time.monotonic()
    process = subprocess.Popen(
        ["/bin/sh", "-c", f"exec {command(server, checkout)}"],
        cwd=checkout,
        env={
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "ENV_FILE": "",
            "DATABASE_URL": database_url,
            "PORT": str(port),
            "WEB_CONCURRENCY": str(WORKERS),
            "SECRET_KEY": "of a bench",
            "METRICS_TOKEN": "of a bench",  # counts each request, as in production
            "ALLOWED_HOSTS": "127.0.0.1",
            "CLERK_JWT_KEY": keys.public_pem,
            "CLERK_ISSUER": keys.ISSUER,
            "CLERK_AUTHORIZED_PARTIES": keys.PARTY,
            "QUOTA_DEFAULT_ALLOWANCE": str(ALLOWANCE),
            **environment,
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_until_alive(port, process)
        seconds = time.monotonic() - began
        yield Site(process.pid, port, seconds, database_url.rpartition("/")[2])
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:  # the seed app hangs, and its workers would outlive it
            for pid in tree(process.pid):
                os.kill(pid, signal.SIGKILL)
            process.wait()


def status_of(port: int, path: str, *, seconds: float, token: str = "", method: str = "GET") -> int | None:
    """Send one request over a new connection; return None if no answer comes within `seconds`."""
    client = HTTPConnection("127.0.0.1", port, timeout=seconds)
    try:
        client.request(method, path, headers={"Authorization": f"Bearer {token}"})
        return client.getresponse().status
    except (OSError, HTTPException):
        return None
    finally:
        client.close()


def _wait_until_alive(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_SECONDS
    while status_of(port, "/healthz", seconds=5) != 200:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"A server did not start: {process.args!r}")
        time.sleep(0.01)

"""An app of another team, which uses the Python client, in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from tests import ROOT
from tests.tools.postgres import free_port
from tests.tools.waiting import wait_until

SERVERS = {
    "asgi": ("-m", "uvicorn", "--log-level", "error", "--port"),
    "wsgi": ("-m", "granian", "--interface", "wsgi", "--log-level", "error", "--port"),
}


@contextmanager
def serving(
    interface: str,
    app: str,
    folder: Path,
    log: Path,
    *,
    python: Path | str = sys.executable,
    **environment: str,
) -> Iterator[httpx.Client]:
    """Serve `module:app` of the folder; yield a client of it. Its output goes to `log`."""
    port = free_port()
    path = f"{folder}{os.pathsep}{ROOT / 'clients/python/src'}"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *SERVERS[interface], str(port), app],
            cwd=log.parent,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": path, **environment},
            stdout=output,
            stderr=output,
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            wait_until(lambda: process.poll() is not None or answers(client), 30)
            assert process.poll() is None, log.read_text()
            yield client
    finally:
        process.terminate()
        process.wait(30)


def answers(client: httpx.Client) -> bool:
    with suppress(httpx.TransportError):
        return client.get("/").status_code > 0
    return False

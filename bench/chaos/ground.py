"""What every scenario uses: one PostgreSQL, a migrated database of its own, and the site as deployed."""

import base64
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString, NamedTuple

import psycopg

from tests import ROOT
from tests.tools.postgres import Server
from tests.tools.site import running

WEBHOOK_SECRET = "whsec_" + base64.b64encode(b"a secret of the chaos, made up...").decode()
TEMPLATE = "quotasite"  # the database that Server creates: migrated once, then copied


class Finding(NamedTuple):
    """What a scenario measured, and whether the guarantee holds."""

    measured: str
    holds: bool


@dataclass(frozen=True)
class Database:
    """One scenario's database, which it reads without the product."""

    server: Server
    name: str

    @property
    def url(self) -> str:
        return self.url_by(self.server.port)

    def url_by(self, port: int) -> str:
        """Return the URL that leads through a proxy's port."""
        return f"postgres://quotasite@127.0.0.1:{port}/{self.name}"

    def connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(self.url, autocommit=True, connect_timeout=5)

    def rows(self, query: LiteralString, *parameters: object) -> list[tuple[Any, ...]]:
        with self.connect() as session:
            cursor = session.execute(query, parameters)
            return cursor.fetchall() if cursor.description else []

    def one(self, query: LiteralString, *parameters: object) -> Any:
        return self.rows(query, *parameters)[0][0]

    def audit(self) -> tuple[bool, str]:
        """Run `manage.py audit_ledger`; return whether it found no fault, and its last line."""
        done = manage(self.url, "audit_ledger", check=False)
        return done.returncode == 0, (done.stdout + done.stderr).strip().splitlines()[-1]


class Ground:
    """A throw-away PostgreSQL that syncs to disk as in production, for the length of a `with` block."""

    def __init__(self) -> None:
        self.server = Server(fsync=True)

    def __enter__(self) -> "Ground":
        self.server.start()
        manage(f"{self.server.url}", "migrate", "--verbosity=0")
        return self

    def __exit__(self, *_: object) -> None:
        self.server.close()

    def database(self, name: str, *, allowance: int = 20) -> Database:
        """Create a migrated database without any quota, whose default plan has this allowance."""
        with psycopg.connect(f"postgres://quotasite@127.0.0.1:{self.server.port}/postgres") as session:
            session.autocommit = True
            session.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")  # type: ignore[arg-type]
            session.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")  # type: ignore[arg-type]
        made = Database(self.server, name)
        made.rows("UPDATE plans SET allowance = %s WHERE is_default", allowance)
        made.rows("UPDATE plan_versions SET allowance = %s", allowance)
        return made


def manage(url: str, *command: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(ROOT / "manage.py"), *command],
        env={"PATH": os.environ["PATH"], "DATABASE_URL": url},
        check=check,
        text=True,
        capture_output=True,
    )


@dataclass(frozen=True)
class Site:
    """The site as the Procfile's `web:` line serves it."""

    port: int
    master: "subprocess.Popen[bytes]"

    @property
    def workers(self) -> list[int]:
        return children(self.master.pid)

    @property
    def serving(self) -> list[int]:
        """The workers that hold a client's connection, which one that is still starting does not."""
        held = connections(self.port)
        return [pid for pid in self.workers if held & sockets(pid)]


@contextmanager
def served(url: str, *, workers: int = 2, port: int | None = None, **environment: str) -> Iterator[Site]:
    settings = {"CLERK_WEBHOOK_SIGNING_SECRET": WEBHOOK_SECRET, **environment}
    with running(url, workers=workers, port=port, **settings) as (port, master):
        yield Site(port, master)


def children(pid: int) -> list[int]:
    """Return the children of a process, oldest first."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, *rest = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == pid and state != "Z":
            found.append((int(rest[17]), int(stat.parent.name)))
    return [child for _, child in sorted(found)]


def connections(port: int) -> set[str]:
    """Return the sockets of the connections to a local port, by their names in /proc/PID/fd."""
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return {f"socket:[{row[9]}]" for row in rows if row[3] == "01" and int(row[1][-4:], 16) == port}


def sockets(pid: int) -> set[str]:
    found = set()
    for file in Path(f"/proc/{pid}/fd").glob("*"):
        with suppress(OSError):
            found.add(str(file.readlink()))
    return found


def kill_postgres(server: Server) -> None:
    """Kill the postmaster and all its processes with SIGKILL, as in a crash of the machine."""
    assert server.process
    postmaster = server.process.pid
    os.kill(postmaster, signal.SIGSTOP)  # or it would start new processes meanwhile
    for child in children(postmaster):
        os.kill(child, signal.SIGKILL)
    server.kill()

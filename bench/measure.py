"""One run of one system at one job: its speed, what it cost, and whether the units add up."""

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from bench import load, pgbench, process, stock
from bench.cells import JOBS, SYSTEMS, ask
from bench.serving import Site
from tests.tools.postgres import Server

WITH_LEDGER = ("ours", "asyncpg", "floor")


@dataclass
class Result:
    """Times in milliseconds, CPU in microseconds a request, units that were lost or spent too much."""

    rate: float
    p50: float | None
    p99: float | None
    web_cpu: float | None
    database_cpu: float
    answers: int
    wrong: dict[str, int] = field(default_factory=dict)  # answers of another status than the job's
    lost: int = 0
    overspent: int = 0
    others: float = 0.0  # the part of the machine that neither it, nor its database, nor wrk took

    @property
    def is_right(self) -> bool:
        return not (self.wrong or self.lost or self.overspent)


@dataclass
class Bench:
    server: Server
    sites: dict[str, Site]
    pools: dict[str, load.Pool]
    folder: Path
    seconds: int  # of one run

    def run(self, job: str, system: str) -> Result:
        if system == "pgbench":
            return self._pgbench(job)
        return self.ask(job, system, self.sites[SYSTEMS[system].server])

    def ask(self, job: str, system: str, site: Site) -> Result:
        name = SYSTEMS[system].server
        url = stock.url(self.server, name)
        before = stock.balance(url)
        clock = Clock(self.server, name, site.pid)
        heard = load.run(ask(job, system), site.port, self.pools[JOBS[job].pool], seconds=self.seconds)
        spent = clock.stop()
        settle(url)
        after = stock.balance(url)
        result = judged(job, heard, before.remaining - after.remaining)
        count = max(result.answers, 1)
        result.web_cpu, result.database_cpu = spent.web / count * 1e6, spent.database / count * 1e6
        result.others = spent.others
        if system in WITH_LEDGER and JOBS[job].spends:  # each unit has its entry, whoever heard of it
            missing = (before.remaining - after.remaining) - (after.entries - before.entries)
            result.wrong |= {"units without entry": abs(missing)} if missing else {}
        return result

    def _pgbench(self, job: str) -> Result:
        script = self.folder / f"{job}.sql"
        script.write_text(pgbench.read() if job == "get" else pgbench.spend())
        url = stock.url(self.server, "pgbench")
        root = postmaster(self.server)
        before, cpu = stock.balance(url), process.ended(root)
        count, seconds = pgbench.run(script, url, seconds=self.seconds)
        time.sleep(0.05)  # its sessions end
        cpu = process.ended(root) - cpu
        result = Result(count / seconds, None, None, None, cpu / max(count, 1) * 1e6, count)
        if JOBS[job].spends:  # a lost race is none of its faults: it does not try again
            gone = before.remaining - stock.balance(url).remaining
            result.wrong = {"lost races": count - gone} if count > gone else {}
            result.overspent = max(0, gone - count)
        return result


def postmaster(server: Server) -> int:
    assert server.process
    return server.process.pid


@dataclass
class Spent:
    web: float
    database: float
    others: float


class Clock:
    """What a server's processes and its database's sessions take from now on."""

    def __init__(self, server: Server, database: str, pid: int) -> None:
        self.server, self.database, self.pid = server, database, pid
        self.web, self.sessions = self._read()
        self.postgres, self.wrk = self._postgres(), process.ended_here()
        self.busy, self.began = process.busy(), time.monotonic()

    def stop(self) -> Spent:
        web, sessions = self._read()
        web, sessions = web - self.web, sessions - self.sessions
        known = web + self._postgres() - self.postgres + process.ended_here() - self.wrk
        whole = (time.monotonic() - self.began) * process.PROCESSORS
        return Spent(web, sessions, max(0.0, (process.busy() - self.busy - known) / whole))

    def _read(self) -> tuple[float, float]:
        """Of the web's processes, and of the sessions, those included that end meanwhile."""
        root = postmaster(self.server)
        sessions = process.cpu(process.sessions(root, self.database)) + process.ended(root)
        return process.cpu(process.tree(self.pid)), sessions

    def _postgres(self) -> float:
        return process.cpu(process.tree(postmaster(self.server)))


def judged(job: str, heard: load.Heard, gone: int) -> Result:
    """Compare what clients were told with what is gone from the rows.

    Requests that were still on their way when wrk hung up may have been carried out unheard.
    """
    status = JOBS[job].status
    granted = heard.statuses.get(status, 0)
    wrong = {name: count for name, count in heard.statuses.items() if name != status}
    wrong |= {"broken": heard.broken} if heard.broken else {}
    told = granted if JOBS[job].spends else 0
    unheard = load.CONNECTIONS if JOBS[job].spends else 0
    return Result(
        rate=granted / heard.seconds,
        p50=heard.p50,
        p99=heard.p99,
        web_cpu=0.0,
        database_cpu=0.0,
        answers=sum(heard.statuses.values()),
        wrong=wrong,
        lost=max(0, told - gone),
        overspent=max(0, gone - told - unheard),
    )


def settle(url: str, seconds: float = 5.0) -> None:
    """Return when no session is at work any more, or the time is over."""
    deadline = time.monotonic() + seconds
    busy = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'"
    )
    with contextlib.suppress(psycopg.Error), psycopg.connect(url, autocommit=True) as connection:
        quiet = 0
        while quiet < 3 and time.monotonic() < deadline:
            row = connection.execute(busy).fetchone()
            quiet = quiet + 1 if row and not row[0] else 0
            time.sleep(0.02)

"""One run of one system at one job: its speed, its CPU, and whether the units add up."""

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from bench import load, pgbench, process, stock
from bench.cells import JOBS, SYSTEMS, request_for
from bench.serving import Site
from tests.tools.postgres import Server

WITH_LEDGER = ("ours", "asyncpg", "floor")


@dataclass
class Result:
    """Times in milliseconds, CPU in microseconds a request, and units lost or overspent."""

    rate: float
    p50: float | None
    p99: float | None
    web_cpu: float | None
    database_cpu: float
    answers: int
    wrong: dict[str, int] = field(default_factory=dict)  # faults by name: answers of another status, …
    lost: int = 0
    overspent: int = 0
    others: float = 0.0  # share of the machine that other work took: not the system, its database or wrk

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
        return self.run_on(self.sites[SYSTEMS[system].server], job, system)

    def run_on(self, site: Site, job: str, system: str, connections: int = load.CONNECTIONS) -> Result:
        url = stock.url(self.server, site.database)
        before = stock.balance(url)
        clock = CpuClock(self.server, site.database, site.pid)
        request, pool = request_for(job, system), self.pools[JOBS[job].pool]
        summary = load.run(request, site.port, pool, seconds=self.seconds, connections=connections)
        cpu = clock.stop()
        wait_until_idle(url)
        after = stock.balance(url)
        result = evaluate(job, summary, before.remaining - after.remaining, connections)
        count = max(result.answers, 1)
        result.web_cpu, result.database_cpu = cpu.web / count * 1e6, cpu.database / count * 1e6
        result.others = cpu.others
        if system in WITH_LEDGER and JOBS[job].spends:  # each unit has its entry, even if its answer was lost
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
        time.sleep(0.05)  # until its sessions have ended
        cpu = process.ended(root) - cpu
        result = Result(count / seconds, None, None, None, cpu / max(count, 1) * 1e6, count)
        if JOBS[job].spends:  # pgbench does not retry a lost race, so its unit does not count as lost
            gone = before.remaining - stock.balance(url).remaining
            result.wrong = {"lost races": count - gone} if count > gone else {}
            result.overspent = max(0, gone - count)
        return result


def postmaster(server: Server) -> int:
    assert server.process
    return server.process.pid


@dataclass
class CpuTime:
    web: float  # seconds
    database: float
    others: float  # share of the machine


class CpuClock:
    """Measures the CPU that a server's processes and its database's sessions use from now on."""

    def __init__(self, server: Server, database: str, pid: int) -> None:
        self.server, self.database, self.pid = server, database, pid
        self.web, self.sessions = self._read()
        self.postgres, self.wrk = self._postgres(), process.ended_here()
        self.busy, self.began = process.busy(), time.monotonic()

    def stop(self) -> CpuTime:
        web, sessions = self._read()
        web, sessions = web - self.web, sessions - self.sessions
        known = web + self._postgres() - self.postgres + process.ended_here() - self.wrk
        whole = (time.monotonic() - self.began) * process.PROCESSORS
        return CpuTime(web, sessions, max(0.0, (process.busy() - self.busy - known) / whole))

    def _read(self) -> tuple[float, float]:
        """Return the seconds of the web processes and of the sessions, including those that have ended."""
        root = postmaster(self.server)
        sessions = process.cpu(process.sessions(root, self.database)) + process.ended(root)
        return process.cpu(process.tree(self.pid)), sessions

    def _postgres(self) -> float:
        return process.cpu(process.tree(postmaster(self.server)))


def evaluate(job: str, summary: load.Summary, gone: int, connections: int) -> Result:
    """Compare the spends that wrk saw answered with the units `gone` from the rows.

    When wrk stops, each connection may have a request under way that spends without an answer.
    """
    status = JOBS[job].status
    granted = summary.statuses.get(status, 0)
    wrong = {name: count for name, count in summary.statuses.items() if name != status}
    wrong |= {"broken": summary.broken} if summary.broken else {}
    acknowledged = granted if JOBS[job].spends else 0
    unanswered = connections if JOBS[job].spends else 0
    return Result(
        rate=granted / summary.seconds,
        p50=summary.p50,
        p99=summary.p99,
        web_cpu=0.0,
        database_cpu=0.0,
        answers=sum(summary.statuses.values()),
        wrong=wrong,
        lost=max(0, acknowledged - gone),
        overspent=max(0, gone - acknowledged - unanswered),
    )


def fault(cell: str, result: Result) -> str:
    return f"{cell}: {result.lost} lost, {result.overspent} overspent, wrong answers {result.wrong}"


def audit() -> list[str]:
    """Check our ledger as an operator would."""
    from django.core.management import CommandError, call_command

    try:
        call_command("audit_ledger")
    except CommandError as error:
        return [f"audit_ledger: {error}"]
    return []


def wait_until_idle(url: str, seconds: float = 5.0) -> None:
    """Return when no session of the database is active, or after `seconds`."""
    deadline = time.monotonic() + seconds
    busy = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'"
    )
    with contextlib.suppress(psycopg.Error), psycopg.connect(url, autocommit=True) as connection:
        idle_checks = 0
        while idle_checks < 3 and time.monotonic() < deadline:
            row = connection.execute(busy).fetchone()
            idle_checks = idle_checks + 1 if row and not row[0] else 0
            time.sleep(0.02)

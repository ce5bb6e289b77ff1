"""The results as Markdown tables that are aligned for a terminal too."""

import os
import platform
import re
import statistics
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from bench import cells, load, serving
from bench.extras import FAR, MANY, Crowd, FarResults, Start
from bench.extras import JOBS as FAR_JOBS
from bench.measure import Result

Results = dict[tuple[str, str], list[Result]]  # by job and system, one for each round
MEDIANS = {"rate": "{:,.0f}", "p50": "{:.1f}", "p99": "{:.1f}", "web_cpu": "{:.0f}", "database_cpu": "{:.0f}"}
PACKAGES = (
    "django", "djangorestframework", "psycopg", "granian", "fastapi", "uvicorn", "uvloop",
    "httptools", "asyncpg", "sqlalchemy", "pyjwt", "cryptography",
)  # fmt: skip


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Align the first column to the left, all others to the right."""
    lines = [list(heads), *(list(row) for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(heads))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines.insert(1, rule)
    return "\n".join(
        "| "
        + " | ".join(
            text.ljust(width) if place == 0 else text.rjust(width)
            for place, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in lines
    )


def machine(postgres: str) -> str:
    """Describe the machine and the versions, without a host name."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    total = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    memory = f"{int(total[1]) / 2**20:.0f} GiB" if total else "unknown memory"
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES if is_installed(name))
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC · {cpu[1] if cpu else platform.machine()}, "
        f"{os.cpu_count()} cores, {memory}, Linux {platform.release()}\n"
        f"{postgres}, fsync on · Python {platform.python_version()} · {packages}"
    )


def is_installed(package: str) -> bool:
    try:
        return bool(version(package))
    except ModuleNotFoundError:
        return False


def jobs(results: Results) -> str:
    """Make a table for each job, with the medians of its rounds."""
    parts = []
    for job in dict.fromkeys(name for name, _ in results):
        rows = []
        for system in cells.JOBS[job].systems:
            if rounds := results.get((job, system)):
                rows.append([cells.SYSTEMS[system].label, *figures(rounds)])
        heads = ("req/s", "p50 ms", "p99 ms", "CPU µs web", "CPU µs PostgreSQL", "lost", "overspent", "wrong")
        parts.append(table((cells.JOBS[job].label, *heads), rows))
    return "\n\n".join(parts)


def figures(rounds: list[Result]) -> list[str]:
    wrong: dict[str, int] = {}
    for result in rounds:
        for fault, count in result.wrong.items():
            wrong[fault] = wrong.get(fault, 0) + count
    return [
        *(formatted(median_of(rounds, name), form) for name, form in MEDIANS.items()),
        *(f"{sum(getattr(result, name) for result in rounds):,}" for name in ("lost", "overspent")),
        ", ".join(f"{fault}: {count:,}" for fault, count in wrong.items()) or "–",
    ]


def ratios(results: Results) -> str:
    """Compare ours with each peer in the same round: median, extremes, and the target if there is one."""
    rows = []
    for (job, system), rounds in results.items():
        ours = results.get((job, "ours"), [])
        if system == "ours" or not ours:
            continue
        each = by_rate(ours, rounds)
        if not each:
            continue
        target = cells.TARGETS.get((job, system))
        rows.append(
            [
                f"{cells.JOBS[job].label}: {cells.SYSTEMS[system].label}",
                median(each),
                extremes(each),
                median(by_cpu(ours, rounds)),
                f"≥ {target}" if target else "–",
                verdict(statistics.median(each) >= target) if target else "",
            ]
        )
    heads = ("Our requests a second, divided by those of", "median", "min–max", "by CPU", "target", "")
    return table(heads, rows)


def by_cpu(ours: list[Result], peers: list[Result]) -> list[float]:
    """Divide the peer's CPU a request by ours, web and database together: the ratio where CPU is the limit.

    Other work on the machine hardly affects it.
    """
    return [
        (theirs.web_cpu + theirs.database_cpu) / (mine.web_cpu + mine.database_cpu)
        for mine, theirs in zip(ours, peers, strict=True)
        if mine.web_cpu and theirs.web_cpu
    ]


def by_rate(ours: list[Result], peers: list[Result]) -> list[float]:
    return [mine.rate / theirs.rate for mine, theirs in zip(ours, peers, strict=True) if theirs.rate]


def tails(rounds: list[Result]) -> list[float]:
    """Divide the p99 of each round by its p50."""
    return [one.p99 / one.p50 for one in rounds if one.p99 and one.p50]


def median(values: list[float], form: str = "{:.2f}") -> str:
    return formatted(statistics.median(values) if values else None, form)


def extremes(values: list[float]) -> str:
    return f"{min(values):.2f}–{max(values):.2f}"


def noise(measured: Iterable[list[Result]]) -> str:
    shares = [result.others for rounds in measured for result in rounds if result.web_cpu]
    others = statistics.median(shares)
    sentence = f"Other work took {others:.0%} of the machine (median of the runs)."
    if others <= cells.MAX_NOISE:
        return sentence
    return (
        f"**{sentence} Do not quote these figures:** a system with more threads gets more of a busy\n"
        "machine, so even the ratios are wrong. The column by CPU suffers least."
    )


def alone(results: Results, memory: float, starts: list[Start]) -> str:
    """Compare ours with the targets that need no peer."""
    rows = [
        [
            "Memory, MiB a worker after the load, no webhook delivered yet",
            f"{memory:.0f}",
            *limit(memory, cells.MAX_MIB),
        ]
    ]
    if starts:
        first = statistics.median(start.healthz for start in starts)
        quota = statistics.median(start.quota for start in starts)
        rows.append(
            [
                "Seconds from start to the first answer (/healthz)",
                f"{first:.1f}",
                *limit(first, cells.MAX_START_SECONDS),
            ]
        )
        rows.append(["Seconds from start to the first GET /api/quota", f"{quota:.1f}", "", ""])
        cpu = statistics.median(start.cpu for start in starts)
        rows.append(["CPU seconds until then, all workers together", f"{cpu:.1f}", "", ""])
    for job in dict.fromkeys(name for name, _ in results):
        if rounds := results.get((job, "ours")):
            spread = statistics.median(tails(rounds))
            rows.append(
                [f"p99 / p50, {cells.JOBS[job].label}", f"{spread:.1f}", *limit(spread, cells.MAX_SPREAD)]
            )
    return table(("Quotasite alone", "median", "target", ""), rows)


def far(results: FarResults, milliseconds: float) -> str:
    """Show the requests a second with a distant database."""
    columns = [(job, delay) for job in FAR_JOBS for delay in (0, milliseconds)]
    heads = [f"{cells.JOBS[job].label.partition(',')[0]}, {delay:g} ms" for job, delay in columns]
    rows = [
        [
            site.label,
            *(formatted(median_of(results[site.label, *column], "rate"), "{:,.0f}") for column in columns),
        ]
        for site in FAR
        if (site.label, *columns[0]) in results
    ]
    return table(("Delay added each way, req/s", *heads), rows)


def crowds(found: dict[str, Crowd]) -> str:
    """Show what many connections at once do to one worker."""
    labels = {system.server: system.label for system in reversed(cells.SYSTEMS.values())}
    rows = [[labels[server], f"{crowd.answers:,}", f"{crowd.after} of 3"] for server, crowd in found.items()]
    heads = (f"{MANY} connections to one worker spend for 5 s", "answers", "later requests answered")
    return table(heads, rows)


def limit(value: float, maximum: float) -> tuple[str, str]:
    return f"≤ {maximum:g}", verdict(value <= maximum)


def verdict(is_met: bool) -> str:
    return "met" if is_met else "**missed**"


def median_of(rounds: list[Result], name: str) -> float | None:
    known = [value for result in rounds if (value := getattr(result, name)) is not None]
    return statistics.median(known) if known else None


def formatted(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def preface(rounds: int, seconds: int, tokens: int) -> str:
    return "\n".join(
        (
            f"{load.CONNECTIONS} keep-alive connections, wrk on the same machine, {serving.WORKERS} workers "
            f"for each system. {rounds} rounds of {seconds} s a run,",
            "every system in each round; medians. 2,000 users at random, "
            f"{tokens:,} RS256 tokens in rotation, so a cache of",
            "verified tokens does not help. FastAPI + SQLAlchemy has no ledger and no idempotency keys: it",
            f"spends without. Ours is served by its Procfile: `{serving.command('ours')}`",
        )
    )

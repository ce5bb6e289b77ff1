"""The results as Markdown that reads well on a terminal too."""

import os
import platform
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from bench import cells, load, serving
from bench.extras import FAR, MANY, Crowd, FarResults, Start
from bench.extras import JOBS as FAR_JOBS
from bench.measure import Result

Results = dict[tuple[str, str], list[Result]]  # by job and system, one for each round
PACKAGES = (
    "django", "djangorestframework", "psycopg", "granian", "fastapi", "uvicorn", "uvloop",
    "httptools", "asyncpg", "sqlalchemy", "pyjwt", "cryptography",
)  # fmt: skip


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The first column to the left, all others to the right."""
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
    """What it ran on; no host name."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    total = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    memory = f"{int(total[1]) / 2**20:.0f} GiB" if total else "unknown memory"
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES if has(name))
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC · {cpu[1] if cpu else platform.machine()}, "
        f"{os.cpu_count()} cores, {memory}, Linux {platform.release()}\n"
        f"{postgres}, fsync on · Python {platform.python_version()} · {packages}"
    )


def has(package: str) -> bool:
    try:
        return bool(version(package))
    except ModuleNotFoundError:
        return False


def jobs(results: Results) -> str:
    """A table for each job: the medians of its rounds."""
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
        for what, count in result.wrong.items():
            wrong[what] = wrong.get(what, 0) + count
    return [
        f"{middle(rounds, lambda it: it.rate):,.0f}",
        *(shown(middle(rounds, pick), "{:.1f}") for pick in (lambda it: it.p50, lambda it: it.p99)),
        *(
            shown(middle(rounds, pick), "{:.0f}")
            for pick in (lambda it: it.web_cpu, lambda it: it.database_cpu)
        ),
        *(f"{sum(map(pick, rounds)):,}" for pick in (lambda it: it.lost, lambda it: it.overspent)),
        ", ".join(f"{what}: {count:,}" for what, count in wrong.items()) or "–",
    ]


def ratios(results: Results) -> str:
    """Ours by each peer, of the same round; the median, the extremes, and the target where there is one."""
    rows = []
    for (job, system), rounds in results.items():
        ours = results.get((job, "ours"), [])
        if system == "ours" or not ours:
            continue
        each = [mine.rate / theirs.rate for mine, theirs in zip(ours, rounds, strict=True) if theirs.rate]
        if not each:
            continue
        target = cells.TARGETS.get((job, system))
        rows.append(
            [
                f"{cells.JOBS[job].label}: by {cells.SYSTEMS[system].label}",
                f"{statistics.median(each):.2f}",
                f"{min(each):.2f}–{max(each):.2f}",
                by_cpu(ours, rounds),
                f"≥ {target}" if target else "–",
                verdict(statistics.median(each) >= target) if target else "",
            ]
        )
    return table(("Ours by the peer's, requests a second", "median", "min–max", "by CPU", "target", ""), rows)


def by_cpu(ours: list[Result], peers: list[Result]) -> str:
    """The peer's CPU a request by ours, web and database together: what the ratio is where CPU is the limit.

    Other work on the machine changes it little.
    """
    each = [
        (theirs.web_cpu + theirs.database_cpu) / (mine.web_cpu + mine.database_cpu)
        for mine, theirs in zip(ours, peers, strict=True)
        if mine.web_cpu and theirs.web_cpu
    ]
    return f"{statistics.median(each):.2f}" if each else "–"


def noise(results: Results) -> str:
    others = statistics.median(it.others for rounds in results.values() for it in rounds if it.web_cpu)
    told = f"Other work took {others:.0%} of the machine (median of the runs)."
    if others <= cells.MOST_NOISE:
        return told
    return (
        f"**{told} The figures are not to be quoted:** who has more threads gets more of a busy machine,\n"
        "so that even the ratios are wrong. The column by CPU suffers least."
    )


def alone(results: Results, memory: float, starts: list[Start]) -> str:
    """What ours must come to by itself."""
    rows = [
        [
            "Memory, MiB a worker after the load, no webhook delivered yet",
            f"{memory:.0f}",
            *limit(memory, cells.MOST_MIB),
        ]
    ]
    if starts:
        first = statistics.median(start.healthz for start in starts)
        quota = statistics.median(start.quota for start in starts)
        rows.append(
            [
                "Seconds from start to the first answer (/healthz)",
                f"{first:.1f}",
                *limit(first, cells.MOST_SECONDS),
            ]
        )
        rows.append(["Seconds from start to the first GET /api/quota", f"{quota:.1f}", "", ""])
        cpu = statistics.median(start.cpu for start in starts)
        rows.append(["of these, of CPU, all workers together", f"{cpu:.1f}", "", ""])
    for job in dict.fromkeys(name for name, _ in results):
        if rounds := results.get((job, "ours")):
            spread = statistics.median(it.p99 / it.p50 for it in rounds if it.p99 and it.p50)
            rows.append(
                [f"p99 by p50, {cells.JOBS[job].label}", f"{spread:.1f}", *limit(spread, cells.MOST_SPREAD)]
            )
    return table(("Quotasite alone", "median", "target", ""), rows)


def far(results: FarResults, milliseconds: float) -> str:
    """Requests a second with the database farther away."""
    columns = [(job, delay) for job in FAR_JOBS for delay in (0, milliseconds)]
    heads = [f"{cells.JOBS[job].label.partition(',')[0]}, {delay:g} ms" for job, delay in columns]
    rows = [
        [
            it.label,
            *(shown(middle(results[it.label, *column], lambda it: it.rate), "{:,.0f}") for column in columns),
        ]
        for it in FAR
        if (it.label, *columns[0]) in results
    ]
    return table(("Database farther away each way by, req/s", *heads), rows)


def crowds(found: dict[str, Crowd]) -> str:
    """What became of many connections at once."""
    labels = {it.server: it.label for it in reversed(cells.SYSTEMS.values())}
    rows = [[labels[server], f"{it.answers:,}", f"{it.after} of 3"] for server, it in found.items()]
    heads = (f"{MANY} connections to one worker spend for 5 s", "answers", "later requests answered")
    return table(heads, rows)


def limit(value: float, most: float) -> tuple[str, str]:
    return f"≤ {most:g}", verdict(value <= most)


def verdict(is_met: bool) -> str:
    return "met" if is_met else "**missed**"


def middle(rounds: list[Result], pick: Callable[[Result], float | None]) -> float | None:
    known = [value for result in rounds if (value := pick(result)) is not None]
    return statistics.median(known) if known else None


def shown(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def preface(rounds: int, seconds: int, tokens: int) -> str:
    return "\n".join(
        (
            f"{load.CONNECTIONS} keep-alive connections, wrk on the same machine, {serving.WORKERS} workers "
            f"for each system. {rounds} rounds of {seconds} s a run,",
            "all systems in turn in each round; medians. 2,000 users at random, "
            f"{tokens:,} RS256 tokens in turn, so that a memory",
            "of verified tokens does not help. FastAPI + SQLAlchemy has neither ledger nor keys: it spends",
            f"without. Ours is served as the Procfile says: `{serving.command('ours')}`",
        )
    )

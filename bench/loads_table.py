"""The results of `python -m bench.loads` as Markdown tables, and whether they meet the targets."""

import argparse
import os
import statistics
from collections.abc import Callable, Iterator
from typing import NamedTuple

from bench import cells, serving, table
from bench.measure import Result


class Cell(NamedTuple):
    job: str
    connections: int


Rounds = list[Result]
Systems = dict[str, Rounds]  # ours, asyncpg and, if there is one, before
Runs = dict[Cell, Systems]


def preface(options: argparse.Namespace, builds: dict[str, str]) -> str:
    """Say what was run; `builds` has the commit of each of our systems."""
    before = f"; before: {builds['before']}, on a copy of its database" if "before" in builds else ""
    few = " Few tokens, which a cache holds: do not quote these figures." if options.quick else ""
    return (
        f"Ours: {builds['ours']}{before}. asyncpg: FastAPI + asyncpg, tuned, doing the same work. Each with "
        f"{serving.WORKERS} workers.\n"
        f"Keep-alive connections of wrk on the same machine; {options.rounds} rounds of {options.seconds} s "
        "a run, every system in each; medians.\n"
        "*By CPU* divides the CPU of a request to the other system, web and PostgreSQL together, by ours: "
        f"above 1,\nours needs less.{few}"
    )


def job(runs: Runs, name: str) -> str:
    """Make the job's table: a column for each number of connections."""
    columns = {cell.connections: systems for cell, systems in runs.items() if cell.job == name}
    rows = [
        [label, *(shown(systems) for systems in columns.values())]
        for label, shown in ROWS
        if "before" not in label or any("before" in systems for systems in columns.values())
    ]
    return table.table((f"{cells.JOBS[name].label}; connections", *map(str, columns)), rows)


def figure(name: str, form: str, system: str = "ours") -> Callable[[Systems], str]:
    return lambda systems: table.formatted(table.median_of(systems[system], name), form)


def cpu(systems: Systems) -> str:
    return " + ".join(figure(part, "{:.0f}")(systems) for part in ("web_cpu", "database_cpu"))


def ratio(of: Callable[[Rounds, Rounds], list[float]], other: str) -> Callable[[Systems], str]:
    """Return how to show ours against another system: the median of the rounds, and their extremes."""

    def compared(systems: Systems) -> str:
        each = of(systems["ours"], systems[other])
        return f"{table.median(each)} ({table.extremes(each)})" if each else "–"

    return compared


def units(systems: Systems) -> str:
    rounds = systems["ours"]
    wrong = sum(sum(result.wrong.values()) for result in rounds)
    return f"{sum(one.lost for one in rounds)} / {sum(one.overspent for one in rounds)} / {wrong}"


ROWS: tuple[tuple[str, Callable[[Systems], str]], ...] = (
    ("req/s", figure("rate", "{:,.0f}")),
    ("p50 ms", figure("p50", "{:.1f}")),
    ("p99 / p50", lambda systems: table.median(table.tails(systems["ours"]), "{:.1f}")),
    ("CPU µs, web + PostgreSQL", cpu),
    ("to before, by CPU", ratio(table.by_cpu, "before")),
    ("to asyncpg, by CPU", ratio(table.by_cpu, "asyncpg")),
    ("to asyncpg, by req/s", ratio(table.by_rate, "asyncpg")),
    ("asyncpg's req/s", figure("rate", "{:,.0f}", "asyncpg")),
    ("lost / overspent / wrong", units),
)


def targets(near: Runs, far: Runs) -> str:
    """Compare with the targets of what was measured; `far` has the runs with a distant database."""
    rows = [*cpu_targets(near), *spread_targets(near), *slowdown_targets(near), *far_targets(far)]
    met = sum(row[-1] == table.verdict(is_met=True) for row in rows)
    heads = ("Target", "median", "target", f"{met} of {len(rows)}")
    return table.table(heads, rows)


def cpu_targets(runs: Runs) -> Iterator[list[str]]:
    for connections, ratios in cells.MIN_CPU_RATIOS.items():
        for job, least in ratios.items():
            if systems := runs.get(Cell(job, connections)):
                each = table.by_cpu(systems["ours"], systems["asyncpg"])
                yield from at_least(named(job, connections, "to asyncpg, by CPU"), each, least)


def spread_targets(runs: Runs) -> Iterator[list[str]]:
    for cell, systems in runs.items():
        if cell.connections in cells.SPREAD_LOADS:
            yield from at_most(named(*cell, "p99 / p50"), table.tails(systems["ours"]), cells.MAX_SPREAD)


def slowdown_targets(runs: Runs) -> Iterator[list[str]]:
    for cell, systems in runs.items():
        if cell.connections == 1 and "before" in systems:
            pairs = zip(systems["ours"], systems["before"], strict=True)
            each = [ours.p50 / before.p50 for ours, before in pairs if ours.p50 and before.p50]
            yield from at_most(named(*cell, "p50 / p50 of before"), each, cells.MAX_SLOWDOWN)


def far_targets(runs: Runs) -> Iterator[list[str]]:
    for cell, systems in runs.items():
        each = table.by_rate(systems["ours"], systems["asyncpg"])
        label = named(*cell, "distant database, to asyncpg, by req/s")
        yield from at_least(label, each, cells.MIN_FAR_RATIO)


def named(job: str, connections: int, what: str) -> str:
    return f"{cells.JOBS[job].label}, {connections}: {what}"


def at_least(label: str, each: list[float], least: float) -> Iterator[list[str]]:
    if each:
        value = statistics.median(each)
        yield [label, f"{value:.2f}", f"≥ {least:g}", table.verdict(value >= least)]


def at_most(label: str, each: list[float], most: float) -> Iterator[list[str]]:
    if each:
        value = statistics.median(each)
        yield [label, f"{value:.2f}", *table.limit(value, most)]


def summary(runs: Runs) -> str | None:
    """Say in a sentence how many reads and spends a second were answered, if both were measured."""
    reads, spends = (runs.get(Cell(job, 64), {}).get("ours") for job in ("get", "keyed"))
    if not (reads and spends):
        return None
    rates = [table.formatted(table.median_of(rounds, "rate"), "{:,.0f}") for rounds in (reads, spends)]
    times = [table.formatted(table.median_of(rounds, "p99"), "{:.0f}") for rounds in (reads, spends)]
    return (
        f"On {os.cpu_count()} cores shared with PostgreSQL and the load: {rates[0]} reads and {rates[1]} "
        f"spends with a\nkey a second at 64 connections, 99 of 100 within {times[0]} and {times[1]} ms."
    )

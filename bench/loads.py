"""Measure each job at 1 to 256 connections, beside an older build and a peer: `python -m bench.loads`.

Starts a throw-away PostgreSQL, serves this checkout, the one of --before and the tuned asyncpg app, each on a
database of its own, and has wrk load one after the other. Exits 1 if a unit of ours is lost or overspent, if
an answer of ours is wrong, or if the ledger's audit finds a fault; a missed target is only reported.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from bench import cells, extras, load, loads_table, stock, table
from bench.delay import Proxy
from bench.loads_table import Cell, Runs
from bench.measure import Bench, audit, fault
from bench.report import Report
from bench.serving import ROOT, Site, served
from tests.tools.postgres import Server, engine

RESULTS = Path(__file__).with_name("LOADS.md")
Item = TypeVar("Item")
SERVERS = {"ours": "ours", "before": "ours", "asyncpg": "asyncpg"}  # as serving.command names them


def main() -> int:
    options = arguments()
    load.wrk()
    began = time.monotonic()
    report = Report("What the bench measured under load", "Written by `python -m bench.loads`")
    with tempfile.TemporaryDirectory() as folder, Server() as server:
        pools = load.pools(Path(folder), options.tokens, with_hot="hot" in options.jobs)
        make_databases(server, options.before)
        print(f"ready after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        found = measure(Bench(server, {}, pools, Path(folder), options.seconds), options, report)
        found += audit()
    report.write(f"Took {time.monotonic() - began:.0f} s. Faults: {', '.join(found) or 'none'}.")
    if options.output:
        report.save(options.output)
    return 1 if found else 0


def measure(bench: Bench, options: argparse.Namespace, report: Report) -> list[str]:
    """Measure and report everything; return our faults."""
    report.write(table.machine(engine(bench.server.url).partition(" at ")[0]))
    report.write(loads_table.preface(options, builds(options.before)))
    runs = near(bench, options)
    report.write(table.noise(rounds for systems in runs.values() for rounds in systems.values()))
    for job in options.jobs:
        report.write(loads_table.job(runs, job))
    distant = report_far(bench, options, report) if far_cells(options) else {}
    report.write(loads_table.targets(runs, distant if options.delay == cells.FAR_DELAY else {}))
    for part in filter(None, (loads_table.summary(runs), void(runs))):
        report.write(part)
    return [*faults(runs, "ours"), *(f"far: {one}" for one in faults(distant, "ours"))]


def report_far(bench: Bench, options: argparse.Namespace, report: Report) -> Runs:
    runs, overhead = far(bench, options)
    report.write(f"With a database {options.delay:g} ms away, each way. {overhead}")
    for cell in runs:
        report.write(loads_table.job(runs, cell.job))
    return runs


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.loads", allow_abbrev=False, description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two jobs, one short round, few tokens")
    parser.add_argument(
        "--before", type=checkout, metavar="PATH", help="an older checkout to measure beside this one"
    )
    parser.add_argument("--connections", nargs="+", type=int, metavar="N")
    jobs = ", ".join(cells.LOAD_JOBS)
    parser.add_argument("--only", nargs="+", choices=cells.LOAD_JOBS, dest="jobs", metavar="JOB", help=jobs)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=int, help="length of one run")
    parser.add_argument("--delay", type=float, help="milliseconds each way to a distant database; 0: none")
    parser.add_argument("--output", type=Path, help="write the results to this file")
    return with_defaults(parser.parse_args())


def with_defaults(options: argparse.Namespace) -> argparse.Namespace:
    is_whole = not (options.quick or options.jobs or options.connections)
    options.delay = options.delay if options.delay is not None else cells.FAR_DELAY * is_whole
    options.jobs = options.jobs or list(cells.QUICK_LOAD_JOBS if options.quick else cells.LOAD_JOBS)
    options.connections = options.connections or (cells.QUICK_LOADS if options.quick else cells.LOADS)
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.seconds = options.seconds or (1 if options.quick else 2)
    options.tokens = load.FEW_TOKENS if options.quick else load.TOKENS
    options.output = options.output or (RESULTS if is_whole else None)
    return options


def checkout(path: str) -> Path:
    folder = Path(path).resolve()
    if not (folder / "Procfile").is_file():
        raise argparse.ArgumentTypeError(f"{path} is not a checkout of this project.")
    return folder


def builds(before: Path | None) -> dict[str, str]:
    """Return the commit of each of our systems, as git describes it."""
    checkouts = {"ours": ROOT} | ({"before": before} if before else {})
    return {name: commit(folder) for name, folder in checkouts.items()}


def commit(folder: Path) -> str:
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "an unknown commit"


def make_databases(server: Server, before: Path | None) -> None:
    """Create and fill the databases; that of the build before is a copy of ours."""
    stock.make_ours(server)
    if before:
        stock.create(server.url, "before", template="ours")
        migrate(before, stock.url(server, "before"))
    stock.make_peer(server, "asyncpg")


def migrate(folder: Path, database_url: str) -> None:
    """Apply the migrations that only this checkout has. Those that it lacks stay applied."""
    subprocess.run(
        [sys.executable, "manage.py", "migrate", "--noinput", "--verbosity", "0"],
        cwd=folder,
        env=os.environ | {"DATABASE_URL": database_url},
        check=True,
    )


def near(bench: Bench, options: argparse.Namespace) -> Runs:
    """Run every job with every number of connections, after a second of each job to warm up."""
    with serving_all(bench, options.before) as sites:
        most = max(options.connections)
        run(replace(bench, seconds=1), sites, [Cell(job, most) for job in options.jobs], 1)
        chosen = [Cell(job, count) for job in options.jobs for count in options.connections]
        return run(bench, sites, chosen, options.rounds)


def far_cells(options: argparse.Namespace) -> list[Cell]:
    jobs = [job for job in extras.JOBS if job in options.jobs and options.delay]
    return [Cell(job, cells.FAR_LOAD) for job in jobs]


def far(bench: Bench, options: argparse.Namespace) -> tuple[Runs, str]:
    """Run what is measured with a distant database; return a sentence on the proxy's overhead too."""
    chosen = far_cells(options)
    with (
        Proxy(bench.server.port) as proxy,
        serving_all(bench, options.before, lambda url: extras.through(url, bench, proxy)) as sites,
    ):
        overhead = extras.round_trips(bench, proxy, options.delay)
        run(replace(bench, seconds=1), sites, chosen, 1)
        return run(bench, sites, chosen, options.rounds), overhead


@contextmanager
def serving_all(
    bench: Bench, before: Path | None, to_database: Callable[[str], str] = str
) -> Iterator[dict[str, Site]]:
    """Serve each system by its name until the block ends; `to_database` may lead a URL through a proxy."""
    with ExitStack() as stack:
        sites = {}
        for name, server in SERVERS.items():
            folder = before if name == "before" else ROOT
            if folder:
                url = to_database(stock.url(bench.server, name))
                sites[name] = stack.enter_context(served(server, url, checkout=folder))
        yield sites


def run(bench: Bench, sites: dict[str, Site], chosen: list[Cell], rounds: int) -> Runs:
    """Run every system at every cell in each round, rotating the order of both."""
    runs: Runs = {cell: {name: [] for name in sites} for cell in chosen}
    for number in range(rounds):
        for cell in rotated(chosen, number):
            for name in rotated(list(sites), number):
                result = bench.run_on(sites[name], cell.job, SERVERS[name], cell.connections)
                runs[cell][name].append(result)
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return runs


def rotated(items: Sequence[Item], by: int) -> list[Item]:
    start = by % len(items)
    return [*items[start:], *items[:start]]


def faults(runs: Runs, system: str) -> list[str]:
    return [
        fault(f"{cell.job} at {cell.connections}", result)
        for cell, systems in runs.items()
        for result in systems.get(system, [])
        if not result.is_right
    ]


def void(runs: Runs) -> str | None:
    """Name the faults of the other systems, with which ours cannot be compared."""
    found = [f"{name}, {one}" for name in SERVERS if name != "ours" for one in faults(runs, name)]
    return f"**Do not quote the ratios to:** {'; '.join(found)}." if found else None


if __name__ == "__main__":
    sys.exit(main())

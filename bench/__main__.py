"""Compare the product's speed with its peers', and count every unit: `python -m bench`.

Starts a throw-away PostgreSQL, serves the product and each peer in their own processes, and has wrk load one
after the other. Exits 1 if a unit of ours is lost or overspent, if an answer of ours is wrong, or if the
ledger's audit finds a fault; a missed target is only reported.
"""

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from bench import cells, extras, load, pgbench, process, serving, stock, table
from bench.measure import Bench, audit, fault
from bench.report import Report
from tests.tools.postgres import Server, engine

RESULTS = Path(__file__).with_name("RESULTS.md")
QUICK_SECONDS, FULL_SECONDS = 80, 420  # then no further round starts; the extras of a full run come after


def main() -> int:
    options = arguments()
    load.wrk()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        pools = load.pools(Path(folder), options.tokens, with_hot=any("hot" in job for job in options.jobs))
        server = stack.enter_context(Server())
        systems = [name for name in options.systems if name != "pgbench" or pgbench.program()]
        if systems != options.systems:
            print("Without pgbench, which was not found: apt install postgresql-contrib, or set PATH.")
        make_databases(server, {cells.SYSTEMS[name].server for name in systems} | {"ours"})
        print(f"ready after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        bench = Bench(server, {}, pools, Path(folder), options.seconds)
        report = Report("What the bench measured", "Written by `make bench`")
        found = measure(bench, systems, options, report)
        found += audit()
        report.write(f"Took {time.monotonic() - began:.0f} s. Faults: {', '.join(found) or 'none'}.")
        if options.output:
            report.save(options.output)
    return 1 if found else 0


def measure(bench: Bench, systems: list[str], options: argparse.Namespace, report: Report) -> list[str]:
    """Measure and report everything; return our faults."""
    results, memory = compare(bench, systems, options)
    starts = extras.starts(bench) if options.is_whole else []
    report.write(table.machine(engine(bench.server.url).partition(" at ")[0]))
    report.write(table.preface(options.rounds, options.seconds, options.tokens))
    report.write(table.noise(results.values()))
    report.write(table.jobs(results))
    report.write(table.ratios(results))
    report.write(table.alone(results, memory.get("ours", 0), starts))
    sizes = ", ".join(f"{name} {size:.0f}" for name, size in memory.items())
    report.write(f"Memory, MiB a worker: {sizes}.")
    if options.is_whole:
        report.write(table.crowds({name: extras.crowd(bench, name) for name in ("seed", "ours")}))
    found = faults(results)
    if options.delay:
        far, overhead = extras.far(bench, systems, options.delay, max(1, options.rounds // 2))
        report.write(table.far(far, options.delay))
        report.write(overhead)
        of_ours = {(job, label): rounds for (label, job, _), rounds in far.items() if "Quotasite" in label}
        found += faults({(f"{job}, far", "ours"): rounds for (job, _), rounds in of_ours.items()})
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", allow_abbrev=False, description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the core jobs, few short rounds")
    jobs, systems = ", ".join(cells.JOBS), ", ".join(cells.SYSTEMS)
    parser.add_argument("--only", nargs="+", choices=cells.JOBS, dest="jobs", metavar="JOB", help=jobs)
    parser.add_argument("--systems", nargs="+", choices=cells.SYSTEMS, metavar="SYSTEM", help=systems)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=int, help="length of one run")
    parser.add_argument("--delay", type=float, help="milliseconds each way to a distant database; 0: none")
    parser.add_argument("--tokens", type=int, default=load.TOKENS, help="distinct tokens in the pool")
    parser.add_argument("--output", type=Path, help="write the results to this file")
    options = parser.parse_args()
    options.is_whole = not (options.quick or options.jobs or options.systems)
    options.delay = options.delay if options.delay is not None else float(options.is_whole)
    options.jobs = options.jobs or list(cells.QUICK if options.quick else cells.JOBS)
    quick_systems = [name for name in cells.SYSTEMS if name != "pgbench"]
    options.systems = options.systems or (quick_systems if options.quick else list(cells.SYSTEMS))
    options.rounds = options.rounds or (3 if options.quick else 5)
    options.seconds = options.seconds or (1 if options.quick else 2)
    options.until = time.monotonic() + (QUICK_SECONDS if options.quick else FULL_SECONDS)
    options.output = options.output or (RESULTS if options.is_whole else None)
    return options


def make_databases(server: Server, names: set[str]) -> None:
    """Create and fill the databases, and set up Django for ours."""
    stock.make_ours(server)
    for name in sorted(names - {"ours"}):
        if name == "pgbench":
            stock.create(server.url, name, template="ours")
        else:
            stock.make_peer(server, name)


def compare(
    bench: Bench, systems: list[str], options: argparse.Namespace
) -> tuple[table.Results, dict[str, float]]:
    """Run every system at every job in every round, rotating the order; return results and memory."""
    results: table.Results = {}
    with ExitStack() as stack:
        for name in dict.fromkeys(cells.SYSTEMS[system].server for system in systems):
            if name != "pgbench":
                url = stock.url(bench.server, name)
                bench.sites[name] = stack.enter_context(serving.served(name, url))
        for number in range(options.rounds + 1):
            if number > 1 and time.monotonic() > options.until:
                options.rounds = number - 1
                print("out of time: the remaining rounds are left out", file=sys.stderr)
                break
            bench.seconds = options.seconds if number else 1
            for job in options.jobs:
                chosen = [name for name in cells.JOBS[job].systems if name in systems]
                start = number % max(len(chosen), 1)
                for system in chosen[start:] + chosen[:start]:
                    result = bench.run(job, system)
                    if number:  # the first round warms up
                        results.setdefault((job, system), []).append(result)
            print(f"round {number} of {options.rounds}", file=sys.stderr, flush=True)
        memory = {name: process.memory(site.pid, serving.WORKERS) for name, site in bench.sites.items()}
    ordered = [(job, system) for job in options.jobs for system in cells.JOBS[job].systems]
    return {cell: results[cell] for cell in ordered if cell in results}, memory


def faults(results: table.Results) -> list[str]:
    return [
        fault(job, result)
        for (job, system), rounds in results.items()
        if system == "ours"
        for result in rounds
        if not result.is_right
    ]


if __name__ == "__main__":
    sys.exit(main())

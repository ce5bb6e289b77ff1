"""The bench of loads runs every system alike, names our faults, and compares with the targets."""

import shutil
import subprocess
import sys
from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from bench import cells, load, loads, loads_table, serving
from bench.loads_table import Cell
from bench.measure import Bench, Result
from bench.serving import Site
from tests import ROOT
from tests.bench.test_bench import needs_the_peers

pytestmark = pytest.mark.once


def result(*, cpu: float = 100, p50: float = 1, p99: float = 2, rate: float = 1_000, lost: int = 0) -> Result:
    return Result(rate, p50, p99, cpu, 0, 1_000, lost=lost)


def targets(cell: Cell, **systems: Result) -> str:
    return loads_table.targets({cell: {name: [one] for name, one in systems.items()}}, {})


class Recorder(Bench):
    """Notes what it is asked to run."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, str, int]] = []

    def run_on(self, site: Site, job: str, system: str, connections: int = load.CONNECTIONS) -> Result:
        self.asked.append((site.port, job, connections))
        return result()


def test_each_round_runs_every_system_at_every_cell_in_another_order() -> None:
    bench, chosen = Recorder(), [Cell("get", 1), Cell("get", 64), Cell("keyed", 1)]
    sites = {name: Site(0, port, 0.0, name) for port, name in enumerate(loads.SERVERS)}
    runs = loads.run(bench, sites, chosen, 2)
    half = len(bench.asked) // 2
    first, second = bench.asked[:half], bench.asked[half:]
    assert sorted(first) == sorted(second) == sorted((port, *cell) for port in range(3) for cell in chosen)
    assert [asked[1:] for asked in first] != [asked[1:] for asked in second]
    assert [asked[0] for asked in first] != [asked[0] for asked in second]
    assert all(len(runs[cell][name]) == 2 for cell in chosen for name in sites)


@pytest.mark.parametrize(("theirs", "verdict"), [(160, "met"), (159, "missed")])
def test_a_target_by_cpu_divides_the_cpu_of_the_peer_by_ours(theirs: float, verdict: str) -> None:
    assert cells.MIN_CPU_RATIOS[64]["get"] == 1.6
    shown = targets(Cell("get", 64), ours=result(cpu=100), asyncpg=result(cpu=theirs))
    assert verdict in next(line for line in shown.splitlines() if "by CPU" in line)


@pytest.mark.parametrize(("p99", "verdict"), [(4, "met"), (4.1, "missed")])
def test_the_longest_times_have_a_target(p99: float, verdict: str) -> None:
    shown = targets(Cell("get", 16), ours=result(p99=p99), asyncpg=result())
    assert verdict in next(line for line in shown.splitlines() if "p99" in line)


@pytest.mark.parametrize(("p50", "verdict"), [(1.05, "met"), (1.06, "missed")])
def test_one_connection_is_compared_with_the_build_before(p50: float, verdict: str) -> None:
    shown = targets(Cell("get", 1), ours=result(p50=p50), before=result(p50=1), asyncpg=result())
    assert verdict in next(line for line in shown.splitlines() if "of before" in line)


@pytest.mark.parametrize(("rate", "verdict"), [(1_300, "met"), (1_290, "missed")])
def test_a_distant_database_has_a_target_by_rate(rate: float, verdict: str) -> None:
    far = {Cell("get", 64): {"ours": [result(rate=rate)], "asyncpg": [result(rate=1_000)]}}
    assert verdict in next(
        line for line in loads_table.targets({}, far).splitlines() if "distant database" in line
    )


def test_only_our_faults_are_ours_and_those_of_others_make_their_ratios_void() -> None:
    runs = {Cell("keyed", 64): {"ours": [result()], "before": [result(lost=3)], "asyncpg": [result()]}}
    assert loads.faults(runs, "ours") == []
    assert "before, keyed at 64: 3 lost" in (loads.void(runs) or "")
    runs[Cell("keyed", 64)]["ours"] = [result(lost=1)]
    assert "keyed at 64: 1 lost" in loads.faults(runs, "ours")[0]
    assert "ours" not in (loads.void(runs) or "")


def test_the_row_of_the_build_before_is_there_only_with_one() -> None:
    systems = {"ours": [result()], "asyncpg": [result()]}
    assert "before" not in loads_table.job({Cell("get", 1): systems}, "get")
    assert "before" in loads_table.job({Cell("get", 1): systems | {"before": [result()]}}, "get")


def test_a_checkout_is_served_by_its_own_procfile(tmp_path: Path) -> None:
    with pytest.raises(ArgumentTypeError):
        loads.checkout(str(tmp_path))
    (tmp_path / "Procfile").write_text("web: of this checkout\n")
    assert serving.command("ours", loads.checkout(str(tmp_path))) == "of this checkout"
    assert serving.command("ours") != "of this checkout"


@needs_the_peers
@pytest.mark.full
@pytest.mark.skipif(not shutil.which("wrk"), reason="needs wrk")
def test_a_quick_run_reports_every_part_and_finds_no_fault_in_ours(tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "bench.loads",
            "--quick",
            "--before",
            ROOT,
            "--delay",
            "1",
            "--output",
            report,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    written = report.read_text()
    parts = ("to before, by CPU", "1 ms away", "p50 of before", "by req/s", "spends with", "Faults: none")
    assert [part for part in parts if part not in written] == []
    assert "Do not quote the ratios" not in written
    assert str(ROOT) not in written

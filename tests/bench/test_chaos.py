"""`make chaos` must be able to fail: by a scenario's finding, by its exception, and by the audit."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.chaos.__main__ import SCENARIOS, Scenario, is_selected, play
from bench.chaos.client import Client, Load, wait_until
from bench.chaos.crashes import faults
from bench.chaos.ground import Database, Finding, Ground, served
from bench.chaos.hot import Adjustments, Keyless, service_key
from bench.chaos.stalled import honest_despite, is_unharmed
from tests import ROOT
from tests.tools.nginx import nginx

pytestmark = [pytest.mark.postgres, pytest.mark.once]


@pytest.mark.parametrize(
    ("word", "names"),
    [("2", ["same keys"]), ("SIG", ["SIGHUP", "SIGTERM"]), ("19", ["hung server"]), ("0", [])],
)
def test_a_scenario_is_asked_for_by_its_figure_or_by_a_word_of_its_name(word: str, names: list[str]) -> None:
    assert [scenario.name for scenario in SCENARIOS if is_selected(scenario, [word])] == names


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with Ground() as ground:
        yield ground


def opened(database: Database) -> Finding:
    with served(database.url, workers=1) as site:
        return Finding("opened", Client(site.port, keep_alive=False).get("user_1").status == 200)


def tampered(database: Database) -> Finding:
    opened(database)
    database.rows("UPDATE challenge_quotas SET quota_remaining = quota_remaining + 1")
    return Finding("no fault, by its own account", True)


def broken(database: Database) -> Finding:
    raise TimeoutError("it did not happen")


@pytest.mark.full
@pytest.mark.parametrize(("run", "holds"), [(opened, True), (tampered, False), (broken, False)])
def test_a_scenario_holds_only_if_it_says_so_and_the_audit_does(
    ground: Ground, run: object, holds: bool
) -> None:
    row = play(Scenario("0", "a test", "", run), ground.database("a_test"))  # type: ignore[arg-type]
    assert row.finding.holds is holds


@pytest.mark.full
def test_a_key_that_is_not_stored_counts_as_lost_and_one_spent_twice_as_double(ground: Ground) -> None:
    database = ground.database("a_test", allowance=100)
    with served(database.url, workers=1) as site:
        load = Load(site.port, ["user_1"], clients=2)
        service = Adjustments(
            site.port, ["user_1"], clients=1, name="added", service_key=service_key(database), think=0.1
        )
        with load, service:
            load.wait_for(10)
            service.wait_for(1)
    assert faults(database, load, service) == ""
    load.acknowledged["never stored"] = "user_1", False
    database.rows("UPDATE ledger_entries SET cost = cost + 1 WHERE idempotency_key = 'consume:user:k-0-0'")
    assert faults(database, load, service) == "lost 1, double 1, off the rows -1"


@pytest.mark.full
def test_a_spend_without_a_key_that_is_not_stored_counts_as_lost(ground: Ground) -> None:
    database = ground.database("a_test", allowance=1_000)
    with served(database.url, workers=1) as site, Keyless(site.port, ["user_1"], clients=2) as load:
        wait_until(lambda: len(load.ids) > 10)
    assert load.faults(database) == ""
    load.ids.remove(next(iter(load.ids)))
    load.ids.add("no such entry")
    assert load.faults(database) == "without keys: lost 1, unasked 1"


@pytest.mark.full
def test_400_stalled_clients_hurt_nobody_behind_nginx(ground: Ground) -> None:
    database = ground.database("a_test", allowance=1_000_000)
    with served(database.url) as site, nginx(site.port, tls=False) as ports:
        assert is_unharmed(honest_despite("webhook", 400, ports.https))


@pytest.mark.full
def test_the_program_exits_with_0_and_writes_its_table(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "bench.chaos",
        "--only",
        "keys",
        "--markdown",
        str(tmp_path / "table.md"),
    ]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert (done.returncode, "| holds |" in (tmp_path / "table.md").read_text()) == (0, True), done.stdout

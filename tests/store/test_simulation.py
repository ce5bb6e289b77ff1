"""Histories of writers, races and faults, by the verbs' real steps: no unit is lost, doubled or overspent."""

import re

import pytest

from quotas.rules.outcomes import Change
from tests.tools import simulation
from tests.tools.simulated_database import Account, Violation
from tests.tools.simulation import Simulation, simulate

pytestmark = pytest.mark.once
SEEDS, MANY_SEEDS = 150, 1_000
MIN_STEPS = 1_000_000


def test_150_seeds_keep_every_promise() -> None:
    totals = simulate(SEEDS)
    assert set(simulation.ALL_FAULTS) == set(totals.faults)
    assert set(simulation.ALL_EVENTS) <= set(totals.events)


@pytest.mark.full
def test_a_million_steps_keep_every_promise(capsys: pytest.CaptureFixture[str]) -> None:
    totals = simulate(MANY_SEEDS, first=SEEDS)
    with capsys.disabled():
        print(f"\n{totals}")
    assert totals.steps >= MIN_STEPS


def test_a_seed_is_the_same_history_each_time() -> None:
    runs = [Simulation(7, keeps_story=True) for _ in range(2)]
    for run in runs:
        run.run()
    assert runs[0].story == runs[1].story
    assert len(runs[0].story) > simulation.STEPS_PER_SEED


def test_a_database_without_the_guard_is_noticed_with_its_story(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_guarded_by_nothing(account: Account, change: Change) -> bool:
        return True

    monkeypatch.setattr(Account, "fits", is_guarded_by_nothing)
    with pytest.raises(Violation, match=r"The story of seed \d+:\n +0 .*asks for") as found:
        simulate(SEEDS)
    assert re.search(r"client \d: Write → True", str(found.value))

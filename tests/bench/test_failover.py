"""A primary that dies: a standby replaces it, and no spend is lost or made twice."""

import pytest
from django.core.management import call_command

from bench import failover
from bench.patroni import missing_programs
from tests.store.test_faults import assert_unavailable, connected_to
from tests.tools.postgres import Server

pytestmark = [pytest.mark.postgres, pytest.mark.once]


class Standby(Server):
    """A server that can be made a standby, although it has no primary."""

    def demote(self):
        self.stop()
        (self.data / "standby.signal").touch()
        self.start()

    def promote(self):
        self.stop()
        (self.data / "standby.signal").unlink()
        self.start()

    def _is_ready(self):
        is_up = self.process is not None and self.process.poll() is None
        return super()._is_ready() or (is_up and self._state() == ["standby"])

    def _state(self):
        try:
            return (self.data / "postmaster.pid").read_text().split()[-1:]
        except FileNotFoundError:
            return []


@pytest.fixture
def standby(django_db_blocker):
    with Standby(fsync=False) as running, django_db_blocker.unblock(), connected_to(running.port):
        call_command("migrate", verbosity=0)
        running.demote()
        yield running


def test_a_standby_is_not_taken_for_the_primary(standby, api):
    """A quota read on a standby is stale, and a spend would fail only after the decision."""
    assert_unavailable(api.quota())
    assert_unavailable(api.consume(key="k-1"))
    standby.promote()
    assert api.consume(key="k-1").status_code == 201


@pytest.mark.full
def test_a_killed_primary_and_a_dead_machine_cost_nobody_a_spend():
    if missing := missing_programs():
        pytest.skip(f"not installed here: {missing}")
    result = failover.run()
    assert result.acknowledged > 500
    assert (result.lost, result.double, result.unexpected, result.is_sound) == (0, 0, set(), True)

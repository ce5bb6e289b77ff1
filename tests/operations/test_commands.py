"""What every command does alike: it reports an unreachable database in one line."""

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from quotas.management.failures import explain_interrupt
from tests.tools.forked import manage

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    "command",
    [
        "apply_plans docs/plans.toml",
        "audit_ledger",
        "create_service_key name --scopes read",
        "distribute_tables",
        "export_user user_1",
        "list_service_keys",
        "revoke_service_key name",
        "rotate_service_key name",
        "export_plans",
        "prune_inbox --older-than 90",
        "prune_ledger --older-than 400",
    ],
)
def test_an_unreachable_database_is_reported_without_a_traceback(command: str) -> None:
    done = manage(*command.split(), DATABASE_URL="postgres://somebody:hunter2@127.0.0.1:1/away")
    assert done.returncode == 1
    assert "The database (DATABASE_URL) cannot be used: connection" in done.stderr
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stderr


def test_a_command_that_runs_in_another_thread_leaves_the_signals_alone() -> None:
    def run() -> int:
        with explain_interrupt(str):
            return 1

    before = signal.getsignal(signal.SIGTERM)
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(run).result() == 1
    assert signal.getsignal(signal.SIGTERM) is before

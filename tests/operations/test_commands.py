"""What every command does alike: it reports an unreachable database in one line."""

import pytest

from tests.tools.forked import manage

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    "command",
    [
        "audit_ledger",
        "create_service_key name --scopes read",
        "distribute_tables",
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

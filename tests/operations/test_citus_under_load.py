"""distribute_tables while the service is used; the functions of Citus are the stand-ins of test_citus.py."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from threading import Event
from typing import Any

import psycopg
import pytest

from quotas.models import LedgerEntry
from quotas.operations import citus
from quotas.reports import audit
from tests.conftest import WEBHOOK_SECRET, delivery
from tests.operations.test_citus import STAND_IN, command, execute
from tests.store.test_faults import connected_to
from tests.tools.forked import manage
from tests.tools.postgres import Server
from tests.tools.site import ask, served
from tests.tools.waiting import wait_until

pytestmark = [pytest.mark.postgres, pytest.mark.once]
WAITING = "SELECT 1 FROM pg_locks JOIN pg_class AS t ON t.oid = relation WHERE NOT granted AND relname = %s"


@pytest.fixture
def server(django_db_blocker: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A database with the stand-in; Django is connected to it."""
    with Server(fsync=False, in_memory=True) as server:
        assert manage("migrate", "-v0", DATABASE_URL=server.url).returncode == 0
        with django_db_blocker.unblock(), connected_to(server.port):
            execute(STAND_IN)
            monkeypatch.setattr(citus, "has_extension", lambda: True)
            yield server


def test_spends_under_way_wait_and_are_all_made(server: Server) -> None:
    """Eight clients spend, and Clerk delivers, from before the command until after it."""
    with (
        served(server.url, workers=1, CLERK_WEBHOOK_SIGNING_SECRET=WEBHOOK_SECRET) as port,
        ThreadPoolExecutor(8) as clients,
    ):
        is_done = Event()
        busy = [clients.submit(keep_asking, port, f"user_{number}", is_done) for number in range(8)]
        try:
            wait_until(lambda: LedgerEntry.objects.count() > 50)
            output = command()
            before = LedgerEntry.objects.count()
            wait_until(lambda: LedgerEntry.objects.count() > before + 50)
        finally:
            is_done.set()
        answers = [answer for client in busy for answer in client.result()]
    assert "All tables are distributed." in output
    assert set(answers) <= {200, 201}
    assert LedgerEntry.objects.filter(kind="consumed").count() == answers.count(201)
    assert list(audit.faults()) == []


def test_it_gives_way_to_a_spend_that_has_the_ledger_and_waits_for_the_quota(server: Server) -> None:
    def finish_spend() -> None:
        wait_until(lambda: bool(other.execute(WAITING, ["ledger_entries"]).fetchone()))
        other.execute("LOCK TABLE challenge_quotas IN ROW EXCLUSIVE MODE")
        other.commit()

    with psycopg.connect(server.url) as other, ThreadPoolExecutor(1) as thread:
        other.execute("LOCK TABLE ledger_entries IN ROW EXCLUSIVE MODE")
        finished = thread.submit(finish_spend)
        output = command()
        finished.result()  # PostgreSQL found no deadlock
    assert "All tables are distributed." in output


def keep_asking(port: int, user_id: str, is_done: Event) -> list[int]:
    """Spend, and now and then deliver; return the statuses."""
    client = HTTPConnection("127.0.0.1", port, timeout=30)
    answers: list[int] = []
    while not is_done.is_set():
        user = f"{user_id}_{len(answers) // 20}"
        answers.append(ask(client, "POST", "/api/v1/quota/consume", user, b"{}"))
        person = {"id": user, "updated_at": 1_700_000_000_000, "email_addresses": []}
        body, headers = delivery("user.created", person)
        client.request("POST", "/webhooks/clerk", body, headers)
        response = client.getresponse()
        response.read()
        answers.append(response.status)
    client.close()
    return answers

"""The bench compares like with like: the peers do the work that it claims, pgbench sends our statements."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from importlib.util import find_spec
from typing import Any

import psycopg
import pytest
from django.db.models import DateTimeField, Model

from bench import load, pgbench, stock
from bench.measure import evaluate
from bench.serving import ALLOWANCE, served
from bench.time_travel import INSTANTS
from quotas.models import ChallengeQuota, LedgerEntry
from quotas.store import sql
from quotas.store.rows import ENTRY_COLUMNS
from tests import ROOT
from tests.tools import keys

USER = stock.SPENDERS[0]
CONSUME = "/api/v1/quota/consume"

pytestmark = pytest.mark.once
needs_the_peers = pytest.mark.skipif(
    not all(map(find_spec, ("asyncpg", "fastapi", "granian", "sqlalchemy", "uvicorn"))),
    reason="needs requirements-bench.txt: make bench",
)
with_ledger = pytest.mark.parametrize("peer", ["asyncpg", "floor"], indirect=True)


class Peer:
    def __init__(self, name: str, port: int, database_url: str) -> None:
        self.name, self.port, self.database_url = name, port, database_url

    def send(
        self,
        method: str,
        path: str,
        body: object = None,
        idempotency_key: str | None = None,
        **claims: object,
    ) -> tuple[int, dict[str, str], Any]:
        client = HTTPConnection("127.0.0.1", self.port, timeout=30)
        token = keys.mint(**{"sub": USER, **claims})
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        headers |= {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        client.request(method, path, json.dumps(body or {}), headers)
        response = client.getresponse()
        fields = {name.lower(): value for name, value in response.getheaders()}
        answer = response.status, fields, json.loads(response.read())
        client.close()
        return answer

    def spend(
        self, key: str | None = None, cost: int = 1, path: str = CONSUME
    ) -> tuple[int, dict[str, str], Any]:
        return self.send("POST", path, {"cost": cost}, key)

    @property
    def balance(self) -> stock.Balance:
        return stock.balance(self.database_url)


@pytest.fixture(scope="module")
def peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
    """A peer, served as in the bench, on its own database."""
    name = request.param
    database = f"bench_{name}_{os.getpid()}"
    stock.create(os.environ["DATABASE_URL"], database)
    url = stock.sibling(os.environ["DATABASE_URL"], database)
    try:
        stock.open_peer(name, url)
        with served(name, url) as site:
            yield Peer(name, site.port, url)
    finally:
        stock.drop(os.environ["DATABASE_URL"], database)


def wait_for_waiting(database_url: str, count: int) -> None:
    """Return when so many sessions wait for a lock."""
    waiting = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    deadline = time.monotonic() + 30
    with psycopg.connect(database_url, autocommit=True) as connection:
        while connection.execute(waiting).fetchone() != (count,):
            assert time.monotonic() < deadline, f"{count} sessions do not wait for a lock"
            time.sleep(0.02)


all_peers = pytest.mark.parametrize("peer", ["seed", "asyncpg", "floor"], indirect=True)


@needs_the_peers
@pytest.mark.postgres
@pytest.mark.full
@all_peers
class TestEveryPeer:
    def test_tells_what_is_left(self, peer: Peer) -> None:
        status, _, body = peer.send("GET", "/api/quota")
        assert (status, body["user_id"]) == (200, USER)
        assert {"user_id", "quota_remaining", "last_reset_date"} == body.keys()

    def test_spends_one_unit_of_that_user(self, peer: Peer) -> None:
        left, all_left = peer.send("GET", "/api/quota")[2]["quota_remaining"], peer.balance.remaining
        assert peer.spend()[0] == 201
        assert peer.send("GET", "/api/quota")[2]["quota_remaining"] == left - 1
        assert peer.balance.remaining == all_left - 1

    def test_refuses_what_is_more_than_there_is(self, peer: Peer) -> None:
        before = peer.balance
        assert peer.spend(cost=ALLOWANCE)[0] == 429
        assert peer.balance == before

    @pytest.mark.parametrize(
        "wrong",
        [
            {"exp": 1},
            {"nbf": 2**40},
            {"iss": "https://other.example.com"},
            {"azp": "https://other.example.com"},
            {"key": keys.rsa.generate_private_key(public_exponent=65537, key_size=2048)},
        ],
        ids=lambda wrong: next(iter(wrong)),
    )
    def test_checks_the_whole_token(self, peer: Peer, wrong: dict[str, Any]) -> None:
        assert peer.send("GET", "/api/quota", **wrong)[0] == 401


@needs_the_peers
@pytest.mark.postgres
@pytest.mark.full
@with_ledger
class TestAPeerThatDoesTheSameWork:
    def test_writes_an_entry_for_each_spend(self, peer: Peer) -> None:
        before = peer.balance
        body = peer.spend("entry-1")[2]
        assert peer.balance == (before.remaining - 1, before.entries + 1)
        with psycopg.connect(peer.database_url) as connection:
            row = connection.execute(
                f"SELECT {', '.join(ENTRY_COLUMNS)} FROM ledger_entries WHERE id = %s", [body["id"]]
            ).fetchone()
        entry = dict(zip(ENTRY_COLUMNS, row or (), strict=True))
        assert (entry["user_id"], entry["seq"], entry["kind"]) == (USER, body["seq"], "consumed")
        assert entry["balance_after"] == body["quota"]["quota_remaining"]

    def test_replays_a_key(self, peer: Peer) -> None:
        first = peer.spend("replay-1")
        before = peer.balance
        again = peer.spend("replay-1")
        assert (again[0], again[2]["id"]) == (201, first[2]["id"])
        assert again[1]["idempotent-replayed"] == "true"
        assert peer.balance == before

    def test_refuses_a_key_for_another_request(self, peer: Peer) -> None:
        peer.spend("reuse-1")
        before = peer.balance
        assert peer.spend("reuse-1", cost=2)[0] == 422
        assert peer.balance == before

    def test_spends_once_when_a_new_key_comes_several_times_at_once(self, peer: Peer) -> None:
        """Each has looked for the key in vain before the first one may continue."""
        before = peer.balance
        with psycopg.connect(peer.database_url) as holder, ThreadPoolExecutor(3) as threads:
            holder.execute("SELECT FROM challenge_quotas WHERE user_id = %s FOR UPDATE", [USER])
            spends = [threads.submit(peer.spend, "race-1") for _ in range(3)]
            wait_for_waiting(peer.database_url, 3)
            holder.rollback()
            answers = [spend.result() for spend in spends]
        assert {status for status, _, _ in answers} == {201}
        assert len({body["id"] for _, _, body in answers}) == 1
        assert peer.balance == (before.remaining - 1, before.entries + 1)

    def test_spends_without_a_ledger_where_that_is_asked_for(self, peer: Peer) -> None:
        before = peer.balance
        assert peer.spend(path="/bare/consume")[0] == 201
        assert peer.balance == (before.remaining - 1, before.entries)


def test_pgbench_sends_our_statements_with_nothing_but_their_holes_filled() -> None:
    def parts(statement: str) -> Iterator[str]:
        return (re.sub(r"\s+", " ", part).strip() for part in re.split(r"%\(\w+\)s", statement))

    def is_in_order(statement: str, script: str) -> bool:
        return re.search(".*?".join(map(re.escape, parts(statement))), script, re.DOTALL) is not None

    assert is_in_order(sql.snapshot_query("postgresql", keyed=False, without_plans=True), pgbench.read())
    assert is_in_order(sql.snapshot_query("postgresql", without_plans=True), pgbench.spend())
    assert is_in_order(sql.compare_and_swap(1), pgbench.spend())


@pytest.mark.parametrize(
    ("gone", "lost", "overspent"),
    [(100, 0, 0), (164, 0, 0), (99, 1, 0), (165, 0, 1)],
    ids=["as told", "unheard at the end", "lost", "overspent"],
)
def test_the_units_are_counted(gone: int, lost: int, overspent: int) -> None:
    summary = load.Summary(1.0, {"201": 100}, 1, 1, 0)
    result = evaluate("keyed", summary, gone, connections=64)
    assert (result.lost, result.overspent) == (lost, overspent)


@pytest.mark.parametrize("model", [ChallengeQuota, LedgerEntry])
def test_time_travel_moves_every_instant_except_that_of_clerk(model: type[Model]) -> None:
    instants = {field.column for field in model._meta.fields if isinstance(field, DateTimeField)}
    assert set(INSTANTS[model._meta.db_table]) == instants - {"clerk_updated_at"}


def test_an_answer_of_another_status_is_told() -> None:
    result = evaluate("get", load.Summary(1.0, {"200": 100, "503": 2}, 1, 1, 0), 0, load.CONNECTIONS)
    assert (result.wrong, result.is_right, result.rate) == ({"503": 2}, False, 100)


@needs_the_peers
@pytest.mark.full
@pytest.mark.skipif(not (shutil.which("wrk") and pgbench.program()), reason="needs wrk and pgbench")
def test_the_bench_runs_and_finds_no_fault_in_ours() -> None:
    chosen = ["--only", "keyed", "refusal", "replay", "--systems", "ours", "pgbench"]
    small = ["--rounds", "1", "--seconds", "1", "--tokens", "400"]
    done = subprocess.run(
        [sys.executable, "-m", "bench", *chosen, *small],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PostgreSQL alone" in done.stdout
    assert "Faults: none" in done.stdout

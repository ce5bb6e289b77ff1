"""The Python client while answers are lost and the site is killed: no spend is lost, none is done twice."""

import os
import random
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Any

import httpx
import pytest
from anyio.from_thread import start_blocking_portal

from bench.chaos.crashes import Cutter
from bench.process import tree
from quotas.models import LedgerEntry, Plan, ServiceKey
from quotasite_client import QuotaError, Quotasite, QuotaUnreachable, retries
from tests.clients.drivers import Clients, pauses
from tests.tools.ledger import assert_sound
from tests.tools.postgres import free_port
from tests.tools.site import running, url_of_the_test_database
from tests.tools.waiting import wait_until

USERS = [f"user_fault{number}" for number in range(4)]
THREADS = 8  # for each driver


class WorkFailed(Exception):
    pass


class Cutting(Cutter):
    """Cuts one answer of twenty, and connections while the site is away."""

    def _pass(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            super()._pass(client)


@dataclass
class Load:
    """Jobs of one unit: of four, two `consume`, one pays for work that succeeds, one for work that fails.

    A job repeats what failed without a decision with the key of the error, as the README says.
    """

    keys: set[str] = field(default_factory=set)  # of the spends by `consume` that succeeded
    works: Counter[int] = field(default_factory=Counter)  # how often the work of each job was done
    failed: dict[str, str] = field(default_factory=dict)  # consumption: user
    replays: list[int] = field(default_factory=list)  # jobs whose spend an earlier attempt had made
    unknown: list[int] = field(default_factory=list)  # jobs with a call that failed without a decision
    done: list[int] = field(default_factory=list)
    fault: Exception | None = None
    is_over: bool = False

    def run(self, client: Any, job: int) -> None:
        try:
            self._spend(client, job)
        except Exception as error:
            self.fault = error
            raise

    def _spend(self, client: Any, job: int) -> None:
        user_id, key = USERS[job // 8 % len(USERS)], f"k-{job}" if job % 4 < 2 else None
        while not self.is_over:
            try:
                if job % 4 < 2:
                    if client.consume(user_id, cost=1, key=key).replayed:
                        self.replays.append(job)
                    self.keys.add(f"consume:service:{key}")
                else:
                    self._work(client, user_id, job, key)
                self.done.append(job)
                return
            except QuotaError as error:
                may_pass = isinstance(error, QuotaUnreachable) or error.code == "database_unavailable"
                if not may_pass:
                    raise
                self.unknown.append(job)
                key = error.key
                sleep(0.2)

    def _work(self, client: Any, user_id: str, job: int, key: str | None) -> None:
        with suppress(WorkFailed), client.spending(user_id, cost=1, key=key, on_replay="run") as consumption:
            self.works[job] += 1
            if job % 4 == 3:
                self.failed[consumption.id] = user_id
                raise WorkFailed

    def repeat_refunds(self, port: int, service_key: str) -> None:
        """Send each refund again with its key, as the log asks for those that could not be sent."""
        with Quotasite(f"http://127.0.0.1:{port}", key=service_key) as client:
            for consumption, user_id in self.failed.items():
                client.refund(user_id, consumption, reason="The work failed.", key=f"refund:{consumption}")


@contextmanager
def clients_of(url: str, service_key: str) -> Iterator[list[Any]]:
    """A client of each driver."""
    with (
        httpx.Client() as http,
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(httpx.AsyncClient()) as async_http,
    ):
        drivers = Clients(http), Clients(async_http, portal)
        yield [driver.service(url, key=service_key, timeout=10) for driver in drivers]


def spend(total: int, kills: int) -> tuple[Load, Cutter]:
    """Spend so often through a proxy that cuts answers; kill the site meanwhile, and start it again."""
    _, service_key = ServiceKey.make("the load", ["consume", "refund"])
    url, port, load = url_of_the_test_database(), free_port(), Load()
    proxy = Cutting(port, random.Random(20))
    with (
        closing(proxy),
        clients_of(f"http://127.0.0.1:{proxy.port}", service_key) as clients,
        ThreadPoolExecutor(2 * THREADS) as threads,
    ):
        try:
            jobs = [threads.submit(load.run, clients[job // 4 % 2], job) for job in range(total)]
            for number in range(kills + 1):
                with running(url, workers=2, port=port) as (_, site):
                    goal = total * (number + 1) // (kills + 1)
                    wait_until(lambda: len(load.done) >= goal or load.fault is not None, 900)  # noqa: B023
                    if number < kills:
                        for pid in tree(site.pid):
                            os.kill(pid, signal.SIGKILL)
                    else:
                        load.repeat_refunds(port, service_key)
        finally:
            load.is_over = True
        for job in jobs:
            job.result()
    return load, proxy


def assert_exact(load: Load, total: int) -> None:
    """Assert that the ledger has each spend once, and a refund for each work that failed."""
    entries = LedgerEntry.objects.filter(user__user_id__in=USERS)
    consumed, refunded = (entries.filter(kind=kind) for kind in ("consumed", "refunded"))
    stored = set(consumed.values_list("idempotency_key", flat=True))
    lost, double = load.keys - stored, sum(consumed.values_list("cost", flat=True)) - total
    assert (len(load.keys), len(lost), double) == (total // 2, 0, 0)
    assert set(load.works.values()) == {1}
    assert len(load.works) == total // 2
    assert {str(entry.refund_of) for entry in refunded} == load.failed.keys()
    assert len(refunded) == total // 4
    for user_id in USERS:
        assert_sound(user_id)


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True, serialized_rollback=True)
@pytest.mark.parametrize(
    ("total", "kills", "waits"),
    [
        pytest.param(200, 1, (0.05, 0.2), id="200"),
        pytest.param(10_000, 8, retries.PAUSES, id="10000", marks=pytest.mark.full),
    ],
)
def test_no_spend_is_lost_and_none_done_twice(total: int, kills: int, waits: tuple[float, float]) -> None:
    plan = Plan.objects.get(is_default=True)
    plan.allowance = 100_000
    plan.save()
    began = monotonic()
    with pauses(*waits):
        load, proxy = spend(total, kills)
    assert_exact(load, total)
    assert min(proxy.cut, len(load.replays), len(load.unknown)) > 0
    print(
        f"{total} spends in {monotonic() - began:.0f} s, {proxy.cut} answers cut, {kills} kills of the site: "
        f"{len(load.replays)} replays, {len(load.unknown)} calls without a decision; lost 0, double 0"
    )

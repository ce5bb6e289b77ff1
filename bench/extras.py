"""What is measured once besides: a database farther away, the start, and what becomes of a crowd."""

import statistics
import time
from contextlib import ExitStack
from typing import NamedTuple

import psycopg

from bench import load, process, serving, stock
from bench.cells import ask
from bench.delay import Proxy
from bench.measure import Bench, Result
from tests.tools import keys

JOBS = ("get", "keyed")
MANY = 100  # connections to one worker: 40 threads and the 15 connections of a pool are too few then


class Far(NamedTuple):
    label: str
    system: str
    environment: dict[str, str]


FAR = (
    Far("**Quotasite**, 1 connection of a worker's loop", "ours", {"LANE_CONNECTIONS": "1"}),
    Far("**Quotasite**, 8 connections", "ours", {"LANE_CONNECTIONS": "8"}),
    Far("FastAPI + asyncpg, tuned", "asyncpg", {}),
    Far("bare WSGI + psycopg, 8 threads a worker", "floor", {"WEB_THREADS": "8"}),
)
FarResults = dict[tuple[str, str, float], list[Result]]  # by label, job, delay in ms


def far(bench: Bench, systems: list[str], milliseconds: float, rounds: int) -> tuple[FarResults, str]:
    """Run GET and consume with a key through the proxy, without and with the delay each way."""
    results: FarResults = {}
    chosen = [it for it in FAR if it.system in systems]
    with ExitStack() as stack:
        proxy = stack.enter_context(Proxy(bench.server.port))
        sites = {}
        for it in chosen:
            url = through(stock.url(bench.server, it.system), bench, proxy)
            sites[it.label] = stack.enter_context(serving.served(it.system, url, **it.environment))
        cost = trips(bench, proxy, milliseconds)
        for number in range(rounds + 1):
            for delay in (0, milliseconds):
                proxy.delay = delay / 1000
                for job in JOBS:
                    for it in chosen:
                        result = bench.ask(job, it.system, sites[it.label])
                        if number:  # the first round warms up
                            results.setdefault((it.label, job, delay), []).append(result)
    return results, cost


def through(url: str, bench: Bench, proxy: Proxy) -> str:
    return url.replace(f":{bench.server.port}/", f":{proxy.port}/")


def trips(bench: Bench, proxy: Proxy, milliseconds: float) -> str:
    """What the proxy itself adds to a round trip."""
    direct = trip(bench.server.url)
    proxy.delay = 0
    none = trip(through(bench.server.url, bench, proxy))
    proxy.delay = milliseconds / 1000
    held = trip(through(bench.server.url, bench, proxy))
    return (
        f"A round trip to PostgreSQL: {direct:.2f} ms directly, {none:.2f} ms through the proxy, "
        f"{held:.2f} ms with {milliseconds:g} ms added each way."
    )


def trip(url: str, count: int = 200) -> float:
    """The median time of a round trip, in milliseconds."""
    times = []
    with psycopg.connect(url, autocommit=True) as connection:
        for _ in range(count):
            began = time.perf_counter()
            connection.execute("SELECT 1")
            times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times)


class Start(NamedTuple):
    """Seconds from the start of the processes to the first 200, and those of CPU that they took for it."""

    healthz: float
    quota: float
    cpu: float


def starts(bench: Bench, count: int = 3) -> list[Start]:
    """Start ours so many times; the files that Python reads are in the memory of the machine by then."""
    token = keys.mint(sub=stock.HOT, exp=int(time.time()) + 600)
    found = []
    for _ in range(count):
        with serving.served("ours", stock.url(bench.server, "ours")) as site:
            began = time.monotonic()
            status = serving.status_of(site.port, "/api/quota", seconds=10, token=token)
            assert status == 200, status
            cpu = process.cpu(process.tree(site.pid))
            found.append(Start(site.seconds, site.seconds + time.monotonic() - began, cpu))
    return found


class Crowd(NamedTuple):
    """What became of MANY connections to one worker."""

    answers: int
    after: int  # of three later requests, alone and one by one, those that were answered


def crowd(bench: Bench, server: str, seconds: int = 5) -> Crowd:
    token = keys.mint(sub=stock.HOT, exp=int(time.time()) + 600)
    with serving.served(server, stock.url(bench.server, server), WEB_CONCURRENCY="1") as site:
        asked = ask("consume", server)
        heard = load.run(asked, site.port, bench.pools["spread"], seconds=seconds, connections=MANY)
        after = [serving.status_of(site.port, "/api/quota", seconds=3, token=token) for _ in range(3)]
    return Crowd(sum(heard.statuses.values()), after.count(200))

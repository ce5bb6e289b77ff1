"""What only a full run measures: a distant database, the start-up time, and many connections at once."""

import statistics
import time
from contextlib import ExitStack
from typing import NamedTuple

import psycopg

from bench import load, process, serving, stock
from bench.cells import request_for
from bench.delay import Proxy
from bench.measure import Bench, Result
from tests.tools import keys

JOBS = ("get", "keyed")
MANY = 100  # connections to one worker: more than FastAPI's 40 threads and SQLAlchemy's 15 connections


class Far(NamedTuple):
    label: str
    system: str
    environment: dict[str, str]


FAR = (
    Far("**Quotasite**, 2 connections of a worker's loop", "ours", {"LANE_CONNECTIONS": "2"}),
    Far("**Quotasite**, 8 connections", "ours", {"LANE_CONNECTIONS": "8"}),
    Far("FastAPI + asyncpg, tuned", "asyncpg", {}),
    Far("bare WSGI + psycopg, 8 threads a worker", "floor", {"WEB_THREADS": "8"}),
)
FarResults = dict[tuple[str, str, float], list[Result]]  # by label, job, delay in ms


def far(bench: Bench, systems: list[str], milliseconds: float, rounds: int) -> tuple[FarResults, str]:
    """Run GET and consume with a key through a proxy, without and with the delay each way.

    Returns the results, and a sentence on the proxy's own overhead.
    """
    results: FarResults = {}
    chosen = [one for one in FAR if one.system in systems]
    with ExitStack() as stack:
        proxy = stack.enter_context(Proxy(bench.server.port))
        sites = {}
        for one in chosen:
            url = through(stock.url(bench.server, one.system), bench, proxy)
            sites[one.label] = stack.enter_context(serving.served(one.system, url, **one.environment))
        overhead = round_trips(bench, proxy, milliseconds)
        for number in range(rounds + 1):
            for delay in (0, milliseconds):
                proxy.delay = delay / 1000
                for job in JOBS:
                    for one in chosen:
                        result = bench.run_on(sites[one.label], job, one.system)
                        if number:  # the first round warms up
                            results.setdefault((one.label, job, delay), []).append(result)
    return results, overhead


def through(url: str, bench: Bench, proxy: Proxy) -> str:
    return url.replace(f":{bench.server.port}/", f":{proxy.port}/")


def round_trips(bench: Bench, proxy: Proxy, milliseconds: float) -> str:
    """Describe what the proxy itself adds to a round trip."""
    direct = round_trip(bench.server.url)
    proxy.delay = 0
    without_delay = round_trip(through(bench.server.url, bench, proxy))
    proxy.delay = milliseconds / 1000
    delayed = round_trip(through(bench.server.url, bench, proxy))
    return (
        f"A round trip to PostgreSQL: {direct:.2f} ms directly, {without_delay:.2f} ms through the proxy, "
        f"{delayed:.2f} ms with {milliseconds:g} ms added each way."
    )


def round_trip(url: str, count: int = 200) -> float:
    """Return the median time of a round trip, in milliseconds."""
    times = []
    with psycopg.connect(url, autocommit=True) as connection:
        for _ in range(count):
            began = time.perf_counter()
            connection.execute("SELECT 1")
            times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times)


class Start(NamedTuple):
    """Seconds from the start of the processes to their first 200, and the CPU seconds spent until then."""

    healthz: float
    quota: float
    cpu: float


def starts(bench: Bench, count: int = 3) -> list[Start]:
    """Start ours `count` times; the operating system has cached the files that Python reads."""
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
    """How one worker served MANY connections."""

    answers: int
    after: int  # of three requests that follow one by one, those that were answered


def crowd(bench: Bench, server: str, seconds: int = 5) -> Crowd:
    token = keys.mint(sub=stock.HOT, exp=int(time.time()) + 600)
    with serving.served(server, stock.url(bench.server, server), WEB_CONCURRENCY="1") as site:
        request, pool = request_for("consume", server), bench.pools["spread"]
        summary = load.run(request, site.port, pool, seconds=seconds, connections=MANY)
        after = [serving.status_of(site.port, "/api/quota", seconds=3, token=token) for _ in range(3)]
    return Crowd(sum(summary.statuses.values()), after.count(200))

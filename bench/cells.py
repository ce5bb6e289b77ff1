"""What is measured: which systems do which jobs, and the targets."""

from typing import NamedTuple

from bench.load import Request
from bench.serving import ALLOWANCE
from bench.stock import KEY


class System(NamedTuple):
    """One row of a job's table."""

    label: str
    server: str  # as serving.command names it; also the name of its database


class Job(NamedTuple):
    label: str
    systems: tuple[str, ...]
    status: str  # of each correct answer
    spends: bool  # whether each such answer spends one unit
    pool: str  # of tokens


SYSTEMS = {
    "ours": System("**Quotasite**", "ours"),
    "seed": System("FastAPI + SQLAlchemy, as its users write it", "seed"),
    "asyncpg-bare": System("FastAPI + asyncpg, no ledger, no key", "asyncpg"),
    "asyncpg": System("FastAPI + asyncpg, tuned", "asyncpg"),
    "floor-bare": System("bare WSGI + psycopg, no ledger, no key", "floor"),
    "floor": System("bare WSGI + psycopg, the floor", "floor"),
    "pgbench": System("PostgreSQL alone, our statements (pgbench)", "pgbench"),
}

# Other jobs run between the two of one user, so that the second finds no token of the first in the cache.
JOBS = {
    "get": Job("GET", ("ours", "seed", "asyncpg", "floor", "pgbench"), "200", False, "spread"),
    "hot-get": Job("GET, one user", ("ours", "seed", "asyncpg", "floor"), "200", False, "hot"),
    "consume": Job(
        "Consume",
        ("ours", "seed", "asyncpg-bare", "asyncpg", "floor-bare", "floor"),
        "201",
        True,
        "spread",
    ),
    "keyed": Job(
        "Consume with a key",
        ("ours", "asyncpg", "floor", "pgbench"),
        "201",
        True,
        "spread",
    ),
    "hot": Job(
        "Consume with a key, one user",
        ("ours", "seed", "asyncpg", "floor"),
        "201",
        True,
        "hot",
    ),
    "refusal": Job("Refusal", ("ours", "seed", "asyncpg", "floor"), "429", False, "spread"),
    "replay": Job("Replay", ("ours", "asyncpg", "floor"), "201", False, "spread"),
    "remembered": Job("GET with cached tokens", ("ours",), "200", False, "few"),
}
QUICK = ("get", "consume", "keyed")

# Our requests a second, as a multiple of the peer's: at least this.
TARGETS = {
    ("get", "asyncpg"): 1.0,
    ("get", "floor"): 0.5,
    ("consume", "seed"): 6.0,
    ("keyed", "asyncpg"): 1.0,
}
MAX_SPREAD = 4.0  # p99 / p50
MAX_MIB = 100  # of a worker
MAX_START_SECONDS = 2.0
MAX_NOISE = 0.1  # share of the machine that other work takes

# `python -m bench.loads`: numbers of keep-alive connections, jobs and targets.
LOADS = (1, 16, 64, 256)
LOAD_JOBS = ("get", "consume", "keyed", "hot", "refusal", "replay")
QUICK_LOADS, QUICK_LOAD_JOBS = (1, 64), ("get", "keyed")
# By connections and job: the CPU of a request to asyncpg doing the same work, divided by ours; at least this.
MIN_CPU_RATIOS = {
    16: {"get": 1.15, "consume": 0.95, "keyed": 0.95, "hot": 1.25, "refusal": 1.0, "replay": 0.95},
    64: {"get": 1.6, "consume": 1.3, "keyed": 1.3, "hot": 2.3, "refusal": 1.4, "replay": 1.4},
    256: {"get": 2.0, "consume": 1.8, "keyed": 1.8, "hot": 3.0, "refusal": 1.6, "replay": 1.6},
}
SPREAD_LOADS = (16, 64)  # at which MAX_SPREAD must hold
MAX_SLOWDOWN = 1.05  # p50 at one connection, divided by that of the build before
FAR_LOAD, FAR_DELAY = 64, 1.0  # connections; ms each way to a distant database
MIN_FAR_RATIO = 1.3  # our requests a second there, divided by asyncpg's

ONE = '{"cost":1}'
# More than any user has left, but not more than the allowance, above which the error is another one.
TOO_MUCH = f'{{"cost":{ALLOWANCE}}}'
CONSUME = "/api/v1/quota/consume"


def request_for(job: str, system: str) -> Request:
    if job in ("get", "hot-get", "remembered"):
        return Request("GET", "/api/quota")
    if job == "refusal":
        return Request("POST", CONSUME, TOO_MUCH)
    if job == "replay":
        return Request("POST", CONSUME, ONE, KEY)
    if system.endswith("-bare"):
        return Request("POST", "/bare/consume", ONE)
    is_keyed = job in ("keyed", "hot") and system != "seed"
    return Request("POST", CONSUME, ONE, "fresh" if is_keyed else "-")

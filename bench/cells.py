"""What is measured: which system does which job, and what it must come to."""

from typing import NamedTuple

from bench.load import Ask
from bench.serving import ALLOWANCE
from bench.stock import KEY


class System(NamedTuple):
    """One row of a job's table."""

    label: str
    server: str  # of serving.command, and the name of its database


class Job(NamedTuple):
    label: str
    systems: tuple[str, ...]
    status: str  # what each answer must be
    spends: bool  # one unit for each such answer
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

# The two of one user have others between them, so that no token is remembered from the one to the other.
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
    "remembered": Job("GET with tokens that are remembered", ("ours",), "200", False, "few"),
}
QUICK = ("get", "consume", "keyed")

# What ours must come to, as a part of the peer's requests a second.
TARGETS = {
    ("get", "asyncpg"): 1.0,
    ("get", "floor"): 0.5,
    ("consume", "seed"): 6.0,
    ("keyed", "asyncpg"): 1.0,
}
MOST_SPREAD = 4.0  # p99 / p50
MOST_MIB = 100
MOST_SECONDS = 2.0
MOST_NOISE = 0.1  # of the machine, taken by other work

ONE = '{"cost":1}'
# More than anybody has left, and less than a period's allowance, so that it could be paid some day.
TOO_MUCH = f'{{"cost":{ALLOWANCE}}}'
CONSUME = "/api/v1/quota/consume"


def ask(job: str, system: str) -> Ask:
    if job in ("get", "hot-get", "remembered"):
        return Ask("GET", "/api/quota")
    if job == "refusal":
        return Ask("POST", CONSUME, TOO_MUCH)
    if job == "replay":
        return Ask("POST", CONSUME, ONE, KEY)
    if system.endswith("-bare"):
        return Ask("POST", "/bare/consume", ONE)
    is_keyed = job in ("keyed", "hot") and system != "seed"
    return Ask("POST", CONSUME, ONE, "fresh" if is_keyed else "-")

"""The load: wrk over keep-alive connections, with a genuine session token on each request."""

import json
import multiprocessing
import random
import shutil
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from bench.stock import HOT, SPENDERS
from tests.tools import keys

SCRIPT = Path(__file__).with_name("load.lua")
CONNECTIONS, MAX_THREADS = 16, 2
TOKENS = 12_000  # so many that a token is evicted from the workers' cache before it is sent again
FEW_TOKENS = 2_000  # so few that each worker caches all of them
TOKEN_SECONDS = 4 * 3600  # until they expire


class Request(NamedTuple):
    """The request that a run repeats."""

    method: str
    path: str
    body: str = "-"
    key: str = "-"  # Idempotency-Key: "-" for none, "fresh" for a new one each time, or the key itself


class Summary(NamedTuple):
    """What wrk reports of one run; times in milliseconds."""

    seconds: float
    statuses: dict[str, int]
    p50: float
    p99: float
    broken: int  # connections that failed to open or broke off

    @property
    def rate(self) -> float:
        return sum(self.statuses.values()) / self.seconds


@dataclass
class Pool:
    """A file of tokens, and for each server's port how many it has been sent."""

    file: Path
    sent: dict[int, int] = field(default_factory=dict)


def wrk() -> str:
    program = shutil.which("wrk")
    if program is None:
        raise SystemExit("The bench needs wrk: install your system's package of that name (apt install wrk).")
    return program


def pools(folder: Path, tokens: int = TOKENS, *, with_hot: bool = True) -> dict[str, Pool]:
    """Sign the tokens of three pools: of users at random, of a few of these users, and of one hot user."""
    spread = [SPENDERS[number % len(SPENDERS)] for number in range(tokens)]
    random.Random(6).shuffle(spread)
    hot = [HOT] * (tokens // 2) if with_hot else []
    fork = multiprocessing.get_context("fork")  # other start methods make another key pair in each process
    with ProcessPoolExecutor(2, mp_context=fork) as processes:
        signed = list(processes.map(_token, enumerate([*spread, *hot]), chunksize=500))
    made = {"spread": signed[:tokens], "few": signed[:FEW_TOKENS], "hot": signed[tokens:]}
    return {name: _pool(folder / name, part) for name, part in made.items()}


def run(request: Request, port: int, pool: Pool, *, seconds: int, connections: int = CONNECTIONS) -> Summary:
    """Send the request for so many seconds; each connection sends the next as soon as it has its answer."""
    threads, sent = min(MAX_THREADS, connections), pool.sent.get(port, 0)
    arguments = [str(pool.file), str(threads), str(sent // threads), *request, f"{time.time_ns():x}"]
    command = [wrk(), f"-t{threads}", f"-c{connections}", f"-d{seconds}s"]
    command += ["-s", str(SCRIPT), f"http://127.0.0.1:{port}", "--", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60)
    report = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    pool.sent[port] = sent + report["requests"]
    return Summary(
        seconds=report["microseconds"] / 1e6,
        statuses=report["statuses"] or {},
        p50=report["p50"] / 1e3,
        p99=report["p99"] / 1e3,
        broken=report["broken"],
    )


def _token(numbered: tuple[int, str]) -> str:
    number, user_id = numbered
    return keys.mint(sub=user_id, sid=f"sess_{number:05}", exp=int(time.time()) + TOKEN_SECONDS)


def _pool(file: Path, tokens: list[str]) -> Pool:
    file.write_text("".join(f"{token}\n" for token in tokens))
    return Pool(file)

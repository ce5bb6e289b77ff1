"""The load: wrk with keep-alive connections, and a real token on each request."""

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
CONNECTIONS, THREADS = 16, 2
TOKENS = 12_000  # of a pool, so that none comes again soon enough to be remembered
FEW_TOKENS = 2_000  # so few that each worker remembers all of them
LIFE = 4 * 3600  # seconds


class Ask(NamedTuple):
    """What is asked, again and again."""

    method: str
    path: str
    body: str = "-"
    key: str = "-"  # - is none, fresh a new one each time, anything else the key itself


class Heard(NamedTuple):
    """What wrk heard in one run; times in milliseconds."""

    seconds: float
    statuses: dict[str, int]
    p50: float
    p99: float
    broken: int  # connections that could not be made, or ended

    @property
    def rate(self) -> float:
        return sum(self.statuses.values()) / self.seconds


@dataclass
class Pool:
    """Tokens in a file, and for each server the place from which it goes on."""

    file: Path
    next: dict[int, int] = field(default_factory=dict)


def wrk() -> str:
    program = shutil.which("wrk")
    if program is None:
        raise SystemExit("The bench needs wrk: install your system's package of that name (apt install wrk).")
    return program


def pools(folder: Path, tokens: int = TOKENS, *, with_hot: bool = True) -> dict[str, Pool]:
    """Sign the tokens: of users at random, of a few of them, and of one user alone."""
    spread = [SPENDERS[number % len(SPENDERS)] for number in range(tokens)]
    random.Random(6).shuffle(spread)
    hot = [HOT] * (tokens // 2) if with_hot else []
    fork = multiprocessing.get_context("fork")  # the others make a key pair of their own
    with ProcessPoolExecutor(2, mp_context=fork) as processes:
        signed = list(processes.map(_token, enumerate([*spread, *hot]), chunksize=500))
    made = {"spread": signed[:tokens], "few": signed[:FEW_TOKENS], "hot": signed[tokens:]}
    return {name: _pool(folder / name, part) for name, part in made.items()}


def run(ask: Ask, port: int, pool: Pool, *, seconds: int, connections: int = CONNECTIONS) -> Heard:
    """Ask as fast as answers come, for so many seconds."""
    first = pool.next.get(port, 0)
    arguments = [str(pool.file), str(first), ask.method, ask.path, ask.body, ask.key, f"{time.time_ns():x}"]
    command = [wrk(), f"-t{THREADS}", f"-c{connections}", f"-d{seconds}s"]
    command += ["-s", str(SCRIPT), f"http://127.0.0.1:{port}", "--", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60)
    told = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    pool.next[port] = first + told["requests"] // THREADS
    return Heard(
        seconds=told["microseconds"] / 1e6,
        statuses=told["statuses"] or {},
        p50=told["p50"] / 1e3,
        p99=told["p99"] / 1e3,
        broken=told["broken"],
    )


def _token(numbered: tuple[int, str]) -> str:
    number, user_id = numbered
    return keys.mint(sub=user_id, sid=f"sess_{number:05}", exp=int(time.time()) + LIFE)


def _pool(file: Path, tokens: list[str]) -> Pool:
    file.write_text("".join(f"{token}\n" for token in tokens))
    return Pool(file)

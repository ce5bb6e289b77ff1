"""Clients of the API: one that says what became of each request, and one that retries with its key."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from http.client import HTTPConnection, HTTPException
from itertools import pairwise
from threading import Event, Thread
from typing import Any, NamedTuple

from tests.tools import keys

QUOTA, CONSUME = "/api/v1/quota", "/api/v1/quota/consume"
LOST = (OSError, HTTPException)  # no answer came
RENEWED = 20  # spends by one connection of a load: a new worker gets its share


class Answer(NamedTuple):
    status: int
    headers: Any
    body: bytes

    @property
    def is_unavailable(self) -> bool:
        """Whether it is the answer that tells to come again: a 503 problem with Retry-After."""
        is_problem = self.headers.get("Content-Type") == "application/problem+json"
        return self.status == 503 and is_problem and int(self.headers.get("Retry-After") or 0) >= 1


@cache
def token(user: str) -> str:
    return keys.mint(sub=user, exp=int(time.time()) + 7_200)


class Client:
    """One connection, kept between requests, and made anew after one that was lost."""

    def __init__(self, port: int, *, timeout: float = 15, keep: bool = True) -> None:
        self.http = HTTPConnection("127.0.0.1", port, timeout=timeout)
        self.keep = keep

    def ask(self, method: str, path: str, user: str, body: Any = None, key: str = "") -> Answer:
        """Send once. Raises one of LOST if no whole answer comes."""
        headers = {"Authorization": f"Bearer {token(user)}", "Content-Type": "application/json"}
        headers |= {"Idempotency-Key": key} if key else {}
        headers |= {} if self.keep else {"Connection": "close"}
        sent = None if body is None else json.dumps(body).encode()
        try:
            self.http.request(method, path, sent, headers)
            response = self.http.getresponse()
            return Answer(response.status, response.headers, response.read())
        except BaseException:
            self.http.close()
            raise

    def get(self, user: str) -> Answer:
        return self.ask("GET", QUOTA, user)

    def consume(self, user: str, key: str = "", **order: Any) -> Answer:
        return self.ask("POST", CONSUME, user, order, key)


@dataclass
class Load:
    """Clients that spend one unit after the other, each with a key of its own, until `stop`.

    A client that gets no answer, or one that says to come again, sends the same again, as the docs
    ask of it, and gives up only after `patience` seconds, which is a failure.
    """

    port: int
    users: list[str]
    clients: int = 8
    patience: float = 30
    pause: float = 0.05  # before the same is sent again; Retry-After asks for more, which would hide much
    acknowledged: dict[str, tuple[str, bool]] = field(default_factory=dict)  # by key: user, whether replayed
    successes: list[float] = field(default_factory=list)  # when
    longest: float = 0  # seconds from the first try of a spend to its answer
    retries: dict[str, int] = field(default_factory=dict)  # by reason
    failures: list[str] = field(default_factory=list)
    _stop: Event = field(default_factory=Event)
    _threads: list[Thread] = field(default_factory=list)

    def start(self) -> None:
        self._threads = [Thread(target=self._run, args=(n,), daemon=True) for n in range(self.clients)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let each client finish what it has begun."""
        self._stop.set()
        for thread in self._threads:
            thread.join(self.patience + 10)

    def __enter__(self) -> "Load":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def silence(self) -> float:
        """The longest time, in seconds, in which nobody got a success."""
        times = sorted(self.successes)
        return max((later - sooner for sooner, later in pairwise(times)), default=0)

    def wait_for(self, more: int, seconds: float = 30) -> None:
        """Return when so many more spends were acknowledged."""
        wanted = len(self.successes) + more
        wait_until(lambda: len(self.successes) >= wanted, seconds)

    def _run(self, number: int) -> None:
        client = Client(self.port)
        turn = 0
        while not self._stop.is_set():
            user = self.users[(number + turn) % len(self.users)]
            self._spend(client, user, f"k-{number}-{turn}")
            turn += 1
            if turn % RENEWED == 0:
                client.http.close()

    def _spend(self, client: Client, user: str, key: str) -> None:
        began = time.monotonic()
        why = ""
        while time.monotonic() - began < self.patience:
            try:
                answer = client.consume(user, key, cost=1)
            except LOST as error:
                why = type(error).__name__
            else:
                if answer.status == 201:
                    now = time.monotonic()
                    self.longest = max(self.longest, now - began)
                    self.acknowledged[key] = user, "Idempotent-Replayed" in answer.headers
                    self.successes.append(now)
                    return
                why = str(answer.status)
                if not answer.is_unavailable:
                    self.failures.append(f"{answer.status} {answer.body[:200]!r}")
                    return
            self.retries[why] = self.retries.get(why, 0) + 1
            time.sleep(self.pause)
        self.failures.append(f"no answer in {self.patience} s, at last {why}")


def wait_until(is_so: Callable[[], bool], seconds: float = 30) -> float:
    """Return after how many seconds it was so. Raises TimeoutError if it never was."""
    began = time.monotonic()
    while not is_so():
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"it did not happen within {seconds} s")
        time.sleep(0.01)
    return time.monotonic() - began

"""Clients of the API: one that sends single requests, and a load of clients that retry with their keys."""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from http.client import HTTPConnection, HTTPException
from itertools import pairwise
from threading import Event, Thread
from typing import Any, NamedTuple

from tests.tools import keys

QUOTA, CONSUME = "/api/v1/quota", "/api/v1/quota/consume"
LOST = (OSError, HTTPException)  # raised if no answer comes
SPENDS_PER_CONNECTION = 20  # of a load: new connections also reach workers that have just started


class Answer(NamedTuple):
    status: int
    headers: Any
    body: bytes

    @property
    def is_unavailable(self) -> bool:
        """Whether the answer asks for a retry: a 503 problem with Retry-After."""
        is_problem = self.headers.get("Content-Type") == "application/problem+json"
        return self.status == 503 and is_problem and int(self.headers.get("Retry-After") or 0) >= 1


@cache
def token(user: str) -> str:
    return keys.mint(sub=user, exp=int(time.time()) + 7_200)


class Client:
    """One connection, reused for all requests if `keep_alive`, and replaced when it is lost.

    With a `service_key` it sends as that service, without one as the user that each request names.
    """

    def __init__(
        self, port: int, *, timeout: float = 15, keep_alive: bool = True, service_key: str = ""
    ) -> None:
        self.http = HTTPConnection("127.0.0.1", port, timeout=timeout)
        self.keep_alive = keep_alive
        self.service_key = service_key

    def send(self, method: str, path: str, user: str, body: Any = None, key: str = "") -> Answer:
        """Send once. Raises one of LOST if no complete answer comes."""
        bearer = self.service_key or token(user)
        headers = {"Authorization": f"Bearer {bearer}", "Content-Type": "application/json"}
        headers |= {"Idempotency-Key": key} if key else {}
        headers |= {} if self.keep_alive else {"Connection": "close"}
        data = None if body is None else json.dumps(body).encode()
        try:
            self.http.request(method, path, data, headers)
            response = self.http.getresponse()
            return Answer(response.status, response.headers, response.read())
        except BaseException:
            self.http.close()
            raise

    def get(self, user: str) -> Answer:
        return self.send("GET", QUOTA, user)

    def consume(self, user: str, key: str = "", **body: Any) -> Answer:
        return self.send("POST", CONSUME, user, body, key)

    def adjust(self, user: str, key: str, delta: int) -> Answer:
        """As a service, add units to the user's balance."""
        return self.send(
            "POST", f"/api/v1/users/{user}/adjust", user, {"delta": delta, "reason": "chaos"}, key
        )


class Reply(NamedTuple):
    """How a client of a load was answered."""

    at: float  # by time.monotonic
    seconds: float  # since it was sent
    status: int  # 0: no answer came
    client: int  # its number


@dataclass
class Load:
    """Clients that spend one unit after the other, each with its own key, until `stop`.

    A client that gets no answer, or one that asks for a retry, sends the same request again, as the docs
    require. After `timeout` seconds it gives up, which counts as a failure. No two loads of a database may
    have one `name`: their keys begin with it.
    """

    port: int
    users: list[str]
    clients: int = 8
    timeout: float = 30
    pause: float = 0.05  # before a retry; the longer one that Retry-After asks for would hide much
    name: str = "k"
    think: float = 0  # seconds between two spends of a client
    reads: bool = False  # whether a client reads the quota before each spend
    has_own_user: bool = False  # whether each client stays with one user
    service_key: str = ""
    may_run_out: bool = False  # whether a refusal ends a spend, instead of being a failure
    acknowledged: dict[str, tuple[str, bool]] = field(default_factory=dict)  # by key: user, is a replay
    successes: list[float] = field(default_factory=list)  # their instants, by time.monotonic
    longest: float = 0  # seconds from the first try of a spend to its answer
    retries: dict[str, int] = field(default_factory=dict)  # by reason
    failures: list[str] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)  # those of reads too
    refusals: int = 0
    _stop: Event = field(default_factory=Event)
    _threads: list[Thread] = field(default_factory=list)

    def start(self) -> None:
        self._threads = [Thread(target=self._run, args=(n,), daemon=True) for n in range(self.clients)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop after each client has finished its spend."""
        self._stop.set()
        for thread in self._threads:
            thread.join(self.timeout + 10)

    def __enter__(self) -> "Load":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def silence(self) -> float:
        """Return the longest time, in seconds, in which no client got a success."""
        times = sorted(self.successes)
        return max((later - sooner for sooner, later in pairwise(times)), default=0)

    def wait_for(self, more: int, seconds: float = 30) -> None:
        """Return when so many more spends are acknowledged."""
        target = len(self.successes) + more
        wait_until(lambda: len(self.successes) >= target, seconds)

    def replies_within(self, began: float, seconds: float) -> list[Reply]:
        return [reply for reply in [*self.replies] if began <= reply.at < began + seconds]

    def ask(self, client: Client, user: str, key: str) -> Answer:
        return client.consume(user, key, cost=1)

    def _run(self, number: int) -> None:
        client = Client(self.port, service_key=self.service_key)
        spends = 0
        while not self._stop.is_set():
            user = self.users[(number + (0 if self.has_own_user else spends)) % len(self.users)]
            if self.reads:
                self._read(client, user, number)
            self._spend(client, user, f"{self.name}-{number}-{spends}", number)
            spends += 1
            if spends % SPENDS_PER_CONNECTION == 0:
                client.http.close()
            self._stop.wait(self.think)
        client.http.close()

    def _read(self, client: Client, user: str, number: int) -> None:
        with suppress(*LOST):
            answer = self._timed(number, lambda: client.get(user))
            if answer.status != 200 and not answer.is_unavailable:
                self.failures.append(f"{answer.status} {answer.body[:200]!r}")

    def _timed(self, number: int, send: Callable[[], Answer]) -> Answer:
        began, status = time.monotonic(), 0
        try:
            answer = send()
            status = answer.status
            return answer
        finally:
            now = time.monotonic()
            self.replies.append(Reply(now, now - began, status, number))

    def _spend(self, client: Client, user: str, key: str, number: int) -> None:
        began = time.monotonic()
        reason = ""
        while time.monotonic() - began < self.timeout:
            try:
                answer = self._timed(number, lambda: self.ask(client, user, key))
            except LOST as error:
                reason = type(error).__name__
            else:
                if answer.status == 201:
                    now = time.monotonic()
                    self.longest = max(self.longest, now - began)
                    self.acknowledged[key] = user, "Idempotent-Replayed" in answer.headers
                    self.successes.append(now)
                    return
                if answer.status == 429 and self.may_run_out:
                    self.refusals += 1
                    return
                reason = str(answer.status)
                if not answer.is_unavailable:
                    self.failures.append(f"{answer.status} {answer.body[:200]!r}")
                    return
            self.retries[reason] = self.retries.get(reason, 0) + 1
            time.sleep(self.pause)
        self.failures.append(f"no answer in {self.timeout} s, the last time {reason}")


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> float:
    """Return after how many seconds the condition held. Raises TimeoutError if it did not in time."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"the condition did not hold within {seconds} s")
        time.sleep(0.01)
    return time.monotonic() - began

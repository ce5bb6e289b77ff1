"""A loopback stand-in for Clerk's user list, over real HTTP.

    with ClerkAPI(users) as clerk:
        settings.CLERK_API_URL, settings.CLERK_SECRET_KEY = clerk.url, clerk.key

It answers as Clerk does, and fails on demand: `clerk.answer_next(2, status=429)`. In its own process,
`python -m tests.tools.clerk_api COUNT`, it prints its address, and serves until its input ends.
"""

import json
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from threading import Thread
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit

CREATED_AT = 1_700_000_000_000  # milliseconds; the first user's

User = dict[str, object]


def make_user(number: int, **changes: object) -> User:
    """Return a user as the list does, created `number` seconds after the first; `changes` win."""
    return {
        "object": "user",
        "id": f"user_{number:06}",
        "primary_email_address_id": f"idn_{number}",
        "email_addresses": [
            {"id": "idn_other", "email_address": "second@example.com"},
            {"id": f"idn_{number}", "email_address": f"user{number}@example.com"},
        ],
        "public_metadata": {},
        "created_at": CREATED_AT + number * 1_000,
        "updated_at": CREATED_AT + number * 1_000,
    } | changes


def make_users(count: int) -> list[User]:
    return [make_user(number) for number in range(1, count + 1)]


class Crowd(Sequence[User]):
    """The users of `make_users`, each made only when it is read: 100,000 take no memory."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> User:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return make_user(index + 1)


@dataclass(frozen=True, slots=True)
class Answer:
    """The response to one request; status 0 closes the connection without a response."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


def refusal(status: int, code: str, message: str) -> Answer:
    error = {"message": message, "long_message": f"{message}, at length.", "code": code}
    return Answer(status, json.dumps({"errors": [error], "clerk_trace_id": "3f5a9d0c"}).encode())


class ClerkAPI:
    """The server, for as long as the `with` block lasts."""

    key = "sk_test_onlyForTheStandInNeverARealKey0123456789"

    def __init__(self, users: Sequence[User] | None = None) -> None:
        self.users = users if users is not None else []
        self._indexed: tuple[Sequence[User], int] = ([], 0)  # the list, and how long it was
        self._places: dict[object, int] = {}
        self.cursor_refusal = 404  # the status for an unknown starting_after, which Clerk does not document
        self.requests: list[str] = []  # path and query of each, as received
        self._planned: deque[Answer | None] = deque()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self) -> str:
        """The value for CLERK_API_URL."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def serve_next(self, count: int) -> None:
        """Answer `count` requests as usual, before the responses planned after this call."""
        self._planned.extend([None] * count)

    def answer_next(
        self,
        count: int,
        *,
        status: int,
        body: bytes | None = None,
        code: str = "made_to_fail",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Answer `count` requests with `status`, and with `body` or an error in Clerk's form."""
        content = refusal(status, code, "Made to fail").body if body is None else body
        self._planned.extend([Answer(status, content, headers or {})] * count)

    def drop_next(self, count: int) -> None:
        """Close the connections of `count` requests without a response."""
        self._planned.extend([Answer(0, b"")] * count)

    def answer(self, path: str, bearer: str) -> Answer:
        self.requests.append(path)
        if self._planned and (planned := self._planned.popleft()):
            return planned
        if bearer != f"Bearer {self.key}":
            return refusal(401, "authentication_invalid", "Invalid authentication")
        route = urlsplit(path)
        query = parse_qs(route.query)
        if route.path == "/v1/users/count":
            total = sum(1 for _ in self._filtered(range(len(self.users)), query))
            return _ok({"object": "total_count", "total_count": total})
        if route.path == "/v1/users":
            return self._list(query)
        return refusal(404, "resource_not_found", "not found")

    def _list(self, query: Mapping[str, list[str]]) -> Answer:
        """Return a bare array. An unencoded + in order_by arrives as a space, which is invalid."""
        limit, order = query.get("limit", ["10"])[-1], query.get("order_by", ["-created_at"])[-1]
        if not limit.isdecimal() or not 1 <= int(limit) <= 500:
            return refusal(422, "form_param_value_invalid", "limit must be from 1 to 500")
        if order not in ("+created_at", "-created_at", "created_at"):
            return refusal(422, "form_param_value_invalid", "order_by is unknown")
        if len(query.get("user_id", [])) > 100:
            return refusal(422, "form_param_value_invalid", "user_id takes at most 100")
        places = range(len(self.users))[:: -1 if order.startswith("-") else 1]
        if cursor := query.get("starting_after"):
            place = self._place(cursor[-1])
            if place is None:
                return refusal(self.cursor_refusal, "resource_not_found", "starting_after is unknown")
            places = places[places.index(place) + 1 :]
        return _ok(list(islice(self._filtered(places, query), int(limit))))

    def _filtered(self, places: Iterable[int], query: Mapping[str, list[str]]) -> Iterator[User]:
        """Yield the users at these places that match the filters; unknown ids are ignored."""
        if ids := query.get("user_id"):
            requested = {self._place(user_id) for user_id in ids}
            places = [place for place in places if place in requested]
        if not (after := query.get("created_at_after")):
            return (self.users[place] for place in places)
        users = (self.users[place] for place in places)
        return (user for user in users if user.get("created_at", 0) > int(after[-1]))

    def _place(self, user_id: str) -> int | None:
        """Return the user's place in the list, by an index that is rebuilt for another or a longer list."""
        indexed, length = self._indexed
        if indexed is not self.users or length != len(self.users):
            self._indexed = self.users, len(self.users)
            self._places = {self.users[n].get("id"): n for n in range(len(self.users))[::-1]}
        return self._places.get(user_id)


def _ok(answer: object) -> Answer:
    return Answer(200, json.dumps(answer).encode())


def _handler(api: ClerkAPI) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 5
        disable_nagle_algorithm = True

        def handle(self) -> None:
            with suppress(ConnectionError):  # some tests kill the client
                super().handle()

        def do_GET(self) -> None:
            answer = api.answer(self.path, self.headers.get("Authorization", ""))
            if not answer.status:
                self.close_connection = True
                return
            self.send_response(answer.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer.body)))
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing, so that only the test writes output."""

    return Handler


if __name__ == "__main__":
    with ClerkAPI(Crowd(int(sys.argv[1]))) as served:
        print(served.url, flush=True)
        sys.stdin.read()

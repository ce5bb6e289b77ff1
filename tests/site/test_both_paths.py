"""Random requests, each sent through the event loop and through a view: the two never differ."""

import json
import random
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.http import HttpResponse
from django.test import Client

from quotas.models import LedgerEntry, Plan, ServiceKey
from quotasite.demo.tour import shift
from tests.conftest import Settings
from tests.tools import keys
from tests.tools.fast_path import FastPathHandler

pytestmark = [pytest.mark.postgres, pytest.mark.django_db]

VARYING = [
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "<instant>"),
    (r"\d\d:\d\d(:\d\d)? UTC on \d+ \w+ \d{4}", "<instant>"),
    (r'("seconds_to_reset"|"retry_after"):\d+', r"\1:<seconds>"),
    (r";t=\d+", ";t=<seconds>"),
]
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")
BODIES = [
    *({}, {}, {"cost": 1}, {"cost": 2}, {"cost": 5}, {"cost": 50}, {"cost": 0}, {"cost": 2.0}, {"cost": "1"}),
    *({"action": "generate"}, {"action": "draw"}, {"action": "generate", "cost": 1}, {"metadata": {"a": 1}}),
    *({"reason": "why"}, {"reason": "why", "amount": 1}, {"reason": "why", "amount": 9}, {"reason": ""}),
    *({"delta": 3, "reason": "why"}, {"delta": -3, "reason": "why"}, {"delta": 0, "reason": "why"}),
    *({"plan": "pro"}, {"plan": "free", "on_change": "prorate"}, {"plan": None}, {"plan": "no"}, {"plan": 1}),
    *({"plan": "pro", "on_change": "reset", "reason": "why"}, {"cost": 1, "ammount": 2}, {"metadata": []}),
]
RAW = [b"", b"[]", b"{", b"\xff", b'{"cost": 1, "cost": 1}', b'{"a": "\\u0000"}', b"9" * 70_000, b"null"]
KEYS = [None, None, None, "a", '"a"', "b", "c", "", "a b", "x" * 129, '"'] + [f"key-{n}" for n in range(30)]
CONTENT_TYPES = ["application/json"] * 9 + ["application/json; charset=utf-8", "text/plain", ""]
QUERIES = [
    "",
    "",
    "",
    "limit=3",
    "limit=0",
    "limit=x",
    "cursor=4",
    "cost=3",
    "cost=-1",
    "at=now",
    "limit=1&limit=2",
    "cursor=user_",
    "plan=pro",
    "exhausted=true",
    "deleted=maybe",
    "seen_since=2026-09-24T08:00:00Z",
    "format=xml",
    "a=" + "b" * 3_000,
]
HEADERS: list[dict[str, str]] = [
    {},
    {},
    {},
    {"Origin": keys.PARTY},
    {"Origin": "https://evil.example"},
    {"X-Forwarded-Proto": "https"},
    {"Transfer-Encoding": "chunked"},
    {"CF-Ray": "8f1-AMS", "Via": "1.1 a, 1.1 b", "Cookie": "sessionid=x", "Traceparent": "00-1-1-01"},
]


class Side:
    """One of the two ways, with a user of its own."""

    def __init__(self, user_id: str, client: Client, key: str) -> None:
        self.user_id, self.client = user_id, client
        expired = keys.mint(sub=user_id, exp=1)
        self.callers = {
            "user": f"Bearer {keys.mint(sub=user_id)}",
            "service": f"Bearer {key}",
            "expired": f"Bearer {expired}",
            "forged": f"Bearer {keys.mint(sub=user_id)[:-6]}AAAAAA",
            "unknown key": "Bearer qs_0123abcd_" + "A" * 43,
            "none": "",
            "garbled": "Bearer",
        }
        self.spent: list[str] = []  # ids of consumptions
        self.ids: dict[str, str] = {}

    def send(self, method: str, path: str, caller: str, spent: int, **given: Any) -> HttpResponse:
        known = self.spent[spent % len(self.spent)] if self.spent else "0" * 8 + "-0000-0000-0000-" + "0" * 12
        path = path.format(user_id=self.user_id, consumption_id=known)
        headers = {"Authorization": self.callers[caller], **given.pop("headers")}
        answer = self.client.generic(method, path, headers=headers, **given)
        if answer.status_code == 201 and path.endswith("consume"):
            self.spent.append(answer.json()["id"])
        return answer

    def normal(self, answer: HttpResponse) -> tuple[int, dict[str, str], str]:
        """Return what equal answers share: ids are numbered, and what depends on the time is left out."""
        headers = {name.lower(): self._normal(value) for name, value in answer.items()}
        del headers["x-request-id"]
        headers.pop("content-length", None)  # of another user id
        if "retry-after" in headers:
            headers["retry-after"] = "<seconds>"
        return answer.status_code, headers, self._normal(answer.content.decode())

    def _normal(self, text: str) -> str:
        for pattern, replacement in VARYING:
            text = re.sub(pattern, replacement, text)
        text = re.sub("user_(loop|view)", "<user>", text)  # the list of users has both
        return UUID.sub(lambda found: self.ids.setdefault(found[0], f"<id {len(self.ids)}>"), text)

    def ledger(self) -> list[tuple[object, ...]]:
        names = ("kind", "cost", "delta", "balance_after", "period_consumed", "period_given", "plan", "act")
        names += ("idempotency_key", "reason", "action", "metadata", "actor_kind", "period_seq")
        return [*LedgerEntry.objects.filter(user_id=self.user_id).order_by("seq").values_list(*names)]


PATHS = [
    *(
        ("GET", "/api/quota"),
        ("GET", "/api/v1/quota"),
        ("GET", "/api/v1/quota/history"),
        ("GET", "/api/v1/plans"),
    ),
    *[("POST", "/api/v1/quota/consume")] * 6,
    *[("POST", "/api/v1/users/{user_id}/consume")] * 3,
    *(("POST", "/api/v1/quota/check"), ("POST", "/api/v1/users/{user_id}/check")),
    *[("POST", "/api/v1/users/{user_id}/consumptions/{consumption_id}/refund")] * 3,
    *(("POST", f"/api/v1/users/{{user_id}}/{verb}") for verb in ("adjust", "adjust", "reset")),
    *[("PUT", "/api/v1/users/{user_id}/plan")] * 2,
    *(("GET", f"/api/v1/users/{{user_id}}/{name}") for name in ("quota", "history", "explain")),
    *[("GET", "/api/v1/users/{user_id}/consumptions/{consumption_id}")] * 2,
    ("GET", "/api/v1/users/{user_id}/consumptions/1"),
    ("GET", "/api/v1/users/no%20body/quota"),
    *[("GET", "/api/v1/users")] * 2,
    ("DELETE", "/api/quota"),
    ("GET", "/api/nothing"),
]


def requests(chance: random.Random) -> Iterator[dict[str, Any]]:
    """Yield requests, most of which are good."""
    while True:
        method, path = chance.choice(PATHS)
        usual = "service" if "users" in path else "user"
        others = ["user", "service", "expired", "forged", "unknown key", "none", "garbled"]
        key = chance.choice(KEYS)
        headers = {**chance.choice(HEADERS), **({} if key is None else {"Idempotency-Key": key})}
        body = chance.choice(RAW) if chance.random() < 0.1 else json.dumps(chance.choice(BODIES)).encode()
        yield {
            "method": method,
            "path": path,
            "caller": usual if chance.random() < 0.9 else chance.choice(others),
            "spent": chance.randrange(100),
            "data": b"" if method == "GET" else body,
            "content_type": chance.choice(CONTENT_TYPES),
            "QUERY_STRING": chance.choice(QUERIES),
            "headers": headers,
        }


@pytest.mark.parametrize(
    ("seed", "count"),
    [(1, 150), (2, 150), *(pytest.param(seed, 1_000, marks=pytest.mark.full) for seed in (3, 4))],
)
def test_status_headers_body_and_ledger_are_alike(
    seed: int, count: int, settings_for_clerk: Settings
) -> None:
    Plan.objects.filter(is_default=True).update(actions={"generate": 2})
    Plan(name="pro", allowance=100).save()
    _, key = ServiceKey.make("a test", ServiceKey.SCOPES)
    by_loop, by_view = Client(raise_request_exception=False), Client(raise_request_exception=False)
    by_loop.handler = FastPathHandler()
    sides = [Side("user_loop", by_loop, key), Side("user_view", by_view, key)]
    chance = random.Random(seed)
    statuses = set()
    for number, request in zip(range(count), requests(chance), strict=False):
        if number % 40 == 39:
            for side in sides:
                shift(side.user_id, timedelta(hours=9))
        first, second = [
            side.normal(side.send(**{**request, "headers": {**request["headers"]}})) for side in sides
        ]
        assert first == second, f"seed {seed}, request {number}: {request}"
        statuses.add(first[0])
    assert sides[0].ledger() == sides[1].ledger()
    assert by_loop.handler.full_path_count < count / 4  # for what is no endpoint, or has a wrong length
    assert {200, 201, 400, 401, 404, 422} <= statuses

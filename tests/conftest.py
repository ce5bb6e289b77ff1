"""Fixtures of the HTTP contract's tests: a signed-in client, quotas to spend, time, webhook deliveries."""

import base64
import gc
import hashlib
import hmac
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from django.http import HttpResponse
from django.test import Client
from pytest_django import Settings

from quotas.console import csv_export
from quotas.models import ChallengeQuota, Plan
from quotas.rules.values import Actor, Snapshot
from quotas.store import plan_cache, statements
from quotas.store.steps import SnapshotQuery
from quotasite.demo.tour import shift
from tests.tools import keys
from tests.tools.fast_path import FastPathHandler, outside

USER = "user_1"
WEBHOOK_SECRET = "whsec_" + base64.b64encode(b"the first secret of the webhook.").decode()
STAFF = Actor("staff", "a test")


@pytest.fixture(autouse=True)
def _plans_are_forgotten() -> None:
    """Empty the plan cache: another test's plan may have the same name and version."""
    plan_cache.clear()


@dataclass(frozen=True)
class Api:
    """The API as one signed-in user calls it. An exception in the server is a 500 here, and not raised."""

    user_id: str = USER
    claims: dict[str, Any] = field(default_factory=dict)
    client: Client = field(default_factory=lambda: Client(raise_request_exception=False))

    def signed_in_as(self, user_id: str, **claims: object) -> "Api":
        return Api(user_id, claims, self.client)

    def send(self, method: str, path: str, raw: bytes | str = b"", **headers: str) -> HttpResponse:
        """Send `raw`, as JSON unless the headers differ. Content_Type stands for the header Content-Type."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        token = keys.mint(**{"sub": self.user_id, **self.claims})
        usual = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        return self.client.generic(method, path, raw, headers={**usual, **given})

    def get(self, path: str, **headers: str) -> HttpResponse:
        return self.send("GET", path, **headers)

    def quota(self) -> HttpResponse:
        return self.get("/api/quota")

    def consume(
        self, json: object = None, key: str | None = None, raw: bytes | str | None = None, **headers: str
    ) -> HttpResponse:
        body = to_json({} if json is None else json) if raw is None else raw
        keyed = {} if key is None else {"Idempotency_Key": key}
        return self.send("POST", "/api/v1/quota/consume", body, **keyed, **headers)

    def check(self, json: object = None) -> HttpResponse:
        return self.send("POST", "/api/v1/quota/check", to_json({} if json is None else json))


to_json = json.dumps  # its own name is taken in Api.consume


@pytest.fixture
def settings_for_clerk(settings: Settings) -> Settings:
    """The settings of a deployment: Clerk's key as a PEM, its issuer, one SPA, one webhook endpoint."""
    settings.CLERK_JWT_KEY = keys.public_pem
    settings.CLERK_JWKS_URL = ""
    settings.CLERK_ISSUER = keys.ISSUER
    settings.CLERK_AUTHORIZED_PARTIES = [keys.PARTY]
    settings.CLERK_WEBHOOK_SIGNING_SECRET = [WEBHOOK_SECRET]
    settings.CORS_ALLOWED_ORIGINS = [keys.PARTY]
    settings.ALLOWED_HOSTS = ["testserver"]
    return settings


@pytest.fixture
def api(settings_for_clerk: Settings, request: pytest.FixtureRequest) -> Api:
    """The API by one of its two paths: each test of the contract runs on both (tests/tools/fast_path.py)."""
    api = Api()
    if getattr(request, "param", "") == "fast path":
        api.client.handler = FastPathHandler()
    return api


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test of `api` on both paths on PostgreSQL; SQLite has no fast path."""
    if "api" in metafunc.fixturenames and not os.environ["DATABASE_URL"].startswith("sqlite"):
        metafunc.parametrize("api", ["full path", "fast path"], indirect=True)


@pytest.fixture
def make_quota(db: None) -> Callable[..., ChallengeQuota]:
    """Open a user's quota under a default plan of `allowance` (None: unlimited), and leave `remaining`."""

    def make(
        user_id: str = USER, *, remaining: int | None = None, allowance: int | None = 20
    ) -> ChallengeQuota:
        plan = Plan.objects.get(is_default=True)
        plan.allowance = allowance
        plan.save()
        opened = ChallengeQuota.objects.current(user_id)
        delta = 0 if remaining is None else remaining - opened.quota_remaining
        if delta:
            ChallengeQuota.objects.adjust(user_id, delta, reason="for a test", actor=STAFF)
        return ChallengeQuota.objects.get(pk=user_id)

    return make


@pytest.fixture(autouse=True)
def _no_export_under_way() -> Iterator[None]:
    """Let no test find the one export of a process under way because another test left it unread."""
    yield
    if csv_export.ONE_EXPORT.locked():
        gc.collect()


@pytest.fixture(name="shift")
def _shift() -> Callable[[str, timedelta], None]:
    """Move a user's rows back in time, as if that much time had passed."""
    return shift


StepIn = Callable[..., None]


@pytest.fixture
def step_in(monkeypatch: pytest.MonkeyPatch) -> StepIn:
    """Let another request do something right after the next read, or the next one that includes something."""

    def arrange(act: Callable[[], object], *, include: str | None = None) -> None:
        read, acts = statements.read_snapshot, [act]

        def read_and_let_act(
            user_id: str, query: SnapshotQuery, *asked: Any, **options: Any
        ) -> statements.Statements[Snapshot]:
            snapshot = yield from read(user_id, query, *asked, **options)
            while acts and include in (None, query.include):
                outside(acts.pop())
            return snapshot

        monkeypatch.setattr(statements, "read_snapshot", read_and_let_act)

    return arrange


@pytest.fixture
def deliver(settings_for_clerk: Settings) -> Callable[..., HttpResponse]:
    """Post a webhook event from Clerk, signed as Svix documents it; `body` replaces the whole envelope."""
    client = Client(raise_request_exception=False)

    def post(*event: object, path: str = "/webhooks/clerk", **given: Any) -> HttpResponse:
        body, headers = delivery(*event, **given)
        return client.post(path, body, content_type="application/json", headers=headers)

    return post


def delivery(
    event_type: object = "user.created",
    data: object = None,
    *,
    svix_id: str | None = None,
    secret: str = WEBHOOK_SECRET,
    timestamp: int | None = None,
    body: bytes | None = None,
    **headers: str,
) -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers of a delivery. Svix_Id stands for the header svix-id."""
    at = int(time.time()) if timestamp is None else timestamp
    if body is None:
        envelope = {"object": "event", "type": event_type, "timestamp": at, "data": data}
        body = json.dumps(envelope).encode()
    signed = sign(svix_id or f"msg_{uuid.uuid4().hex}", at, body, secret)
    return body, signed | {name.replace("_", "-").lower(): value for name, value in headers.items()}


def sign(svix_id: str, at: int, body: bytes, secret: str) -> dict[str, str]:
    key = base64.b64decode(secret.removeprefix("whsec_"))
    mac = hmac.new(key, f"{svix_id}.{at}.".encode() + body, hashlib.sha256).digest()
    signature = f"v1,{base64.b64encode(mac).decode()}"
    return {"svix-id": svix_id, "svix-timestamp": str(at), "svix-signature": signature}

"""The two-minute tour: the service's real main job over HTTP, on a throw-away database.

The tour's Clerk is played here: a key pair of its own signs the session tokens, a secret of its own
the deliveries, and a loopback server gives the list of users. All else is the product as it is.
"""

import logging
import random
import secrets
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from django.contrib.auth.models import User
from django.core.handlers.wsgi import WSGIHandler
from django.core.management import call_command
from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler
from django.db import connection
from django.db.models import DateTimeField, F
from django.test.utils import override_settings

from quotas.models import ChallengeQuota, LedgerEntry, Plan
from quotas.rules import outcomes, values, verbs
from quotasite.demo.pretend_clerk import ISSUER, ORIGIN, USER_COUNT, PretendClerk

NEW_USER, LATE_USER = "user_demo_new", "user_demo_late"
HISTORY_USERS, HISTORY_DAYS = 300, 30


class DemoFailed(Exception):
    """A step of the tour did not show what it should; the text says which and what came."""


class Tour:
    """Runs the steps against a served site, telling each on `tell`."""

    def __init__(self, clerk: PretendClerk, base_url: str, tell: Callable[[str], None]) -> None:
        self.clerk, self.tell = clerk, tell
        self.http = httpx.Client(base_url=base_url, timeout=30)

    def run(self) -> None:
        """Show the main job from end to end. Raises DemoFailed at the first surprise."""
        with self.http:
            self.delivery_makes_a_row()
            self.spend_until_refused()
            self.full_again_after_a_day()
            self.missing_row_is_made()
            self.backfill()

    def delivery_makes_a_row(self) -> None:
        self.tell("\n1. Someone signs up: Clerk delivers a signed user.created.")
        email = {"id": "idn_1", "email_address": "new@example.com"}
        user = {"id": NEW_USER, "updated_at": 1_700_000_000_000, "primary_email_address_id": "idn_1"}
        body, headers = self.clerk.delivery("user.created", {**user, "email_addresses": [email]})
        self.expect(self.http.post("/webhooks/clerk", content=body, headers=headers), 200, status="success")
        self.expect(self.http.post("/webhooks/clerk", content=body + b" ", headers=headers), 400)
        self.tell("   The second was changed on its way, so it was refused.")

    def spend_until_refused(self) -> None:
        allowance = self.allowance
        self.tell("\n2. The SPA asks with a session token, and spends until nothing is left.")
        self.expect(self.get("/api/quota", NEW_USER), 200, quota_remaining=allowance)
        for left in reversed(range(allowance)):
            answer = self.post("/api/v1/quota/consume", NEW_USER)
            self.check(answer, 201, {"quota_remaining": left}, answer.json().get("quota", {}))
        self.tell(f"   {'POST /api/v1/quota/consume':30} 201  {allowance} times, down to 0")
        refused = self.post("/api/v1/quota/consume", NEW_USER)
        self.expect(refused, 429, code="quota_exhausted", quota_remaining=0)
        if not 86_000 < int(refused.headers.get("Retry-After", 0)) <= 86_400:
            raise DemoFailed("the 429 should say by Retry-After that a day has to pass")
        self.tell(f"   Retry-After: {refused.headers['Retry-After']}")

    def full_again_after_a_day(self) -> None:
        self.tell("\n3. A day later (this user's rows are moved 24 hours into the past): full again.")
        shift(NEW_USER, timedelta(hours=24))
        self.expect(self.get("/api/quota", NEW_USER), 200, quota_remaining=self.allowance)
        self.expect(self.post("/api/v1/quota/consume", NEW_USER), 201, cost=1)

    def missing_row_is_made(self) -> None:
        self.tell("\n4. A user whose delivery never came: the first GET makes the row.")
        self.expect(self.get("/api/quota", LATE_USER), 200, quota_remaining=self.allowance)

    def backfill(self) -> None:
        self.tell(f"\n5. Backfill: {USER_COUNT} users in Clerk have no row yet.")
        before = ChallengeQuota.objects.count()
        self.tell("   $ manage.py backfill_quotas")
        call_command("backfill_quotas")
        if (made := ChallengeQuota.objects.count() - before) != USER_COUNT:
            raise DemoFailed(f"the backfill should make {USER_COUNT} rows, and made {made}")

    @property
    def allowance(self) -> int:
        return Plan.objects.get(is_default=True).allowance or 0

    def get(self, path: str, user_id: str) -> httpx.Response:
        return self.http.get(path, headers={"Authorization": f"Bearer {self.clerk.token(user_id)}"})

    def post(self, path: str, user_id: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.clerk.token(user_id)}"}
        return self.http.post(path, json={}, headers=headers)

    def expect(self, answer: httpx.Response, status: int, /, **members: object) -> None:
        """Tell the exchange, and demand its status and members."""
        body = answer.json()
        said = f"{body['code']}: {body['detail']}" if "code" in body else answer.text
        asked = f"{answer.request.method:4} {answer.request.url.path}"
        self.tell(f"   {asked:30} {answer.status_code}  {textwrap.shorten(said, 110)}")
        self.check(answer, status, members, body)

    def check(
        self, answer: httpx.Response, status: int, members: dict[str, object], found: dict[str, object]
    ) -> None:
        if answer.status_code != status or any(found.get(name) != value for name, value in members.items()):
            asked = f"{answer.request.method} {answer.request.url.path}"
            raise DemoFailed(f"{asked} should answer {status} {members}; it was {answer.text}")


def shift(user_id: str, by: timedelta) -> None:
    """Move a user's rows into the past, which is how tests and the tour let time pass."""
    for rows in (ChallengeQuota.objects, LedgerEntry.objects):
        columns = [column.name for column in rows.model._meta.fields if isinstance(column, DateTimeField)]
        ours = [name for name in columns if name != "clerk_updated_at"]  # that one is by Clerk's clock
        rows.filter(user_id=user_id).update(**{name: F(name) - by for name in ours})


def seed_history() -> None:
    """Make users with 30 days of spending, by the rules themselves under a clock of their own."""
    plan = Plan.objects.get(is_default=True).value
    chance = random.Random(20)  # noqa: S311 - the same history each time
    states: list[values.State] = []
    entries: list[values.Entry] = []
    for number in range(HISTORY_USERS):
        state, history = _history(f"user_history_{number:03}", plan, chance)
        states.append(state)
        entries.extend(history)
    ChallengeQuota.objects.bulk_create(
        ChallengeQuota(email=f"{state.user_id}@example.com", **_model_arguments(state)) for state in states
    )
    LedgerEntry.objects.bulk_create(LedgerEntry(**_model_arguments(entry)) for entry in entries)


def make_staff() -> tuple[str, str]:
    """Make a superuser; return his name and his password, which nothing else keeps."""
    password = secrets.token_urlsafe(9)
    User.objects.create_superuser("staff", "", password)
    return "staff", password


@contextmanager
def served(clerk: PretendClerk, folder: Path, host: str, port: int) -> Iterator[str]:
    """Serve the site at the next free port, on a database of its own in `folder`; give its address."""
    connection.close()
    connection.settings_dict["NAME"] = str(folder / "demo.sqlite3")
    logging.disable(logging.ERROR)  # the refusals of the tour are no news
    clerk_api = ThreadingHTTPServer(("127.0.0.1", 0), clerk.handler())
    with (
        _listening(clerk_api),
        override_settings(
            ALLOWED_HOSTS=[host],
            CLERK_API_URL=f"http://127.0.0.1:{clerk_api.server_port}/v1",
            CLERK_AUTHORIZED_PARTIES=[ORIGIN],
            CLERK_ISSUER=ISSUER,
            CLERK_JWT_KEY=clerk.public_key.strip(),
            CLERK_SECRET_KEY="sk_test_demo",  # noqa: S106 - for the loopback stand-in
            CLERK_WEBHOOK_SIGNING_SECRET=[clerk.secret],
            SECURE_SSL_REDIRECT=False,
            SESSION_COOKIE_SECURE=False,
            CSRF_COOKIE_SECURE=False,
        ),
    ):
        call_command("migrate", verbosity=0)
        server = _bind(host, port)
        server.set_app(WSGIHandler())
        with _listening(server):
            yield f"http://{host}:{server.server_port}"
    connection.close()


def with_page(clerk: PretendClerk) -> override_settings:
    """Open the demo page, with a sign-in as anybody, for as long as the block lasts."""
    return override_settings(
        DEBUG=True,
        DEVELOPMENT_SIGNING_KEY=clerk.private_key,
        CLERK_PUBLISHABLE_KEY="",  # a Clerk of one's own has nothing to do with this
        CLERK_FRONTEND_API="",
    )


def _history(
    user_id: str, plan: values.Plan, chance: random.Random
) -> tuple[values.State, list[values.Entry]]:
    """A user's state and ledger after spending now and then for a month."""
    clock = datetime.now(UTC) - timedelta(days=HISTORY_DAYS)
    pause = timedelta(hours=chance.choices((0.4, 3, 12, 24, 48, 96), weights=(1, 2, 4, 4, 4, 4))[0])
    request = values.Request(values.Actor("user", user_id))
    state: values.State | None = None
    entries: list[values.Entry] = []
    while state is None or clock < datetime.now(UTC):
        ids = (_uuid7(clock, chance), _uuid7(clock + timedelta(milliseconds=1), chance))
        snapshot = values.Snapshot(user_id, clock, plan, plan, state, None, None, ids)
        outcome = verbs.consume(snapshot, request)
        if isinstance(outcome, outcomes.Change):
            state = outcome.state
            entries.extend(outcome.entries)
        weekend = 1.5 if clock.weekday() > 4 else 1
        clock += pause * chance.uniform(0.2, 1.8) * weekend
    return state, entries


def _uuid7(instant: datetime, chance: random.Random) -> UUID:
    """A time-ordered UUID for an instant that is not now."""
    milliseconds = int(instant.timestamp() * 1000)
    return UUID(
        int=milliseconds << 80 | 7 << 76 | chance.getrandbits(12) << 64 | 2 << 62 | chance.getrandbits(62)
    )


def _model_arguments(record: values.State | values.Entry) -> dict[str, Any]:
    """The record as arguments for its model; a quota's plan is a foreign key there."""
    columns = {column.name: getattr(record, column.name) for column in fields(record)}
    if isinstance(record, values.State):
        columns["plan_id"] = columns.pop("plan")
    return columns


def _bind(host: str, port: int) -> ThreadedWSGIServer:
    for candidate in range(port, port + 20):
        with suppress(OSError):
            return ThreadedWSGIServer((host, candidate), _QuietHandler)
    raise DemoFailed(f"the ports {port} to {port + 19} are all taken")


@contextmanager
def _listening(server: ThreadingHTTPServer | ThreadedWSGIServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, *args: object) -> None:
        """The tour tells what is asked and answered itself."""

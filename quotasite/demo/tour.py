"""The two-minute tour: the service's main job over HTTP, on a temporary database.

A local stand-in for Clerk signs the session tokens and the deliveries, and serves the list of users on
loopback. Everything else is the product itself.
"""

import logging
import random
import re
import secrets
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.server import ThreadingHTTPServer
from pathlib import Path
from uuid import UUID

import httpx
from django.contrib.auth.models import User
from django.core.handlers.wsgi import WSGIHandler
from django.core.management import call_command
from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler
from django.db import connection, transaction
from django.db.models import DateTimeField, F
from django.test.utils import override_settings

from quotas.models import ChallengeQuota, LedgerEntry, Plan, ServiceKey
from quotas.rules import outcomes, values, verbs
from quotas.store.direct import note_profiles
from quotas.store.statements import insert_rows
from quotas.store.thread import dialect, run_statements
from quotasite.demo.pretend_clerk import ISSUER, ORIGIN, USER_COUNT, PretendClerk

NEW_USER, LATE_USER = "user_demo_new", "user_demo_late"
HISTORY_USERS, HISTORY_DAYS = 300, 30
SCOPES = ("read", "consume", "refund")  # of the service key
PRO_ACTIONS = {"generate": 5, "translate": 1}
UUID_IN_PATH = re.compile(r"/[0-9a-f-]{36}")


class DemoFailed(Exception):
    """A step of the tour had an unexpected result; the text names both."""


class Tour:
    """Runs the steps against a served site; each step is written to `write`, line by line."""

    def __init__(self, clerk: PretendClerk, base_url: str, write: Callable[[str], None]) -> None:
        self.clerk, self.write = clerk, write
        self.http = httpx.Client(base_url=base_url, timeout=30)
        self.key = ServiceKey.make("demo server", SCOPES)[1]

    def run(self) -> None:
        """Show the main job from end to end. Raises DemoFailed at the first unexpected result."""
        with self.http:
            self.delivery_makes_a_row()
            self.spend_until_refused()
            self.full_again_after_a_day()
            self.missing_row_is_made()
            self.backfill()
            self.plan_is_billed()
            self.server_spends()
            self.state_is_explained()

    def delivery_makes_a_row(self) -> None:
        self.write("\n1. Someone signs up: Clerk delivers a signed user.created.")
        email = {"id": "idn_1", "email_address": "new@example.com"}
        user = {"id": NEW_USER, "updated_at": 1_700_000_000_000, "primary_email_address_id": "idn_1"}
        body, headers = self.clerk.delivery("user.created", {**user, "email_addresses": [email]})
        self.expect(self.http.post("/webhooks/clerk", content=body, headers=headers), 200, status="success")
        self.expect(self.http.post("/webhooks/clerk", content=body + b" ", headers=headers), 400)
        self.write("   The second delivery was altered in transit, so it was refused.")

    def spend_until_refused(self) -> None:
        allowance = self.allowance
        self.write("\n2. The SPA calls the API with a session token, and spends until nothing is left.")
        self.expect(self.get("/api/quota", NEW_USER), 200, quota_remaining=allowance)
        for left in reversed(range(allowance)):
            answer = self.post("/api/v1/quota/consume", NEW_USER)
            self.check(answer, 201, {"quota_remaining": left}, answer.json().get("quota", {}))
        self.write(f"   {'POST /api/v1/quota/consume':30} 201  {allowance} times, down to 0")
        refused = self.post("/api/v1/quota/consume", NEW_USER)
        self.expect(refused, 429, code="quota_exhausted", quota_remaining=0)
        if not 86_000 < int(refused.headers.get("Retry-After", 0)) <= 86_400:
            raise DemoFailed("the 429 should have a Retry-After of one day")
        self.write(f"   Retry-After: {refused.headers['Retry-After']}")

    def full_again_after_a_day(self) -> None:
        self.write("\n3. A day later (this user's rows are moved 24 hours into the past): full again.")
        shift(NEW_USER, timedelta(hours=24))
        self.expect(self.get("/api/quota", NEW_USER), 200, quota_remaining=self.allowance)
        self.expect(self.post("/api/v1/quota/consume", NEW_USER), 201, cost=1)

    def missing_row_is_made(self) -> None:
        self.write("\n4. A user whose delivery never arrived: the first GET makes the row.")
        self.expect(self.get("/api/quota", LATE_USER), 200, quota_remaining=self.allowance)

    def backfill(self) -> None:
        self.write(f"\n5. Backfill: {USER_COUNT} users in Clerk have no row yet.")
        before = ChallengeQuota.objects.count()
        self.write("   $ manage.py backfill_quotas")
        call_command("backfill_quotas")
        if (made := ChallengeQuota.objects.count() - before) != USER_COUNT:
            raise DemoFailed(f"the backfill should make {USER_COUNT} rows; it made {made}")

    def plan_is_billed(self) -> None:
        self.write("\n6. This user subscribes to pro in Clerk: a delivery gives them the plan.")
        Plan.objects.create(name="pro", allowance=500, actions=PRO_ACTIONS)
        item = {"id": "item_1", "updated_at": 1_700_000_000_000, "plan": {"slug": "pro"}}
        paid = {**item, "payer": {"user_id": LATE_USER}}
        body, headers = self.clerk.delivery("subscriptionItem.active", paid)
        self.expect(self.http.post("/webhooks/clerk", content=body, headers=headers), 200, status="success")

    def server_spends(self) -> None:
        self.write("\n7. Your server spends for them with a service key. Its work fails, so it refunds.")
        action = {"action": "generate", "metadata": {"job": "17"}}
        spent = self.serve("consume", action, key="job-17")
        self.expect(spent, 201, cost=PRO_ACTIONS["generate"], action="generate")
        again = self.serve("consume", action, key="job-17")
        self.expect(again, 201, cost=PRO_ACTIONS["generate"], action="generate")
        if again.headers.get("Idempotent-Replayed") != "true":
            raise DemoFailed("the second request should be a replay of the first")
        self.write("   The second request had the same Idempotency-Key, so it spent nothing.")
        refund_path = f"consumptions/{spent.json()['id']}/refund"
        refund = self.serve(refund_path, {"reason": "the work failed"}, key="job-17-refund")
        self.expect(refund, 201, amount=PRO_ACTIONS["generate"])

    def state_is_explained(self) -> None:
        self.write("\n8. Why do they have what they have? The ledger explains it.")
        answer = self.serve("explain")
        self.expect(answer, 200, plan_source="billing")
        for entry in reversed(answer.json()["entries"]):
            change, left = f"{entry['delta']:+}", entry["balance_after"]
            self.write(f"   {entry['kind']:14} {change:>5}  {left:>4} left  {entry['reason'] or ''}".rstrip())

    @property
    def allowance(self) -> int:
        return Plan.objects.get(is_default=True).allowance or 0

    def get(self, path: str, user_id: str) -> httpx.Response:
        return self.http.get(path, headers={"Authorization": f"Bearer {self.clerk.token(user_id)}"})

    def post(self, path: str, user_id: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.clerk.token(user_id)}"}
        return self.http.post(path, json={}, headers=headers)

    def serve(self, path: str, body: object = None, key: str = "") -> httpx.Response:
        """Send what a server sends for the user: a body is posted, without one it reads."""
        headers = {"Authorization": f"Bearer {self.key}"} | ({"Idempotency-Key": key} if key else {})
        method, path = "POST" if body else "GET", f"/api/v1/users/{LATE_USER}/{path}"
        return self.http.request(method, path, json=body, headers=headers)

    def expect(self, answer: httpx.Response, status: int, /, **members: object) -> None:
        """Write the exchange, and require its status and members."""
        body = answer.json()
        summary = f"{body['code']}: {body['detail']}" if "code" in body else answer.text
        if "quota" in body:
            shown = ", ".join(f"{name} {value}" for name, value in members.items())
            summary = f"{shown}, {body['quota']['quota_remaining']} left"
        path = UUID_IN_PATH.sub("/{id}", answer.request.url.path)
        request = f"{answer.request.method:4} {path}"
        self.write(f"   {request:30} {answer.status_code}  {textwrap.shorten(summary, 110)}")
        self.check(answer, status, members, body)

    def check(
        self, answer: httpx.Response, status: int, members: dict[str, object], body: dict[str, object]
    ) -> None:
        if answer.status_code != status or any(body.get(name) != value for name, value in members.items()):
            request = f"{answer.request.method} {answer.request.url.path}"
            raise DemoFailed(f"{request} should return {status} {members}; it returned {answer.text}")


def shift(user_id: str, by: timedelta) -> None:
    """Move a user's rows into the past: the tests and the tour let time pass like this."""
    for rows in (ChallengeQuota.objects, LedgerEntry.objects):
        columns = [column.name for column in rows.model._meta.fields if isinstance(column, DateTimeField)]
        ours = [name for name in columns if name != "clerk_updated_at"]  # that one follows Clerk's clock
        rows.filter(user_id=user_id).update(**{name: F(name) - by for name in ours})


def seed_history() -> None:
    """Make users with 30 days of history, computed by the rules under a simulated clock."""
    plan = Plan.objects.get(is_default=True).value
    chance = random.Random(20)  # noqa: S311 - the same history each time
    changes = [_history(f"user_history_{number:03}", plan, chance) for number in range(HISTORY_USERS)]
    with transaction.atomic():
        run_statements(insert_rows(changes, dialect()))
        ids = [change.state.user_id for change in changes]
        note_profiles((user_id, f"{user_id}@example.com", datetime.now(UTC)) for user_id in ids)


def make_staff() -> tuple[str, str]:
    """Make a superuser; return their name and password, which is stored only as a hash."""
    password = secrets.token_urlsafe(9)
    User.objects.create_superuser("staff", "", password)
    return "staff", password


@contextmanager
def served(clerk: PretendClerk, folder: Path, host: str, port: int) -> Iterator[str]:
    """Serve the site on the first free port from `port` on, with a database in `folder`; yield its URL."""
    connection.close()
    connection.settings_dict["NAME"] = str(folder / "demo.sqlite3")
    logging.disable(logging.ERROR)  # the tour causes its refusals on purpose
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
    """Enable the demo page, with a sign-in as any user, inside the block."""
    return override_settings(
        DEBUG=True,
        DEVELOPMENT_SIGNING_KEY=clerk.private_key,
        CLERK_PUBLISHABLE_KEY="",  # the demo never uses the operator's own Clerk
        CLERK_FRONTEND_API="",
    )


def _history(user_id: str, plan: values.Plan, chance: random.Random) -> outcomes.Change:
    """Return a new user's state and ledger after a month of irregular spending."""
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
    return outcomes.Change(snapshot, state, plan, tuple(entries))


def _uuid7(instant: datetime, chance: random.Random) -> UUID:
    """Return a version 7 UUID for an instant in the past."""
    milliseconds = int(instant.timestamp() * 1000)
    return UUID(
        int=milliseconds << 80 | 7 << 76 | chance.getrandbits(12) << 64 | 2 << 62 | chance.getrandbits(62)
    )


def _bind(host: str, port: int) -> ThreadedWSGIServer:
    for candidate in range(port, port + 20):
        with suppress(OSError):
            return ThreadedWSGIServer((host, candidate), _QuietHandler)
    raise DemoFailed(f"the ports {port} to {port + 19} are all in use")


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
        """Log nothing: the tour writes its own exchanges."""

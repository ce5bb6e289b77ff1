"""A site that is served and warm, while its columns are altered or its sessions are ended: no request fails.

PostgreSQL refuses a prepared statement whose result has another type since, and in a transaction it refuses
all that follows.
"""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.client import HTTPConnection
from itertools import count
from typing import Any
from urllib.parse import urlencode

import psycopg
import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.db import connection

from quotas.models import ChallengeQuota, Plan, ServiceKey
from tests.conftest import USER, WEBHOOK_SECRET, delivery
from tests.tools import keys
from tests.tools.site import served, url_of_the_test_database
from tests.tools.staff import LIST, sign_in

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.once,
    pytest.mark.django_db(transaction=True, serialized_rollback=True),
]
ENOUGH = 7  # times that each request is made until its statements are prepared
NUMBERS = count(1)
OF_USER = f"/api/v1/users/{USER}"
# Whatever these columns hold fits into the other type, and reads the same.
OTHER_TYPES = {
    "character varying": ("text", "varchar({length})"),
    "integer": ("bigint", "integer"),
    "smallint": ("integer", "smallint"),
    "timestamp with time zone": ("timestamptz(6)", "timestamptz"),
}
OF_THE_STORE = ("challenge_quotas", "ledger_entries", "plans", "plan_versions", "plan_assignments")
OF_THE_ORM = ("service_keys", "webhook_events", "auth_user", "django_session", "hourly_totals")
COLUMNS = """
    SELECT column_name, data_type, character_maximum_length FROM information_schema.columns
    WHERE table_schema = current_schema() AND table_name = %s AND is_identity = 'NO'
"""


class Site:
    """One served site, as a user, a service, Clerk and staff ask it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.key = ServiceKey.make("a server", ServiceKey.SCOPES)[1]
        self.session = sign_in(is_superuser=True).cookies["sessionid"].value

    def ask(self, method: str, path: str, body: bytes | str = b"", **headers: str) -> int:
        client = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            client.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            response = client.getresponse()
            self.text = response.read().decode()
            return response.status
        finally:
            client.close()

    def call(self, method: str, path: str, body: Any = None, *, token: str = "") -> int:
        token, key = token or keys.mint(sub=USER), f"key-{next(NUMBERS)}"
        kind = "application/json"
        raw = "" if body is None else json.dumps(body)
        bearer = f"Bearer {token}"
        return self.ask(method, path, raw, Authorization=bearer, Content_Type=kind, Idempotency_Key=key)

    def serve(self, method: str, path: str, body: Any = None) -> int:
        return self.call(method, OF_USER + path, body, token=self.key)

    def deliver(self, event: str, **data: Any) -> int:
        at = {"updated_at": int(1000 * datetime.now(UTC).timestamp()) + next(NUMBERS)}
        raw, headers = delivery(event, {**data, **at})
        return self.ask("POST", "/webhooks/clerk", raw, Content_Type="application/json", **headers)

    def see(self, path: str, **form: str) -> int:
        headers = {
            "Cookie": f"sessionid={self.session}; csrftoken={'c' * 32}",
            "X_Forwarded_Proto": "https",
            "Referer": f"https://127.0.0.1:{self.port}/",
            "Content_Type": "application/x-www-form-urlencoded",
        }
        if not form:
            return self.ask("GET", path, **headers)
        return self.ask("POST", path, urlencode({**form, "csrfmiddlewaretoken": "c" * 32}), **headers)

    def refund(self) -> int:
        self.serve("POST", "/consume", {})
        return self.serve("POST", f"/consumptions/{json.loads(self.text)['id']}/refund", {"reason": "r"})

    def requests(self) -> dict[str, Callable[[], int]]:
        person = {"id": USER, "email_addresses": [], "public_metadata": {"plan": "pro"}}
        item = {"id": "item_1", "plan": {"slug": "pro"}, "payer": {"user_id": USER}}
        adjust = {"action": "adjust", "_selected_action": USER, "delta": "1", "reason": "r", "confirmed": "1"}
        return {
            "read": lambda: self.call("GET", "/api/quota"),
            "read all": lambda: self.call("GET", "/api/v1/quota"),
            "spend": lambda: self.call("POST", "/api/v1/quota/consume", {}),
            "own history": lambda: self.call("GET", "/api/v1/quota/history"),
            "plans": lambda: self.call("GET", "/api/v1/plans"),
            "service read": lambda: self.serve("GET", "/quota"),
            "service spend": lambda: self.serve("POST", "/consume", {"cost": 1}),
            "refund": self.refund,
            "adjust": lambda: self.serve("POST", "/adjust", {"delta": 5, "reason": "r"}),
            "reset": lambda: self.serve("POST", "/reset", {"reason": "r"}),
            "change plan": lambda: self.serve("PUT", "/plan", {"plan": "pro"}),
            "return to Clerk": lambda: self.serve("PUT", "/plan", {"plan": None}),
            "history": lambda: self.serve("GET", "/history"),
            "explain": lambda: self.serve("GET", "/explain"),
            "new user": lambda: self.deliver("user.created", **{**person, "id": f"user_{next(NUMBERS)}"}),
            "updated user": lambda: self.deliver("user.updated", **person),
            "item": lambda: self.deliver("subscriptionItem.active", **item),
            "deleted user": lambda: self.deliver("user.deleted", id=f"user_gone_{next(NUMBERS)}"),
            "overview": lambda: self.see("/admin/"),
            "list": lambda: self.see(LIST),
            "page": lambda: self.see(f"{LIST}user_5F1/change/"),
            "ledger": lambda: self.see("/admin/quotas/ledgerentry/"),
            "plan": lambda: self.see("/admin/quotas/plan/pro/change/"),
            "keys": lambda: self.see("/admin/quotas/servicekey/"),
            "inbox": lambda: self.see("/admin/webhooks/webhookevent/"),
            "adjust by staff": lambda: self.see(LIST, token=f"{next(NUMBERS):032x}", **adjust),
            "readyz": lambda: self.ask("GET", "/readyz", X_Forwarded_Proto="https"),
        }

    def failed(self) -> dict[str, int]:
        """Make each request; return those that failed."""
        answers = {name: ask() for name, ask in self.requests().items()}
        return {name: status for name, status in answers.items() if status >= 300 and status != 302}


@pytest.fixture(params=["on", "off"], ids=["fast path", "full path"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    Plan(name="pro", allowance=100_000).save()
    ChallengeQuota.objects.current(USER)
    environment = {
        "SECRET_KEY": settings.SECRET_KEY,
        "CLERK_WEBHOOK_SIGNING_SECRET": WEBHOOK_SECRET,
        "CLERK_PLAN_METADATA_KEY": "plan",
        "TRUSTED_PROXY": "1",
        "FAST_LANE": request.param,
        "LANE_CONNECTIONS": "2",
        "WEB_THREADS": "1",
    }
    with served(url_of_the_test_database(), workers=1, **environment) as port:
        yield Site(port)


def end_sessions() -> None:
    """End all sessions but our own, as a restart, a fail-over or a host does that lets a database sleep."""
    with psycopg.connect(url_of_the_test_database(), autocommit=True) as other:
        others = "datname = current_database() AND pid NOT IN (pg_backend_pid(), %s)"
        ours = connection.connection.info.backend_pid if connection.connection else 0
        other.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}", [ours])


def alterations(session: "psycopg.Connection[Any]", table: str) -> tuple[str, str]:
    """Return the statements that give each column another type, and that take it back."""
    there, back = [], []
    for name, kind, length in session.execute(COLUMNS, [table]).fetchall():
        if kind in OTHER_TYPES:
            other, own = OTHER_TYPES[kind]
            there.append(f"ALTER COLUMN {name} TYPE {other}")
            back.append(f"ALTER COLUMN {name} TYPE {own.format(length=length)}")
    assert there
    added = "ADD COLUMN added integer NOT NULL DEFAULT 1"
    return (
        f"ALTER TABLE {table} {', '.join([*there, added])}",
        f"ALTER TABLE {table} {', '.join([*back, 'DROP COLUMN added'])}",
    )


def test_no_request_fails_after_the_type_of_any_column_was_changed(site: Site) -> None:
    for _ in range(ENOUGH):
        assert site.failed() == {}
    with psycopg.connect(url_of_the_test_database(), autocommit=True) as other:
        for tables in (*((table,) for table in OF_THE_STORE), OF_THE_ORM):
            for alteration in zip(*(alterations(other, table) for table in tables), strict=True):
                other.execute("; ".join(alteration))
                assert site.failed() == {}, alteration


def test_the_first_request_after_all_sessions_ended_succeeds(site: Site) -> None:
    for name, ask in site.requests().items():
        ask()
        end_sessions()
        assert ask() in (200, 201, 302), name


def test_a_log_in_is_the_first_request_after_all_sessions_ended(site: Site) -> None:
    staff = User.objects.get(username="alice")
    staff.set_password("a password of 23 chars")
    staff.save()
    site.see("/admin/")
    end_sessions()
    form = {"username": "alice", "password": "a password of 23 chars", "next": "/admin/"}
    assert site.see("/admin/login/", **form) == 302

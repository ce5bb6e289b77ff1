"""The whole product through PgBouncer in transaction mode, with three sessions for all clients.

The next transaction of a client may run in another session. So a cursor, a prepared statement or a SET that
outlives its transaction breaks, or affects another client.
"""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from http.client import HTTPConnection
from http.cookies import SimpleCookie
from threading import Barrier
from urllib.parse import urlencode
from uuid import uuid4

import psycopg
import pytest

from quotasite.demo.tour import shift
from tests.conftest import WEBHOOK_SECRET, delivery
from tests.store.test_faults import connected_to
from tests.tools import keys, pgbouncer
from tests.tools.clerk_api import ClerkAPI, make_users
from tests.tools.forked import manage
from tests.tools.postgres import Server
from tests.tools.site import served

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.once,
    pytest.mark.skipif(not pgbouncer.find(), reason="not installed here: pgbouncer"),
]
ALLOWANCE, CLIENTS = 50, 64
QUOTAS = "/admin/quotas/challengequota/"
ENVIRONMENT = {
    "SECRET_KEY": "a secret of fifty characters, for nothing but a test",
    "QUOTA_DEFAULT_ALLOWANCE": str(ALLOWANCE),
    "CLERK_WEBHOOK_SIGNING_SECRET": WEBHOOK_SECRET,
    "TRUSTED_PROXY": "1",
}


@dataclass
class Site:
    """The served site, its pooler, and the PostgreSQL server of the pooler."""

    server: Server
    pooler: pgbouncer.Pooler
    port: int = 0

    def send(self, method, path, body="", **headers):
        """Return the response and its text. Svix_Id stands for the header svix-id."""
        client = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            client.request(
                method, path, body, {name.replace("_", "-"): text for name, text in headers.items()}
            )
            response = client.getresponse()
            return response, response.read().decode()
        finally:
            client.close()

    def call(self, method, path, token, body=None, **headers):
        """Call the API; return the status and the JSON of the response, with its headers."""
        headers |= {"Authorization": f"Bearer {token}", "Content_Type": "application/json"}
        response, text = self.send(method, path, "" if body is None else json.dumps(body), **headers)
        return response.status, json.loads(text) | {"headers": response.headers}

    def quota(self, user_id):
        return self.call("GET", "/api/quota", keys.mint(sub=user_id))[1]["quota_remaining"]

    def spend(self, user_id, cost=1, key=None):
        keyed = {"Idempotency_Key": key} if key else {}
        return self.call("POST", "/api/v1/quota/consume", keys.mint(sub=user_id), {"cost": cost}, **keyed)

    def manage(self, *arguments, code=0, **environment):
        """Run a command, through the pooler too; return what it prints."""
        done = manage(*arguments, DATABASE_URL=self.pooler.url, **ENVIRONMENT, **environment)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    def sessions(self, *queries):
        """Return what each of the pooler's sessions answers: an open transaction reserves its session."""
        with ExitStack() as held:
            clients = [held.enter_context(self.pooler.connect()) for _ in range(pgbouncer.SESSIONS)]
            answers = [[client.execute(query).fetchall() for query in queries] for client in clients]
            assert len({pid(client) for client in clients}) == pgbouncer.SESSIONS
        return answers


@dataclass
class Browser:
    """A staff member's browser; the headers are those of a proxy that terminates HTTPS."""

    site: Site
    cookies: dict[str, str] = field(default_factory=dict)

    def send(self, method, path, **data):
        headers = {
            "X_Forwarded_Proto": "https",
            "Referer": f"https://127.0.0.1:{self.site.port}/admin/",
            "Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items()),
        }
        if method == "POST":
            headers["Content_Type"] = "application/x-www-form-urlencoded"
            data["csrfmiddlewaretoken"] = self.cookies["csrftoken"]
        response, text = self.site.send(method, path, urlencode(data), **headers)
        for line in response.headers.get_all("Set-Cookie") or []:
            self.cookies |= {name: morsel.value for name, morsel in SimpleCookie(line).items()}
        return response.status, text

    def see(self, path):
        status, text = self.send("GET", path)
        assert status == 200, path
        return text


@pytest.fixture(scope="module")
def site():
    with Server(fsync=False, in_memory=True) as server, pgbouncer.Pooler(server) as pooler:
        site = Site(server, pooler)
        site.manage("migrate", "-v0")
        with served(pooler.url, workers=3, **ENVIRONMENT) as site.port:
            yield site
        assert "0 faults" in site.manage("audit_ledger")


@pytest.fixture
def user():
    return f"user_{uuid4().hex}"


@pytest.fixture(scope="module")
def staff(site):
    password = uuid4().hex
    secret = {"DJANGO_SUPERUSER_PASSWORD": password}
    site.manage("createsuperuser", "--noinput", "--username=alice", "--email=", **secret)
    browser = Browser(site)
    browser.see("/admin/login/")
    assert browser.send("POST", "/admin/login/", username="alice", password=password)[0] == 302
    return browser


def pid(client):
    return client.execute("SELECT pg_backend_pid()").fetchone()[0]


def spent(site, user_id):
    """Return the units spent by the ledger, read without the pooler."""
    entries = "SELECT sum(cost) FROM ledger_entries WHERE user_id = %s AND kind = 'consumed'"
    with psycopg.connect(site.server.url) as session:
        return session.execute(entries, [user_id]).fetchone()[0]


def at_once(act, count=CLIENTS):
    """Call `act` in `count` threads that start at the same moment; return the results."""
    start = Barrier(count)

    def one(number):
        start.wait()
        return act(number)

    with ThreadPoolExecutor(count) as threads:
        return [future.result() for future in [threads.submit(one, number) for number in range(count)]]


# Users


def test_a_first_look_opens_and_a_look_a_day_later_resets(site, user, django_db_blocker):
    assert site.quota(user) == ALLOWANCE
    site.spend(user, 20)
    assert site.quota(user) == ALLOWANCE - 20
    with django_db_blocker.unblock(), connected_to(site.server.port):
        shift(user, timedelta(hours=25))
    assert site.quota(user) == ALLOWANCE


def test_a_spend_is_made_replayed_and_refused(site, user):
    assert site.spend(user, 49, key="k-1")[0] == 201
    status, again = site.spend(user, 49, key="k-1")
    assert (status, again["headers"]["Idempotent-Replayed"]) == (201, "true")
    assert [site.spend(user, 2)[0] for _ in range(2)] == [429, 429]
    assert site.spend(user)[0] == 201
    assert spent(site, user) == 50


@pytest.mark.parametrize("state", ["missing", "opened"])
def test_64_clients_are_granted_exactly_50(site, user, state):
    if state == "opened":
        site.quota(user)
    answers = at_once(lambda _: [site.spend(user)[0] for _ in range(2)])
    statuses = [status for of_one in answers for status in of_one]
    assert {status: statuses.count(status) for status in set(statuses)} == {201: 50, 429: 2 * CLIENTS - 50}
    assert spent(site, user) == 50


def test_16_clients_with_the_same_keys_spend_once_a_key(site, user):
    answers = at_once(lambda _: [site.spend(user, key=f"k-{number}")[0] for number in range(10)], 16)
    assert {status for of_one in answers for status in of_one} == {201}
    assert (spent(site, user), site.quota(user)) == (10, ALLOWANCE - 10)


def test_a_server_spends_refunds_and_asks_why(site, user):
    scopes = ("read", "consume", "refund")
    token = next(
        line
        for line in site.manage("create_service_key", "a server", "--scopes", *scopes).splitlines()
        if not line.endswith(":")
    )
    base = f"/api/v1/users/{user}"
    status, receipt = site.call("POST", f"{base}/consume", token, {"cost": 7}, Idempotency_Key="s-1")
    refund = f"{base}/consumptions/{receipt.get('id')}/refund"
    assert (status, site.quota(user)) == (201, ALLOWANCE - 7)
    assert site.call("POST", refund, token, {"reason": "a test"}, Idempotency_Key="r-1")[0] == 201
    assert site.quota(user) == ALLOWANCE
    assert site.call("GET", f"{base}/explain", token)[0] == 200


# Clerk, staff, operators


def test_deliveries_open_a_quota_and_end_it(site, user):
    person = {"id": user, "updated_at": 1_716_883_200_000, "email_addresses": []}
    events = [
        ("user.created", person),
        ("user.updated", person),
        ("user.deleted", {"id": user, "deleted": True}),
    ]
    for event in events:
        body, headers = delivery(*event)
        response, _ = site.send("POST", "/webhooks/clerk", body, **headers)
        assert response.status == 200
    assert site.call("GET", "/api/quota", keys.mint(sub=user))[0] == 410


def test_staff_look_act_and_export(site, user, staff):
    site.spend(user, 5)
    page = QUOTAS + user.replace("_", "_5F")
    for path in ("/admin/", f"{QUOTAS}?q=user_", f"{page}/change/", "/admin/quotas/ledgerentry/"):
        staff.see(path)
    sent = {"action": "adjust", "_selected_action": user, "confirmed": "1", "token": str(uuid4())}
    assert staff.send("POST", QUOTAS, delta="3", reason="a test", **sent)[0] == 302
    assert site.quota(user) == ALLOWANCE - 5 + 3
    assert user in staff.see(f"{QUOTAS}csv/")
    assert len(staff.see(f"{page}/ledger.csv").splitlines()) == 4  # the names; opened, consumed, adjusted


def test_the_operators_commands_work(site, user):
    site.spend(user)
    with ClerkAPI(make_users(250)) as clerk:
        of_clerk = {"CLERK_API_URL": clerk.url, "CLERK_SECRET_KEY": clerk.key}
        assert "250" in site.manage("backfill_quotas", **of_clerk)
        assert "missing 0" in site.manage(
            "report_drift", code=1, **of_clerk
        )  # Clerk does not know this module's users
    site.manage("prune_ledger", "--older-than", "400")
    site.manage("prune_inbox", "--older-than", "90")


# Sessions

SESSION_STATE = (
    "SHOW statement_timeout",
    "SHOW max_parallel_workers_per_gather",
    "SHOW default_transaction_isolation",
    "SELECT name FROM pg_prepared_statements",
    "SELECT name FROM pg_cursors WHERE is_holdable",
    "SELECT objid FROM pg_locks WHERE locktype = 'advisory'",
    "SELECT relname FROM pg_class WHERE relpersistence = 't'",
)


def test_nothing_is_left_behind_in_a_session(site, user, staff):
    with psycopg.connect(site.server.url) as fresh:
        clean = [fresh.execute(query).fetchall() for query in SESSION_STATE]
    at_once(lambda number: staff.see("/admin/") if number % 2 else site.spend(user), 6)
    staff.see(f"{QUOTAS}csv/")
    site.manage("audit_ledger")
    assert site.sessions(*SESSION_STATE) == [clean] * pgbouncer.SESSIONS


def test_a_plain_set_would_be_found(site):
    """The control of the test above: why the product uses SET LOCAL."""
    with site.pooler.connect() as client:
        client.execute("SET statement_timeout = '77s'")
        left_in = pid(client)
    assert [[("77s",)]] in site.sessions("SHOW statement_timeout")
    with psycopg.connect(site.server.url) as session:
        session.execute("SELECT pg_terminate_backend(%s)", [left_in])


def test_a_prepared_statement_would_break(site):
    """The control of prepare_threshold None: a statement is prepared in one session only."""
    with ExitStack() as held, site.pooler.connect(prepare_threshold=0) as client:
        client.execute("SELECT 1 AS one")
        prepared_in = pid(client)
        client.commit()
        others = [held.enter_context(site.pooler.connect()) for _ in range(pgbouncer.SESSIONS)]
        next(other for other in others if pid(other) != prepared_in).rollback()  # frees a session
        with pytest.raises(
            (psycopg.errors.InvalidSqlStatementName, psycopg.errors.DuplicatePreparedStatement)
        ):
            client.execute("SELECT 1 AS one")
        client.rollback()
    with psycopg.connect(site.server.url) as session:
        session.execute("SELECT pg_terminate_backend(%s)", [prepared_in])


def test_a_startup_option_would_be_refused(site):
    """The control of the check that warns of it: PgBouncer refuses `options`."""
    with pytest.raises(psycopg.OperationalError, match="unsupported startup parameter"):
        site.pooler.connect(options="-c work_mem=1MB")


# The database goes away


def test_a_killed_database_is_a_503_and_is_used_again_when_it_is_back(site, user):
    assert site.spend(user, key="k-1")[0] == 201
    site.server.kill()
    away = at_once(lambda number: site.spend(user, key=f"a-{number}"), 8)
    assert {(status, answer["code"]) for status, answer in away} == {(503, "database_unavailable")}
    site.server.start()
    deadline = time.monotonic() + 30  # PgBouncer connects again a second after a failure
    while (status := site.spend(user, key="k-2")[0]) == 503 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert status == 201
    assert {site.spend(user, key=f"a-{number}")[0] for number in range(8)} == {201}
    assert (spent(site, user), site.quota(user)) == (10, ALLOWANCE - 10)

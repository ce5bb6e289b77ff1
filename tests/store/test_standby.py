"""A standby in the primary's place: nothing is read from it, and after its promotion all works by itself.

PgBouncer hides the change: it keeps its clients, and repeats to new ones what a server said once of itself.
"""

from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest

from tests.conftest import delivery
from tests.store.test_pooler import ENVIRONMENT, QUOTAS, Browser, Site
from tests.tools import keys, pgbouncer
from tests.tools.forked import manage
from tests.tools.postgres import Server
from tests.tools.site import served
from tests.tools.waiting import wait_until

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.once,
    pytest.mark.skipif(not pgbouncer.find(), reason="not installed here: pgbouncer"),
]
USER = "user_1"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(fsync=False, in_memory=True) as server:
        assert manage("migrate", "-v0", DATABASE_URL=server.url).returncode == 0
        yield server


def promote(server: Server) -> None:
    with psycopg.connect(server.url) as session:
        session.execute("SELECT pg_promote()")


class Everybody:
    """Asks in all ways; `statuses` has what each got, as hundreds."""

    def __init__(self, site: Site) -> None:
        self.site = site
        scopes = ("--scopes", "read", "consume")
        self.key = site.manage("create_service_key", "a server", *scopes).splitlines()[0]
        password = uuid4().hex
        options = ("--noinput", "--username=alice", "--email=")
        site.manage("createsuperuser", *options, DJANGO_SUPERUSER_PASSWORD=password)
        self.staff = Browser(site)
        self.staff.see("/admin/login/")
        form = {"username": "alice", "password": password}
        assert self.staff.send("POST", "/admin/login/", **form)[0] == 302

    def statuses(self) -> dict[str, int]:
        user, site = keys.mint(sub=USER), self.site
        person = {"id": USER, "updated_at": 1_716_883_200_000, "email_addresses": []}
        body, headers = delivery("user.updated", person, svix_id="msg_1")
        action = {"action": "adjust", "_selected_action": USER, "delta": "1", "reason": "r", "confirmed": "1"}
        answers = {
            "read": site.call("GET", "/api/quota", user)[0],
            "spend": site.spend(USER)[0],
            "plans": site.call("GET", "/api/v1/plans", user)[0],
            "history": site.call("GET", "/api/v1/quota/history", user)[0],
            "service": site.call("GET", f"/api/v1/users/{USER}/explain", self.key)[0],
            "delivery": site.send("POST", "/webhooks/clerk", body, **headers)[0].status,
            "page": self.staff.send("GET", QUOTAS)[0],
            "action": self.staff.send("POST", QUOTAS, **action, token=uuid4().hex)[0],
            "readyz": site.send("GET", "/readyz", X_Forwarded_Proto="https")[0].status,
        }
        return {name: status // 100 for name, status in answers.items()}


@pytest.mark.parametrize("fast", ["on", "off"], ids=["fast path", "full path"])
def test_nothing_is_read_from_a_standby_behind_a_pooler_and_after_its_promotion_all_works(
    server: Server, fast: str
) -> None:
    with pgbouncer.Pooler(server) as pooler:
        site = Site(server, pooler)
        threads = {"WEB_THREADS": "1", "FAST_LANE": fast}
        with served(pooler.url, workers=1, **ENVIRONMENT, **threads) as site.port:
            everybody = Everybody(site)
            works = everybody.statuses()
            assert set(works.values()) <= {2, 3}
            server.become_standby()
            assert set(everybody.statuses().values()) == {5}
            assert set(everybody.statuses().values()) == {5}
            promote(server)
            wait_until(lambda: everybody.statuses() == works, 5)


def test_a_server_that_the_pooler_knew_as_a_standby_is_used_once_it_is_promoted(server: Server) -> None:
    server.become_standby()
    with pgbouncer.Pooler(server) as pooler:
        site = Site(server, pooler)
        with served(pooler.url, workers=1, **ENVIRONMENT) as site.port:
            refused, problem = site.call("GET", "/api/quota", keys.mint(sub=USER))
            assert (refused, problem["code"]) == (503, "database_unavailable")
            promote(server)
            wait_until(lambda: site.call("GET", "/api/quota", keys.mint(sub=USER))[0] == 200, 5)


def test_a_standby_is_not_ready_and_a_command_says_why(server: Server) -> None:
    server.become_standby()
    with pgbouncer.Pooler(server) as pooler:
        done = manage("audit_ledger", DATABASE_URL=pooler.url)
    assert done.returncode == 1
    assert done.stderr.endswith("cannot be used: The database takes no writes now.\n")


def test_a_list_is_not_read_from_a_standby_where_nothing_else_checks_the_connection(server: Server) -> None:
    with pgbouncer.Pooler(server) as pooler:
        site = Site(server, pooler)
        with served(pooler.url, workers=1, **ENVIRONMENT, WEB_THREADS="1") as site.port:
            assert site.call("GET", "/api/v1/plans", keys.mint(sub=USER))[0] == 200
            server.become_standby()
            assert site.call("GET", "/api/v1/plans", keys.mint(sub=USER))[0] == 503

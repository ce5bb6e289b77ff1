"""Lost databases and lost replies: nothing is spent twice, and nothing stays broken."""

import socket
import time
from contextlib import ExitStack, contextmanager, suppress
from threading import Event, Timer

import psycopg
import pytest
import svix.webhooks  # noqa: F401 - the first import takes a second, which a test would count
from django.core.management import call_command
from django.db import connections
from django.test import Client

from quotas.models import ChallengeQuota, LedgerEntry
from quotas.store import commit
from tests.conftest import USER
from tests.tools.postgres import Server
from tests.tools.waiting import wait_until
from tests.tools.wire import Wire
from webhooks.models import WebhookEvent

pytestmark = pytest.mark.postgres
READ, STORE, COMMIT = b"clock_timestamp()", b"INSERT INTO ledger_entries", b"COMMIT"
PERSON = {"id": USER, "updated_at": 1_716_883_200_000, "email_addresses": []}


@contextmanager
def connected_to(port):
    """Point the default connection at another server, without pytest-django's fixtures.

    Its transactional tests would afterwards empty that server's tables, including the default plan.
    """
    connection = connections["default"]
    connection.close()
    before = dict(connection.settings_dict)
    there = {"HOST": "127.0.0.1", "PORT": port, "NAME": "quotasite", "USER": "quotasite", "PASSWORD": ""}
    connection.settings_dict.update(there, OPTIONS=before["OPTIONS"] | {"sslmode": "disable"})
    try:
        yield
    finally:
        connection.close()
        connection.settings_dict.clear()
        connection.settings_dict.update(before)


@pytest.fixture(scope="module")
def migrated(django_db_blocker):
    with Server(fsync=False, in_memory=True, connections=20) as running:
        with django_db_blocker.unblock(), connected_to(running.port):
            call_command("migrate", verbosity=0)
        yield running


@pytest.fixture
def server(migrated, django_db_blocker):
    """A PostgreSQL server of this module with empty tables; Django is connected to it."""
    migrated.start()
    with psycopg.connect(migrated.url) as session:
        session.execute("TRUNCATE challenge_quotas, ledger_entries, webhook_events")
    with django_db_blocker.unblock(), connected_to(migrated.port):
        yield migrated


@pytest.fixture(params=[5, 0], ids=["asked anew", "kept statements"])
def wire(server, request):
    """The same through a wire (tests/tools/wire.py), with an open connection, as in a busy process."""
    with Wire("127.0.0.1", server.port) as between, connected_to(between.port):
        connections["default"].settings_dict["OPTIONS"]["prepare_threshold"] = request.param
        connections["default"].ensure_connection()
        yield between


def once(fragment):
    """Return a function that is true only for the first statement that contains `fragment`."""
    left = [True]

    def is_first(statement):
        return fragment in statement and left and left.pop()

    return is_first


def cut_before(wire, fragment, *, refuse=False):
    """Cut all connections just before the server gets the first such statement."""
    is_first = once(fragment)

    def watch(statement):
        if is_first(statement):
            wire.refuse = refuse
            wire.cut()

    wire.on_query = watch


def another_session(server):
    """Connect without Django and the wire; a lock that it cannot get fails the test after 5 seconds."""
    return psycopg.connect(server.url, options="-c lock_timeout=5s")


def spent():
    return [entry.cost for entry in LedgerEntry.objects.filter(kind="consumed")]


def remaining():
    return ChallengeQuota.objects.get(pk=USER).quota_remaining


def assert_unavailable(answer):
    assert (answer.status_code, answer["Content-Type"]) == (503, "application/problem+json")
    assert answer.json()["code"] == "database_unavailable"
    assert int(answer["Retry-After"]) >= 1


# The database is away

REQUESTS = {
    "simple quota": (200, lambda api, deliver: api.quota()),
    "full quota": (200, lambda api, deliver: api.get("/api/v1/quota")),
    "consume": (201, lambda api, deliver: api.consume()),
    "consume with a key": (201, lambda api, deliver: api.consume(key="k-1")),
    "webhook": (200, lambda api, deliver: deliver("user.created", PERSON)),
    "readyz": (200, lambda api, deliver: api.get("/readyz")),
}
each_request = pytest.mark.parametrize("name", REQUESTS)


@each_request
@pytest.mark.parametrize("was_open", [True, False], ids=["known", "never reached"])
def test_without_a_database_a_request_is_a_503_at_once(server, api, deliver, name, was_open):
    if was_open:
        connections["default"].ensure_connection()
    server.stop()
    began = time.monotonic()
    assert_unavailable(REQUESTS[name][1](api, deliver))
    assert time.monotonic() - began < 2


@each_request
def test_the_first_request_after_it_is_back_succeeds(server, api, deliver, name):
    status, send = REQUESTS[name]
    assert send(api, deliver).status_code == status
    server.stop()
    assert_unavailable(send(api, deliver))
    server.start()
    assert send(api, deliver).status_code == status


@each_request
def test_a_restart_between_two_requests_goes_unnoticed(server, api, deliver, name):
    status, send = REQUESTS[name]
    assert send(api, deliver).status_code == status
    server.restart()
    assert send(api, deliver).status_code == status


def test_a_killed_server_that_is_back_goes_unnoticed(server, api):
    assert api.consume().status_code == 201
    server.kill()
    server.start()
    assert api.consume().status_code == 201
    assert spent() == [1, 1]


def test_a_silent_host_is_a_503_within_4_seconds(server, api):
    with socket.create_server(("127.0.0.1", 0)) as silent, connected_to(silent.getsockname()[1]):
        began = time.monotonic()
        assert_unavailable(api.quota())
        assert time.monotonic() - began < 4


def test_without_a_database_the_process_is_alive(server, api):
    server.stop()
    assert api.get("/healthz").status_code == 200


@pytest.mark.parametrize("known", [True, False], ids=["connected before", "never reached"])
@pytest.mark.parametrize(
    "send",
    [
        lambda browser: browser.get("/admin/login/", secure=True),
        lambda browser: browser.post("/admin/login/", {"username": "a", "password": "b"}, secure=True),
        lambda browser: browser.get("/admin/", secure=True, headers={"cookie": "sessionid=" + "a" * 32}),
    ],
    ids=["login page", "login", "admin with a session"],
)
def test_without_a_database_the_admin_says_so_or_shows_its_page(server, settings_for_clerk, send, known):
    if known:
        connections["default"].ensure_connection()
    server.stop()
    assert send(Client(raise_request_exception=False)).status_code in (200, 503)


# The database is there, but refuses

FULL_DISK = """
    CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN RAISE 'could not extend file' USING ERRCODE = '53100'; END $$;
    CREATE TRIGGER full_disk BEFORE INSERT ON {} EXECUTE FUNCTION full_disk()
"""
writes = pytest.mark.parametrize("name", ["consume", "consume with a key", "webhook"])


@contextmanager
def full_disk(server, table):
    with another_session(server) as session:
        session.execute(FULL_DISK.format(table))
    yield
    with another_session(server) as session:
        session.execute("DROP FUNCTION full_disk CASCADE")


@contextmanager
def read_only(server):
    """Refuse writes in new sessions, as a standby does, or a primary that became one."""
    connections["default"].close()
    with another_session(server) as session:
        session.execute("ALTER DATABASE quotasite SET default_transaction_read_only = on")
    connections["default"].ensure_connection()
    yield
    with psycopg.connect(server.url, options="-c default_transaction_read_only=off") as session:
        session.execute("ALTER DATABASE quotasite RESET default_transaction_read_only")


@contextmanager
def no_session_left(server):
    connections["default"].close()
    with ExitStack() as held:
        with suppress(psycopg.OperationalError):
            while True:
                held.enter_context(psycopg.connect(server.url))
        yield
    wait_until(lambda: has_free_sessions(server))  # the server gives them up a moment after they are closed


def has_free_sessions(server):
    query = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
    with suppress(psycopg.OperationalError), psycopg.connect(server.url) as session:
        return session.execute(query).fetchone()[0] < 5
    return False


@writes
@pytest.mark.parametrize("trouble", ["full disk", "read only"])
def test_a_database_that_takes_no_writes_is_a_503_and_the_next_request_succeeds(
    server, api, deliver, name, trouble
):
    status, send = REQUESTS[name]
    table = "webhook_events" if name == "webhook" else "ledger_entries"
    with full_disk(server, table) if trouble == "full disk" else read_only(server):
        assert_unavailable(send(api, deliver))
    assert send(api, deliver).status_code == status  # the session with the standby was closed
    assert (ChallengeQuota.objects.count(), WebhookEvent.objects.count()) == (1, name == "webhook")
    assert len(spent()) == (name != "webhook")


def test_a_database_that_takes_no_writes_is_not_ready(server, api):
    with read_only(server):
        assert_unavailable(api.get("/readyz"))
        assert api.get("/healthz").status_code == 200
    assert api.get("/readyz").status_code == 200


@each_request
def test_without_a_session_left_a_request_is_a_503_and_the_next_one_succeeds(server, api, deliver, name):
    status, send = REQUESTS[name]
    with no_session_left(server):
        assert_unavailable(send(api, deliver))
    assert send(api, deliver).status_code == status


def test_a_spend_that_waits_too_long_is_a_503_and_is_made_once_at_the_retry(server, api):
    api.quota()
    with connections["default"].cursor() as cursor:
        cursor.execute("SET statement_timeout = '300ms'")
    with another_session(server) as holder:
        holder.execute("SELECT 1 FROM challenge_quotas FOR UPDATE")
        assert_unavailable(api.consume({"cost": 3}, key="k-1"))
        assert (spent(), remaining()) == ([], 20)
    answer = api.consume({"cost": 3}, key="k-1")
    assert (answer.status_code, "Idempotent-Replayed" in answer) == (201, False)
    assert (spent(), remaining()) == ([3], 17)


# Lost replies

with_and_without_a_key = pytest.mark.parametrize("key", [None, "k-1"], ids=["no key", "key"])


@with_and_without_a_key
def test_a_spend_whose_reply_is_lost_is_made_once_and_answered(wire, api, key):
    api.quota()
    wire.drop_reply_when = once(STORE)
    answer = api.consume({"cost": 3}, key=key)
    assert (answer.status_code, answer.json()["quota"]["quota_remaining"]) == (201, 17)
    assert (spent(), remaining()) == ([3], 17)


@with_and_without_a_key
def test_a_spend_that_never_reached_the_database_is_made_once_and_answered(wire, api, key):
    api.quota()
    cut_before(wire, STORE)
    assert api.consume({"cost": 3}, key=key).status_code == 201
    assert (spent(), remaining()) == ([3], 17)


@with_and_without_a_key
def test_a_read_whose_reply_is_lost_is_repeated(wire, api, key):
    api.quota()
    wire.drop_reply_when = once(READ)
    assert api.consume({"cost": 3}, key=key).status_code == 201
    assert (spent(), remaining()) == ([3], 17)


@with_and_without_a_key
@pytest.mark.parametrize("lose", ["read", "store"])
def test_the_first_spend_of_all_is_made_once_when_a_reply_is_lost(wire, api, key, lose):
    wire.drop_reply_when = once(READ if lose == "read" else STORE)
    assert api.consume({"cost": 3}, key=key).status_code == 201
    assert (spent(), remaining(), LedgerEntry.objects.count()) == ([3], 17, 2)


def test_a_first_refusal_whose_reply_is_lost_is_written_once(wire, api):
    api.consume({"cost": 20})
    wire.drop_reply_when = once(STORE)
    assert [api.consume().status_code for _ in range(2)] == [429, 429]
    assert LedgerEntry.objects.filter(kind="refused").count() == 1


def test_a_lost_reply_of_the_last_unit_is_no_refusal(wire, api):
    api.consume({"cost": 19})
    wire.drop_reply_when = once(STORE)
    assert api.consume().status_code == 201
    assert (spent(), remaining()) == ([1, 19], 0)


@with_and_without_a_key
@pytest.mark.parametrize("lose", [STORE, COMMIT], ids=["store", "commit"])
def test_a_spend_under_the_rows_lock_is_made_once_when_a_reply_is_lost(wire, api, monkeypatch, key, lose):
    monkeypatch.setattr(commit, "UNLOCKED_TRIES", 0)  # as after some lost races
    api.quota()
    wire.drop_reply_when = once(lose)
    assert api.consume({"cost": 3}, key=key).status_code == 201
    assert (spent(), remaining()) == ([3], 17)


def test_another_spend_between_the_loss_and_the_second_try_is_not_taken_for_ours(server, wire, api):
    """Our write never arrived, and its guard fails: the id of the entry shows that, the seq does not."""
    api.quota()
    is_first = once(STORE)

    def spend_first(statement):
        if is_first(statement):
            with another_session(server) as other:
                other.execute(
                    "UPDATE challenge_quotas SET seq = seq + 1, usage_seq = seq + 1, quota_remaining = 10,"
                    " period_consumed = 10"
                )
            wire.cut()

    wire.on_query = spend_first
    assert api.consume({"cost": 3}).status_code == 201
    assert (spent(), remaining()) == ([3], 7)


@with_and_without_a_key
def test_a_spend_that_is_still_under_way_when_its_connection_dies_is_made_once(server, wire, api, key):
    api.quota()
    with another_session(server) as holder:
        holder.execute("SELECT 1 FROM challenge_quotas FOR UPDATE")  # the spend waits for this lock
        timers = [Timer(0.3, wire.cut), Timer(0.8, holder.commit)]
        for timer in timers:
            timer.start()
        answer = api.consume({"cost": 3}, key=key)
        for timer in timers:
            timer.join()
    assert answer.status_code == 201
    assert (spent(), remaining()) == ([3], 17)


# The database goes away in the middle


def test_a_spend_that_was_stored_before_the_database_went_is_replayed_to_its_key(wire, api):
    api.quota()
    is_first = once(STORE)

    def lose_and_refuse(statement):
        if is_first(statement):
            wire.refuse = True
            return True
        return False

    wire.drop_reply_when = lose_and_refuse
    assert_unavailable(api.consume({"cost": 3}, key="k-1"))
    wire.refuse = False
    answer = api.consume({"cost": 3}, key="k-1")
    assert (answer.status_code, answer["Idempotent-Replayed"]) == (201, "true")
    assert (spent(), remaining()) == ([3], 17)


def test_a_spend_that_was_not_stored_before_the_database_went_is_made_at_the_retry(wire, api):
    api.quota()
    cut_before(wire, STORE, refuse=True)
    assert_unavailable(api.consume({"cost": 3}, key="k-1"))
    wire.refuse = False
    answer = api.consume({"cost": 3}, key="k-1")
    assert (answer.status_code, "Idempotent-Replayed" in answer) == (201, False)
    assert (spent(), remaining()) == ([3], 17)


@pytest.mark.parametrize(("arrives", "costs"), [(True, [3]), (False, [])], ids=["stored", "not stored"])
def test_without_a_key_a_503_is_at_most_one_spend(wire, api, arrives, costs):
    api.quota()
    cut_before(wire, STORE, refuse=True)
    if arrives:
        is_first, wire.on_query = once(STORE), None
        wire.drop_reply_when = lambda text: is_first(text) and setattr(wire, "refuse", True) is None
    assert_unavailable(api.consume({"cost": 3}))
    wire.refuse = False
    assert (spent(), remaining()) == (costs, 20 - sum(costs))


def test_a_server_killed_in_the_middle_of_a_spend_leaves_one_after_the_retry(server, wire, api):
    api.quota()
    is_first, is_dead = once(STORE), Event()

    def kill(statement):
        if is_first(statement):
            server.kill()
            is_dead.set()

    wire.on_query = kill
    api.consume({"cost": 3}, key="k-1")
    assert is_dead.wait(10)
    server.start()
    assert api.consume({"cost": 3}, key="k-1").status_code == 201
    assert (spent(), remaining()) == ([3], 17)


def test_a_first_read_that_is_lost_while_the_database_is_away_spends_nothing(wire, api):
    api.quota()
    cut_before(wire, READ, refuse=True)
    assert_unavailable(api.consume({"cost": 3}))
    wire.refuse = False
    assert (spent(), remaining()) == ([], 20)


# Deliveries


def test_a_delivery_whose_commit_is_answered_by_nobody_comes_again_and_is_one(wire, deliver):
    wire.drop_reply_when = once(COMMIT)
    assert_unavailable(deliver("user.created", PERSON, svix_id="msg_1"))
    assert deliver("user.created", PERSON, svix_id="msg_1").json() == {"status": "success"}
    assert (WebhookEvent.objects.count(), LedgerEntry.objects.count()) == (1, 1)


def test_a_delivery_that_is_cut_off_leaves_nothing_and_comes_again(wire, deliver):
    cut_before(wire, b'INSERT INTO "webhook_events"')
    assert_unavailable(deliver("user.created", PERSON, svix_id="msg_1"))
    assert (WebhookEvent.objects.count(), ChallengeQuota.objects.count()) == (0, 0)
    assert deliver("user.created", PERSON, svix_id="msg_1").json() == {"status": "success"}


def test_the_same_delivery_twice_at_once_is_a_success_twice_and_one_event(server, wire, deliver):
    is_first = once(b'INSERT INTO "webhook_events"')

    def deliver_first(statement):
        if is_first(statement):
            with another_session(server) as other:
                other.execute(
                    "INSERT INTO webhook_events (svix_id, type, user_id, email, handled_at, status, note) "
                    "VALUES ('msg_1', 'user.created', 'user_1', '', now(), 'success', '')"
                )

    wire.on_query = deliver_first
    assert deliver("user.created", PERSON, svix_id="msg_1").json() == {"status": "success"}
    assert WebhookEvent.objects.count() == 1

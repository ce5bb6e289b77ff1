"""What the database refuses by its SQLSTATE: a 503 on every way in, and one line from a command.

A trigger raises the state on writes, and a view in a table's place raises it on reads.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from django.http import HttpResponse
from django.test import Client

from quotas.access import service_keys
from quotas.models import ChallengeQuota, LedgerEntry, ServiceKey
from tests.conftest import USER, Api
from tests.tools.forked import manage
from tests.tools.site import url_of_the_test_database
from tests.tools.staff import LIST, send, sign_in
from webhooks.models import WebhookEvent

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True, serialized_rollback=True)]
ALWAYS = 2**60
PERSON = {"id": USER, "updated_at": 1_716_883_200_000, "email_addresses": []}
UNAVAILABLE = [
    "08006",
    "22P05",
    "08003",
    "40001",
    "40P01",
    "53100",
    "53300",
    "57P01",
    "57P03",
    "XX000",
    "25006",
]
states = pytest.mark.parametrize("state", UNAVAILABLE)
FAIL = """
    CREATE SEQUENCE failures;
    CREATE FUNCTION fail() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
        IF nextval('failures') <= {times} THEN RAISE 'no luck' USING ERRCODE = '{state}'; END IF;
        RETURN true;
    END $$;
    CREATE FUNCTION fail_to_write() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM fail(); RETURN NEW; END $$;
"""
ON_WRITE = "CREATE TRIGGER failing BEFORE INSERT OR UPDATE ON {0} EXECUTE FUNCTION fail_to_write();"
ON_READ = """
    ALTER TABLE {0} RENAME TO {0}_kept;
    CREATE VIEW {0} AS SELECT * FROM {0}_kept WHERE fail();
"""
BACK = "DROP VIEW {0}; ALTER TABLE {0}_kept RENAME TO {0};"
AWAY = "DROP SEQUENCE failures; DROP FUNCTION fail() CASCADE; DROP FUNCTION fail_to_write() CASCADE;"


def run(*statements: str) -> None:
    with psycopg.connect(url_of_the_test_database()) as other:
        for statement in statements:
            other.execute(statement)


@contextmanager
def failing_writes(state: str, *tables: str) -> Iterator[None]:
    run(FAIL.format(state=state, times=ALWAYS), *(ON_WRITE.format(table) for table in tables))
    try:
        yield
    finally:
        run(AWAY)


@contextmanager
def failing_reads(state: str, *tables: str, times: int = ALWAYS) -> Iterator[None]:
    run(FAIL.format(state=state, times=times), *(ON_READ.format(table) for table in tables))
    try:
        yield
    finally:
        run(*(BACK.format(table) for table in tables), AWAY)


def is_unavailable(answer: HttpResponse) -> bool:
    found = answer.status_code, answer.get("Content-Type"), answer.get("Retry-After")
    return found == (503, "application/problem+json", "5") and answer.json()["code"] == "database_unavailable"


@pytest.fixture
def service(api: Api) -> Callable[[str], HttpResponse]:
    """Ask as a service, whose key is looked up each time."""
    _, key = ServiceKey.make("a server", ServiceKey.SCOPES)

    def get(path: str) -> HttpResponse:
        service_keys._cache.clear()
        return api.client.get(path, headers={"Authorization": f"Bearer {key}"})

    return get


@pytest.fixture
def staff() -> Client:
    browser = sign_in(is_superuser=True)
    browser.raise_request_exception = False
    return browser


@states
def test_a_spend_that_cannot_be_written_is_a_503_and_the_next_one_is_made(api: Api, state: str) -> None:
    api.quota()
    with failing_writes(state, "challenge_quotas"):
        assert is_unavailable(api.consume(key="k"))
    answer = api.consume(key="k")
    assert (answer.status_code, "Idempotent-Replayed" in answer) == (201, False)
    assert LedgerEntry.objects.filter(kind="consumed").count() == 1


@states
def test_what_cannot_be_read_is_a_503(api: Api, service: Any, state: str) -> None:
    api.consume()
    of_user = f"/api/v1/users/{USER}"
    with failing_reads(state, "challenge_quotas", "ledger_entries", "plans", "plan_versions"):
        paths = ["/api/quota", "/api/v1/quota", "/api/v1/plans", "/api/v1/quota/history"]
        answers = {path: api.get(path) for path in paths}
        answers |= {path: service(path) for path in (of_user, f"{of_user}/quota", f"{of_user}/explain")}
    answers.pop(of_user)  # there is nothing at that address
    assert [path for path, answer in answers.items() if not is_unavailable(answer)] == []
    assert {api.get(path).status_code for path in paths} == {200}


@states
def test_a_key_that_cannot_be_looked_up_is_a_503(api: Api, service: Any, state: str) -> None:
    api.quota()
    with failing_reads(state, "service_keys"):
        assert is_unavailable(service(f"/api/v1/users/{USER}/quota"))
    assert service(f"/api/v1/users/{USER}/quota").status_code == 200


@states
def test_a_key_whose_use_cannot_be_recorded_is_accepted(api: Api, service: Any, state: str) -> None:
    api.quota()
    with failing_writes(state, "service_keys"):
        assert service(f"/api/v1/users/{USER}/quota").status_code == 200
    assert ServiceKey.objects.get().last_used_at is None
    assert service(f"/api/v1/users/{USER}/quota").status_code == 200
    assert ServiceKey.objects.get().last_used_at


@states
@pytest.mark.parametrize("table", ["webhook_events", "challenge_quotas", "ledger_entries"])
def test_a_delivery_that_cannot_be_stored_is_a_503_and_comes_again(
    deliver: Callable[..., HttpResponse], state: str, table: str
) -> None:
    with failing_writes(state, table):
        assert is_unavailable(deliver("user.created", PERSON, svix_id="msg_1"))
    assert deliver("user.created", PERSON, svix_id="msg_1").json() == {"status": "success"}
    assert (WebhookEvent.objects.count(), ChallengeQuota.objects.count()) == (1, 1)


@states
def test_the_admin_says_that_the_database_is_away(staff: Client, state: str) -> None:
    ChallengeQuota.objects.consume(USER)
    form = {"token": uuid4(), "reason": "a kind word", "confirmed": "1", "delta": "3"}
    with failing_reads(state, "challenge_quotas"):
        pages = [staff.get(LIST), staff.get("/admin/quotas/challengequota/user_5F1/change/")]
    with failing_writes(state, "challenge_quotas"):
        pages.append(send(staff, "adjust", USER, **form))
    for page in pages:
        if state == "22P05":  # a character that the database lacks: the page says that it cannot take it
            assert page.status_code == 400
        else:
            assert (page.status_code, page.get("Retry-After")) == (503, "5")
            assert "The database is unavailable" in page.content.decode()
    assert send(staff, "adjust", USER, **form).status_code == 200


@pytest.mark.parametrize("state", ["08006", "57P01", "XX000", "53300"])
def test_a_command_says_in_one_line_that_the_database_is_away(state: str) -> None:
    url = url_of_the_test_database()
    with failing_reads(state, "plans"):
        done = [manage("prune_ledger", "--older-than", "400", DATABASE_URL=url)]
    with failing_writes(state, "auth_user"):
        options = ("--noinput", "--username=alice", "--email=a@example.com")
        password = {"DJANGO_SUPERUSER_PASSWORD": "a password of 23 chars"}
        done.append(manage("createsuperuser", *options, DATABASE_URL=url, **password))
    for command in done:
        assert command.returncode == 1
        assert "The database (DATABASE_URL) cannot be used: no luck" in command.stderr
        assert "Traceback" not in command.stderr


@pytest.mark.parametrize(
    ("state", "times", "status"), [("08006", 1, 200), ("08006", 2, 503), ("XX000", 1, 503)]
)
def test_a_read_is_repeated_once_for_a_node_that_was_lost(
    api: Api, service: Any, state: str, times: int, status: int
) -> None:
    api.quota()
    for ask in (api.quota, lambda: api.get("/api/v1/plans")):
        with failing_reads(state, "plans", times=times):
            assert ask().status_code == status
    with failing_reads(state, "service_keys", times=times):
        assert service(f"/api/v1/users/{USER}/quota").status_code == status


def test_a_bug_is_still_a_500(api: Api) -> None:
    api.quota()
    with failing_writes("22012", "challenge_quotas"):
        answer = api.consume()
    assert (answer.status_code, answer.json()["code"]) == (500, "server_error")

"""64 clients race for 50 units: exactly 50 are granted, and a control without the guard grants more."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from http.client import HTTPConnection
from itertools import count
from threading import Barrier

import psycopg
import pytest
from django.db import connection

from quotas.access.service_keys import _record_use
from quotas.models import ChallengeQuota, LedgerEntry, Plan, ServiceKey
from quotas.rules.outcomes import Exhausted
from quotas.rules.values import Actor
from quotasite.demo.tour import shift
from tests.tools.in_loop import waiting
from tests.tools.ledger import assert_sound, spent
from tests.tools.site import ask, served, url_of_the_test_database
from tests.tools.waiting import wait_until

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True, serialized_rollback=True)]
CLIENTS, UNITS, USER = 64, 50, "user_race"


def give_everyone(allowance: int) -> None:
    plan = Plan.objects.get(is_default=True)
    plan.allowance = allowance
    plan.save()


@pytest.fixture(params=["missing", "full", "expired by 25 hours"])
def raced(request: pytest.FixtureRequest) -> str:
    """A quota of 50 in each state in which a race may begin."""
    give_everyone(UNITS)
    if request.param != "missing":
        ChallengeQuota.objects.current(USER)
    if request.param.startswith("expired"):
        ChallengeQuota.objects.consume(USER, 30)
        shift(USER, timedelta(hours=25))
    return str(request.param)


def grants(spend: Callable[[], bool], *, each: int) -> int:
    """Let 64 threads begin at the same moment; count how often `spend` was granted."""
    start = Barrier(CLIENTS)

    def client() -> int:
        try:
            start.wait()
            return sum(spend() for _ in range(each))
        finally:
            connection.close()

    with ThreadPoolExecutor(CLIENTS) as threads:
        return sum(future.result() for future in [threads.submit(client) for _ in range(CLIENTS)])


def spend_one() -> bool:
    try:
        ChallengeQuota.objects.consume(USER)
    except Exhausted:
        return False
    return True


def spend_one_naively() -> bool:
    """Read, check, write without a guard: what this service replaces."""
    quota = ChallengeQuota.objects.get(pk=USER)
    if quota.quota_remaining < 1:
        return False
    ChallengeQuota.objects.filter(pk=USER).update(quota_remaining=quota.quota_remaining - 1)
    return True


def test_64_threads_are_granted_exactly_50(raced: str) -> None:
    spent_before = 30 if raced.startswith("expired") else 0
    assert grants(spend_one, each=2) == UNITS
    assert spent(USER) - spent_before == UNITS
    assert_sound(USER)


@pytest.fixture(params=["repeatable read", "serializable"])
def default_isolation(request: pytest.FixtureRequest) -> Iterator[str]:
    """The default of each session of the test's database that begins from now on."""
    database = connection.ops.quote_name(connection.settings_dict["NAME"])

    def alter(change: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER DATABASE {database} {change}")
        connection.close()

    alter(f"SET default_transaction_isolation = '{request.param}'")
    yield request.param
    alter("RESET default_transaction_isolation")


def test_64_threads_are_granted_exactly_50_under_any_default_isolation(
    raced: str, default_isolation: str
) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SHOW default_transaction_isolation")
        assert cursor.fetchone() == (default_isolation,)
    spent_before = 30 if raced.startswith("expired") else 0
    assert grants(spend_one, each=2) == UNITS
    assert spent(USER) - spent_before == UNITS
    assert_sound(USER)


def test_a_use_of_a_key_that_meets_another_is_no_error_under_any_default_isolation(
    default_isolation: str,
) -> None:
    key, _ = ServiceKey.make("a server", ["read"])
    with psycopg.connect(url_of_the_test_database()) as other, ThreadPoolExecutor(1) as thread:
        other.execute("UPDATE service_keys SET last_used_at = now()")
        use = thread.submit(lambda: (_record_use(key), connection.close()))
        wait_until(lambda: bool(waiting()))
        other.commit()
        use.result()


def test_the_same_race_without_the_guard_grants_more() -> None:
    give_everyone(UNITS)
    ChallengeQuota.objects.current(USER)
    assert grants(spend_one_naively, each=2) > UNITS


def test_64_clients_over_http_are_granted_exactly_50(raced: str) -> None:
    spent_before = 30 if raced.startswith("expired") else 0
    start = Barrier(CLIENTS)

    def client(port: int) -> list[int]:
        http = HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            start.wait()
            return [ask(http, "POST", "/api/v1/quota/consume", USER, b"{}") for _ in range(10)]
        finally:
            http.close()

    with served(url_of_the_test_database(), workers=3) as port, ThreadPoolExecutor(CLIENTS) as threads:
        futures = [threads.submit(client, port) for _ in range(CLIENTS)]
        statuses = [status for future in futures for status in future.result()]
    assert {status: statuses.count(status) for status in set(statuses)} == {201: UNITS, 429: 590}
    assert spent(USER) - spent_before == UNITS
    assert LedgerEntry.objects.filter(user_id=USER, kind="refused").count() == 1
    assert_sound(USER)


def test_64_threads_with_one_key_spend_once() -> None:
    def spend() -> bool:
        return not ChallengeQuota.objects.consume(USER, 3, key="the same").is_replay

    assert grants(spend, each=2) == 1
    assert spent(USER) == 3
    assert_sound(USER)


def test_spends_adjustments_and_resets_at_once_lose_nothing() -> None:
    """Each change of a busy row has an entry, and each balance follows from the last one."""
    turn, staff = count(), Actor("staff", "a test")

    def act() -> bool:
        match next(turn) % 3:
            case 0:
                ChallengeQuota.objects.consume(USER)
            case 1:
                ChallengeQuota.objects.adjust(USER, 5, reason="a test", actor=staff)
            case _:
                ChallengeQuota.objects.reset(USER, reason="a test", actor=staff)
        return True

    assert grants(act, each=3) == CLIENTS * 3
    assert LedgerEntry.objects.filter(user_id=USER).count() == CLIENTS * 3 + 1
    assert_sound(USER)

"""The Python client and a running server: each verb, error and retry, by threads and in an event loop."""

import pickle
import re
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from threading import Timer
from time import time
from typing import Any

import anyio
import httpx
import pytest

from quotasite_client import (
    AsyncQuotasiteUser,
    Quota,
    QuotaError,
    QuotaExhausted,
    QuotaProblem,
    Quotasite,
    QuotasiteUser,
    QuotaUnreachable,
)
from tests.clients.conftest import Site
from tests.clients.drivers import Clients, pauses
from tests.clients.faults import CUT, CUT_BODY, HANG, Fault, MakeProxy, faulty, unavailable
from tests.tools import keys
from tests.tools.postgres import free_port

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.django_db,
    pytest.mark.usefixtures("short_pauses"),
]


@pytest.fixture
def user(clients: Clients, site: Site, user_id: str) -> Any:
    return clients.user(site.url, token=token(user_id))


def token(user_id: str, **claims: int) -> str:
    return keys.mint(sub=user_id, **{name: int(time()) + value for name, value in claims.items()})


def costs(service: Any, user_id: str) -> list[int]:
    return [entry.cost for entry in service.history(user_id) if entry.kind == "consumed"]


def error_of(call: Callable[..., Any], *args: Any, **options: Any) -> QuotaError:
    with pytest.raises(QuotaError) as caught:
        call(*args, **options)
    return caught.value


# The verbs


def test_a_user_reads_their_quota(user: Any, user_id: str) -> None:
    quota = user.quota()
    assert (quota.user_id, quota.quota_limit, quota.quota_remaining) == (user_id, 20, 20)
    assert quota.resets_at - quota.last_reset_date == timedelta(days=1)
    simple = user.simple_quota()
    assert (simple.user_id, simple.quota_remaining) == (user_id, 20)
    assert simple.last_reset_date == quota.last_reset_date


def test_a_user_spends_and_each_call_is_a_spend(user: Any, service: Any, user_id: str) -> None:
    assert user.consume(cost=3, metadata={"page": "home"}).quota.quota_remaining == 17
    assert user.consume().quota.quota_remaining == 16
    assert costs(service, user_id) == [1, 3]


def test_the_same_key_again_is_the_same_consumption(user: Any, service: Any, user_id: str) -> None:
    first, again = user.consume(key="k-1"), user.consume(key="k-1")
    assert again.id == first.id
    assert (first.replayed, again.replayed) == (False, True)
    assert costs(service, user_id) == [1]


def test_the_history_is_one_iteration_over_pages(user: Any, service: Any, user_id: str) -> None:
    for _ in range(4):
        user.consume()
    own, full = list(user.history(limit=2)), list(service.history(user_id, limit=2))
    assert [entry.kind for entry in own] == ["consumed"] * 4 + ["opened"]
    assert [entry.id for entry in full] == [entry.id for entry in own]
    assert full[0].actor.kind == "user"


def test_pages_can_be_taken_one_by_one(site: Site, user_id: str) -> None:
    with Quotasite(site.url, key=site.key) as client:
        client.consume(user_id, key="k-1")
        newest = next(client.history(user_id, limit=1).pages())
        [oldest] = client.history(user_id, limit=1, cursor=newest.next_cursor).pages()
    assert [entry.kind for entry in newest.items] == ["consumed"]
    assert ([entry.kind for entry in oldest.items], oldest.next_cursor) == (["opened"], None)


def test_the_plans_can_be_listed(user: Any) -> None:
    [plan] = user.plans()
    assert (plan.name, plan.allowance, plan.is_default) == ("free", 20, True)


def test_a_server_spends_for_a_user_and_gives_back_once_per_key(service: Any, user_id: str) -> None:
    spent = service.consume(user_id, cost=5, key="c-1")
    refund = service.refund(user_id, spent.id, amount=2, reason="timeout", key="r-1")
    again = service.refund(user_id, spent.id, amount=2, reason="timeout", key="r-1")
    assert (refund.amount, refund.quota.quota_remaining, again.id) == (2, 17, refund.id)
    assert (refund.replayed, again.replayed) == (False, True)
    service.refund(user_id, spent.id, reason="timeout", key="r-2")
    error = error_of(service.refund, user_id, spent.id, reason="timeout", key="r-3")
    assert error.code == "already_refunded"


def test_a_server_adjusts_resets_and_changes_the_plan(service: Any, user_id: str) -> None:
    assert service.adjust(user_id, -5, reason="abuse", key="a-1").quota.quota_remaining == 15
    assert service.reset(user_id, reason="sorry", key="s-1").quota_remaining == 20
    assert service.reset(user_id, reason="sorry", key="s-1").replayed
    assert service.change_plan(user_id, "free", key="p-1").plan == "free"
    assert service.change_plan(user_id, None, on_change="reset", reason="test", key="p-2").plan == "free"


def test_a_server_asks_why(service: Any, user_id: str) -> None:
    service.consume(user_id, cost=6, key="c-1")
    why = service.explain(user_id, at=datetime.now(UTC), cost=15)
    assert (why.quota.quota_remaining, why.spend.granted, why.spend.code) == (14, False, "quota_exhausted")
    assert [entry.kind for entry in why.entries] == ["consumed", "opened"]


def test_a_user_id_with_marks_in_it_stays_as_it_is(service: Any, user_id: str) -> None:
    assert service.quota(f"{user_id}:a@b.c").user_id == f"{user_id}:a@b.c"


def test_a_user_id_cannot_lead_to_another_address(service: Any) -> None:
    error = error_of(service.quota, "me/quota?")
    assert (error.status, error.code) == (404, "not_found")


@pytest.mark.parametrize(("cost", "allowed", "left"), [(2, True, 18), (20, True, 0), (21, False, None)])
def test_a_check_spends_nothing(
    service: Any, user: Any, user_id: str, cost: int, allowed: bool, left: int | None
) -> None:
    for check in (service.check(user_id, cost=cost), user.check(cost=cost)):
        assert (check.allowed, check.remaining_after, check.quota.quota_remaining) == (allowed, left, 20)
    assert service.quota(user_id).quota_remaining == 20


def test_a_check_of_an_exhausted_quota_says_when_to_come_back(service: Any, user_id: str) -> None:
    service.consume(user_id, cost=20, key="k-1")
    check = service.check(user_id)
    assert (check.allowed, check.code) == (False, "quota_exhausted")
    assert 86_000 < check.retry_after <= 86_400


def test_a_server_reads_what_a_browser_spent_and_what_was_given_back(
    service: Any, user: Any, user_id: str
) -> None:
    spent = user.consume(cost=3)
    read = service.consumption(user_id, spent.id)
    assert (read.id, read.cost, read.refunded, read.replayed) == (spent.id, 3, 0, False)
    service.refund(user_id, spent.id, amount=2, reason="timeout", key="r-1")
    assert service.consumption(user_id, spent.id).refunded == 2


def test_a_replay_says_what_was_given_back_since(service: Any, user_id: str) -> None:
    spent = service.consume(user_id, cost=3, key="k-1")
    assert spent.refunded == 0
    service.refund(user_id, spent.id, reason="timeout", key="r-1")
    again = service.consume(user_id, cost=3, key="k-1")
    assert (again.replayed, again.refunded) == (True, 3)


def test_the_users_are_listed_over_pages_and_filtered(service: Any, user_id: str) -> None:
    before = datetime.now(UTC) - timedelta(hours=1)
    ids = [f"{user_id}_{letter}" for letter in "abc"]
    for id_ in ids:
        service.quota(id_)
    service.consume(ids[1], cost=20, key="k-1")
    listed = service.users(limit=2, plan="free", deleted=False, seen_since=before)
    assert [it.user_id for it in listed if it.user_id in ids] == ids
    exhausted = service.users(exhausted=True)
    assert [it.user_id for it in exhausted if it.user_id in ids] == [ids[1]]


# The errors


def test_an_exhausted_quota_is_raised_once_with_the_time_of_the_reset(
    clients: Clients, proxy: MakeProxy, user_id: str
) -> None:
    through = proxy()
    client = clients.user(through.base_url, token=token(user_id))
    client.consume(cost=18)
    error = error_of(client.consume, cost=5)
    assert isinstance(error, QuotaExhausted)
    assert (error.status, error.code, error.cost) == (429, "quota_exhausted", 5)
    assert (error.quota_remaining, error.quota_limit) == (2, 20)
    assert re.match("Quota exhausted: 2 of 20 left", error.detail)
    assert error.resets_at == client.quota().resets_at
    assert 86_000 < (error.retry_after or 0) <= 86_400
    assert len(through.seen) == 3


def test_a_refusal_has_a_code_for_programs_and_a_sentence_for_people(user: Any) -> None:
    error = error_of(user.consume, cost=21)
    assert isinstance(error, QuotaProblem)
    assert (error.status, error.code) == (422, "cost_exceeds_limit")
    assert str(error) == "A cost of 21 can never be paid: at most 20 can be spent at once."
    assert re.fullmatch("[A-Za-z0-9-]{1,64}", error.request_id or "")


def test_an_error_survives_pickling_as_job_queues_do_it(user: Any) -> None:
    user.consume(cost=20)
    error = error_of(user.consume, key="k-9")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, QuotaExhausted)
    assert (again.detail, again.key, again.resets_at) == (error.detail, "k-9", error.resets_at)


def test_an_unknown_key_is_a_401_that_is_not_sent_again(
    clients: Clients, proxy: MakeProxy, user_id: str
) -> None:
    through = proxy()
    error = error_of(clients.service(through.base_url, key=f"qs_00000000_{'a' * 43}").quota, user_id)
    assert (error.code, len(through.seen)) == ("key_unknown", 1)


# Tokens


def test_an_expired_token_is_replaced_once_and_the_spend_is_one(
    clients: Clients, proxy: MakeProxy, user_id: str
) -> None:
    through, tokens = proxy(), [token(user_id, exp=-60), token(user_id)]
    client = clients.user(through.base_url, token=lambda: tokens.pop(0))
    assert client.consume().quota.quota_remaining == 19
    first, second = through.seen
    assert first.key == second.key


def test_a_fresh_token_that_is_refused_too_is_the_end(
    clients: Clients, proxy: MakeProxy, user_id: str
) -> None:
    through, tokens = proxy(), [token(user_id, exp=-60), token(user_id, exp=-90)]
    error = error_of(clients.user(through.base_url, token=lambda: tokens.pop(0)).quota)
    assert (error.code, len(through.seen)) == ("token_expired", 2)


def test_a_user_who_has_signed_out_meanwhile_gets_the_first_refusal(
    clients: Clients, proxy: MakeProxy, user_id: str
) -> None:
    through, tokens = proxy(), [token(user_id, exp=-60), None]
    error = error_of(clients.user(through.base_url, token=lambda: tokens.pop(0)).quota)
    assert (error.code, len(through.seen)) == ("token_expired", 1)


def test_nobody_signed_in_is_a_401_that_is_not_sent_again(clients: Clients, proxy: MakeProxy) -> None:
    through = proxy()
    error = error_of(clients.user(through.base_url, token=lambda: None).quota)
    assert (error.status, error.code, len(through.seen)) == (401, "token_missing", 1)


def test_a_token_that_cannot_be_fetched_is_reported_as_such(clients: Clients, site: Site) -> None:
    def fail() -> str:
        raise OSError("offline")

    error = error_of(clients.user(site.url, token=fail).consume)
    assert isinstance(error, QuotaUnreachable)
    assert str(error.__cause__) == "offline"
    assert not error.outcome_unknown


def test_a_token_with_its_scheme_is_refused_before_it_is_sent(
    clients: Clients, proxy: MakeProxy, user_id: str
) -> None:
    through = proxy()
    error = error_of(clients.user(through.base_url, token=f"Bearer {token(user_id)}").quota)
    assert ("without 'Bearer '" in str(error), len(through.seen)) == (True, 0)


def test_a_coroutine_function_may_fetch_the_token(site: Site, user_id: str) -> None:
    async def get_token() -> str:
        return token(user_id)

    async def read() -> Quota:
        async with AsyncQuotasiteUser(site.url, token=get_token) as client:
            return await client.quota()

    assert anyio.run(read).quota_remaining == 20


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_pages_of_an_event_loop_are_taken_one_by_one(site: Site, user_id: str, backend: str) -> None:
    async def kinds() -> list[list[str]]:
        async with AsyncQuotasiteUser(site.url, token=token(user_id)) as client:
            await client.consume()
            pages = client.history(limit=1).pages()
            return [[entry.kind for entry in page.items] async for page in pages]

    assert anyio.run(kinds, backend=backend) == [["consumed"], ["opened"]]


# Retries


@pytest.mark.parametrize("fault", [CUT, CUT_BODY])
def test_a_spend_whose_answers_are_lost_twice_is_carried_out_once(
    clients: Clients, proxy: MakeProxy, service: Any, user_id: str, site: Site, fault: str
) -> None:
    through = proxy(fault, fault)
    spent = clients.service(through.base_url, key=site.key).consume(user_id, cost=3, key="k-1")
    assert (spent.quota.quota_remaining, spent.replayed) == (17, True)
    assert [seen.key for seen in through.seen] == ["k-1"] * 3
    assert costs(service, user_id) == [3]


def test_a_spend_whose_answers_are_all_lost_can_be_sent_again_with_its_key(
    clients: Clients, proxy: MakeProxy, service: Any, user_id: str
) -> None:
    through = proxy(CUT, CUT, CUT)
    client = clients.user(through.base_url, token=token(user_id))
    error = error_of(client.consume, cost=3)
    assert isinstance(error, QuotaUnreachable)
    assert (len(through.seen), error.outcome_unknown) == (3, True)
    client.consume(cost=3, key=error.key)
    assert costs(service, user_id) == [3]


def test_a_service_that_comes_up_meanwhile_is_reached(clients: Clients, site: Site, user_id: str) -> None:
    later = free_port()
    client = clients.user(f"http://127.0.0.1:{later}", token=token(user_id))
    with pauses(0.3, 0.3), ExitStack() as stack:
        Timer(0.05, lambda: stack.enter_context(faulty(site.port, listen_on=later))).start()
        assert client.consume().quota.quota_remaining == 19


def test_a_service_that_stays_away_is_reported_and_leaves_nothing_unknown(
    clients: Clients, user_id: str
) -> None:
    client = clients.user(f"http://127.0.0.1:{free_port()}", token=token(user_id))
    error = error_of(client.consume)
    assert (type(error), error.outcome_unknown) == (QuotaUnreachable, False)


def test_a_short_retry_after_is_waited_for(clients: Clients, proxy: MakeProxy, user_id: str) -> None:
    through = proxy(unavailable(1))
    assert clients.user(through.base_url, token=token(user_id)).quota().quota_remaining == 20
    first, second = through.seen
    assert second.at - first.at >= 1


def test_a_long_retry_after_is_raised_at_once(clients: Clients, proxy: MakeProxy, user_id: str) -> None:
    through = proxy(unavailable(60))
    error = error_of(clients.user(through.base_url, token=token(user_id)).quota)
    assert (error.code, error.retry_after, len(through.seen)) == ("database_unavailable", 60, 1)


def test_a_long_retry_after_of_a_proxy_is_raised_at_once_too(
    clients: Clients, proxy: MakeProxy, user_id: str
) -> None:
    through = proxy(Fault(429, {"Retry-After": "60"}, b"slower"))
    error = error_of(clients.user(through.base_url, token=token(user_id)).quota)
    assert (type(error), error.retry_after, len(through.seen)) == (QuotaUnreachable, 60, 1)


FOREIGN = [
    Fault(502, {"Content-Type": "application/json"}, b'{"error": "bad gateway"}'),
    Fault(200, {"Content-Type": "text/html"}, b"<h1>Welcome to this network</h1>"),
    Fault(200, {"Content-Type": "application/json"}, b'{"status": "ok"}'),
    Fault(200, {"Content-Type": "application/json"}, b"[]"),
    Fault(200, {"Content-Type": "application/json"}, b'{"user_id": 1}'),
    Fault(400, {"Content-Type": "application/problem+json"}, b'{"title": "Bad Request"}'),
    Fault(400, {"Content-Type": "application/problem+json"}, b"null"),
]


@pytest.mark.parametrize("fault", FOREIGN, ids=lambda fault: fault.body.decode())
def test_an_answer_of_another_server_is_none_of_the_service_s(
    clients: Clients, proxy: MakeProxy, user_id: str, fault: Fault
) -> None:
    through = proxy(fault, fault)
    assert clients.user(through.base_url, token=token(user_id)).quota().quota_remaining == 20
    assert len(through.seen) == 3


def test_a_redirect_is_not_followed_and_reported_as_one(proxy: MakeProxy, site: Site, user_id: str) -> None:
    through = proxy(*[Fault(308, {"Location": f"{site.url}/api/v1/quota"})] * 3)
    with httpx.Client(follow_redirects=True) as http:
        client = QuotasiteUser(through.base_url, token=token(user_id), http=http)
        error = error_of(client.quota)
    assert isinstance(error, QuotaUnreachable)
    assert "the answer (308) redirects" in str(error)


@pytest.mark.parametrize(
    ("faults", "cost", "is_unknown"),
    [
        ([CUT, CUT, CUT], 1, True),
        ([unavailable(60)], 1, True),
        ([CUT, Fault(502, {}), CUT], 1, True),
        ([unavailable(0)], 20, False),  # then a 429
        ([], 21, False),
    ],
)
def test_what_a_lost_answer_leaves_unknown_is_said_until_an_answer_decides_it(
    clients: Clients,
    proxy: MakeProxy,
    user: Any,
    user_id: str,
    faults: list[Any],
    cost: int,
    is_unknown: bool,
) -> None:
    user.consume(cost=3)
    client = clients.user(proxy(*faults).base_url, token=token(user_id))
    assert error_of(client.consume, cost=cost).outcome_unknown is is_unknown


def test_a_read_leaves_nothing_unknown(clients: Clients, proxy: MakeProxy, user_id: str) -> None:
    error = error_of(clients.user(proxy(unavailable(60)).base_url, token=token(user_id)).quota)
    assert not error.outcome_unknown


def test_a_spend_that_was_lost_and_then_refused_a_token_stays_unknown(
    clients: Clients, proxy: MakeProxy, user_id: str
) -> None:
    tokens = [token(user_id, exp=-60), None]
    client = clients.user(proxy(CUT).base_url, token=lambda: tokens.pop(0))
    error = error_of(client.consume)
    assert (error.code, error.outcome_unknown) == ("token_expired", True)


def test_a_service_that_says_nothing_is_given_up_after_the_timeout(
    clients: Clients, proxy: MakeProxy, user_id: str
) -> None:
    through = proxy(HANG)
    client = clients.user(through.base_url, token=token(user_id), timeout=0.3)
    assert client.quota().quota_remaining == 20
    assert len(through.seen) == 2


def test_the_client_says_who_it_is(clients: Clients, proxy: MakeProxy, user_id: str) -> None:
    through = proxy()
    clients.user(through.base_url, token=token(user_id)).quota()
    [seen] = through.seen
    assert re.fullmatch(r"quotasite-client/[\d.]+ python", seen.headers["User-Agent"])


def test_connections_of_the_app_stay_open_and_own_ones_are_closed(site: Site, user_id: str) -> None:
    http = httpx.Client()
    with QuotasiteUser(site.url, token=token(user_id), http=http) as borrowed:
        borrowed.quota()
    assert not http.is_closed
    http.close()
    with QuotasiteUser(site.url, token=token(user_id)) as own:
        own.quota()
    with pytest.raises(RuntimeError, match="closed"):
        own.quota()

"""`spending`: units are spent before the work, given back if it fails, and pay for one work only."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from quotas.models import LedgerEntry
from quotasite_client import AlreadyRefunded, AlreadySpent, AsyncQuotasite, QuotaExhausted
from tests.clients.conftest import Site
from tests.clients.drivers import Clients
from tests.clients.faults import CUT, HANG, LATE, MakeProxy
from tests.tools.ledger import assert_sound

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.django_db,
    pytest.mark.usefixtures("short_pauses"),
]


class WorkFailed(Exception):
    pass


def ledger(user_id: str) -> list[tuple[str, int]]:
    """The kinds and changes of the user's entries after the first, oldest first."""
    assert_sound(user_id)
    entries = LedgerEntry.objects.filter(user__user_id=user_id).order_by("seq")
    return [(entry.kind, entry.delta) for entry in entries][1:]


SPENT = [("consumed", -2)]
GIVEN_BACK = [("consumed", -2), ("refunded", 2)]


def test_the_work_is_paid_for_before_it_begins(service: Any, user_id: str) -> None:
    with service.spending(user_id, cost=2) as consumption:
        assert ledger(user_id) == SPENT
        assert (consumption.cost, consumption.quota.quota_remaining) == (2, 18)
    assert ledger(user_id) == SPENT


def test_work_that_fails_is_given_back_and_its_error_raised(service: Any, user_id: str) -> None:
    with pytest.raises(WorkFailed), service.spending(user_id, cost=2, refund_reason="The model was down."):
        raise WorkFailed
    assert ledger(user_id) == GIVEN_BACK
    assert LedgerEntry.objects.get(user__user_id=user_id, kind="refunded").reason == "The model was down."


def test_without_units_the_work_does_not_begin(service: Any, user_id: str) -> None:
    service.consume(user_id, cost=19, key="k-1")
    with pytest.raises(QuotaExhausted), service.spending(user_id, cost=2):
        pytest.fail("the work began")


def test_each_use_without_a_key_is_an_action_of_its_own(service: Any, user_id: str) -> None:
    for _ in range(2):
        with service.spending(user_id, cost=2):
            pass
    assert ledger(user_id) == SPENT * 2


def test_a_spending_cannot_be_entered_twice(service: Any, user_id: str) -> None:
    spending = service.spending(user_id, cost=2)
    with spending:
        pass
    with pytest.raises(RuntimeError, match="one work"), spending:
        pytest.fail("the work began again for nothing")
    assert ledger(user_id) == SPENT


def test_the_same_key_pays_for_one_work(service: Any, user_id: str) -> None:
    with service.spending(user_id, cost=2, key="k-1") as first:
        pass
    with pytest.raises(AlreadySpent) as caught, service.spending(user_id, cost=2, key="k-1"):
        pytest.fail("the work began again")
    error = caught.value
    assert (error.consumption.id, error.key, error.code) == (first.id, "k-1", "already_spent")
    assert not error.outcome_unknown
    assert ledger(user_id) == SPENT


def test_work_that_may_be_done_twice_runs_again_and_is_paid_for_once(service: Any, user_id: str) -> None:
    for _ in range(2):
        with service.spending(user_id, cost=2, key="k-1", on_replay="run") as consumption:
            pass
    assert consumption.replayed
    assert ledger(user_id) == SPENT


@pytest.mark.parametrize("on_replay", ["refuse", "run"])
def test_a_refunded_key_pays_for_no_work(service: Any, user_id: str, on_replay: str) -> None:
    with pytest.raises(WorkFailed), service.spending(user_id, cost=2, key="k-1"):
        raise WorkFailed
    with (
        pytest.raises(AlreadyRefunded) as caught,
        service.spending(user_id, cost=2, key="k-1", on_replay=on_replay),
    ):
        pytest.fail("the work began for nothing")
    assert caught.value.consumption.refunded == 2
    assert ledger(user_id) == GIVEN_BACK


def test_a_lost_answer_does_not_keep_the_work_from_being_done(
    clients: Clients, proxy: MakeProxy, site: Site, user_id: str
) -> None:
    client = clients.service(proxy(CUT, CUT).base_url, key=site.key)
    with client.spending(user_id, cost=2) as consumption:
        assert consumption.replayed
    assert ledger(user_id) == SPENT


def test_with_a_key_of_the_app_a_lost_answer_leaves_open_whose_spend_it_was(
    clients: Clients, proxy: MakeProxy, site: Site, user_id: str
) -> None:
    client = clients.service(proxy(CUT).base_url, key=site.key)
    with pytest.raises(AlreadySpent) as caught, client.spending(user_id, cost=2, key="k-1"):
        pytest.fail("the work began")
    assert caught.value.outcome_unknown


def test_the_answers_to_a_refund_may_be_lost_too(
    clients: Clients, proxy: MakeProxy, site: Site, user_id: str
) -> None:
    client = clients.service(proxy(None, CUT, CUT).base_url, key=site.key)
    with pytest.raises(WorkFailed), client.spending(user_id, cost=2):
        raise WorkFailed
    assert ledger(user_id) == GIVEN_BACK


def test_a_refund_that_fails_is_logged_with_what_repeats_it(
    clients: Clients, proxy: MakeProxy, service: Any, site: Site, user_id: str, caplog: Any
) -> None:
    client = clients.service(proxy(None, HANG, HANG, HANG).base_url, key=site.key, timeout=0.1)
    with pytest.raises(WorkFailed), client.spending(user_id, cost=2) as consumption:
        raise WorkFailed
    [record] = [it for it in caplog.records if it.name == "quotasite_client"]
    assert record.levelno == logging.ERROR
    assert record.getMessage() == (
        f"Consumption {consumption.id} of user {user_id} was not refunded: The quota service could not be "
        f"reached: no answer came. To repeat the refund, use the key refund:{consumption.id}."
    )
    assert site.key not in caplog.text


def test_work_that_was_refunded_by_its_own_code_is_not_reported(
    service: Any, user_id: str, caplog: Any
) -> None:
    def fail(consumption: Any) -> None:
        service.refund(user_id, consumption.id, reason="no result", key="r-1")
        raise WorkFailed

    with pytest.raises(WorkFailed), service.spending(user_id, cost=2) as consumption:
        fail(consumption)
    assert ledger(user_id) == GIVEN_BACK
    assert not [record for record in caplog.records if record.name == "quotasite_client"]


# Cancellation


async def cancel_scope(work: Callable[[], Awaitable[None]]) -> None:
    with anyio.move_on_after(0.2):
        await work()


async def cancel_task(work: Callable[[], Awaitable[None]]) -> None:
    task = asyncio.ensure_future(work())
    await asyncio.sleep(0.2)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


CANCELLING = [
    pytest.param("asyncio", cancel_scope, id="asyncio-scope"),
    pytest.param("asyncio", cancel_task, id="asyncio-task"),
    pytest.param("trio", cancel_scope, id="trio-scope"),
]


@pytest.mark.parametrize(("backend", "cancel"), CANCELLING)
def test_work_that_is_cancelled_is_given_back(site: Site, user_id: str, backend: str, cancel: Any) -> None:
    async def main() -> None:
        async with AsyncQuotasite(site.url, key=site.key) as client:

            async def work() -> None:
                async with client.spending(user_id, cost=2):
                    await anyio.sleep(30)

            await cancel(work)

    anyio.run(main, backend=backend)
    assert ledger(user_id) == GIVEN_BACK


@pytest.mark.parametrize(("backend", "cancel"), CANCELLING)
@pytest.mark.parametrize("fault", [LATE, HANG])
def test_a_spend_that_is_cancelled_before_its_answer_leaves_nothing_spent(
    proxy: MakeProxy, site: Site, user_id: str, backend: str, cancel: Any, fault: str
) -> None:
    through = proxy(fault)

    async def main() -> None:
        async with AsyncQuotasite(through.base_url, key=site.key) as client:

            async def work() -> None:
                async with client.spending(user_id, cost=2):
                    pytest.fail("the work began")

            await cancel(work)

    anyio.run(main, backend=backend)
    assert ledger(user_id) == GIVEN_BACK


def test_a_spend_with_a_key_of_the_app_is_not_undone_because_it_may_be_another_s(
    proxy: MakeProxy, site: Site, user_id: str
) -> None:
    through = proxy(LATE)

    async def main() -> None:
        async with AsyncQuotasite(through.base_url, key=site.key) as client:
            with anyio.move_on_after(0.2):
                async with client.spending(user_id, cost=2, key="k-1"):
                    pytest.fail("the work began")

    anyio.run(main)
    assert ledger(user_id) == SPENT


def test_a_cancelled_spend_that_cannot_be_undone_is_logged_and_stays_cancelled(
    proxy: MakeProxy, site: Site, user_id: str, caplog: Any
) -> None:
    through = proxy(LATE, HANG, HANG, HANG)

    async def main() -> None:
        async with AsyncQuotasite(through.base_url, key=site.key, timeout=0.3) as client:

            async def work() -> None:
                async with client.spending(user_id, cost=2):
                    pytest.fail("the work began")

            await cancel_task(work)

    anyio.run(main)
    [record] = [it for it in caplog.records if it.name == "quotasite_client"]
    assert record.getMessage().startswith(
        f"The interrupted spend with the key {through.seen[0].key} may stand"
    )


def test_ctrl_c_gives_back_too(service: Any, user_id: str) -> None:
    with pytest.raises(KeyboardInterrupt), service.spending(user_id, cost=2):
        raise KeyboardInterrupt
    assert ledger(user_id) == GIVEN_BACK

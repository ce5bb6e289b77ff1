"""What mypy must find out about an installed client: the types of both drivers, and two mistakes."""

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import assert_type

from quotasite_client import (
    AsyncQuotasite,
    AsyncQuotasiteUser,
    Check,
    Consumption,
    Entry,
    OwnEntry,
    Page,
    Quota,
    Quotasite,
    QuotasiteUser,
    User,
)


def in_threads(service: Quotasite, user: QuotasiteUser) -> None:
    assert_type(service.consume("user_1", cost=1, key="k"), Consumption)
    assert_type(list(service.history("user_1")), list[Entry])
    assert_type(next(user.history().pages()), Page[OwnEntry])
    assert_type(user.quota(), Quota)
    assert_type(service.spending("user_1", action="generate"), AbstractContextManager[Consumption, None])
    service.consume("user_1", cost="1", key="k")  # type: ignore[arg-type]
    service.consume("user_1", cost=1)  # type: ignore[call-arg]


async def in_an_event_loop(service: AsyncQuotasite, user: AsyncQuotasiteUser) -> None:
    assert_type(await service.consume("user_1", cost=1, key="k"), Consumption)
    assert_type([it async for it in service.users(plan="pro")], list[User])
    assert_type(await user.check(cost=1), Check)
    assert_type(service.spending("user_1"), AbstractAsyncContextManager[Consumption, None])

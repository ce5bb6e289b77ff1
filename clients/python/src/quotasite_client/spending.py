"""Spend, do the work, and give the units back if the work fails."""

import logging
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, TypeAlias

import anyio

from quotasite_client.answers import Consumption, Refund
from quotasite_client.calls import Call, of_user, post
from quotasite_client.drivers import AsyncDriver, Driver
from quotasite_client.errors import AlreadyRefunded, AlreadySpent, QuotaError
from quotasite_client.retries import Attempts, Steps, carry_out

log = logging.getLogger("quotasite_client")
OnReplay: TypeAlias = Literal["refuse", "run"]


@dataclass
class SpendingSteps:
    """What happens before one work, and when it fails. `is_new_key`: nobody else can have used the key."""

    consume: Call[Consumption]
    is_new_key: bool
    on_replay: OnReplay
    refund_reason: str
    is_begun: bool = False

    def begin(self) -> Steps[Consumption]:
        """Raises AlreadySpent if the work must not be done for this consumption."""
        if self.is_begun:
            raise RuntimeError("A spending pays for one work: call spending(…) anew for each `with`.")
        self.is_begun = True
        attempts = Attempts(self.consume)
        consumption = yield from attempts.steps()
        if self.is_new_key or not consumption.replayed:
            return consumption  # with a new key, a replay is the answer that an attempt of this call lost
        if consumption.refunded or self.on_replay == "refuse":
            raise self._already(consumption, attempts.may_be_done)
        return consumption

    def interrupted(self) -> Steps[None]:
        """Leave nothing spent if the answer to the spend was not awaited."""
        if not self.is_new_key:
            return  # the spend may be another call's
        try:
            consumption = yield from carry_out(self.consume)
        except QuotaError as error:
            if error.outcome_unknown:
                log.error("The interrupted spend with the key %s may stand: %s", error.key, error)
            return
        yield from self.give_back(consumption)

    def give_back(self, consumption: Consumption) -> Steps[None]:
        try:
            yield from carry_out(self._refund(consumption))
        except QuotaError as error:
            if error.code != "already_refunded":
                log.error(
                    "Consumption %s of user %s was not refunded: %s To repeat the refund, use the key %s.",
                    *(consumption.id, consumption.user_id, error, error.key),
                )

    def _refund(self, consumption: Consumption) -> Call[Refund]:
        path = of_user(consumption.user_id, "consumptions", consumption.id, "refund")
        return post(path, Refund, {"reason": self.refund_reason}, f"refund:{consumption.id}")

    def _already(self, consumption: Consumption, is_unsure: bool) -> AlreadySpent:
        error = (
            AlreadyRefunded("This was tried before and failed, and its units were given back: start it anew.")
            if consumption.refunded
            else AlreadySpent("This was already paid for and begun: it is not done a second time.")
        )
        error.consumption, error.key, error.outcome_unknown = consumption, self.consume.key, is_unsure
        return error


class Spending:
    def __init__(self, client: Driver, steps: SpendingSteps) -> None:
        self._client, self._steps = client, steps

    def __enter__(self) -> Consumption:
        try:
            self._consumption = self._client._run(self._steps.begin())
        except Exception:  # the spend was decided, or says that it may stand
            raise
        except BaseException:  # Ctrl-C
            self._client._run(self._steps.interrupted())
            raise
        return self._consumption

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._client._run(self._steps.give_back(self._consumption))


class AsyncSpending:
    def __init__(self, client: AsyncDriver, steps: SpendingSteps) -> None:
        self._client, self._steps = client, steps

    async def __aenter__(self) -> Consumption:
        try:
            self._consumption = await self._client._run(self._steps.begin())
        except Exception:  # the spend was decided, or says that it may stand
            raise
        except BaseException:  # cancelled
            with anyio.CancelScope(shield=True):
                await self._client._run(self._steps.interrupted())
            raise
        return self._consumption

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            with anyio.CancelScope(shield=True):
                await self._client._run(self._steps.give_back(self._consumption))

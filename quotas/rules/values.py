"""What the rules are told and what they answer with: values, and nothing that acts."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

MAX_UNITS = 2_147_483_647
USER_ID = re.compile(r"[A-Za-z0-9_:.@-]{1,128}")  # use fullmatch: `$` lets a newline through
ACTION_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


class EntryKind(StrEnum):
    """What an entry of the ledger tells."""

    OPENED = "opened"
    RESET = "reset"
    CONSUMED = "consumed"
    REFUSED = "refused"
    REFUNDED = "refunded"
    ADJUSTED = "adjusted"
    PLAN_CHANGED = "plan_changed"
    DELETED = "deleted"


class PlanSource(StrEnum):
    """Who chose a user's plan. Staff outrank Clerk's billing, that its metadata, these the default plan."""

    STAFF = "staff"
    BILLING = "billing"
    METADATA = "metadata"
    DEFAULT = "default"


class OnChange(StrEnum):
    """What a change of plan makes of the running period."""

    KEEP = "keep"
    RESET = "reset"
    PRORATE = "prorate"


NAMED_PERIODS = {"daily": timedelta(days=1), "weekly": timedelta(weeks=1), "monthly": None}


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan as it stood in one of its versions."""

    name: str
    version: int
    allowance: int | None  # units a period; None is unlimited
    reset_policy: str  # a key of RESET_POLICIES
    period: timedelta
    timezone: str
    actions: Mapping[str, int] = field(default_factory=dict)  # named action -> cost

    @property
    def window(self) -> timedelta | None:
        """How long a period is, by name: a day may have 23 hours, and months differ too much to say."""
        return NAMED_PERIODS.get(self.reset_policy, self.period)


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks: user, service, staff, webhook or command; `act` is who stands behind an impersonated user."""

    kind: str
    id: str
    act: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """A user's row, but for what Clerk alone says of him (e-mail)."""

    user_id: str
    plan: str
    plan_source: str  # of PlanSource
    plan_version: int  # by which the running period goes
    quota_limit: int | None  # the running period's allowance; None is unlimited
    quota_remaining: int  # 0 when unlimited
    last_reset_date: datetime
    anchor_at: datetime
    period_seq: int  # seq of the entry that began the running period
    refused_at: datetime | None  # the running period's first refusal
    seq: int
    updated_at: datetime
    deleted_at: datetime | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger, with the state after it."""

    id: UUID
    user_id: str
    seq: int
    kind: str
    cost: int
    delta: int
    plan: str
    plan_source: str
    plan_version: int
    quota_limit: int | None
    balance_after: int
    last_reset_date: datetime
    anchor_at: datetime
    resets_at: datetime
    period_seq: int
    created_at: datetime
    actor_kind: str
    actor_id: str
    act: str
    reason: str
    action: str
    metadata: Mapping[str, Any] | None
    idempotency_key: str | None
    fingerprint: str
    refund_of: UUID | None  # the entry that a refund is tied to

    @property
    def amount(self) -> int:
        """What a refund gave back; an unlimited quota gets the units on paper."""
        return self.cost if self.quota_limit is None else self.delta

    @property
    def is_period_closed(self) -> bool:
        """Whether a refund came too late, in a later period than the spend: it asks for nothing then."""
        return self.cost == 0


NO_IDS = (UUID(int=0), UUID(int=0))  # for a snapshot that is only judged: nothing of it is stored


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one read of the database found.

    `plan` is the user's plan as it is now, by which the next period will go; `rules` the version by
    which the running one goes. Without a row `state` is None and both are the default plan. `entry`
    is the one that the request's idempotency key already made, under `entry_plan`.
    """

    user_id: str
    clock: datetime
    current_plan: Plan
    plan_in_force: Plan
    state: State | None
    entry: Entry | None
    entry_plan: Plan | None
    entry_ids: tuple[UUID, UUID]  # fresh: no change needs more
    consumption: Entry | None = None  # what a refund is about,
    refunded: int = 0  # and the units of it that were asked back before
    target: Plan | None = None  # what a change of plan is to lead to,
    target_source: str = PlanSource.STAFF.value  # and whose choice that is

    @property
    def now(self) -> datetime:
        """The database's clock, held back from running behind the row's last change."""
        return max(self.clock, self.state.updated_at) if self.state else self.clock


@dataclass(frozen=True, slots=True)
class Request:
    """Who asks, and what the entry shall remember of it."""

    actor: Actor
    reason: str = ""
    action: str = ""
    metadata: Mapping[str, Any] | None = None
    idempotency_key: str | None = None  # as stored: verb:kind of principal:key
    fingerprint: str = ""
    refund_of: UUID | None = None


@dataclass(frozen=True, slots=True)
class Quota:
    """How a quota stands at one instant: what every answer is made from."""

    user_id: str
    plan: Plan
    quota_limit: int | None
    quota_remaining: int
    last_reset_date: datetime
    resets_at: datetime
    at: datetime

    @property
    def is_unlimited(self) -> bool:
        return self.quota_limit is None

    @property
    def spendable(self) -> int:
        """Units that can be spent now."""
        return MAX_UNITS if self.quota_limit is None else self.quota_remaining

    @property
    def used(self) -> int:
        return max(0, self.quota_limit - self.quota_remaining) if self.quota_limit is not None else 0

    @property
    def seconds_to_reset(self) -> int:
        """Whole seconds until the reset, rounded up."""
        return max(0, math.ceil((self.resets_at - self.at) / timedelta(seconds=1)))


def rfc3339(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat().replace("+00:00", "Z")

"""The values that the rules take and return: plans, states, entries, snapshots, requests and quotas."""

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple
from uuid import UUID

MAX_UNITS = 2_147_483_647
MAX_PERIOD = timedelta(days=3_660)
USER_ID = re.compile(r"[A-Za-z0-9_:.@-]{1,128}")  # use fullmatch: `$` also matches before a final newline
CLERK_USER_ID = re.compile(r"user_[A-Za-z0-9]+")
PLAN_NAME = re.compile(r"[a-z0-9_-]{1,40}")
ACTION_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


class EntryKind(StrEnum):
    OPENED = "opened"
    IMPORTED = "imported"
    RESET = "reset"
    CONSUMED = "consumed"
    REFUSED = "refused"
    REFUNDED = "refunded"
    ADJUSTED = "adjusted"
    PLAN_CHANGED = "plan_changed"
    DELETED = "deleted"


class PlanSource(StrEnum):
    """Who chose a user's plan. Staff outrank Clerk, whose own order is in `INCLUDES` of store/sql.py."""

    STAFF = "staff"
    BILLING = "billing"
    METADATA = "metadata"
    DEFAULT = "default"


class OnChange(StrEnum):
    """What a change of plan does to the running period; see `verbs.change_plan`."""

    KEEP = "keep"
    RESET = "reset"
    PRORATE = "prorate"


NAMED_PERIODS = {"daily": timedelta(days=1), "weekly": timedelta(weeks=1), "monthly": None}


class Plan(NamedTuple):
    """One version of a plan."""

    name: str
    version: int
    allowance: int | None  # units per period; None is unlimited
    reset_policy: str  # a key of RESET_POLICIES
    period: timedelta
    timezone: str
    actions: Mapping[str, int] = {}  # cost by action name

    @property
    def window(self) -> timedelta | None:
        """The nominal length of a period: a day may have 23 hours. None for months, which differ too much."""
        return NAMED_PERIODS.get(self.reset_policy, self.period)

    @property
    def longest_window(self) -> timedelta:
        """The same, with 31 days for a month."""
        return self.window or timedelta(days=31)


class Actor(NamedTuple):
    """The author of a request; `act` is the impersonator of a user, if any."""

    kind: str  # user, service, staff, webhook or command
    id: str
    act: str = ""


class State(NamedTuple):
    """A user's row, except the e-mail and its time, which no rule reads."""

    user_id: str
    plan: str
    plan_source: str  # a value of PlanSource
    plan_version: int  # in force in the running period
    quota_limit: int | None  # the running period's allowance; None is unlimited
    quota_remaining: int  # what `remaining` makes of the limit and the next two; 0 when unlimited
    period_consumed: int  # in this period, less refunds; not what was spent under no limit
    period_given: int  # in this period by staff; negative if they took more than they gave
    last_reset_date: datetime
    resets_at: datetime
    anchor_at: datetime
    period_seq: int  # seq of the running period's first entry
    refused_at: datetime | None  # the running period's first refusal
    left_until: datetime | None  # until then a change of plan must ask the ledger for periods that were left
    seq: int
    usage_seq: int | None  # the `seq` at which usage, resets_at and left_until were written
    updated_at: datetime
    deleted_at: datetime | None

    @property
    def is_usage_known(self) -> bool:
        """Whether a release that keeps the usage was the last to write the row."""
        return self.usage_seq == self.seq


def remaining(limit: int | None, given: int, consumed: int) -> int:
    """The units left of an allowance: never negative, however many more were consumed under another plan."""
    return 0 if limit is None else min(max(0, limit + given - consumed), MAX_UNITS)


def usage_shown(
    limit: int | None, balance: int, consumed: int | None = None, given: int | None = None
) -> tuple[int, int]:
    """The units consumed and given; of a record that does not state them, what its balance shows of them."""
    if consumed is not None and given is not None:
        return consumed, given
    above = balance - (limit or 0)
    return max(0, -above), max(0, above)


class Usage(NamedTuple):
    """What the ledger says of the period in which a plan finds a user; see `periods.Lookback`.

    If the plan was left in that period, it goes on under the version, with the limit and until the end that
    it had then; otherwise `plan` is None.
    """

    begins_at: datetime
    period_seq: int  # seq of its first entry
    consumed: int
    given: int
    refused_at: datetime | None
    left_until: datetime
    plan: Plan | None = None
    limit: int | None = None
    ends_at: datetime | None = None


class Entry(NamedTuple):
    """A ledger entry: what happened, and the state after it."""

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
    period_consumed: int | None  # None in an entry of a release that did not keep it, and so is the next
    period_given: int | None
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
    refund_of: UUID | None  # the consumption that a refund belongs to

    @property
    def amount(self) -> int:
        """The units that a refund gave back; those of an unlimited quota change no balance."""
        return self.cost if self.quota_limit is None else self.delta

    @property
    def is_period_closed(self) -> bool:
        """Whether a refund came after the period of its consumption: such a refund has a cost of 0."""
        return self.cost == 0


NO_IDS = (UUID(int=0), UUID(int=0))  # for a snapshot whose outcome is never stored


class Snapshot(NamedTuple):
    """What one read of the database found about a user.

    `current_plan` is the user's plan in its newest version, under which the next period runs; `plan_in_force`
    is the version under which the running period runs. Without a row `state` is None and both are the default
    plan. `entry` is the one that an earlier request with the same idempotency key made, under `entry_plan`;
    if it is a consumption, `entry_refunded` are its units that refunds asked for.
    """

    user_id: str
    clock: datetime
    current_plan: Plan
    plan_in_force: Plan
    state: State | None
    entry: Entry | None
    entry_plan: Plan | None
    entry_ids: Sequence[UUID] | Mapping[int, UUID]  # of the first new entry, of the second
    entry_refunded: int = 0
    consumption: Entry | None = None  # the entry to refund or to show,
    consumption_plan: Plan | None = None  # the version it was made under,
    refunded: int = 0  # and its units that earlier refunds asked for
    target: Plan | None = None  # the plan to change to,
    target_source: str = PlanSource.STAFF.value  # the source of that choice,
    usage: Usage | None = None  # and what was consumed in the period in which the target finds the user

    @property
    def now(self) -> datetime:
        """The database's clock, or the time of the row's last change if the clock was set back.

        See `verbs.reset` for a row that a clock that was ahead dated into the future.
        """
        return max(self.clock, self.state.updated_at) if self.state else self.clock


class ImportedUsage(NamedTuple):
    """What another service knew of a user: the units used in the running period, or those that remained."""

    last_reset_date: datetime
    used: int | None
    remaining: int | None = None  # read if `used` is None


class Request(NamedTuple):
    """The author of a request, and what its entry records."""

    actor: Actor
    reason: str = ""
    action: str = ""
    metadata: Mapping[str, Any] | None = None
    idempotency_key: str | None = None  # as stored: verb:kind of actor:key
    fingerprint: str = ""
    refund_of: UUID | None = None
    may_open: bool = True  # whether it may open a missing quota


class Quota(NamedTuple):
    """A quota at the instant `at` of the database's clock, as the API and the admin show it."""

    user_id: str
    plan: Plan
    quota_limit: int | None
    quota_remaining: int
    used: int  # consumed, less refunds
    given: int  # by staff
    last_reset_date: datetime
    resets_at: datetime
    at: datetime

    @property
    def is_unlimited(self) -> bool:
        return self.quota_limit is None

    @property
    def spendable(self) -> int:
        """The units that can be spent; MAX_UNITS if unlimited."""
        return MAX_UNITS if self.quota_limit is None else self.quota_remaining

    @property
    def seconds_to_reset(self) -> int:
        """Whole seconds from `at` to the reset, rounded up; 0 if it is past."""
        return max(0, math.ceil((self.resets_at - self.at) / timedelta(seconds=1)))


def rfc3339(instant: datetime) -> str:
    """Return the one form of an instant for programs: UTC, six digits of the second, Z."""
    return instant.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")

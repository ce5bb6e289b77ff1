"""The answers of the API as values. Members that a newer service adds are ignored."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from datetime import datetime
from functools import cache
from types import UnionType
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


@dataclass(frozen=True)
class SimpleQuota:
    user_id: str
    quota_remaining: int
    last_reset_date: datetime


@dataclass(frozen=True)
class Quota:
    user_id: str
    plan: str
    unlimited: bool
    quota_limit: int | None  # None: unlimited
    quota_used: int
    quota_remaining: int
    reset_policy: str
    period_seconds: int | None  # None: calendar months
    timezone: str
    last_reset_date: datetime
    resets_at: datetime
    seconds_to_reset: int


@dataclass(frozen=True)
class ChangedQuota(Quota):
    """The quota after a reset or a change of plan."""

    replayed: bool = False


@dataclass(frozen=True)
class Receipt:
    """The entry that a write made. If `replayed`, an earlier request with the same key made it."""

    id: str
    user_id: str
    seq: int
    created_at: datetime
    quota: Quota


@dataclass(frozen=True)
class Consumption(Receipt):
    cost: int
    action: str | None
    refunded: int = 0  # units of it that were given back so far
    replayed: bool = False


@dataclass(frozen=True)
class Refund(Receipt):
    consumption_id: str
    amount: int  # 0 if the period of the consumption is over
    period_closed: bool
    replayed: bool = False


@dataclass(frozen=True)
class Adjustment(Receipt):
    delta: int
    reason: str
    replayed: bool = False


@dataclass(frozen=True)
class Check:
    """Whether a spend would be granted now, and what it would leave."""

    allowed: bool
    cost: int
    remaining_after: int | None
    code: str | None
    detail: str
    resets_at: datetime
    retry_after: int | None
    quota: Quota


@dataclass(frozen=True)
class Actor:
    kind: str
    id: str
    act: str | None


@dataclass(frozen=True)
class OwnEntry:
    """An entry of the ledger, as its user may see it."""

    id: str
    seq: int
    kind: str
    delta: int
    balance_after: int
    action: str | None
    created_at: datetime
    metadata: Mapping[str, Any] | None


@dataclass(frozen=True)
class Entry(OwnEntry):
    cost: int
    plan: str
    plan_source: str
    quota_limit: int | None
    used_after: int | None
    given_after: int | None
    last_reset_date: datetime
    resets_at: datetime
    period_seq: int
    actor: Actor
    reason: str | None
    refund_of: str | None


@dataclass(frozen=True)
class Spend:
    """Whether a spend would have been granted."""

    cost: int
    granted: bool
    code: str | None
    detail: str | None


@dataclass(frozen=True)
class Explanation:
    at: datetime
    deleted: bool
    reset_was_due: bool
    plan_source: str
    quota: Quota
    spend: Spend
    entries: tuple[Entry, ...]
    sentence: str = ""


@dataclass(frozen=True)
class PublicPlan:
    name: str
    is_default: bool
    unlimited: bool
    allowance: int | None
    reset_policy: str
    period_seconds: int | None
    timezone: str
    actions: Mapping[str, int]


@dataclass(frozen=True)
class User:
    """A user in the list of users, with the quota that a request would find."""

    user_id: str
    email: str | None
    plan: str
    plan_source: str
    quota_limit: int | None
    quota_remaining: int
    quota_used: int
    last_reset_date: datetime
    resets_at: datetime
    updated_at: datetime
    deleted_at: datetime | None


@dataclass(frozen=True)
class Page(Generic[T]):
    items: tuple[T, ...]
    next_cursor: str | None  # None on the last page


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))  # before 3.11 Python reads no Z


def decode(kind: type[T], members: Any) -> T:
    """Raises KeyError, TypeError or ValueError if the members are not those of this kind."""
    hinted: Any = kind
    given = {
        field.name: _decoded(hint, members[field.name])
        for field, hint in _fields(hinted)
        if field.name in members or field.default is MISSING
    }
    return kind(**given)


@cache
def _fields(kind: Any) -> list[tuple[Any, Any]]:
    hints = get_type_hints(kind)
    return [(field, hints[field.name]) for field in fields(kind)]


def _decoded(hint: Any, value: Any) -> Any:
    if isinstance(hint, UnionType):  # with None
        return None if value is None else _decoded(get_args(hint)[0], value)
    if is_dataclass(hint):
        return decode(hint, value)  # type: ignore[arg-type]
    if hint is datetime:
        return instant(value)
    if get_origin(hint) is tuple:
        return tuple(_decoded(get_args(hint)[0], part) for part in value)
    if not isinstance(value, get_origin(hint) or hint):
        raise TypeError(f"{value!r} is no {hint}")
    return value

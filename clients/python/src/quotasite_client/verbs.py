"""The verbs of the API, each described once. Every write has a key, which names one action: however often
the request is sent with it, it is carried out once.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Literal
from uuid import uuid4

from quotasite_client.answers import (
    Adjustment,
    ChangedQuota,
    Check,
    Consumption,
    Entry,
    Explanation,
    OwnEntry,
    Page,
    PublicPlan,
    Quota,
    Refund,
    SimpleQuota,
    User,
)
from quotasite_client.bound import context, listing, verb
from quotasite_client.calls import Call, checked_key, get, get_list, get_page, given, of_user, post
from quotasite_client.spending import OnReplay, SpendingSteps


class SharedVerbs:
    @verb
    def plans(self) -> Call[tuple[PublicPlan, ...]]:
        """Return the public plans."""
        return get_list("/api/v1/plans", "plans", PublicPlan)


class UserVerbs(SharedVerbs):
    """What signed-in users may do, on their own quota."""

    @verb
    def simple_quota(self) -> Call[SimpleQuota]:
        """Return the three members of `GET /api/quota`."""
        return get("/api/quota", SimpleQuota)

    @verb
    def quota(self) -> Call[Quota]:
        """Return the quota, with plan, period and reset."""
        return get("/api/v1/quota", Quota)

    @verb
    def consume(
        self,
        *,
        cost: int | None = None,
        action: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        key: str | None = None,
    ) -> Call[Consumption]:
        """Spend, all or nothing; each call is a new action unless it has the key of an earlier one."""
        body = given(cost=cost, action=action, metadata=metadata)
        return post("/api/v1/quota/consume", Consumption, body, new_or_checked(key))

    @verb
    def check(self, *, cost: int | None = None, action: str | None = None) -> Call[Check]:
        """Return whether a spend would be granted now. Spends and writes nothing."""
        return post("/api/v1/quota/check", Check, given(cost=cost, action=action))

    @listing
    def history(self, *, limit: int | None = None, cursor: str | None = None) -> Call[Page[OwnEntry]]:
        """Iterate over the ledger, newest first, in pages of `limit`."""
        return get_page("/api/v1/quota/history", "entries", OwnEntry, limit=limit, cursor=cursor)


class ServiceVerbs(SharedVerbs):
    """What the scopes of a service key allow, on every user's quota."""

    @verb
    def quota(self, user_id: str) -> Call[Quota]:
        """Return the user's quota, opened if it is missing. Scope: read."""
        return get(of_user(user_id, "quota"), Quota)

    @verb
    def consume(
        self,
        user_id: str,
        *,
        key: str,
        cost: int | None = None,
        action: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Call[Consumption]:
        """Spend, all or nothing. Do no work for an answer that is `replayed`. Scope: consume."""
        body = given(cost=cost, action=action, metadata=metadata)
        return post(of_user(user_id, "consume"), Consumption, body, checked_key(key))

    @verb
    def check(self, user_id: str, *, cost: int | None = None, action: str | None = None) -> Call[Check]:
        """Return whether a spend would be granted now. Spends and writes nothing. Scope: read."""
        return post(of_user(user_id, "check"), Check, given(cost=cost, action=action))

    @verb
    def refund(
        self, user_id: str, consumption_id: str, *, reason: str, key: str, amount: int | None = None
    ) -> Call[Refund]:
        """Give back units of a consumption, without `amount` all that are left of it. Scope: refund."""
        path = of_user(user_id, "consumptions", consumption_id, "refund")
        return post(path, Refund, given(reason=reason, amount=amount), checked_key(key))

    @verb
    def adjust(self, user_id: str, delta: int, *, reason: str, key: str) -> Call[Adjustment]:
        """Add units until the next reset, or take them away. Scope: adjust."""
        body = {"delta": delta, "reason": reason}
        return post(of_user(user_id, "adjust"), Adjustment, body, checked_key(key))

    @verb
    def reset(self, user_id: str, *, reason: str, key: str) -> Call[ChangedQuota]:
        """Refill to the plan's allowance now. Scope: admin."""
        return post(of_user(user_id, "reset"), ChangedQuota, {"reason": reason}, checked_key(key))

    @verb
    def change_plan(
        self,
        user_id: str,
        plan: str | None,
        *,
        key: str,
        on_change: Literal["keep", "reset", "prorate"] = "keep",
        reason: str | None = None,
    ) -> Call[ChangedQuota]:
        """Give the user another plan; None: the one that Clerk or the default leads to. Scope: admin."""
        body = {"plan": plan, "on_change": on_change, **given(reason=reason)}
        return replace(post(of_user(user_id, "plan"), ChangedQuota, body, checked_key(key)), method="PUT")

    @listing
    def history(
        self, user_id: str, *, limit: int | None = None, cursor: str | None = None
    ) -> Call[Page[Entry]]:
        """Iterate over the user's ledger, newest first, in pages of `limit`. Scope: read."""
        return get_page(of_user(user_id, "history"), "entries", Entry, limit=limit, cursor=cursor)

    @verb
    def explain(
        self, user_id: str, *, at: datetime | None = None, cost: int | None = None
    ) -> Call[Explanation]:
        """Return the quota at a time, the entries behind it, and what a spend would meet. Scope: read."""
        return get(of_user(user_id, "explain"), Explanation, at=instant_text("at", at), cost=cost)

    @verb
    def consumption(self, user_id: str, consumption_id: str) -> Call[Consumption]:
        """Return a consumption, such as one that a browser made. Scope: read."""
        return get(of_user(user_id, "consumptions", consumption_id), Consumption)

    @listing
    def users(
        self,
        *,
        plan: str | None = None,
        exhausted: bool | None = None,
        deleted: bool | None = None,
        seen_since: datetime | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Call[Page[User]]:
        """Iterate over the users in the order of their ids, in pages of `limit`. Scope: read."""
        return get_page(
            "/api/v1/users",
            "users",
            User,
            plan=plan,
            exhausted=flag_text(exhausted),
            deleted=flag_text(deleted),
            seen_since=instant_text("seen_since", seen_since),
            limit=limit,
            cursor=cursor,
        )

    @context
    def spending(
        self,
        user_id: str,
        *,
        cost: int | None = None,
        action: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        key: str | None = None,
        on_replay: OnReplay = "refuse",
        refund_reason: str = "The work failed.",
    ) -> SpendingSteps:
        """Spend, run the block, and refund if it raises or is cancelled. Scopes: consume, refund.

        Without a key, each `with` is a new action. Raises AlreadySpent if the key was used before; with
        `on_replay="run"` the block runs again then, unless its consumption was refunded: only for work that
        may be done twice.
        """
        body = given(cost=cost, action=action, metadata=metadata)
        consume = post(of_user(user_id, "consume"), Consumption, body, new_or_checked(key))
        return SpendingSteps(consume, key is None, on_replay, refund_reason)


def new_or_checked(key: str | None) -> str:
    return str(uuid4()) if key is None else checked_key(key)


def flag_text(flag: bool | None) -> str | None:
    return None if flag is None else str(flag).lower()


def instant_text(name: str, instant: datetime | None) -> str | None:
    """Raises ValueError for a time without a zone, which could be any."""
    if instant is None:
        return None
    if instant.tzinfo is None:
        raise ValueError(f"{name}: pass a time with its zone, such as datetime.now(timezone.utc).")
    return instant.isoformat()

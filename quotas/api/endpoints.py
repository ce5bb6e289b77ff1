"""Every endpoint of the API: its route, who may call it, its messages, its verb and its own problems.

URLs, both servers (api/views.py, quotasite/serving), the OpenAPI description and the request log read this
table; respond.py carries a row out. A function here translates one request to a verb of the manager, and the
result to a message. The rules are in quotas/rules.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple
from uuid import UUID

from django.urls.resolvers import RoutePattern
from msgspec import Struct

from quotas import problems
from quotas.access.callers import Caller, User
from quotas.access.service_keys import Service
from quotas.api import queries
from quotas.api.messages import (
    AdjustmentAnswer,
    AdjustRequest,
    Body,
    ChangePlanRequest,
    CheckAnswer,
    CheckRequest,
    ConsumeRequest,
    ConsumptionAnswer,
    EntryAnswer,
    ExplanationAnswer,
    HistoryAnswer,
    OwnEntryAnswer,
    OwnHistoryAnswer,
    PublicPlanAnswer,
    PublicPlansAnswer,
    QuotaAnswer,
    RefundAnswer,
    RefundRequest,
    ResetRequest,
    SimpleQuotaAnswer,
    UserAnswer,
    UserPageAnswer,
)
from quotas.api.responses import Success
from quotas.models import ChallengeQuota
from quotas.reports import history
from quotas.reports.users import UserFilter, users_page
from quotas.rules.values import MAX_UNITS, PLAN_NAME, USER_ID, OnChange, rfc3339
from quotas.store.manager import Receipt
from quotas.store.steps import InThread, Steps

quotas = ChallengeQuota.objects
PATH_PARAMETERS = {"user_id": "str", "consumption_id": "uuid"}  # and Django's converters


class CheckedCall(NamedTuple):
    """A call of an endpoint that was checked: who calls, about which user, and what they sent."""

    caller: Caller
    user_id: str
    body: Any  # of the endpoint's type of request
    key: str | None
    path: dict[str, str]
    query: str

    @property
    def options(self) -> dict[str, Any]:
        """The options of the verb: what was sent in the body, the key, and the author."""
        return {**self.body.given, "key": self.key, "actor": self.caller.actor}


@dataclass(frozen=True)
class OwnQuota:
    """For signed-in users, on their own quota."""

    requires_key = False

    def user_of(self, caller: Caller, path: dict[str, str]) -> str:
        if not isinstance(caller, User):
            raise problems.USER_ONLY()
        return caller.user_id


@dataclass(frozen=True)
class Scope:
    """For service keys with this scope, on the quota of the user in the path, or on all without one."""

    name: str
    requires_key = True

    def user_of(self, caller: Caller, path: dict[str, str]) -> str:
        if not isinstance(caller, Service):
            raise problems.SERVICE_ONLY()
        if self.name not in caller.scopes:
            raise problems.SCOPE_MISSING(scope=self.name)
        if "user_id" not in path:
            return ""
        if not USER_ID.fullmatch(path["user_id"]):
            raise problems.UNKNOWN_USER_ID()
        return path["user_id"]


@dataclass(frozen=True)
class AnyCaller:
    """For every user and every service."""

    requires_key = False

    def user_of(self, caller: Caller, path: dict[str, str]) -> str:
        return ""


@dataclass(frozen=True)
class Endpoint:
    """One operation of the API.

    `verb` is its name in the log and the metrics, `id` and `summary` are for the description. `problems` are
    those of its verb, besides those of its access and its body.
    """

    id: str
    verb: str
    method: str
    path: str  # with parameters in braces
    access: OwnQuota | Scope | AnyCaller
    run: Callable[[CheckedCall], Steps[Success]]
    answer: type[Struct]
    summary: str
    body: type[Body] | None = None
    status: int = 200
    parameters: tuple[str, ...] = ()  # of the query
    problems: tuple[str, ...] = ()  # codes

    @cached_property
    def route(self) -> str:
        """The path as Django writes it, below /api/."""
        return re.sub(r"\{(\w+)\}", lambda found: f"<{PATH_PARAMETERS[found[1]]}:{found[1]}>", self.path)

    @property
    def reads_key(self) -> bool:
        """Whether a request may have an Idempotency-Key: if it may change something."""
        return self.body is not None and self.verb != "check"

    @property
    def requires_key(self) -> bool:
        """Whether a request without an Idempotency-Key is refused: on PUT a retry is safe without one."""
        return self.reads_key and self.access.requires_key and self.method == "POST"


def read_simple(call: CheckedCall) -> Steps[Success]:
    quota = yield from quotas.current.steps(call.user_id, actor=call.caller.actor)
    return Success(SimpleQuotaAnswer.of(quota), quota)


def read(call: CheckedCall) -> Steps[Success]:
    quota = yield from quotas.current.steps(call.user_id, actor=call.caller.actor)
    return Success(QuotaAnswer.of(quota), quota)


def consume(call: CheckedCall) -> Steps[Success]:
    receipt = yield from quotas.consume.steps(call.user_id, **call.options)
    return _success(ConsumptionAnswer.of(receipt), receipt, cost=receipt.entry.cost)


def check(call: CheckedCall) -> Steps[Success]:
    forecast = yield from quotas.forecast.steps(call.user_id, **call.body.given, actor=call.caller.actor)
    return Success(CheckAnswer.of(forecast), forecast.quota)


def consumption(call: CheckedCall) -> Steps[Success]:
    receipt = yield from quotas.consumption.steps(call.user_id, UUID(call.path["consumption_id"]))
    return _success(ConsumptionAnswer.of(receipt), receipt)


def refund(call: CheckedCall) -> Steps[Success]:
    spend = UUID(call.path["consumption_id"])
    receipt = yield from quotas.refund.steps(call.user_id, spend, **call.options)
    return _success(RefundAnswer.of(receipt), receipt)


def adjust(call: CheckedCall) -> Steps[Success]:
    receipt = yield from quotas.adjust.steps(call.user_id, **call.options)
    return _success(AdjustmentAnswer.of(receipt), receipt)


def reset(call: CheckedCall) -> Steps[Success]:
    receipt = yield from quotas.reset.steps(call.user_id, **call.options)
    return _success(QuotaAnswer.of(receipt.quota), receipt)


def change_plan(call: CheckedCall) -> Steps[Success]:
    options = call.options | {"on_change": OnChange(call.body.on_change)}
    changed = yield from quotas.change_plan.steps(call.user_id, **options)
    return Success(QuotaAnswer.of(changed.quota), changed.quota_now, changed.is_replay)


def own_history(call: CheckedCall) -> Steps[Success]:
    limit, before = queries.page(call.query)
    page = yield InThread(partial(queries.ledger_page, call.user_id, limit, before, OwnEntryAnswer.of))
    return Success(OwnHistoryAnswer(*page))


def full_history(call: CheckedCall) -> Steps[Success]:
    limit, before = queries.page(call.query)
    page = yield InThread(partial(queries.ledger_page, call.user_id, limit, before, EntryAnswer.of))
    return Success(HistoryAnswer(*page))


def explain(call: CheckedCall) -> Steps[Success]:
    given = queries.parameters(call.query)
    at, cost = queries.instant(given, "at"), queries.number(given, "cost", 1, MAX_UNITS)
    try:
        explained = yield InThread(partial(history.explain, call.user_id, at, cost))
    except history.NotOpenedYet:
        raise problems.NOT_OPENED_YET() from None
    except history.HistoryPruned as error:
        earliest = rfc3339(error.earliest)
        raise problems.HISTORY_PRUNED(earliest=earliest, members={"earliest": earliest}) from None
    return Success(ExplanationAnswer.of(explained, cost))


def list_users(call: CheckedCall) -> Steps[Success]:
    given = queries.parameters(call.query)
    wanted = UserFilter(
        plan=queries.matching(given, "plan", PLAN_NAME, "must be the name of a plan."),
        is_exhausted=queries.truth(given, "exhausted"),
        is_deleted=queries.truth(given, "deleted") or False,
        seen_since=queries.instant(given, "seen_since"),
    )
    limit = queries.number(given, "limit", queries.DEFAULT_PAGE_SIZE, queries.MAX_PAGE_SIZE)
    after = queries.matching(given, "cursor", USER_ID, "must be the next_cursor of the page before.")
    page = yield InThread(partial(users_page, wanted, after=after or "", limit=limit))
    return Success(UserPageAnswer([UserAnswer.of(*user) for user in page.users], page.next_after))


def list_plans(call: CheckedCall) -> Steps[Success]:
    plans = yield InThread(queries.public_plans)
    return Success(PublicPlansAnswer([PublicPlanAnswer.of(plan) for plan in plans]))


def _success(answer: Struct, receipt: Receipt, cost: int | None = None) -> Success:
    return Success(answer, receipt.quota_now, receipt.is_replay, cost)


CHECK = ("user_deleted", "unknown_action", "cost_below_price")
SPEND = (*CHECK, "cost_exceeds_limit", "quota_exhausted")
ENDPOINTS = [
    Endpoint(
        id="getSimpleQuota",
        verb="read",
        method="GET",
        path="quota",
        access=OwnQuota(),
        run=read_simple,
        answer=SimpleQuotaAnswer,
        summary="The balance that can be spent now",
        problems=("user_deleted",),
    ),
    Endpoint(
        id="getOwnQuota",
        verb="read",
        method="GET",
        path="v1/quota",
        access=OwnQuota(),
        run=read,
        answer=QuotaAnswer,
        summary="The quota, with plan, period and reset",
        problems=("user_deleted",),
    ),
    Endpoint(
        id="consumeOwn",
        verb="consume",
        method="POST",
        path="v1/quota/consume",
        access=OwnQuota(),
        run=consume,
        body=ConsumeRequest,
        answer=ConsumptionAnswer,
        status=201,
        summary="Spend, all or nothing",
        problems=SPEND,
    ),
    Endpoint(
        id="checkOwn",
        verb="check",
        method="POST",
        path="v1/quota/check",
        access=OwnQuota(),
        run=check,
        body=CheckRequest,
        answer=CheckAnswer,
        summary="Whether a spend would be granted; spends nothing",
        problems=CHECK,
    ),
    Endpoint(
        id="getOwnHistory",
        verb="history",
        method="GET",
        path="v1/quota/history",
        access=OwnQuota(),
        run=own_history,
        answer=OwnHistoryAnswer,
        parameters=("limit", "cursor"),
        summary="The ledger, newest first",
        problems=("user_deleted", "invalid_request"),
    ),
    Endpoint(
        id="getUsers",
        verb="users",
        method="GET",
        path="v1/users",
        access=Scope("read"),
        run=list_users,
        answer=UserPageAnswer,
        parameters=("plan", "exhausted", "deleted", "seen_since", "limit", "user_cursor"),
        summary="The users in the order of their ids, with their quotas as of now",
        problems=("invalid_request", "unknown_plan", "instant_in_future"),
    ),
    Endpoint(
        id="getQuota",
        verb="read",
        method="GET",
        path="v1/users/{user_id}/quota",
        access=Scope("read"),
        run=read,
        answer=QuotaAnswer,
        summary="A user's quota, opened if missing",
        problems=("unknown_user", "user_deleted"),
    ),
    Endpoint(
        id="consume",
        verb="consume",
        method="POST",
        path="v1/users/{user_id}/consume",
        access=Scope("consume"),
        run=consume,
        body=ConsumeRequest,
        answer=ConsumptionAnswer,
        status=201,
        summary="Spend for a user, all or nothing",
        problems=("unknown_user", *SPEND),
    ),
    Endpoint(
        id="check",
        verb="check",
        method="POST",
        path="v1/users/{user_id}/check",
        access=Scope("read"),
        run=check,
        body=CheckRequest,
        answer=CheckAnswer,
        summary="Whether a spend of a user would be granted; spends nothing",
        problems=("unknown_user", *CHECK),
    ),
    Endpoint(
        id="getHistory",
        verb="history",
        method="GET",
        path="v1/users/{user_id}/history",
        access=Scope("read"),
        run=full_history,
        answer=HistoryAnswer,
        parameters=("limit", "cursor"),
        summary="A user's ledger, newest first",
        problems=("user_deleted", "invalid_request"),
    ),
    Endpoint(
        id="getConsumption",
        verb="consumption",
        method="GET",
        path="v1/users/{user_id}/consumptions/{consumption_id}",
        access=Scope("read"),
        run=consumption,
        answer=ConsumptionAnswer,
        summary="A consumption as it was answered, and how much of it was refunded",
        problems=("user_deleted", "consumption_not_found"),
    ),
    Endpoint(
        id="refund",
        verb="refund",
        method="POST",
        path="v1/users/{user_id}/consumptions/{consumption_id}/refund",
        access=Scope("refund"),
        run=refund,
        body=RefundRequest,
        answer=RefundAnswer,
        status=201,
        summary="Give back units of a consumption",
        problems=(
            "unknown_user",
            "user_deleted",
            "consumption_not_found",
            "refund_too_large",
            "already_refunded",
        ),
    ),
    Endpoint(
        id="adjust",
        verb="adjust",
        method="POST",
        path="v1/users/{user_id}/adjust",
        access=Scope("adjust"),
        run=adjust,
        body=AdjustRequest,
        answer=AdjustmentAnswer,
        status=201,
        summary="Add units, or take them away, until the next reset",
        problems=("unknown_user", "user_deleted", "adjustment_out_of_range"),
    ),
    Endpoint(
        id="reset",
        verb="reset",
        method="POST",
        path="v1/users/{user_id}/reset",
        access=Scope("admin"),
        run=reset,
        body=ResetRequest,
        answer=QuotaAnswer,
        summary="Refill to the plan's allowance now",
        problems=("unknown_user", "user_deleted"),
    ),
    Endpoint(
        id="changePlan",
        verb="change_plan",
        method="PUT",
        path="v1/users/{user_id}/plan",
        access=Scope("admin"),
        run=change_plan,
        body=ChangePlanRequest,
        answer=QuotaAnswer,
        summary="Give a user another plan",
        problems=("unknown_user", "user_deleted", "unknown_plan"),
    ),
    Endpoint(
        id="explain",
        verb="explain",
        method="GET",
        path="v1/users/{user_id}/explain",
        access=Scope("read"),
        run=explain,
        answer=ExplanationAnswer,
        parameters=("at", "cost"),
        summary="How a quota came to its state at a past time, and whether a spend would have been granted",
        problems=("invalid_request", "not_opened_yet", "history_pruned", "instant_in_future"),
    ),
    Endpoint(
        id="getPlans",
        verb="plans",
        method="GET",
        path="v1/plans",
        access=AnyCaller(),
        run=list_plans,
        answer=PublicPlansAnswer,
        summary="The public plans",
    ),
]


_PREFIX = "api/"  # in quotasite/urls.py
_FIXED = {
    (endpoint.method, f"/{_PREFIX}{endpoint.path}"): endpoint
    for endpoint in ENDPOINTS
    if "{" not in endpoint.path
}
_WITH_PARAMETERS = [
    (endpoint, RoutePattern(_PREFIX + endpoint.route, is_endpoint=True))
    for endpoint in ENDPOINTS
    if "{" in endpoint.path
]


def find(method: str, path: str) -> tuple[Endpoint, dict[str, str]] | None:
    """Return the endpoint of a request, and the parameters in its path, as Django's URLs find them."""
    if endpoint := _FIXED.get((method, path)):
        return endpoint, {}
    for endpoint, pattern in _WITH_PARAMETERS:
        if endpoint.method == method and (found := pattern.match(path[1:])):
            return endpoint, {name: str(value) for name, value in found[2].items()}
    return None

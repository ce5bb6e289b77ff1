"""The API: each view translates HTTP to a verb of the manager and back. The rules are in quotas/rules."""

import json
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, ClassVar, cast
from uuid import UUID

from django.utils.dateparse import parse_datetime
from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import Serializer
from rest_framework.views import APIView

from quotas.access.callers import Caller, User
from quotas.access.service_keys import Service
from quotas.api import messages, rate_limit
from quotas.api.idempotency import idempotency_key, required_key
from quotas.api.problems import Problem
from quotas.models import ChallengeQuota, Plan
from quotas.reports import history
from quotas.rules.values import MAX_UNITS, USER_ID, OnChange, Quota, rfc3339
from quotas.store.errors import read_with_reconnect

DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE = 50, 200  # entries
MAX_PAGE_BYTES = 2**20  # more than a page of today's longest entries has
# In the WSGI environ: the error that the fast path met (quotasite/serving/fast_path.py), or None.
FAST_PATH_ERROR = "quotasite.raised"
quotas = ChallengeQuota.objects


class QuotaView(APIView):
    """A view on quotas, whose responses no cache may store."""

    def finalize_response(self, request: Request, response: Any, *args: Any, **kwargs: Any) -> Response:
        response["Cache-Control"] = "no-store"
        return super().finalize_response(request, response, *args, **kwargs)

    @property
    def caller(self) -> Caller:
        return cast(Caller, self.request.user)


class UserView(QuotaView):
    """For signed-in users, on their own quota."""

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        if not isinstance(self.caller, User):
            detail = "This address is for signed-in users: with a service key, use /api/v1/users/."
            raise Problem(403, "user_only", detail)
        self.user_id = self.caller.user_id
        if error := request.META.get(FAST_PATH_ERROR):
            raise error


class ServiceView(QuotaView):
    """For a service key with `scope`, on the quota of the user in the path."""

    scope: ClassVar[str]

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        if not isinstance(self.caller, Service):
            raise Problem(403, "service_only", "This address is for service keys, not for session tokens.")
        if self.scope not in self.caller.scopes:
            raise Problem(403, "scope_missing", f"This service key lacks the scope {self.scope}.")
        if not USER_ID.fullmatch(kwargs["user_id"]):
            detail = "The user id in the path is malformed: use the user's id from Clerk."
            raise Problem(404, "unknown_user_id", detail)
        self.user_id = kwargs["user_id"]


class SimpleQuota(UserView):
    """`GET /api/quota`: the balance; opens a missing quota and resets one that is due."""

    def get(self, request: Request) -> Response:
        quota = quotas.current(self.user_id, actor=self.caller.actor)
        return quota_response(messages.simple_quota(quota), quota)


class OwnQuota(UserView):
    """`GET /api/v1/quota`: the same, with plan, period and reset."""

    def get(self, request: Request) -> Response:
        quota = quotas.current(self.user_id, actor=self.caller.actor)
        return quota_response(messages.full_quota(quota), quota)


class OwnConsume(UserView):
    """`POST /api/v1/quota/consume`: spend, all or nothing, once per Idempotency-Key."""

    def post(self, request: Request) -> Response:
        return consume_response(self, request, idempotency_key(request.headers.get("Idempotency-Key")))


class OwnHistory(UserView):
    """`GET /api/v1/quota/history`: the user's ledger, newest first."""

    def get(self, request: Request) -> Response:
        return ledger_page(self.user_id, request, messages.own_entry)


class UserQuota(ServiceView):
    """`GET /api/v1/users/{user_id}/quota`."""

    scope = "read"

    def get(self, request: Request, user_id: str) -> Response:
        quota = quotas.current(user_id, actor=self.caller.actor)
        return quota_response(messages.full_quota(quota), quota)


class UserConsume(ServiceView):
    """`POST /api/v1/users/{user_id}/consume`."""

    scope = "consume"

    def post(self, request: Request, user_id: str) -> Response:
        return consume_response(self, request, required_key(request))


class UserHistory(ServiceView):
    """`GET /api/v1/users/{user_id}/history`."""

    scope = "read"

    def get(self, request: Request, user_id: str) -> Response:
        return ledger_page(user_id, request, messages.full_entry)


class Refund(ServiceView):
    """`POST /api/v1/users/{user_id}/consumptions/{id}/refund`."""

    scope = "refund"

    def post(self, request: Request, user_id: str, consumption_id: UUID) -> Response:
        key, body = required_key(request), validated(messages.RefundSerializer, request)
        receipt = quotas.refund(user_id, consumption_id, **body, key=key, actor=self.caller.actor)
        return quota_response(messages.refund(receipt), receipt.quota_now, 201, is_replay=receipt.is_replay)


class Adjust(ServiceView):
    """`POST /api/v1/users/{user_id}/adjust`."""

    scope = "adjust"

    def post(self, request: Request, user_id: str) -> Response:
        key, body = required_key(request), validated(messages.AdjustSerializer, request)
        receipt = quotas.adjust(user_id, **body, key=key, actor=self.caller.actor)
        return quota_response(
            messages.adjustment(receipt), receipt.quota_now, 201, is_replay=receipt.is_replay
        )


class Reset(ServiceView):
    """`POST /api/v1/users/{user_id}/reset`."""

    scope = "admin"

    def post(self, request: Request, user_id: str) -> Response:
        key, body = required_key(request), validated(messages.ResetSerializer, request)
        receipt = quotas.reset(user_id, **body, key=key, actor=self.caller.actor)
        quota = messages.full_quota(receipt.quota)
        return quota_response(quota, receipt.quota_now, is_replay=receipt.is_replay)


class ChangePlan(ServiceView):
    """`PUT /api/v1/users/{user_id}/plan`."""

    scope = "admin"

    def put(self, request: Request, user_id: str) -> Response:
        key = idempotency_key(request.headers.get("Idempotency-Key"))
        body = validated(messages.ChangePlanSerializer, request)
        body["on_change"] = OnChange(body["on_change"])
        changed = quotas.change_plan(user_id, **body, key=key, actor=self.caller.actor)
        quota = messages.full_quota(changed.quota)
        return quota_response(quota, changed.quota_now, is_replay=changed.is_replay)


class Explain(ServiceView):
    """`GET /api/v1/users/{user_id}/explain?at=…&cost=…`: how the quota came to its state at that time."""

    scope = "read"

    def get(self, request: Request, user_id: str) -> Response:
        at, cost = instant_parameter(request, "at"), number_parameter(request, "cost", 1, MAX_UNITS)
        try:
            explained = read_with_reconnect(lambda: history.explain(user_id, at, cost))
        except history.NotOpenedYet:
            raise Problem(404, "not_opened_yet", "This user had no quota at that time.") from None
        except history.HistoryPruned as error:
            earliest = rfc3339(error.earliest)
            detail = f"The history of that time was pruned: ask for {earliest} or later."
            raise Problem(410, "history_pruned", detail, earliest=earliest) from None
        return Response(messages.explanation(explained, cost))


class Plans(QuotaView):
    """`GET /api/v1/plans`: the public plans, for every user and service."""

    def get(self, request: Request) -> Response:
        shown = read_with_reconnect(lambda: list(Plan.objects.filter(is_public=True)))
        return Response({"plans": [messages.shown_plan(plan) for plan in shown]})


class NothingHere(APIView):
    """Any other address under /api: a 404."""

    authentication_classes = ()
    permission_classes = ()

    def initial(self, request: Request, *args: object, **kwargs: object) -> None:
        raise NotFound


def consume_response(view: UserView | ServiceView, request: Request, key: str | None) -> Response:
    body = validated(messages.ConsumeSerializer, request)
    receipt = quotas.consume(view.user_id, **body, key=key, actor=view.caller.actor)
    return quota_response(messages.consumption(receipt), receipt.quota_now, 201, is_replay=receipt.is_replay)


def ledger_page(user_id: str, request: Request, to_json: Any) -> Response:
    """Return one page of a ledger, newest first; `next_cursor` is null on the last page."""
    limit = number_parameter(request, "limit", DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
    before = number_parameter(request, "cursor", 0, 2**62) if "cursor" in request.query_params else None
    entries = read_with_reconnect(lambda: history.entries_page(user_id, before=before, limit=limit + 1))
    page = list(fitting(to_json(entry) for entry in entries[:limit]))
    more = str(entries[len(page) - 1].seq) if len(entries) > len(page) else None
    return Response({"entries": page, "next_cursor": more})


def fitting(entries: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the entries that fit into a page, at least one: metadata of earlier releases may be long."""
    size = 0
    for number, entry in enumerate(entries):
        size += len(json.dumps(entry))
        if number and size > MAX_PAGE_BYTES:
            return
        yield entry


class QuotaResponse(Response):
    cost: int | None = None  # for the log


def quota_response(
    body: dict[str, Any], quota: Quota, status: int = 200, *, is_replay: bool = False
) -> Response:
    """Return a response about a quota, with the RateLimit fields of its present state."""
    response = QuotaResponse(body, status, headers=quota_headers(quota, is_replay=is_replay))
    response.cost = body.get("cost")
    return response


def quota_headers(quota: Quota, *, is_replay: bool = False) -> dict[str, str]:
    replayed = {"Idempotent-Replayed": "true"} if is_replay else {}
    return {**rate_limit.rate_limit_headers(quota), **replayed}


def validated(serializer_class: type[Serializer[Any]], request: Request) -> dict[str, Any]:
    if not int(request.headers.get("Content-Length") or 0):  # RequestGuard checked the digits
        raise Problem(400, "body_missing", "The body is empty: send a JSON object, at least {}.")
    serializer = serializer_class(data=request.data)
    serializer.is_valid(raise_exception=True)
    return dict(serializer.validated_data)


def number_parameter(request: Request, name: str, default: int, maximum: int) -> int:
    """Return a query parameter as a whole number, or `default`; raises a 400 unless it is 1 to `maximum`."""
    text = request.query_params.get(name, str(default))
    if not re.fullmatch("[0-9]{1,19}", text) or not 1 <= int(text) <= maximum:
        raise Problem(400, "invalid_request", f"{name}: must be a whole number from 1 to {maximum}.")
    return int(text)


def instant_parameter(request: Request, name: str) -> datetime | None:
    """Return a query parameter as an instant in UTC that is not in the future; None if it is absent."""
    text = request.query_params.get(name)
    if text is None:
        return None
    try:
        at = parse_datetime(text)
        at = at.astimezone(UTC) if at and at.tzinfo else None
    except (ValueError, OverflowError):  # the offset may lead to before the year 1
        at = None
    if at is None:
        detail = f"{name}: must be a date and time with an offset, such as 2026-09-24T08:00:00Z."
        raise Problem(400, "invalid_request", detail)
    if at > datetime.now(UTC):
        raise Problem(422, "instant_in_future", f"{name}: must not be in the future.")
    return at

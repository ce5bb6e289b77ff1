"""An example of each answer and problem in the OpenAPI description, made as the API makes them."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from quotas.api import messages
from quotas.api.errors import PROBLEM_TYPES
from quotas.problems import HISTORY_PRUNED, QUOTA_EXHAUSTED, Problem, ProblemType, of_refusal
from quotas.reports.history import Explanation
from quotas.reports.reasons import reason
from quotas.rules.outcomes import Exhausted, Forecast
from quotas.rules.values import Entry, Plan, Quota, rfc3339
from quotas.store.manager import Receipt

USER_EXAMPLE, ENTRY_ID = "user_2abc", "019978a4-8a4c-7c3e-9d3b-5f3f4f0e9a11"
_now = datetime(2026, 9, 24, 19, 59, 49, 500_000, UTC)
_began = datetime(2026, 9, 24, 8, 0, 0, 123_456, UTC)
_day = timedelta(days=1)
NOW = rfc3339(_now)
_plan = Plan("free", 1, 20, "rolling", _day, "UTC", {"generate": 1})


def _quota(remaining: int) -> Quota:
    return Quota(USER_EXAMPLE, _plan, 20, remaining, 20 - remaining, 0, _began, _began + _day, _now)


def _entry(**fields: Any) -> Entry:
    consumed: dict[str, Any] = {
        "id": UUID(ENTRY_ID),
        "user_id": USER_EXAMPLE,
        "seq": 42,
        "kind": "consumed",
        "cost": 1,
        "delta": -1,
        "plan": "free",
        "plan_source": "default",
        "plan_version": 1,
        "quota_limit": 20,
        "balance_after": 12,
        "period_consumed": 8,
        "period_given": 0,
        "last_reset_date": _began,
        "anchor_at": _began,
        "resets_at": _began + _day,
        "period_seq": 35,
        "created_at": _now,
        "actor_kind": "user",
        "actor_id": USER_EXAMPLE,
        "act": "",
        "reason": "",
        "action": "generate",
        "metadata": {"model": "small"},
        "idempotency_key": None,
        "fingerprint": "",
        "refund_of": None,
    }
    return Entry(**consumed | fields)


def _receipt(**fields: Any) -> Receipt:
    return Receipt(_entry(**fields), _quota(12), _quota(12), is_replay=False)


_quota_answer = messages.QuotaAnswer.of(_quota(12))
_forecast = Forecast(_quota(12), 1, 11, None)
ANSWERS = [
    messages.SimpleQuotaAnswer.of(_quota(12)),
    _quota_answer,
    messages.ConsumptionAnswer.of(_receipt()),
    messages.CheckAnswer.of(_forecast),
    messages.RefundAnswer.of(_receipt(delta=1, refund_of=ENTRY_ID)),
    messages.AdjustmentAnswer.of(_receipt(delta=50, reason="goodwill")),
    messages.OwnHistoryAnswer([messages.OwnEntryAnswer.of(_entry())], "42"),
    messages.HistoryAnswer([messages.EntryAnswer.of(_entry())], None),
    messages.ExplanationAnswer(
        at=NOW,
        sentence=reason(Explanation(_quota(12), "default", False, False, [], _forecast)),
        deleted=False,
        reset_was_due=False,
        plan_source="default",
        quota=_quota_answer,
        spend=messages.SpendAnswer(1, True, None, None),
        entries=[messages.EntryAnswer.of(_entry())],
    ),
    messages.UserPageAnswer(
        [
            messages.UserAnswer(
                user_id=USER_EXAMPLE,
                email="jane@example.com",
                plan="free",
                plan_source="default",
                quota_limit=20,
                quota_remaining=12,
                quota_used=8,
                last_reset_date=rfc3339(_began),
                resets_at=rfc3339(_began + _day),
                updated_at=NOW,
                deleted_at=None,
            )
        ],
        USER_EXAMPLE,
    ),
    messages.PublicPlansAnswer(
        [messages.PublicPlanAnswer("free", True, False, 20, "rolling", 86_400, "UTC", {"generate": 1})]
    ),
]


def _problem(declared: ProblemType) -> Problem:
    if declared is QUOTA_EXHAUSTED:
        return of_refusal(Exhausted(_quota(0), 1, _plan))
    members = declared.example if declared is HISTORY_PRUNED else {}
    return declared(members=members, **declared.example)


PROBLEMS = [_problem(declared) for declared in {each.code: each for each in reversed(PROBLEM_TYPES)}.values()]

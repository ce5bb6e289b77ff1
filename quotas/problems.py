"""The problems of the API, each declared once: its status, its stable code and its sentence.

Those of tokens and keys are in quotas/access/refusals.py.

A sentence states what is wrong and what to do. The API sends a problem as `application/problem+json` (RFC
9457), the OpenAPI description and docs/api.md list the same table, and staff read the same sentences.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any

from quotas.rules import outcomes
from quotas.rules.outcomes import Refusal
from quotas.rules.values import MAX_UNITS, Quota, rfc3339

TITLES = {413: "Content Too Large", 422: "Unprocessable Content"}  # RFC 9110's; older Pythons have others


@dataclass(frozen=True, slots=True)
class ProblemType:
    """What all problems of one sentence share. `example` fills the sentence in descriptions."""

    status: int
    code: str
    sentence: str
    example: Mapping[str, Any] = field(default_factory=dict)
    type: str = "about:blank"
    title: str = ""

    def __call__(
        self, *, retry_after: int | None = None, members: Mapping[str, Any] | None = None, **facts: Any
    ) -> "Problem":
        """Return the problem with these facts in its sentence, and these additional members."""
        return Problem(self, self.sentence.format(**facts), retry_after, members or {})


class Problem(Exception):
    """An error as the client gets it. `retry_after`: seconds after which the same request may succeed."""

    def __init__(
        self, type_: ProblemType, detail: str, retry_after: int | None, members: Mapping[str, Any]
    ) -> None:
        super().__init__(detail)
        self.type, self.detail, self.retry_after, self.members = type_, detail, retry_after, members
        self.quota: Quota | None = None  # whose state the RateLimit fields of the response show

    @property
    def body(self) -> dict[str, Any]:
        return {
            "type": self.type.type,
            "title": self.type.title or title_of(self.type.status),
            "status": self.type.status,
            "code": self.type.code,
            "detail": self.detail,
            **self.members,
        }


def title_of(status: int) -> str:
    return TITLES.get(status) or HTTPStatus(status).phrase


DECLARED: list[ProblemType] = []  # those of the API; one code may have several sentences


def declare(status: int, code: str, sentence: str, **example: Any) -> ProblemType:
    declared = ProblemType(status, code, sentence, example)
    DECLARED.append(declared)
    return declared


# The request
BAD_REQUEST = declare(
    400, "bad_request", "The request is malformed, or its Host is not one of ALLOWED_HOSTS."
)
MALFORMED_LENGTH = declare(400, "malformed_length", "Content-Length must be a whole number.")
BODY_MISSING = declare(400, "body_missing", "The body is empty: send a JSON object, at least {{}}.")
MALFORMED_JSON = declare(
    400, "malformed_json", "The body cannot be read as JSON: {fault}.", fault="it is not an object"
)
INVALID_REQUEST = declare(
    400, "invalid_request", "{fault}", fault=f"cost: must be a whole number from 1 to {MAX_UNITS}."
)
IDEMPOTENCY_KEY_MISSING = declare(
    400,
    "idempotency_key_missing",
    "Send an Idempotency-Key, such as a UUID made for this action, so that a retry is safe.",
)
IDEMPOTENCY_KEY_MALFORMED = declare(
    400,
    "idempotency_key_malformed",
    "Idempotency-Key must be one value of 1 to 128 characters from A-Z a-z 0-9 . _ ~ : / + = -, "
    "such as a UUID.",
)
# Who asks, and for what
USER_ONLY = declare(
    403, "user_only", "This address is for signed-in users: with a service key, use /api/v1/users/."
)
SERVICE_ONLY = declare(403, "service_only", "This address is for service keys, not for session tokens.")
SCOPE_MISSING = declare(403, "scope_missing", "This service key lacks the scope {scope}.", scope="refund")
NOT_FOUND = declare(404, "not_found", "There is nothing at this address: see /api/docs.")
UNKNOWN_USER_ID = declare(
    404, "unknown_user_id", "The user id in the path is malformed: use the user's id from Clerk."
)
declare(
    404,
    "unknown_user",
    "There is no user with this id, and QUOTA_USER_IDS lets no service key open a quota for it: send the "
    "user's id from Clerk; backfill_quotas opens those that are missing.",
)
declare(404, "consumption_not_found", "This user has no consumption with this id, or it was pruned.")
declare(404, "unknown_plan", "There is no plan with this name, or it is archived: see GET /api/v1/plans.")
NOT_OPENED_YET = declare(404, "not_opened_yet", "This user had no quota at that time.")
METHOD_NOT_ALLOWED = declare(
    405, "method_not_allowed", "This address does not support this method: see the Allow header."
)
declare(
    409,
    "adjustment_out_of_range",
    "An adjustment by {delta:+d} would leave {result}: the balance is {left}, and must stay from 0 to "
    f"{MAX_UNITS}.",
    delta=-50,
    left=12,
    result=-38,
)
NOTHING_TO_ADJUST = declare(
    409, "adjustment_out_of_range", "This quota has no limit: there is nothing to adjust."
)
declare(
    409,
    "refund_too_large",
    "Only {rest} of this consumption's units can still be refunded, not {asked}.",
    rest=1,
    asked=5,
)
declare(409, "already_refunded", "This consumption has already been refunded in full.")
declare(410, "user_deleted", "This user was deleted: the quota is closed permanently.")
HISTORY_PRUNED = declare(
    410,
    "history_pruned",
    "The history of that time was pruned: ask for {earliest} or later.",
    earliest="2026-09-24T08:00:00.123456Z",
)
BODY_TIMEOUT = declare(
    408, "body_timeout", "The body did not arrive in time: send it together with its headers."
)
BODY_INCOMPLETE = declare(
    400, "body_incomplete", "The body ended before it was complete, or has trailers: send it whole."
)
LENGTH_REQUIRED = declare(
    411, "length_required", "Send the body with a Content-Length, not in this transfer coding."
)
BODY_TOO_LARGE = declare(413, "body_too_large", "The body must not be longer than {kib} KiB.", kib=64)
UNSUPPORTED_MEDIA_TYPE = declare(
    415, "unsupported_media_type", "Send JSON, with Content-Type: application/json."
)
declare(
    422,
    "cost_exceeds_limit",
    "A cost of {cost} can never be paid: at most {ceiling} can be spent at once.",
    cost=50,
    ceiling=20,
)
declare(
    422,
    "unknown_action",
    "The plan {plan} has no action {action!r}; its actions are: {known}.",
    plan="free",
    action="draw",
    known="generate",
)
declare(
    422,
    "cost_below_price",
    "The action {action!r} costs {price}: a user cannot pay less for it.",
    action="generate",
    price=3,
)
declare(
    422,
    "idempotency_key_reused",
    "This Idempotency-Key was used for another request: use a new key.",
)
INSTANT_IN_FUTURE = declare(422, "instant_in_future", "{name}: must not be in the future.", name="at")
QUOTA_EXHAUSTED = ProblemType(
    429,
    "quota_exhausted",
    "Quota exhausted: {left} of {limit} left{needed}, {more} at {at}.",
    {"left": 0, "limit": 20, "needed": "", "more": "20 more", "at": "2026-09-25T08:00:01Z"},
    type="https://iana.org/assignments/http-problem-types#quota-exceeded",
    title="Quota exceeded",
)
DECLARED.append(QUOTA_EXHAUSTED)
SERVER_ERROR = declare(500, "server_error", "The server failed to handle this request, and logged the error.")
DATABASE_UNAVAILABLE = declare(
    503,
    "database_unavailable",
    "The database is unavailable: try again, a write with the same Idempotency-Key, because it may have "
    "been stored already.",
)
NOT_MIGRATED = declare(
    503, "not_migrated", "The database lacks migrations of this release: run manage.py migrate."
)
NO_DEFAULT_PLAN = declare(
    503, "no_default_plan", "There is no default plan: mark a plan as the default in the admin."
)

_OF_REFUSALS = {declared.code: declared for declared in reversed(DECLARED)}  # the first of each code


def of_refusal(refusal: Refusal) -> Problem:
    """Return the problem of what the rules refuse: they give facts, and the sentence is here."""
    declared = _OF_REFUSALS[refusal.code]
    match refusal:
        case outcomes.Exhausted():
            return _exhausted(refusal)
        case outcomes.AdjustmentOutOfRange(left=None):
            return NOTHING_TO_ADJUST()
        case outcomes.AdjustmentOutOfRange(delta, int(left)):
            return declared(delta=delta, left=left, result=left + delta)
        case outcomes.UnknownAction(plan, action):
            return declared(plan=plan.name, action=action, known=", ".join(sorted(plan.actions)) or "none")
        case _:
            return declared(**vars(refusal))


def _exhausted(refusal: outcomes.Exhausted) -> Problem:
    quota, allowance = refusal.quota, refusal.current_plan.allowance  # the allowance of the next period
    wait = max(1, quota.seconds_to_reset)
    problem = QUOTA_EXHAUSTED(
        left=quota.quota_remaining,
        limit=quota.quota_limit,
        needed=f" and {refusal.cost} needed" if quota.quota_remaining else "",
        more="no limit" if allowance is None else f"{allowance} more",
        at=_whole_second(quota.resets_at),
        retry_after=wait,
        members={
            "violated-policies": [quota.plan.name],
            "quota_limit": quota.quota_limit,
            "quota_remaining": quota.quota_remaining,
            "cost": refusal.cost,
            "resets_at": rfc3339(quota.resets_at),
            "retry_after": wait,
        },
    )
    problem.quota = quota
    return problem


def _whole_second(instant: datetime) -> str:
    """Round up to a whole second, so that a client that returns then is not too early."""
    whole = instant + timedelta(microseconds=-instant.microsecond % 1_000_000)
    return rfc3339(whole).replace(".000000", "")

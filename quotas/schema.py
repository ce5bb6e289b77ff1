"""The OpenAPI description of the API, and the page that shows it.

The views answer plain dicts, so the description is plain dicts too: one table of operations by view,
one of the problems by code, and the shapes that both refer to. The tests hold them to the answers.
"""

from http import HTTPStatus
from typing import Any, NamedTuple

from drf_spectacular.openapi import AutoSchema
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from quotas import serializers, views
from quotas.problems import TITLES
from quotas.rules.periods import RESET_POLICIES
from quotas.rules.values import MAX_UNITS, USER_ID, Kind, OnChange, PlanSource

JSON = dict[str, Any]

DESCRIPTION = """\
A quota for every user that comes back by itself.

- **Who asks**: a signed-in user sends his session token and reaches his own quota; a server of the
  product sends a service key (`qs_…`) with the scope that the operation needs, and reaches every
  user's. Both go into `Authorization: Bearer`. A process remembers a service key for at most 10
  seconds, so a revoked one may be taken for as long.
- **What is sent**: one JSON object with a Content-Length, of at most 64 KiB and 32 levels, in UTF-8,
  without U+0000, without a member that is there twice or is not known, integers without a decimal
  point.
- **What comes back**: JSON, or a problem (RFC 9457) with a stable `code` and one plain sentence as its
  `detail`. An address that is not listed here is a 404 `not_found`, a method that an address does not
  know a 405 `method_not_allowed` with `Allow`.
- **Retries** are safe with an `Idempotency-Key`: the same request with the same key is carried out
  once, and answered again with `Idempotent-Replayed: true`.
"""


class Schema(AutoSchema):
    """Describes the view's one method from the tables below."""

    def get_operation(
        self, path: str, path_regex: str, path_prefix: str, method: str, registry: object
    ) -> JSON:
        view = type(self.view)
        operation = OPERATIONS[view]
        parameters = [name for name in ("user_id", "consumption_id") if f"{{{name}}}" in path]
        codes = [*ALWAYS, *operation.codes]
        description: JSON = {"operationId": operation.id, "summary": operation.summary}
        if issubclass(view, views.ServiceView):
            description |= {"tags": ["For servers"], "description": f"Needs the scope `{view.scope}`."}
            security = [{"serviceKey": [view.scope]}]
            codes += FOR_SERVICES
        elif issubclass(view, views.UserView):
            description |= {"tags": ["For signed-in users"]}
            security = [{"sessionToken": []}]
            codes += ["user_only"]
        elif view is Description:
            description |= {"tags": ["For anybody"]}
            security, codes = [], ["bad_request", "server_error"]
        else:
            description |= {"tags": ["For signed-in users", "For servers"]}
            security = [{"sessionToken": []}, {"serviceKey": []}]
        if operation.body:
            codes += IN_A_BODY
            is_required = issubclass(view, views.ServiceView) and method == "POST"
            parameters += ["required_key" if is_required else "key"]
            codes += ["idempotency_key_missing"] if is_required else []
            description["requestBody"] = {
                "required": True,
                "content": content("application/json", operation.body, operation.body),
            }
        parameters += operation.parameters
        if parameters:
            description["parameters"] = [ref("parameters", name) for name in parameters]
        description["security"] = security
        description["responses"] = {str(operation.status): answer(operation), **refusals(codes)}
        return description


# It asks for the class above as soon as it is imported.
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerSplitView  # noqa: E402


def ref(kind: str, name: str) -> JSON:
    return {"$ref": f"#/components/{kind}/{name}"}


def integer(least: int = 0, most: int = MAX_UNITS, **more: Any) -> JSON:
    return {"type": "integer", "minimum": least, "maximum": most, **more}


def text(most: int, **more: Any) -> JSON:
    """A text of a request: not empty, without U+0000."""
    return {"type": "string", "minLength": 1, "maxLength": most, "pattern": r"^[^\u0000]+$", **more}


def nullable(schema: JSON) -> JSON:
    return {**schema, "type": [schema["type"], "null"]}


def record(**members: JSON) -> JSON:
    """An object of an answer: every member is there. Later versions may add some."""
    return {"type": "object", "required": [*members], "properties": members}


def order(*required: str, **members: JSON) -> JSON:
    """An object of a request: nothing else may be in it."""
    shape = {"type": "object", "properties": members, "additionalProperties": False}
    return {**shape, "required": [*required]} if required else shape


STRING, BOOLEAN = {"type": "string"}, {"type": "boolean"}
UUID = {"type": "string", "format": "uuid"}
USER = ref("schemas", "UserId")
INSTANT = ref("schemas", "Instant")
QUOTA = ref("schemas", "Quota")
PLAN_NAME = {"type": "string", "pattern": "^[a-z0-9_-]{1,40}$"}
PLAN_SOURCE = {
    "type": "string",
    "enum": [source.value for source in PlanSource],
    "description": "Whose choice the plan is.",
}
LIMIT = nullable(integer(description="Units a period; null is unlimited."))
METADATA = {"type": "object", "description": "Kept with the entry as it came."}
REASON = text(200, description="Why; services and staff see it in the history.")
SEQ = integer(1, 2**63 - 1, description="The entry's place in the user's ledger, from 1, without gaps.")
PERIOD = {
    "reset_policy": {"type": "string", "enum": [*RESET_POLICIES]},
    "period_seconds": nullable(integer(1, description="null for calendar months, which differ.")),
    "timezone": STRING,
}
WRITTEN = {"id": UUID, "user_id": USER, "seq": SEQ, "created_at": INSTANT, "quota": QUOTA}
OWN_ENTRY = {
    "id": UUID,
    "seq": SEQ,
    "kind": {"type": "string", "enum": [kind.value for kind in Kind]},
    "delta": integer(-MAX_UNITS, description="Units given; negative: taken."),
    "balance_after": integer(),
    "action": nullable(STRING),
    "created_at": INSTANT,
    "metadata": nullable(METADATA),
}
ENTRY = {
    **OWN_ENTRY,
    "cost": integer(description="Units asked for."),
    "plan": PLAN_NAME,
    "plan_source": PLAN_SOURCE,
    "quota_limit": LIMIT,
    "last_reset_date": INSTANT,
    "resets_at": INSTANT,
    "period_seq": SEQ | {"description": "The seq of the entry that began the period."},
    "actor": record(
        kind={"type": "string", "enum": ["user", "service", "staff", "webhook", "command"]},
        id=STRING,
        act=nullable({**STRING, "description": "Who stands behind an impersonated user."}),
    ),
    "reason": nullable(STRING),
    "refund_of": nullable(UUID | {"description": "The consumption that a refund is tied to."}),
}
NEXT_CURSOR = nullable({**STRING, "description": "The `cursor` of the next page; null on the last one."})

SCHEMAS: JSON = {
    "UserId": {"type": "string", "pattern": f"^{USER_ID.pattern}$"},
    "Instant": {
        "type": "string",
        "format": "date-time",
        "pattern": r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{6})?Z$",
        "description": "RFC 3339, in UTC with `Z`.",
    },
    "SimpleQuota": {
        **record(
            user_id=USER,
            quota_remaining=integer(description=f"What can be spent now; unlimited: {MAX_UNITS}."),
            last_reset_date=INSTANT,
        ),
        "additionalProperties": False,
    },
    "Quota": record(
        user_id=USER,
        plan=PLAN_NAME,
        unlimited=BOOLEAN,
        quota_limit=LIMIT,
        quota_used=integer(),
        quota_remaining=integer(description=f"What can be spent now; unlimited: {MAX_UNITS}."),
        **PERIOD,
        last_reset_date=INSTANT,
        resets_at=INSTANT,
        seconds_to_reset=integer(0, 2**63 - 1, description="Whole seconds, rounded up."),
    ),
    "Consumption": record(**WRITTEN, cost=integer(1), action=nullable(STRING)),
    "Refund": record(
        **WRITTEN,
        consumption_id=UUID,
        amount=integer(description="Units given back; 0 if the consumption's period is over."),
        period_closed=BOOLEAN,
    ),
    "Adjustment": record(**WRITTEN, delta=integer(-MAX_UNITS), reason=STRING),
    "OwnEntry": record(**OWN_ENTRY),
    "Entry": record(**ENTRY),
    "OwnHistory": record(
        entries={"type": "array", "items": ref("schemas", "OwnEntry")}, next_cursor=NEXT_CURSOR
    ),
    "History": record(entries={"type": "array", "items": ref("schemas", "Entry")}, next_cursor=NEXT_CURSOR),
    "Explanation": record(
        at=INSTANT,
        deleted=BOOLEAN,
        reset_was_due={**BOOLEAN, "description": "It had not been carried out yet: nobody had asked."},
        plan_source=PLAN_SOURCE,
        quota=QUOTA,
        spend=record(
            cost=integer(1),
            granted=BOOLEAN,
            code=nullable({**STRING, "description": "What the spend would have been refused with."}),
            detail=nullable(STRING),
        ),
        entries={
            "type": "array",
            "items": ref("schemas", "Entry"),
            "description": "The entries of the running period until then, newest first, 100 at most.",
        },
    ),
    "Plans": record(
        plans={
            "type": "array",
            "items": record(
                name=PLAN_NAME,
                is_default=BOOLEAN,
                unlimited=BOOLEAN,
                allowance=LIMIT,
                **PERIOD,
                actions={
                    "type": "object",
                    "additionalProperties": integer(1),
                    "description": "What a named action costs.",
                },
            ),
        }
    ),
    "OpenAPI": {"type": "object", "required": ["openapi", "info", "paths"]},
    "ConsumeRequest": order(
        cost=integer(1, description="Default: what the plan asks for the action, or 1."),
        action=text(64, description="A name that the plan knows."),
        metadata=METADATA | {"description": f"At most {serializers.Metadata.most // 1024} KiB."},
    ),
    "RefundRequest": order(
        "reason", amount=integer(1, description="Default: all that is left."), reason=REASON
    ),
    "AdjustRequest": order(
        "delta",
        "reason",
        delta=integer(-MAX_UNITS, description="Units to add; negative: to take away.")
        | {"not": {"const": 0}},
        reason=REASON,
    ),
    "ResetRequest": order("reason", reason=REASON),
    "ChangePlanRequest": order(
        "plan",
        plan=nullable(
            text(40, description="null gives the choice back to billing, metadata or the default plan.")
        ),
        on_change={
            "type": "string",
            "enum": [way.value for way in OnChange],
            "default": OnChange.KEEP.value,
            "description": "keep: what was used stays used; reset: a new period begins; prorate: the "
            "difference is given for the rest of the period.",
        },
        reason=REASON,
    ),
}

NOW, BEFORE, AFTER = (
    "2026-09-24T19:59:49.500000Z",
    "2026-09-24T08:00:00.123456Z",
    "2026-09-25T08:00:00.123456Z",
)
ENTRY_ID, USER_EXAMPLE = "019978a4-8a4c-7c3e-9d3b-5f3f4f0e9a11", "user_2abc"
_rolling = {"reset_policy": "rolling", "period_seconds": 86_400, "timezone": "UTC"}
_quota = {
    "user_id": USER_EXAMPLE,
    "plan": "free",
    "unlimited": False,
    "quota_limit": 20,
    "quota_used": 8,
    "quota_remaining": 12,
    **_rolling,
    "last_reset_date": BEFORE,
    "resets_at": AFTER,
    "seconds_to_reset": 43_211,
}
_written = {"id": ENTRY_ID, "user_id": USER_EXAMPLE, "seq": 42, "created_at": NOW, "quota": _quota}
_own_entry = {
    "id": ENTRY_ID,
    "seq": 42,
    "kind": "consumed",
    "delta": -1,
    "balance_after": 12,
    "action": "generate",
    "created_at": NOW,
    "metadata": {"model": "small"},
}
_entry = {
    **_own_entry,
    "cost": 1,
    "plan": "free",
    "plan_source": "default",
    "quota_limit": 20,
    "last_reset_date": BEFORE,
    "resets_at": AFTER,
    "period_seq": 35,
    "actor": {"kind": "user", "id": USER_EXAMPLE, "act": None},
    "reason": None,
    "refund_of": None,
}
EXAMPLES: dict[str, Any] = {  # each has the name of its schema
    "SimpleQuota": {"user_id": USER_EXAMPLE, "quota_remaining": 12, "last_reset_date": BEFORE},
    "Quota": _quota,
    "Consumption": {**_written, "cost": 1, "action": "generate"},
    "Refund": {**_written, "consumption_id": ENTRY_ID, "amount": 1, "period_closed": False},
    "Adjustment": {**_written, "delta": 50, "reason": "goodwill"},
    "OwnHistory": {"entries": [_own_entry], "next_cursor": "42"},
    "History": {"entries": [_entry], "next_cursor": None},
    "Explanation": {
        "at": NOW,
        "deleted": False,
        "reset_was_due": False,
        "plan_source": "default",
        "quota": _quota,
        "spend": {"cost": 1, "granted": True, "code": None, "detail": None},
        "entries": [_entry],
    },
    "Plans": {
        "plans": [
            {
                "name": "free",
                "is_default": True,
                "unlimited": False,
                "allowance": 20,
                **_rolling,
                "actions": {"generate": 1},
            }
        ]
    },
    "OpenAPI": {"openapi": "3.1.1", "info": {"title": "Quotasite", "version": "1"}, "paths": {}},
    "ConsumeRequest": {"cost": 1, "metadata": {"model": "small"}},
    "RefundRequest": {"amount": 1, "reason": "llm_timeout"},
    "AdjustRequest": {"delta": 50, "reason": "goodwill"},
    "ResetRequest": {"reason": "asked for by support"},
    "ChangePlanRequest": {"plan": "free", "on_change": "keep"},
}

PROBLEMS = {  # code: status and an example of the detail
    "bad_request": (400, "The request, or its Host header, is malformed."),
    "malformed_length": (400, "Content-Length must be a whole number."),
    "body_missing": (400, "The body is empty: send a JSON object, {} at the least."),
    "malformed_json": (400, "The body cannot be read as JSON: it is not an object."),
    "invalid_request": (400, f"cost: must be a whole number from 1 to {MAX_UNITS}."),
    "idempotency_key_missing": (
        400,
        "Send an Idempotency-Key, such as a UUID made for this act, so that a retry is safe.",
    ),
    "idempotency_key_malformed": (
        400,
        "Idempotency-Key must be one value of 1 to 128 characters of A-Z a-z 0-9 . _ ~ : / + = -, "
        "such as a UUID.",
    ),
    "token_missing": (401, "Send the session token: Authorization: Bearer <await getToken()>."),
    "token_malformed": (401, "The Authorization header must be: Bearer <token>."),
    "token_expired": (401, "The token has expired: get a fresh one for each request."),
    "token_not_yet_valid": (401, "The token is not valid yet: one of the two clocks is wrong."),
    "token_signature": (401, "The signature does not fit the configured key."),
    "token_issuer": (401, "The iss claim is not the configured issuer."),
    "token_azp": (401, "The azp claim is not one of the origins in CLERK_AUTHORIZED_PARTIES."),
    "token_kind": (401, "The typ header must be JWT: send a session token of Clerk."),
    "session_pending": (401, "The session is pending: the user has sign-in tasks to finish."),
    "key_unknown": (401, "This service key is not known: see Service keys in the admin."),
    "key_expired": (401, "This service key has expired: make a new one."),
    "key_revoked": (401, "This service key was revoked: make a new one."),
    "user_only": (403, "This address is for signed-in users; a service asks below /api/v1/users/."),
    "service_only": (403, "This address is for service keys, not for session tokens."),
    "scope_missing": (403, "This service key lacks the scope refund."),
    "not_found": (404, "There is nothing at this address; /api/v1 has the API."),
    "unknown_user_id": (404, "What stands in the path is no user id."),
    "consumption_not_found": (404, "This user has no consumption of this id, or its history was pruned."),
    "unknown_plan": (404, "There is no plan of this name; GET /api/v1/plans lists them."),
    "not_opened_yet": (404, "This user had no quota at that time."),
    "method_not_allowed": (405, "This address does not know this method; see Allow."),
    "adjustment_out_of_range": (
        409,
        f"An adjustment by -50 would leave -38; a balance is from 0 to {MAX_UNITS}, and it is 12 now.",
    ),
    "refund_too_large": (409, "A refund of 5 is more than the 1 that are left of this consumption."),
    "already_refunded": (409, "Nothing is left of this consumption to give back."),
    "user_deleted": (410, "This user was deleted; the quota is closed for good."),
    "history_pruned": (410, f"The history of that time was pruned; it begins at {BEFORE}."),
    "body_timeout": (408, "The body did not come in time: send it with its headers."),
    "length_required": (411, "Send the body with a Content-Length, not in chunks."),
    "body_too_large": (413, "The body must not be longer than 64 KiB."),
    "unsupported_media_type": (415, "Send JSON, as Content-Type: application/json."),
    "cost_exceeds_limit": (422, "A cost of 50 can never be paid: the plan gives 20 at the most."),
    "unknown_action": (422, "The plan free knows no action 'draw'; it knows: generate."),
    "cost_below_price": (422, "The action 'generate' costs 3; a user cannot pay less for it."),
    "idempotency_key_reused": (422, "This Idempotency-Key was used for another request; take a new key."),
    "instant_in_future": (422, "at: what is still to come cannot be explained."),
    "quota_exhausted": (429, "Quota exhausted: 0 of 20 left, 20 more at 2026-09-25T08:00:01Z."),
    "server_error": (500, "This is a fault of the server, noted."),
    "database_unavailable": (
        503,
        "The database cannot be used for now; nothing was lost. Try again, with the same key.",
    ),
    "keys_unavailable": (503, "The key of this token could not be fetched from Clerk: try again shortly."),
    "no_default_plan": (503, "No plan is the default one: mark one as such in the admin."),
}
MEMBERS: JSON = {  # what some problems have besides
    "history_pruned": {"earliest": BEFORE},
    "quota_exhausted": {
        "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
        "title": "Quota exceeded",
        "violated-policies": ["free"],
        "quota_limit": 20,
        "quota_remaining": 0,
        "cost": 1,
        "resets_at": AFTER,
        "retry_after": 43_211,
    },
}
SCHEMAS["Problem"] = {
    **record(
        type={"type": "string", "format": "uri-reference"},
        title=STRING,
        status=integer(400, 599),
        code={"type": "string", "enum": [*PROBLEMS]},
        detail={**STRING, "description": "One plain sentence, fit to be shown."},
    ),
    "description": "RFC 9457. `code` is stable.",
}
SCHEMAS["QuotaExhausted"] = {
    "allOf": [
        ref("schemas", "Problem"),
        record(
            **{"violated-policies": {"type": "array", "items": PLAN_NAME}},
            quota_limit=integer(),
            quota_remaining=integer(),
            cost=integer(1),
            resets_at=INSTANT,
            retry_after=integer(1, 2**63 - 1),
        ),
    ]
}

HEADERS: JSON = {
    "X-Request-Id": {
        "description": "The request's own, if it has 1 to 64 of A-Z a-z 0-9 -, or else a new one.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9-]{1,64}$"},
    },
    "RateLimit-Policy": {
        "description": "The plan: q units in w seconds (draft-ietf-httpapi-ratelimit-headers-11). Left out "
        "when unlimited; w is left out for calendar months.",
        "schema": {**STRING, "examples": ['"free";q=20;w=86400']},
    },
    "RateLimit": {
        "description": "What is left now: r units, more in t seconds. Left out when unlimited.",
        "schema": {**STRING, "examples": ['"free";r=12;t=43211']},
    },
    "Idempotent-Replayed": {
        "description": "There if the request was carried out before, under the same Idempotency-Key.",
        "schema": {"type": "string", "const": "true"},
    },
    "Retry-After": {"description": "Whole seconds.", "required": True, "schema": integer(1)},
    "WWW-Authenticate": {
        "description": "A bare `Bearer` without a token, else with error and error_description (RFC 6750).",
        "required": True,
        "schema": {**STRING, "pattern": "^Bearer"},
    },
    "Allow": {"description": "The methods that there are.", "required": True, "schema": STRING},
}
PROBLEM_HEADERS = {
    401: ("WWW-Authenticate",),
    405: ("Allow",),
    429: ("Retry-After", "RateLimit-Policy", "RateLimit"),
    503: ("Retry-After",),
}

_key = {
    "in": "header",
    "name": "Idempotency-Key",
    "schema": {
        "type": "string",
        "pattern": r'^([A-Za-z0-9._~:/+=-]{1,128}|"([ !#-\[\]-~]|\\["\\]){1,128}")$',
    },
    "description": "Names this act, so that a retry does not repeat it: a UUID, say. It stands bare, or in "
    "quotation marks as a structured field.",
    "example": "8e03978e-40d5-43e8-bc93-6894a57f9324",
}
_user_id = {"in": "path", "name": "user_id", "required": True, "schema": USER, "example": USER_EXAMPLE}
PARAMETERS: JSON = {
    "user_id": _user_id,
    "consumption_id": {
        "in": "path",
        "name": "consumption_id",
        "required": True,
        "schema": UUID,
        "description": "The `id` of the consumption.",
        "example": ENTRY_ID,
    },
    "key": {**_key, "required": False},
    "required_key": {**_key, "required": True},
    "limit": {
        "in": "query",
        "name": "limit",
        "schema": integer(1, views.MOST_ON_A_PAGE, default=views.DEFAULT_PAGE),
        "description": "Entries on the page.",
    },
    "cursor": {
        "in": "query",
        "name": "cursor",
        "schema": {"type": "string", "pattern": "^[1-9][0-9]{0,17}$"},
        "description": "The `next_cursor` of the page before.",
    },
    "at": {
        "in": "query",
        "name": "at",
        "schema": {"type": "string", "format": "date-time"},
        "description": "A past instant with its offset; default: now.",
        "example": NOW,
    },
    "cost": {
        "in": "query",
        "name": "cost",
        "schema": integer(1, default=1),
        "description": "The spend to judge.",
    },
}


class Operation(NamedTuple):
    """What a view does, and what it can be refused with besides what all of its kind can be."""

    id: str
    summary: str
    answer: str  # names a schema and its example
    codes: tuple[str, ...] = ()
    status: int = 200
    body: str = ""
    parameters: tuple[str, ...] = ()


SPEND = ("user_deleted", "cost_exceeds_limit", "unknown_action", "cost_below_price", "quota_exhausted")
ALWAYS = (
    "bad_request",
    *(code for code, (status, _) in PROBLEMS.items() if status in (401, 500, 503)),
)
IN_A_BODY = (
    *("malformed_length", "body_missing", "malformed_json", "invalid_request", "idempotency_key_malformed"),
    *(
        "body_timeout",
        "length_required",
        "body_too_large",
        "unsupported_media_type",
        "idempotency_key_reused",
    ),
)
FOR_SERVICES = ("service_only", "scope_missing", "not_found", "unknown_user_id")
RATED = ("SimpleQuota", "Quota", "Consumption", "Refund", "Adjustment")  # answers with RateLimit fields


class Description(SpectacularAPIView):
    """`GET /api/schema`: this description, for whoever asks."""

    renderer_classes = [JSONRenderer]
    authentication_classes = ()


# As of every page of the site, but that Swagger UI has pictures in its styles.
POLICY = (
    "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'; object-src 'none'"
)


class Page(SpectacularSwaggerSplitView):
    """`GET /api/docs`: the description as a page, whose every file is served from here."""

    authentication_classes = ()
    template_name = "api_docs.html"

    def finalize_response(self, request: Request, response: Any, *args: Any, **kwargs: Any) -> Response:
        response["Content-Security-Policy"] = POLICY
        return super().finalize_response(request, response, *args, **kwargs)


OPERATIONS: dict[type[APIView], Operation] = {
    views.SimpleQuota: Operation(
        id="getSimpleQuota",
        summary="What can be spent now",
        answer="SimpleQuota",
        codes=("user_deleted",),
    ),
    views.OwnQuota: Operation(
        id="getOwnQuota",
        summary="The quota, with plan, period and reset",
        answer="Quota",
        codes=("user_deleted",),
    ),
    views.OwnConsume: Operation(
        id="consumeOwn",
        summary="Spend, all or nothing",
        answer="Consumption",
        codes=SPEND,
        status=201,
        body="ConsumeRequest",
    ),
    views.OwnHistory: Operation(
        id="getOwnHistory",
        summary="The ledger, newest first",
        answer="OwnHistory",
        codes=("user_deleted", "invalid_request"),
        parameters=("limit", "cursor"),
    ),
    views.UserQuota: Operation(
        id="getQuota",
        summary="A user's quota, opened if missing",
        answer="Quota",
        codes=("user_deleted",),
    ),
    views.UserConsume: Operation(
        id="consume",
        summary="Spend for a user, all or nothing",
        answer="Consumption",
        codes=SPEND,
        status=201,
        body="ConsumeRequest",
    ),
    views.UserHistory: Operation(
        id="getHistory",
        summary="A user's ledger, newest first",
        answer="History",
        codes=("user_deleted", "invalid_request"),
        parameters=("limit", "cursor"),
    ),
    views.Refund: Operation(
        id="refund",
        summary="Give back units of a consumption",
        answer="Refund",
        codes=("user_deleted", "consumption_not_found", "refund_too_large", "already_refunded"),
        status=201,
        body="RefundRequest",
    ),
    views.Adjust: Operation(
        id="adjust",
        summary="Add units, or take them away, until the next reset",
        answer="Adjustment",
        codes=("user_deleted", "adjustment_out_of_range"),
        status=201,
        body="AdjustRequest",
    ),
    views.Reset: Operation(
        id="reset",
        summary="Refill to the plan's allowance now",
        answer="Quota",
        codes=("user_deleted",),
        body="ResetRequest",
    ),
    views.ChangePlan: Operation(
        id="changePlan",
        summary="Give a user another plan",
        answer="Quota",
        codes=("user_deleted", "unknown_plan"),
        body="ChangePlanRequest",
    ),
    views.Explain: Operation(
        id="explain",
        summary="Why a quota stood as it did, and what a spend would have met",
        answer="Explanation",
        codes=("invalid_request", "not_opened_yet", "history_pruned", "instant_in_future"),
        parameters=("at", "cost"),
    ),
    views.Plans: Operation(id="getPlans", summary="The plans that may be shown", answer="Plans"),
    Description: Operation(id="getSchema", summary="This description", answer="OpenAPI"),
}


def content(media_type: str, schema: str | JSON, *examples: str) -> JSON:
    """What has a media type, with the shape `schema`."""
    shape = ref("schemas", schema) if isinstance(schema, str) else schema
    return {media_type: {"schema": shape, "examples": {name: ref("examples", name) for name in examples}}}


def headers(*names: str) -> JSON:
    return {name: ref("headers", name) for name in ("X-Request-Id", *names)}


def answer(operation: Operation) -> JSON:
    names = ["RateLimit-Policy", "RateLimit"] if operation.answer in RATED else []
    names += ["Idempotent-Replayed"] if operation.body else []
    described = {
        "description": HTTPStatus(operation.status).phrase,
        "headers": headers(*names),
        "content": content("application/json", operation.answer, operation.answer),
    }
    if operation.answer == "Consumption":
        described["links"] = {
            other.id: {"operationId": other.id, "parameters": link(view)}
            for view, other in OPERATIONS.items()
            if issubclass(view, views.ServiceView)
        }
    return described


def link(view: type[views.ServiceView]) -> JSON:
    """Where the parameters of an operation stand in a consumption."""
    user = {"user_id": "$response.body#/user_id"}
    return {**user, "consumption_id": "$response.body#/id"} if view is views.Refund else user


def refusals(codes: list[str]) -> JSON:
    """The responses that tell of these problems, by status."""
    statuses = sorted({PROBLEMS[code][0] for code in codes})
    return {str(status): refusal(status, [code for code in PROBLEMS if code in codes]) for status in statuses}


def refusal(status: int, codes: list[str]) -> JSON:
    """The response of one status; the same one wherever it tells of all problems of that status."""
    told = [code for code in codes if PROBLEMS[code][0] == status]
    if told == codes_of(status):
        return ref("responses", str(status))
    return problem(status, told)


def codes_of(status: int) -> list[str]:
    return [code for code in PROBLEMS if PROBLEMS[code][0] == status]


def problem(status: int, codes: list[str]) -> JSON:
    base = "QuotaExhausted" if status == 429 else "Problem"
    shape = {
        "allOf": [
            ref("schemas", base),
            {"properties": {"status": {"const": status}, "code": {"enum": codes}}},
        ]
    }
    return {
        "description": title(status),
        "headers": headers(*PROBLEM_HEADERS.get(status, ())),
        "content": content("application/problem+json", shape, *codes),
    }


def title(status: int) -> str:
    return TITLES.get(status) or HTTPStatus(status).phrase


def problem_example(code: str) -> JSON:
    status, detail = PROBLEMS[code]
    usual: JSON = {
        "type": "about:blank",
        "title": title(status),
        "status": status,
        "code": code,
        "detail": detail,
    }
    return {**usual, **MEMBERS.get(code, {})}


def complete(result: JSON, **_: object) -> JSON:
    """A hook of drf-spectacular's: add what the operations refer to."""
    result["info"]["description"] = DESCRIPTION
    result["components"] = {
        "schemas": SCHEMAS,
        "responses": {
            str(status): problem(status, codes_of(status))
            for status in sorted({status for status, _ in PROBLEMS.values()})
        },
        "parameters": PARAMETERS,
        "examples": {name: {"value": value} for name, value in EXAMPLES.items()}
        | {code: {"value": problem_example(code)} for code in PROBLEMS},
        "headers": HEADERS,
        "securitySchemes": {
            "sessionToken": {
                "type": "http",
                "scheme": "bearer",
                "bearerFormat": "JWT",
                "description": "A session token of Clerk's, fresh from `getToken()`.",
            },
            "serviceKey": {
                "type": "http",
                "scheme": "bearer",
                "description": "A service key (`qs_…`), made in the admin.",
            },
        },
    }
    return result

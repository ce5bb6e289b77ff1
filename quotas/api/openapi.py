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

from quotas.api import views
from quotas.api.openapi_examples import ENTRY_ID, EXAMPLES, MEMBERS, NOW, PROBLEMS, USER_EXAMPLE
from quotas.api.openapi_schemas import JSON, SCHEMAS, STRING, USER_ID_SCHEMA, UUID, integer, ref
from quotas.api.problems import TITLES

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


class EndpointSchema(AutoSchema):
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
        description["responses"] = {
            str(operation.status): success_response(operation),
            **problem_responses(codes),
        }
        return description


# It asks for the class above as soon as it is imported.
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerSplitView  # noqa: E402

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

IDEMPOTENCY_KEY = {
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
USER_ID_PARAMETER = {
    "in": "path",
    "name": "user_id",
    "required": True,
    "schema": USER_ID_SCHEMA,
    "example": USER_EXAMPLE,
}
PARAMETERS: JSON = {
    "user_id": USER_ID_PARAMETER,
    "consumption_id": {
        "in": "path",
        "name": "consumption_id",
        "required": True,
        "schema": UUID,
        "description": "The `id` of the consumption.",
        "example": ENTRY_ID,
    },
    "key": {**IDEMPOTENCY_KEY, "required": False},
    "required_key": {**IDEMPOTENCY_KEY, "required": True},
    "limit": {
        "in": "query",
        "name": "limit",
        "schema": integer(1, views.MAX_PAGE_SIZE, default=views.DEFAULT_PAGE_SIZE),
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
    response: str  # names a schema and its example
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


class DocsPage(SpectacularSwaggerSplitView):
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
        response="SimpleQuota",
        codes=("user_deleted",),
    ),
    views.OwnQuota: Operation(
        id="getOwnQuota",
        summary="The quota, with plan, period and reset",
        response="Quota",
        codes=("user_deleted",),
    ),
    views.OwnConsume: Operation(
        id="consumeOwn",
        summary="Spend, all or nothing",
        response="Consumption",
        codes=SPEND,
        status=201,
        body="ConsumeRequest",
    ),
    views.OwnHistory: Operation(
        id="getOwnHistory",
        summary="The ledger, newest first",
        response="OwnHistory",
        codes=("user_deleted", "invalid_request"),
        parameters=("limit", "cursor"),
    ),
    views.UserQuota: Operation(
        id="getQuota",
        summary="A user's quota, opened if missing",
        response="Quota",
        codes=("user_deleted",),
    ),
    views.UserConsume: Operation(
        id="consume",
        summary="Spend for a user, all or nothing",
        response="Consumption",
        codes=SPEND,
        status=201,
        body="ConsumeRequest",
    ),
    views.UserHistory: Operation(
        id="getHistory",
        summary="A user's ledger, newest first",
        response="History",
        codes=("user_deleted", "invalid_request"),
        parameters=("limit", "cursor"),
    ),
    views.Refund: Operation(
        id="refund",
        summary="Give back units of a consumption",
        response="Refund",
        codes=("user_deleted", "consumption_not_found", "refund_too_large", "already_refunded"),
        status=201,
        body="RefundRequest",
    ),
    views.Adjust: Operation(
        id="adjust",
        summary="Add units, or take them away, until the next reset",
        response="Adjustment",
        codes=("user_deleted", "adjustment_out_of_range"),
        status=201,
        body="AdjustRequest",
    ),
    views.Reset: Operation(
        id="reset",
        summary="Refill to the plan's allowance now",
        response="Quota",
        codes=("user_deleted",),
        body="ResetRequest",
    ),
    views.ChangePlan: Operation(
        id="changePlan",
        summary="Give a user another plan",
        response="Quota",
        codes=("user_deleted", "unknown_plan"),
        body="ChangePlanRequest",
    ),
    views.Explain: Operation(
        id="explain",
        summary="Why a quota stood as it did, and what a spend would have met",
        response="Explanation",
        codes=("invalid_request", "not_opened_yet", "history_pruned", "instant_in_future"),
        parameters=("at", "cost"),
    ),
    views.Plans: Operation(id="getPlans", summary="The plans that may be shown", response="Plans"),
    Description: Operation(id="getSchema", summary="This description", response="OpenAPI"),
}


def content(media_type: str, schema: str | JSON, *examples: str) -> JSON:
    """What has a media type, with the shape `schema`."""
    shape = ref("schemas", schema) if isinstance(schema, str) else schema
    return {media_type: {"schema": shape, "examples": {name: ref("examples", name) for name in examples}}}


def headers(*names: str) -> JSON:
    return {name: ref("headers", name) for name in ("X-Request-Id", *names)}


def success_response(operation: Operation) -> JSON:
    names = ["RateLimit-Policy", "RateLimit"] if operation.response in RATED else []
    names += ["Idempotent-Replayed"] if operation.body else []
    described = {
        "description": HTTPStatus(operation.status).phrase,
        "headers": headers(*names),
        "content": content("application/json", operation.response, operation.response),
    }
    if operation.response == "Consumption":
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


def problem_responses(codes: list[str]) -> JSON:
    """The responses that tell of these problems, by status."""
    statuses = sorted({PROBLEMS[code][0] for code in codes})
    return {
        str(status): problem_response(status, [code for code in PROBLEMS if code in codes])
        for status in statuses
    }


def problem_response(status: int, codes: list[str]) -> JSON:
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

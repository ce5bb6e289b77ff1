"""The OpenAPI description of the API, and the page that shows it.

The views return plain dicts, so the description is plain dicts too: a table of operations by view, a
table of problems by code, and the schemas that both refer to. Tests compare them with real responses.
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
A quota for every user, which resets by itself.

- **Callers**: a signed-in user sends their session token and reaches their own quota; a server of the
  product sends a service key (`qs_…`) with the scope that the operation needs, and reaches every
  user's quota. Both go into `Authorization: Bearer`. A process caches a service key for up to 10
  seconds, so a revoked key may work for that long.
- **Requests**: a body is one JSON object in UTF-8 with a Content-Length, at most 64 KiB long and 32
  levels deep, without U+0000 and without duplicate or unknown members. Integers have no decimal point.
- **Responses**: JSON, or a problem (RFC 9457) with a stable `code` and one plain sentence as its
  `detail`. An address that is not listed here returns 404 `not_found`; a method that an address does
  not support returns 405 `method_not_allowed` with `Allow`.
- **Retries** are safe with an `Idempotency-Key`: if the same request comes again with the same key, it
  is not carried out again, and the response is the same, with `Idempotent-Replayed: true`.
"""


class EndpointSchema(AutoSchema):
    """Describes the one method of a view from the tables below."""

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


# Importing drf_spectacular.views loads DEFAULT_SCHEMA_CLASS, which is the class above: import it here.
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerSplitView  # noqa: E402

HEADERS: JSON = {
    "X-Request-Id": {
        "description": "The request's own id if it is 1 to 64 characters from A-Z a-z 0-9 -, else a new one.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9-]{1,64}$"},
    },
    "RateLimit-Policy": {
        "description": "The plan: q units in w seconds (draft-ietf-httpapi-ratelimit-headers-11). Omitted "
        "when unlimited; w is omitted for calendar months.",
        "schema": {**STRING, "examples": ['"free";q=20;w=86400']},
    },
    "RateLimit": {
        "description": "The balance: r units now, and a reset in t seconds. Omitted when unlimited.",
        "schema": {**STRING, "examples": ['"free";r=12;t=43211']},
    },
    "Idempotent-Replayed": {
        "description": "Present if the request was carried out before, with the same Idempotency-Key.",
        "schema": {"type": "string", "const": "true"},
    },
    "Retry-After": {"description": "Whole seconds.", "required": True, "schema": integer(1)},
    "WWW-Authenticate": {
        "description": "`Bearer` alone if no token came, else with error and error_description (RFC 6750).",
        "required": True,
        "schema": {**STRING, "pattern": "^Bearer"},
    },
    "Allow": {"description": "The methods that the address supports.", "required": True, "schema": STRING},
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
    "description": "Identifies this action, so that a retry does not repeat it: for example, a UUID. Sent "
    "bare, or in quotation marks as a structured field.",
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
        "description": "Entries per page; fewer if they are longer than 1 MiB together.",
    },
    "cursor": {
        "in": "query",
        "name": "cursor",
        "schema": {"type": "string", "pattern": "^[1-9][0-9]{0,17}$"},
        "description": "The `next_cursor` of the previous page.",
    },
    "at": {
        "in": "query",
        "name": "at",
        "schema": {"type": "string", "format": "date-time"},
        "description": "A past date and time with an offset; default: now.",
        "example": NOW,
    },
    "cost": {
        "in": "query",
        "name": "cost",
        "schema": integer(1, default=1),
        "description": "The cost of the spend to check.",
    },
}


class Operation(NamedTuple):
    """What a view does, and the codes of its own refusals, apart from those that all such views share."""

    id: str
    summary: str
    response: str  # the name of a schema and of its example
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
RATED = ("SimpleQuota", "Quota", "Consumption", "Refund", "Adjustment")  # responses with RateLimit fields


class Description(SpectacularAPIView):
    """`GET /api/schema`: this description, without authentication."""

    renderer_classes = [JSONRenderer]
    authentication_classes = ()


# The policy of every page of the site, plus `data:` for the pictures in the styles of Swagger UI.
POLICY = (
    "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'; object-src 'none'"
)


class DocsPage(SpectacularSwaggerSplitView):
    """`GET /api/docs`: the description as a page; all its files are served from this site."""

    authentication_classes = ()
    template_name = "api_docs.html"

    def finalize_response(self, request: Request, response: Any, *args: Any, **kwargs: Any) -> Response:
        response["Content-Security-Policy"] = POLICY
        return super().finalize_response(request, response, *args, **kwargs)


OPERATIONS: dict[type[APIView], Operation] = {
    views.SimpleQuota: Operation(
        id="getSimpleQuota",
        summary="The balance that can be spent now",
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
        summary="How a quota came to its state at a past time, and whether a spend would have been granted",
        response="Explanation",
        codes=("invalid_request", "not_opened_yet", "history_pruned", "instant_in_future"),
        parameters=("at", "cost"),
    ),
    views.Plans: Operation(id="getPlans", summary="The public plans", response="Plans"),
    Description: Operation(id="getSchema", summary="This description", response="OpenAPI"),
}


def content(media_type: str, schema: str | JSON, *examples: str) -> JSON:
    """Return the content object of a body; a `schema` is given by name or in full."""
    resolved = ref("schemas", schema) if isinstance(schema, str) else schema
    return {media_type: {"schema": resolved, "examples": {name: ref("examples", name) for name in examples}}}


def headers(*names: str) -> JSON:
    return {name: ref("headers", name) for name in ("X-Request-Id", *names)}


def success_response(operation: Operation) -> JSON:
    names = ["RateLimit-Policy", "RateLimit"] if operation.response in RATED else []
    names += ["Idempotent-Replayed"] if operation.body else []
    response = {
        "description": HTTPStatus(operation.status).phrase,
        "headers": headers(*names),
        "content": content("application/json", operation.response, operation.response),
    }
    if operation.response == "Consumption":
        response["links"] = {
            other.id: {"operationId": other.id, "parameters": link(view)}
            for view, other in OPERATIONS.items()
            if issubclass(view, views.ServiceView)
        }
    return response


def link(view: type[views.ServiceView]) -> JSON:
    """Return the link parameters that call `view` with the values of a consumption."""
    user = {"user_id": "$response.body#/user_id"}
    return {**user, "consumption_id": "$response.body#/id"} if view is views.Refund else user


def problem_responses(codes: list[str]) -> JSON:
    """Return the responses that describe these problems, by status."""
    statuses = sorted({PROBLEMS[code][0] for code in codes})
    return {
        str(status): problem_response(status, [code for code in PROBLEMS if code in codes])
        for status in statuses
    }


def problem_response(status: int, codes: list[str]) -> JSON:
    """Return the response of one status: the shared one if `codes` has all codes of that status."""
    with_status = [code for code in codes if PROBLEMS[code][0] == status]
    if with_status == codes_of(status):
        return ref("responses", str(status))
    return problem(status, with_status)


def codes_of(status: int) -> list[str]:
    return [code for code in PROBLEMS if PROBLEMS[code][0] == status]


def problem(status: int, codes: list[str]) -> JSON:
    base = "QuotaExhausted" if status == 429 else "Problem"
    schema = {
        "allOf": [
            ref("schemas", base),
            {"properties": {"status": {"const": status}, "code": {"enum": codes}}},
        ]
    }
    return {
        "description": title(status),
        "headers": headers(*PROBLEM_HEADERS.get(status, ())),
        "content": content("application/problem+json", schema, *codes),
    }


def title(status: int) -> str:
    return TITLES.get(status) or HTTPStatus(status).phrase


def problem_example(code: str) -> JSON:
    status, detail = PROBLEMS[code]
    members: JSON = {
        "type": "about:blank",
        "title": title(status),
        "status": status,
        "code": code,
        "detail": detail,
    }
    return {**members, **MEMBERS.get(code, {})}


def complete(result: JSON, **_: object) -> JSON:
    """Postprocessing hook of drf-spectacular: add the components that the operations refer to."""
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
                "description": "A Clerk session token, fresh from `getToken()`.",
            },
            "serviceKey": {
                "type": "http",
                "scheme": "bearer",
                "description": "A service key (`qs_…`), created in the admin.",
            },
        },
    }
    return result

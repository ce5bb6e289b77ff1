"""The OpenAPI description of the API, and the page that shows it.

Operations, messages and problems are declared where the API uses them (endpoints.py, messages.py,
quotas/problems.py) and only get their OpenAPI form here. Headers and parameters are described here.
"""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import msgspec
from drf_spectacular.openapi import AutoSchema
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from quotas.api import queries
from quotas.api.endpoints import ENDPOINTS, PATH_PARAMETERS, Endpoint, OwnQuota, Scope
from quotas.api.errors import PROBLEM_TYPES
from quotas.api.openapi_examples import ANSWERS, ENTRY_ID, NOW, PROBLEMS, USER_EXAMPLE
from quotas.problems import title_of
from quotas.rules.values import MAX_UNITS, PLAN_NAME, USER_ID

JSON = dict[str, Any]

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
  is not carried out again, and the response is the same, with `Idempotent-Replayed: true`. Only
  `refunded` of a consumption is as of now.
"""


class EndpointSchema(AutoSchema):
    """Describes a view by its endpoint."""

    def get_operation(
        self, path: str, path_regex: str, path_prefix: str, method: str, registry: object
    ) -> JSON:
        if endpoint := getattr(self.view, "endpoint", None):
            return operation_of(endpoint)
        return {
            "operationId": "getSchema",
            "summary": "This description",
            "tags": ["For anybody"],
            "security": [],
            "responses": {
                "200": success("OpenAPI", 200),
                **problem_responses(["bad_request", "server_error"]),
            },
        }


# Importing drf_spectacular.views loads DEFAULT_SCHEMA_CLASS, which is the class above: import it here.
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerSplitView  # noqa: E402


def ref(section: str, name: str) -> JSON:
    return {"$ref": f"#/components/{section}/{name}"}


def integer(minimum: int = 0, maximum: int = MAX_UNITS, **more: Any) -> JSON:
    return {"type": "integer", "minimum": minimum, "maximum": maximum, **more}


STRING = {"type": "string"}
STATUS = {declared.code: declared.status for declared in PROBLEM_TYPES}  # by code, in the order of the status
ALWAYS = ("bad_request", *(code for code, status in STATUS.items() if status in (401, 500, 503)))
WITH_BODY = (
    *("malformed_length", "body_missing", "malformed_json", "invalid_request", "body_incomplete"),
    *("body_timeout", "length_required", "body_too_large", "unsupported_media_type"),
)
WITH_KEY = ("idempotency_key_malformed", "idempotency_key_reused")
FOR_SERVICES = ("service_only", "scope_missing")
# The responses with RateLimit fields.
RATED = ("SimpleQuota", "Quota", "Consumption", "Check", "Refund", "Adjustment")

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
    "schema": ref("schemas", "UserId"),
    "example": USER_EXAMPLE,
}
PARAMETERS: JSON = {
    "user_id": USER_ID_PARAMETER,
    "consumption_id": {
        "in": "path",
        "name": "consumption_id",
        "required": True,
        "schema": {**STRING, "format": "uuid"},
        "description": "The `id` of the consumption.",
        "example": ENTRY_ID,
    },
    "key": {**IDEMPOTENCY_KEY, "required": False},
    "required_key": {**IDEMPOTENCY_KEY, "required": True},
    "limit": {
        "in": "query",
        "name": "limit",
        "schema": integer(1, queries.MAX_PAGE_SIZE, default=queries.DEFAULT_PAGE_SIZE),
        "description": "Entries or users per page; fewer if entries are longer than 1 MiB together.",
    },
    "cursor": {
        "in": "query",
        "name": "cursor",
        "schema": {"type": "string", "pattern": "^[1-9][0-9]{0,17}$"},
        "description": "The `next_cursor` of the previous page.",
    },
    "user_cursor": {
        "in": "query",
        "name": "cursor",
        "schema": {"type": "string", "pattern": f"^{USER_ID.pattern}$"},
        "description": "The `next_cursor` of the previous page.",
    },
    "plan": {
        "in": "query",
        "name": "plan",
        "schema": {"type": "string", "pattern": f"^{PLAN_NAME.pattern}$"},
        "description": "Only the users of this plan.",
        "example": "free",
    },
    "exhausted": {
        "in": "query",
        "name": "exhausted",
        "schema": {"type": "boolean"},
        "description": "true: only the users who can spend nothing now; false: only the others.",
    },
    "deleted": {
        "in": "query",
        "name": "deleted",
        "schema": {"type": "boolean", "default": False},
        "description": "true: only the deleted users; false: only the others.",
    },
    "seen_since": {
        "in": "query",
        "name": "seen_since",
        "schema": {"type": "string", "format": "date-time"},
        "description": "Only the users whose quota was changed at that time or later: `updated_at`. A read "
        "changes it only if it opens or resets the quota.",
        "example": NOW,
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


class Description(SpectacularAPIView):
    """`GET /api/schema`: this description, without authentication."""

    renderer_classes = [JSONRenderer]


# The policy of every page of the site, plus `data:` for the pictures in the styles of Swagger UI.
POLICY = (
    "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'; object-src 'none'"
)


class DocsPage(SpectacularSwaggerSplitView):
    """`GET /api/docs`: the description as a page; all its files are served from this site."""

    template_name = "api_docs.html"

    def finalize_response(self, request: Request, response: Any, *args: Any, **kwargs: Any) -> Response:
        response["Content-Security-Policy"] = POLICY
        return super().finalize_response(request, response, *args, **kwargs)


def operation_of(endpoint: Endpoint) -> JSON:
    parameters = [name for name in PATH_PARAMETERS if f"{{{name}}}" in endpoint.path]
    codes = [*ALWAYS, *endpoint.problems]
    operation: JSON = {"operationId": endpoint.id, "summary": endpoint.summary}
    match endpoint.access:
        case Scope(name):
            operation |= {"tags": ["For servers"], "description": f"Needs the scope `{name}`."}
            security = [{"serviceKey": [name]}]
            codes += FOR_SERVICES
            codes += ["not_found", "unknown_user_id"] if "user_id" in parameters else []
        case OwnQuota():
            operation |= {"tags": ["For signed-in users"]}
            security = [{"sessionToken": []}]
            codes += ["user_only"]
        case _:
            operation |= {"tags": ["For signed-in users", "For servers"]}
            security = [{"sessionToken": []}, {"serviceKey": []}]
    if endpoint.body:
        codes += WITH_BODY
        body = schema_name(endpoint.body)
        operation["requestBody"] = {"required": True, "content": content("application/json", body, body)}
    if endpoint.reads_key:
        codes += WITH_KEY
        parameters += ["required_key" if endpoint.requires_key else "key"]
        codes += ["idempotency_key_missing"] if endpoint.requires_key else []
    parameters += endpoint.parameters
    if parameters:
        operation["parameters"] = [ref("parameters", name) for name in parameters]
    operation["security"] = security
    answer = success(schema_name(endpoint.answer), endpoint.status, is_keyed=endpoint.reads_key)
    operation["responses"] = {str(endpoint.status): answer, **problem_responses(codes)}
    return operation


def content(media_type: str, schema: str, *examples: str) -> JSON:
    named = {name: ref("examples", name) for name in examples}
    return {media_type: {"schema": ref("schemas", schema), "examples": named}}


def headers(*names: str) -> JSON:
    return {name: ref("headers", name) for name in ("X-Request-Id", *names)}


def success(answer: str, status: int, *, is_keyed: bool = False) -> JSON:
    names = ["RateLimit-Policy", "RateLimit"] if answer in RATED else []
    names += ["Idempotent-Replayed"] if is_keyed else []
    response = {
        "description": HTTPStatus(status).phrase,
        "headers": headers(*names),
        "content": content("application/json", answer, answer),
    }
    if answer == "Consumption":
        response["links"] = {
            other.id: {"operationId": other.id, "parameters": link(other)}
            for other in ENDPOINTS
            if "{user_id}" in other.path
        }
    return response


def link(endpoint: Endpoint) -> JSON:
    """Return the link parameters that call an endpoint with the values of a consumption."""
    user = {"user_id": "$response.body#/user_id"}
    is_of_one = "{consumption_id}" in endpoint.path
    return {**user, "consumption_id": "$response.body#/id"} if is_of_one else user


def problem_responses(codes: Iterable[str]) -> JSON:
    """Return the responses that describe these problems, by status: the shared one if they are all of it."""
    responses = {}
    for status in sorted({STATUS[code] for code in codes}):
        own = [code for code in codes_of(status) if code in codes]
        is_shared = own == codes_of(status)
        responses[str(status)] = ref("responses", str(status)) if is_shared else problem(status, own)
    return responses


def codes_of(status: int) -> list[str]:
    return [code for code in STATUS if STATUS[code] == status]


def problem(status: int, codes: list[str]) -> JSON:
    """Describe a problem; its examples are named by the codes that it may have.

    The schemas are the same for all operations, and plain: of narrower ones, generators of clients make a
    class for each response, or none at all if they cannot merge the parts of an `allOf`.
    """
    return {
        "description": f"{title_of(status)}: {', '.join(f'`{code}`' for code in codes)}",
        "headers": headers(*PROBLEM_HEADERS.get(status, ())),
        "content": content(
            "application/problem+json", "QuotaExhausted" if status == 429 else "Problem", *codes
        ),
    }


def schema_name(message: type[msgspec.Struct]) -> str:
    return message.__name__.removesuffix("Answer")


def message_schemas() -> JSON:
    """Return the schema of each message, as its class declares it."""
    messages = {message for endpoint in ENDPOINTS for message in (endpoint.body, endpoint.answer) if message}
    template = "#/components/schemas/{name}"
    _, found = msgspec.json.schema_components(sorted(messages, key=schema_name), ref_template=template)
    return {name.removesuffix("Answer"): tidy(schema) for name, schema in found.items()}


def tidy(schema: Any) -> Any:
    """Write a nullable type as ["string", "null"], and a $ref alone, which generators understand best."""
    if isinstance(schema, list):
        return [tidy(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return {"$ref": schema["$ref"].removesuffix("Answer")}
    tidied = {name: tidy(value) for name, value in schema.items() if name != "title" and value != []}
    match tidied.get("anyOf"):
        case [{"type": str(kind), **rest}, {"type": "null"}]:
            del tidied["anyOf"]
            return {"type": [kind, "null"], **rest, **tidied}
    return tidied


PROBLEM: JSON = {
    "type": "object",
    "required": ["type", "title", "status", "code", "detail"],
    "properties": {
        "type": {**STRING, "format": "uri-reference"},
        "title": STRING,
        "status": integer(400, 599),
        "code": {**STRING, "enum": [*STATUS]},
        "detail": {**STRING, "description": "One plain sentence that can be shown to users."},
    },
    "description": "RFC 9457. `code` is stable.",
}
EXHAUSTED: JSON = {  # the further members of a 429
    "violated-policies": {"type": "array", "items": {**STRING, "pattern": "^[a-z0-9_-]{1,40}$"}},
    "quota_limit": integer(),
    "quota_remaining": integer(),
    "cost": integer(1),
    "resets_at": ref("schemas", "Instant"),
    "retry_after": {
        **integer(1, 2**63 - 1),
        "description": "As the header Retry-After: whole seconds, more than a timer of 32 bits takes if the "
        "period is longer than 24.8 days.",
    },
}
OTHER_SCHEMAS: JSON = {
    "UserId": {**STRING, "pattern": f"^{USER_ID.pattern}$"},
    "Instant": {
        **STRING,
        "format": "date-time",
        "pattern": r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{6}Z$",
        "description": "RFC 3339, in UTC with `Z`, always with six digits of the second.",
    },
    "OpenAPI": {"type": "object", "required": ["openapi", "info", "paths"]},
    "Problem": PROBLEM,
    "QuotaExhausted": {
        **PROBLEM,
        "required": [*PROBLEM["required"], *EXHAUSTED],
        "properties": PROBLEM["properties"] | {"code": {**STRING, "enum": ["quota_exhausted"]}} | EXHAUSTED,
    },
}


def examples() -> JSON:
    return {
        **{schema_name(body): body.example for endpoint in ENDPOINTS if (body := endpoint.body)},
        **{schema_name(type(answer)): msgspec.to_builtins(answer) for answer in ANSWERS},
        "OpenAPI": {"openapi": "3.1.1", "info": {"title": "Quotasite", "version": "1"}, "paths": {}},
        **{example.type.code: example.body for example in PROBLEMS},
    }


def complete(result: JSON, **_: object) -> JSON:
    """Postprocessing hook of drf-spectacular: add the components that the operations refer to."""
    result["info"]["description"] = DESCRIPTION
    result["components"] = {
        "schemas": OTHER_SCHEMAS | message_schemas(),
        "responses": {
            str(status): problem(status, codes_of(status)) for status in sorted({*STATUS.values()})
        },
        "parameters": PARAMETERS,
        "examples": {name: {"value": value} for name, value in examples().items()},
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

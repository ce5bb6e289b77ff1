"""A request to an endpoint, from its Authorization header to its response, in steps.

It knows no server: a view drives the steps in its thread (views.py), the site in its event loop
(quotasite/serving/fast_path.py).
"""

import logging
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from quotas import problems
from quotas.access.callers import Caller, identify
from quotas.api.endpoints import CheckedCall, Endpoint
from quotas.api.errors import problem_for
from quotas.api.idempotency import idempotency_key
from quotas.api.messages import Body
from quotas.api.responses import Response, problem_response, success_response
from quotas.api.strict_json import json_object
from quotas.store.steps import InThread, Steps

log = logging.getLogger(__name__)

MAX_PARSED_AT_ONCE = 4_096  # bytes of a body; a longer one would hold up the event loop


class Call(NamedTuple):
    """A request without its transport.

    `headers`: names in lower case; at least authorization, content-type and idempotency-key.
    """

    path: dict[str, str]  # the parameters in the endpoint's path
    query: str
    headers: Mapping[str, str]
    body: bytes


def respond(endpoint: Endpoint, call: Call) -> Steps[Response]:
    """Answer a call. Whatever goes wrong is answered too."""
    caller = None
    try:
        caller = yield from identify(call.headers.get("authorization", ""))
        checked = yield from _checked(endpoint, call, caller)
        result = yield from endpoint.run(checked)
        return success_response(endpoint.status, result, caller)
    except Exception as error:  # noqa: BLE001 - a bug is logged, and answered with a 500
        return _failure(error, caller)


def _failure(error: Exception, caller: Caller | None) -> Response:
    try:
        if problem := problem_for(error):
            return problem_response(problem, caller)
    except Exception:  # a bug in the description of an error must not leave the client without an answer
        log.exception("An error could not be described")
    log.error("A request failed", exc_info=error)
    return problem_response(problems.SERVER_ERROR(), caller)


def _checked(endpoint: Endpoint, call: Call, caller: Caller) -> Steps[CheckedCall]:
    """Check everything that a client sent; the first fault is the answer."""
    user_id = endpoint.access.user_of(caller, call.path)
    if endpoint.body is None:
        return CheckedCall(caller, user_id, None, None, call.path, call.query)
    key = idempotency_key(call.headers.get("idempotency-key")) if endpoint.reads_key else None
    if key is None and endpoint.requires_key:
        raise problems.IDEMPOTENCY_KEY_MISSING()
    parse = partial(_parse, endpoint.body, _json_of(call))
    body = parse() if len(call.body) <= MAX_PARSED_AT_ONCE else (yield InThread(parse))
    return CheckedCall(caller, user_id, body, key, call.path, call.query)


def _parse(message: type[Body], raw: bytes) -> Body:
    return message.of(json_object(raw))


def _json_of(call: Call) -> bytes:
    if not call.body:
        raise problems.BODY_MISSING()
    media_type = call.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise problems.UNSUPPORTED_MEDIA_TYPE()
    return call.body

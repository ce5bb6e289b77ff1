"""One log line and one count for each request, on the fast path and the full path.

No text of a client is logged, except ids that were checked: the route is that of urls.py, and the other
values are constants of the code. Line and count cost a spend about 15 µs, with the caches below.
"""

import logging
import re
from functools import cache
from typing import NamedTuple

from django.conf import settings
from prometheus_client import Counter, Histogram
from uuid_utils import uuid4

from quotas import metrics
from quotas.access.callers import Caller, User
from quotasite.observing.json_logs import EncodedFields, to_json

METHODS = {"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"}
REQUEST_ID = re.compile(r"[A-Za-z0-9-]{1,64}")

BEGAN = "quotasite.began"  # in the WSGI environ: when the request arrived, by perf_counter

log = logging.getLogger("quotasite.requests")


class RequestKind(NamedTuple):
    """The fields whose values come from the code, so that there are few combinations to cache."""

    method: str
    route: str | None
    verb: str
    outcome: str
    status: int


class CallerFields(NamedTuple):
    principal: str | None = None
    principal_id: str | None = None


def method_in_log(method: str) -> str:
    """Return the method, or `other`: a client may send any text as its method."""
    return method if method in METHODS else "other"


def request_id_for(given: str) -> str:
    """Return the X-Request-Id that the client sent if it is well-formed, else a new one."""
    return given if REQUEST_ID.fullmatch(given) else str(uuid4())


def caller_of(caller: Caller | None) -> CallerFields:
    """Return the log fields of a user or service of the API."""
    if isinstance(caller, User):
        return CallerFields("user", caller.user_id)
    return CallerFields("service", caller.key_id) if caller else CallerFields()


def log_request(
    kind: RequestKind, caller: CallerFields, request_id: str, seconds: float, cost: int | None = None
) -> None:
    if settings.METRICS_TOKEN:
        requests, histogram = _counters(kind.verb, kind.outcome, kind.status)
        requests.inc()
        histogram.observe(seconds)
    level = logging.ERROR if kind.status >= 500 else logging.INFO
    if log.isEnabledFor(level):
        line = EncodedFields(
            f'"request_id":"{request_id}",{_encode_kind(kind)},'
            f'"principal":{_encode_value(caller.principal)},"principal_id":{_encode_value(caller.principal_id)},'
            f'"cost":{_encode_value(cost)},"ms":{seconds * 1000:.2f}'
        )
        # The same as `log.log`, without its search of the stack for the calling line.
        log.handle(logging.LogRecord(log.name, level, __file__, 0, line, None, None))


def _encode_value(value: str | int | None) -> str:
    if value is None:
        return "null"
    return to_json(value) if isinstance(value, str) else str(int(value))


@cache
def _encode_kind(kind: RequestKind) -> str:
    return to_json(kind._asdict())[1:-1]


@cache
def _counters(verb: str, outcome: str, status: int) -> tuple[Counter, Histogram]:
    return metrics.REQUESTS.labels(verb, outcome, status), metrics.SECONDS.labels(verb)

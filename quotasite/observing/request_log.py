"""One line of the log, and one count, for each request: by whichever way it was answered.

Nothing that a stranger wrote is told, but for ids that were checked: the address is that of urls.py, and
the rest are words of ours. Together both cost a spend about 15 µs, hence the care taken here.
"""

import logging
import re
from functools import cache
from typing import NamedTuple

from django.conf import settings
from prometheus_client import Counter, Histogram
from uuid_utils import uuid4

from quotas import metrics
from quotas.access.callers import User
from quotas.access.service_keys import Service
from quotasite.observing.json_logs import EncodedFields, to_json

REQUEST_ID = re.compile(r"[A-Za-z0-9-]{1,64}")

BEGAN = "quotasite.began"  # in the environment: when the request was there, by perf_counter

log = logging.getLogger("quotasite.requests")


class RequestKind(NamedTuple):
    """What is told of a request in words of ours, so that there are few kinds."""

    method: str
    route: str | None
    verb: str
    outcome: str
    status: int


class CallerFields(NamedTuple):
    principal: str | None = None
    principal_id: str | None = None


def request_id_for(given: str) -> str:
    """Return the X-Request-Id that came with a request if it is harmless, else a new one."""
    return given if REQUEST_ID.fullmatch(given) else str(uuid4())


def caller_of(user: object) -> CallerFields:
    """Tell who asked, if it is one of the API's principals."""
    if type(user) is User:  # isinstance would load the user of a session, who may stand here too
        return CallerFields("user", user.user_id)
    if type(user) is Service:
        return CallerFields("service", user.key_id)
    return CallerFields()


def log_request(
    kind: RequestKind, who: CallerFields, request_id: str, seconds: float, cost: int | None = None
) -> None:
    if settings.METRICS_TOKEN:
        requests, histogram = _counters(kind.verb, kind.outcome, kind.status)
        requests.inc()
        histogram.observe(seconds)
    level = logging.ERROR if kind.status >= 500 else logging.INFO
    if log.isEnabledFor(level):
        line = EncodedFields(
            f'"request_id":"{request_id}",{_encode_kind(kind)},'
            f'"principal":{_encode_value(who.principal)},"principal_id":{_encode_value(who.principal_id)},'
            f'"cost":{_encode_value(cost)},"ms":{seconds * 1000:.2f}'
        )
        # As `log.log` does, without a search of the stack for the line that calls it.
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

"""Which problem an exception is: refusals of the rules, refused tokens, an unavailable database, and bugs."""

import logging

from django.db import InternalError, connection
from rest_framework.exceptions import MethodNotAllowed

from quotas import metrics, problems
from quotas.access.jwks import KEY_NOT_FETCHED, KeysUnavailable
from quotas.access.refusals import Fault, Refused
from quotas.problems import Problem, ProblemType
from quotas.rules.outcomes import Refusal
from quotas.store.errors import READ_ONLY, NoDefaultPlan, is_not_migrated, is_unavailable, sqlstate

log = logging.getLogger(__name__)

RETRY_SECONDS = 5  # Retry-After while the database is unavailable
UNAUTHORIZED = {fault: ProblemType(401, fault.code, fault.detail) for fault in Fault}
KEYS_UNAVAILABLE = ProblemType(503, "keys_unavailable", "{detail}", {"detail": KEY_NOT_FETCHED})
# Those that the API may answer with, by status; the first of a code has its usual sentence.
PROBLEM_TYPES = sorted(
    [*problems.DECLARED, *UNAUTHORIZED.values(), KEYS_UNAVAILABLE], key=lambda declared: declared.status
)


def problem_for(error: Exception) -> Problem | None:
    """Return the problem that describes `error`, or None if the error is a bug."""
    match error:
        case Problem():
            return error
        case Refusal():
            return problems.of_refusal(error)
        case Refused():
            return UNAUTHORIZED[error.fault]()
        case KeysUnavailable():
            return KEYS_UNAVAILABLE(detail=error.detail, retry_after=error.retry_after)
        case NoDefaultPlan():
            log.error(problems.NO_DEFAULT_PLAN.sentence)
            return problems.NO_DEFAULT_PLAN(retry_after=RETRY_SECONDS)
        case MethodNotAllowed():
            return problems.METHOD_NOT_ALLOWED()
        case _ if is_not_migrated(error):
            log.error("The database lacks a migration: %r", str(error))
            return problems.NOT_MIGRATED(retry_after=RETRY_SECONDS)
        case _ if is_unavailable(error):
            return _database_unavailable(error)
        case _:
            return None


def _database_unavailable(error: Exception) -> Problem:
    """Return a 503; the log line shows whether the database is down, full, too busy or read-only."""
    if isinstance(error, InternalError) and sqlstate(error) == READ_ONLY and not connection.in_atomic_block:
        connection.close()  # it leads to a standby; a new one may find the server that takes writes
    metrics.DATABASE_ERRORS.inc()
    log.error("The database cannot be used: %r", str(error))
    return problems.DATABASE_UNAVAILABLE(retry_after=RETRY_SECONDS)

"""Probes for the platform, and the error handlers of the site."""

import hmac
import os
import re
import sys
from datetime import datetime
from pathlib import Path

from django.conf import settings
from django.core.exceptions import BadRequest, DisallowedHost
from django.db import DatabaseError, InterfaceError, connection, transaction
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from quotas.access.session_tokens import key_source
from quotas.api.errors import problem_for
from quotas.api.responses import Response, http_response, problem_http_response
from quotas.metrics import LAST_DELIVERY_AT
from quotas.operations.database_faults import unapplied_migrations
from quotas.problems import BAD_REQUEST, NOT_MIGRATED, SERVER_ERROR, Problem, ProblemType
from quotas.store.direct import require_writes
from quotas.store.errors import read_with_reconnect
from webhooks.arrivals import last_delivery

NOTHING_HERE = ProblemType(404, "not_found", "There is nothing at this address.")
MIGRATIONS_MISSING = ProblemType(
    503, NOT_MIGRATED.code, "{count} migrations are missing, the first is {first}: run manage.py migrate."
)
METRICS_TOKEN_MISSING = ProblemType(
    401, "token_missing", "Send the METRICS_TOKEN of this service: Authorization: Bearer <METRICS_TOKEN>."
)
ALIVE = Response(
    200, {"Content-Type": "application/json", "Cache-Control": "no-store"}, b'{"status": "alive"}', "ok"
)
UNKNOWN_HOST = ProblemType(
    400,
    BAD_REQUEST.code,
    "This service does not answer to the host {host}: its operator must add it to ALLOWED_HOSTS.",
)
HOST = re.compile(r"([A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")  # fit to be shown
PROBE_PATHS = ("/healthz", "/readyz", "/metrics")
JSON_PATHS = ("/api", "/webhooks", *PROBE_PATHS)


def healthz(request: HttpRequest) -> HttpResponse:
    """Report that the process is alive, without a look at the database.

    Under Granian the event loop answers, however long the threads are busy (quotasite/serving/fast_path.py).
    """
    return http_response(ALIVE)


@never_cache
def readyz(request: HttpRequest) -> HttpResponse:
    """Report that the database is migrated and takes writes, so that the platform can send requests.

    The response also shows the source and age of the token keys, which never make it fail: an outage at
    Clerk must not take every instance out of service.
    """
    keys, age = key_source()
    try:
        missing = read_with_reconnect(_unapplied_migrations)
    except (DatabaseError, InterfaceError) as error:
        if problem := problem_for(error):
            return problem_http_response(problem)
        raise
    if missing:
        problem = MIGRATIONS_MISSING(count=len(missing), first=missing[0], retry_after=5)
        return problem_http_response(problem)
    return JsonResponse(
        {
            "status": "ready",
            "database": connection.vendor,
            "keys": keys,
            "keys_age_seconds": age if age is None else int(age),
        }
    )


@never_cache
def metrics(request: HttpRequest) -> HttpResponse:
    """Return the metrics in the text format of Prometheus; without METRICS_TOKEN there is no such page."""
    if not settings.METRICS_TOKEN:
        raise Http404
    given = request.headers.get("Authorization", "").encode()
    if not hmac.compare_digest(given, f"Bearer {settings.METRICS_TOKEN}".encode()):
        return problem_http_response(METRICS_TOKEN_MISSING())
    _note_last_delivery()
    registry = REGISTRY
    if settings.PROMETHEUS_MULTIPROC_DIR:
        _drop_gauges_of_ended_workers(Path(settings.PROMETHEUS_MULTIPROC_DIR))
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


def _note_last_delivery() -> None:
    """Read it from the inbox, as a restart forgets what it counted; without a database it stays as it was."""

    def read() -> datetime | None:
        with transaction.atomic(), connection.cursor() as cursor:
            if connection.vendor == "postgresql":
                cursor.execute("SET LOCAL statement_timeout = '1s'")
            return last_delivery()

    try:
        last = read_with_reconnect(read)
    except (DatabaseError, InterfaceError):
        return
    LAST_DELIVERY_AT.set(last.timestamp() if last else 0)


def _drop_gauges_of_ended_workers(folder: Path) -> None:
    """Delete the gauges of workers that have ended; their counters stay.

    This runs at each scrape, because exit hooks differ from server to server, and a killed worker runs none.
    """
    for file in folder.glob("gauge_live*.db"):
        try:
            os.kill(int(file.stem.rpartition("_")[2]), 0)
        except (ProcessLookupError, PermissionError):  # ended, or the pid is now another user's
            file.unlink(missing_ok=True)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Return a 400: a BadRequest says why, and no stranger learns which hosts are allowed."""
    host = HOST.fullmatch(request.META.get("HTTP_HOST", ""))
    if isinstance(exception, DisallowedHost) and host:
        return _response(request, UNKNOWN_HOST(host=host[1]))
    return _response(request, BAD_REQUEST(), str(exception) if isinstance(exception, BadRequest) else "")


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    return _response(request, NOTHING_HERE())


def server_error(request: HttpRequest) -> HttpResponse:
    """Return a 503 if the database is unavailable, else a 500 that does not show its cause."""
    error = sys.exc_info()[1]
    known = problem_for(error) if isinstance(error, Exception) else None
    return _response(request, known or SERVER_ERROR())


def _response(request: HttpRequest, problem: Problem, reason: str = "") -> HttpResponse:
    if request.path.startswith(JSON_PATHS):
        return problem_http_response(problem)
    page = f"{problem.body['title']}. {reason or problem.detail}\n"
    headers = {"Cache-Control": "no-store"}
    if problem.retry_after is not None:
        headers["Retry-After"] = str(problem.retry_after)
    return HttpResponse(page, status=problem.type.status, headers=headers, content_type="text/plain")


def _unapplied_migrations() -> list[str]:
    require_writes()
    return unapplied_migrations()

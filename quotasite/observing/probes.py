"""Probes for the platform, and the answers of last resort."""

import hmac
import os
import sys
from pathlib import Path

from django.conf import settings
from django.db import InterfaceError, OperationalError, connection
from django.db.migrations.executor import MigrationExecutor
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from quotas.access.session_tokens import key_source
from quotas.api.problems import Problem, problem_for, unauthorized
from quotas.store.errors import read_with_reconnect

JSON_PATHS = ("/api", "/webhooks", "/healthz", "/readyz", "/metrics")


@never_cache
def healthz(request: HttpRequest) -> HttpResponse:
    """The process is alive; nothing else is asked."""
    return JsonResponse({"status": "alive"})


@never_cache
def readyz(request: HttpRequest) -> HttpResponse:
    """The database answers and is migrated, so that requests can be sent here.

    Where the token keys come from, and how old they are in this process, is told and never a reason to
    fail: an outage at Clerk must not take every instance out of service.
    """
    keys, age = key_source()
    try:
        missing = read_with_reconnect(_unapplied_migrations)
    except (OperationalError, InterfaceError) as error:
        problem = problem_for(error)
        assert problem  # noqa: S101 - a dead database always has one
        return problem.response()
    if missing:
        detail = f"{len(missing)} migrations are not applied, {missing[0]} first: run manage.py migrate."
        return Problem(503, "not_migrated", detail, headers={"Retry-After": "5"}).response()
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
    """What was counted, as Prometheus reads it. Without METRICS_TOKEN there is no such page."""
    if not settings.METRICS_TOKEN:
        raise Http404
    given = request.headers.get("Authorization", "").encode()
    if not hmac.compare_digest(given, f"Bearer {settings.METRICS_TOKEN}".encode()):
        detail = "Send Authorization: Bearer and the METRICS_TOKEN of this service."
        return unauthorized("token_missing", detail).response()
    registry = REGISTRY
    if settings.PROMETHEUS_MULTIPROC_DIR:
        _forget_the_dead(Path(settings.PROMETHEUS_MULTIPROC_DIR))
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


def _forget_the_dead(folder: Path) -> None:
    """Drop what workers that have ended said of themselves; what they counted stays.

    Here, because the hooks at a worker's end differ from server to server, and a killed one has none.
    """
    for file in folder.glob("gauge_live*.db"):
        try:
            os.kill(int(file.stem.rpartition("_")[2]), 0)
        except (ProcessLookupError, PermissionError):  # gone, or its number is another user's by now
            file.unlink(missing_ok=True)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """400, which for a stranger is most often a Host that is not in ALLOWED_HOSTS."""
    return _answer(request, Problem(400, "bad_request", "The request, or its Host header, is malformed."))


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    return _answer(request, Problem(404, "not_found", "There is nothing at this address."))


def server_error(request: HttpRequest) -> HttpResponse:
    """503 where the database is away, else a 500 that says nothing of its cause."""
    error = sys.exc_info()[1]
    known = problem_for(error) if isinstance(error, Exception) else None
    return _answer(request, known or Problem(500, "server_error", "This is a fault of the server, noted."))


def _answer(request: HttpRequest, problem: Problem) -> HttpResponse:
    if request.path.startswith(JSON_PATHS):
        return problem.response()
    page = f"{problem.body['title']}. {problem.body['detail']}\n"
    return HttpResponse(page, status=problem.status, headers=problem.headers, content_type="text/plain")


def _unapplied_migrations() -> list[str]:
    executor = MigrationExecutor(connection)
    plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    return [f"{migration.app_label}.{migration.name}" for migration, _ in plan]

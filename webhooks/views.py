"""The endpoint for Clerk's deliveries."""

import logging

from django.db import IntegrityError, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt

from quotas.api.errors import problem_for
from quotas.api.responses import problem_http_response
from quotas.metrics import DELIVERIES
from quotas.problems import SERVER_ERROR, ProblemType
from quotas.store.errors import read_with_reconnect
from webhooks.clerk import deliveries, payloads
from webhooks.handlers import HANDLERS, handle
from webhooks.models import WebhookEvent
from webhooks.refusals import REFUSALS

log = logging.getLogger(__name__)
POST_ONLY = ProblemType(405, "method_not_allowed", "Send deliveries with POST.")
DELIVERY_REFUSED = ProblemType(400, "delivery_refused", "{detail}")
NOT_CONFIGURED = ProblemType(503, "webhook_not_configured", "{detail}")


@csrf_exempt
def clerk_webhook(request: HttpRequest) -> HttpResponse:
    """Handle one delivery once. A 2xx means that it is done; after any other status Clerk sends it again."""
    if request.method != "POST":
        response = problem_http_response(POST_ONLY())
        response["Allow"] = "POST"
        return response
    try:
        delivery = deliveries.verify_delivery(request.body, request.headers)
    except deliveries.DeliveryRefused as error:
        log.warning("A delivery was refused: %s", error.detail)
        _count("unverified", "refused")
        REFUSALS.add(error.reason)
        return problem_http_response(DELIVERY_REFUSED(detail=error.detail))
    except payloads.NotConfigured as error:
        log.error("A delivery cannot be verified: %s", error)
        _count("unverified", "failed")
        REFUSALS.add("not_configured")
        return problem_http_response(NOT_CONFIGURED(detail=str(error), retry_after=300))
    try:
        status = _receive(delivery)
    except Exception as error:  # whatever the cause, Clerk must send the event again
        _count(delivery.type, "failed")
        log.exception("Delivery %s (%s) failed; Clerk will send it again", delivery.id, delivery.type)
        return problem_http_response(problem_for(error) or SERVER_ERROR())
    _count(delivery.type, status)
    is_ignored = status == WebhookEvent.Status.IGNORED
    return JsonResponse({"status": "ignored" if is_ignored else "success"})


def _receive(delivery: deliveries.Delivery) -> str:
    """Return the outcome of the delivery, which may have been handled before."""
    if status := read_with_reconnect(lambda: _known_status(delivery)):
        return status
    try:
        with transaction.atomic():
            event = handle(delivery)
            event.save(force_insert=True)
            return event.status
    except IntegrityError:
        # A concurrent delivery of the same event may have won the race: then it has done all the work.
        if status := _known_status(delivery):
            return status
        raise


def _known_status(delivery: deliveries.Delivery) -> str | None:
    return WebhookEvent.objects.filter(pk=delivery.id).values_list("status", flat=True).first()


def _count(event_type: str, outcome: str) -> None:
    is_known = event_type in HANDLERS or event_type == "unverified"
    DELIVERIES.labels(event_type if is_known else "other", outcome).inc()

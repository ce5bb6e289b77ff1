"""Where Clerk's deliveries arrive."""

import logging

from django.db import IntegrityError, InterfaceError, OperationalError, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt

from quotas.problems import Problem, from_exception, unavailable
from quotas.store import NoDefaultPlan, read_surely
from webhooks import clerk
from webhooks.handlers import handle
from webhooks.models import WebhookEvent

log = logging.getLogger(__name__)


@csrf_exempt
def clerk_webhook(request: HttpRequest) -> HttpResponse:
    """Handle one delivery once: a 2xx means that it is done, all else that Clerk shall send it again."""
    if request.method != "POST":
        detail = "Deliveries come by POST."
        return Problem(405, "method_not_allowed", detail, headers={"Allow": "POST"}).response()
    try:
        return JsonResponse({"status": _receive(clerk.verify(request.body, request.headers))})
    except clerk.DeliveryRefused as error:
        log.warning("A delivery was refused: %s", error.detail)
        return Problem(400, "delivery_refused", error.detail).response()
    except clerk.NotConfigured as error:
        log.error("A delivery came and cannot be verified: %s", error)
        return unavailable("webhook_not_configured", str(error), retry_after=300).response()
    except (OperationalError, InterfaceError, NoDefaultPlan) as error:
        if problem := from_exception(error):
            return problem.response()
        raise


def _receive(delivery: clerk.Delivery) -> str:
    """Return what became of the delivery, now or when it came before."""
    if status := read_surely(lambda: _known_status(delivery)):
        return status
    try:
        with transaction.atomic():
            event = handle(delivery)
            event.save(force_insert=True)
            return event.status
    except IntegrityError:
        # The same event may have come twice at once; then the other one did all there was to do.
        if status := _known_status(delivery):
            return status
        raise


def _known_status(delivery: clerk.Delivery) -> str | None:
    return WebhookEvent.objects.filter(pk=delivery.id).values_list("status", flat=True).first()

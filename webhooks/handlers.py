"""What each type of event does to a quota. Every handler is idempotent.

A handler reads only the inbox row, which holds all that it needs of the delivery, so an event can be handled
again long after it arrived.
"""

import logging
from collections.abc import Callable

from django.conf import settings

from quotas.models import ChallengeQuota, Plan, PlanAssignment
from quotas.rules.outcomes import Deleted
from quotas.rules.values import Actor, PlanSource
from webhooks.clerk.deliveries import Delivery
from webhooks.clerk.payloads import UnusablePayload, read_item, read_user
from webhooks.models import WebhookEvent

log = logging.getLogger(__name__)

CLERK = Actor("webhook", "clerk")
Status = WebhookEvent.Status


def handle(delivery: Delivery) -> WebhookEvent:
    """Apply the delivery, and return its inbox row, not yet saved."""
    event = WebhookEvent(svix_id=delivery.id, type=delivery.type, occurred_at=delivery.occurred_at)
    if settings.CLERK_INSTANCE_ID and delivery.instance_id not in ("", settings.CLERK_INSTANCE_ID):
        _set_outcome(event, Status.IGNORED, "it is from another instance than CLERK_INSTANCE_ID")
        return event
    try:
        if delivery.type in HANDLERS:  # of other types no data are stored
            READERS[delivery.type.partition(".")[0]](delivery, event)
    except UnusablePayload as reason:
        _set_outcome(event, Status.IGNORED, str(reason))
    else:
        apply(event)
    return event


def apply(event: WebhookEvent) -> None:
    """Apply the event, for the first time or again, and set its status and note."""
    _set_outcome(event, Status.SUCCESS)
    try:
        if event.type not in HANDLERS:
            _set_outcome(event, Status.IGNORED, "events of this type are not used")
        elif not event.user_id:
            reason = "an organization pays, not a user" if event.external_id else "it names no user"
            _set_outcome(event, Status.IGNORED, reason)
        else:
            HANDLERS[event.type](event)
    except Deleted:
        event.email = ""
        _set_outcome(event, Status.IGNORED, "the user is deleted")
    if event.status == Status.WARNING:
        log.warning("Delivery %s (%s): %s", event.svix_id, event.type, event.note)


def user_saved(event: WebhookEvent) -> None:
    """Open the user's quota if it is missing; store their e-mail and plan unless a later version is known."""
    ChallengeQuota.objects.open_missing(event.user_id, actor=CLERK)
    if event.updated_at is None:  # no time to order it by
        event.email = ""
        return
    rows = ChallengeQuota.objects.select_for_update().filter(pk=event.user_id)
    known_at, deleted_at = rows.values_list("clerk_updated_at", "deleted_at").get()
    if deleted_at:  # by another transaction, during the wait for the row lock
        raise Deleted
    if known_at and known_at > event.updated_at:
        event.email = ""
        _set_outcome(event, Status.IGNORED, "a later version of the user is known")
        return
    ChallengeQuota.objects.note_profile(event.user_id, event.email, event.updated_at)
    if event.plan is None or not settings.CLERK_PLAN_METADATA_KEY:
        return
    if (
        event.plan
        or PlanAssignment.objects.filter(user_id=event.user_id, source=PlanSource.METADATA).exists()
    ):
        _assign(event, PlanSource.METADATA, event.plan)


def user_deleted(event: WebhookEvent) -> None:
    """Close the user's quota permanently, and erase the e-mail."""
    ChallengeQuota.objects.delete(event.user_id, actor=CLERK, reason=event.type)
    WebhookEvent.objects.filter(user_id=event.user_id).exclude(email="").update(email="")


def item_active(event: WebhookEvent) -> None:
    """Give the payer the item's plan."""
    if not event.plan:
        _set_outcome(event, Status.IGNORED, "the item names no plan")
    else:
        _assign(event, PlanSource.BILLING, event.plan)


def item_updated(event: WebhookEvent) -> None:
    """Follow an item that was changed in place: its plan, its period or its status."""
    if event.plan is None:
        _set_outcome(event, Status.SUCCESS, "the item gives no plan yet")
    else:
        _assign(event, PlanSource.BILLING, event.plan)


def item_past_due(event: WebhookEvent) -> None:
    """Leave the plan as it is while Clerk tries to collect the payment."""
    _set_outcome(event, Status.SUCCESS, "the plan stays while the payment is past due")


def item_ended(event: WebhookEvent) -> None:
    """Withdraw the item's plan; another item of the payer may still give one."""
    _assign(event, PlanSource.BILLING, "")


def item_canceled(event: WebhookEvent) -> None:
    """Leave the plan as it is: it is paid until the item ends, which is an event of its own."""
    _set_outcome(event, Status.SUCCESS, "the plan stays until the item ends")


def _assign(event: WebhookEvent, source: PlanSource, plan: str) -> None:
    if event.updated_at is None:
        return _set_outcome(event, Status.IGNORED, "it has no time to order it by")
    is_latest = ChallengeQuota.objects.assign_plan(
        event.user_id,
        source.value,
        plan,
        external_id=event.external_id,
        is_free=event.is_free_item,
        updated_at=event.updated_at,
        actor=CLERK,
        reason=event.type,
    )
    if not is_latest:
        return _set_outcome(event, Status.IGNORED, "a later version of this assignment is known")
    if plan and not event.is_free_item and not Plan.objects.filter(pk=plan).exists():
        return _set_outcome(event, Status.WARNING, _unknown_plan(plan))
    return None


def _unknown_plan(plan: str) -> str:
    name = plan if len(plan) <= 40 else f"{plan[:40]}…"
    name = name if name == name.strip() else repr(name)
    if meant := Plan.objects.filter(pk=plan.strip().lower()).first():
        return f"there is no plan {name}, so this gives none: did you mean {meant}?"
    return f"there is no plan {name}, so this gives none: add it, and apply this event again"


def _set_outcome(event: WebhookEvent, status: WebhookEvent.Status, note: str = "") -> None:
    event.status, event.note = status, note


def _read_user(delivery: Delivery, event: WebhookEvent) -> None:
    user = read_user(delivery.data)
    event.user_id, event.email, event.plan = user.user_id, user.email, user.plan
    event.updated_at = user.updated_at or delivery.occurred_at


def _read_item(delivery: Delivery, event: WebhookEvent) -> None:
    item = read_item(delivery.data)
    event.user_id, event.external_id, event.is_free_item = item.user_id, item.item_id, item.is_free
    event.plan = item.plan
    if event.type == "subscriptionItem.updated":
        event.plan = item.current_plan
    event.updated_at = item.updated_at or delivery.occurred_at


READERS: dict[str, Callable[[Delivery, WebhookEvent], None]] = {
    "user": _read_user,
    "subscriptionItem": _read_item,
}
HANDLERS: dict[str, Callable[[WebhookEvent], None]] = {
    "user.created": user_saved,
    "user.updated": user_saved,
    "user.deleted": user_deleted,
    "subscriptionItem.active": item_active,
    "subscriptionItem.canceled": item_canceled,
    "subscriptionItem.ended": item_ended,
    "subscriptionItem.pastDue": item_past_due,
    "subscriptionItem.updated": item_updated,
}

"""What each type of event does to a quota. Every handler may be run again without harm."""

from collections.abc import Callable

from quotas.models import ChallengeQuota
from quotas.policy import Actor, Deleted
from webhooks.clerk import Delivery, OddUser, read_user
from webhooks.models import WebhookEvent

ACTOR = "clerk"


def handle(delivery: Delivery) -> WebhookEvent:
    """Do what the event asks, and return the inbox row that tells of it, not yet saved."""
    event = WebhookEvent(
        svix_id=delivery.id,
        type=delivery.type,
        occurred_at=delivery.occurred_at,
        status=WebhookEvent.Status.SUCCESS,
    )
    try:
        HANDLERS.get(delivery.type, _unknown)(delivery, event)
    except OddUser as reason:
        _ignore(event, str(reason))
    return event


def user_saved(delivery: Delivery, event: WebhookEvent) -> None:
    """Open the user's quota if it is missing, and note the e-mail if this is the latest word on it."""
    user = read_user(delivery.data)
    event.user_id = user.user_id
    try:
        ChallengeQuota.objects.open_missing(user.user_id, actor=Actor("webhook", ACTOR))
    except Deleted:
        return _ignore(event, "the user is deleted")
    updated_at = user.updated_at or delivery.occurred_at
    if updated_at is None:  # nothing to order it by
        return None
    if not ChallengeQuota.objects.note_profile(user.user_id, user.email, updated_at):
        return _ignore(event, "a later version of the user is known")
    event.email = user.email
    return None


def user_deleted(delivery: Delivery, event: WebhookEvent) -> None:
    """Close the user's quota for good, and forget the e-mail."""
    event.user_id = read_user(delivery.data).user_id
    ChallengeQuota.objects.delete(event.user_id, actor=Actor("webhook", ACTOR), reason="user.deleted")
    WebhookEvent.objects.filter(user_id=event.user_id).exclude(email="").update(email="")


def _unknown(delivery: Delivery, event: WebhookEvent) -> None:
    _ignore(event, "events of this type are not used")


def _ignore(event: WebhookEvent, why: str) -> None:
    event.status, event.note = WebhookEvent.Status.IGNORED, why


HANDLERS: dict[str, Callable[[Delivery, WebhookEvent], None]] = {
    "user.created": user_saved,
    "user.updated": user_saved,
    "user.deleted": user_deleted,
}

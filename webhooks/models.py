"""The inbox, one row for each delivery that was handled; and the count of those that were refused."""

from django.db import models


class WebhookEvent(models.Model):
    """A delivery from Clerk that was verified and handled: a row here means that it is done.

    Of its data only what a handler reads is stored: no names, no phone numbers, no other e-mail addresses, no
    metadata except the plan's name. That is enough to handle it again.
    """

    class Status(models.TextChoices):
        SUCCESS = "success"
        WARNING = "warning", "handled, with a warning"
        IGNORED = "ignored"

    is_free_item = False  # of the delivery being handled; not stored

    svix_id = models.CharField(max_length=128, primary_key=True)
    type = models.CharField(max_length=128)
    user_id = models.CharField(max_length=128, blank=True)
    email = models.CharField(max_length=320, blank=True)
    # The plan's name in the metadata, or the subscription item's slug; "" if there is none, NULL if not read.
    plan = models.CharField(max_length=128, null=True)  # noqa: DJ001
    # The subscription item's id. The database default lets the previous release insert rows during a deploy.
    external_id = models.CharField(max_length=128, blank=True, default="", db_default="")
    updated_at = models.DateTimeField(null=True)  # Clerk's, by which events are ordered
    occurred_at = models.DateTimeField(null=True)
    handled_at = models.DateTimeField(auto_now_add=True)
    status = models.CharField(max_length=8, choices=Status)
    note = models.CharField(max_length=200, blank=True)

    class Meta:
        db_table = "webhook_events"
        ordering = ["-handled_at"]
        indexes = [
            models.Index(fields=["-handled_at"], name="webhook_events_handled"),
            models.Index(fields=["user_id"], name="webhook_events_prefix", opclasses=["varchar_pattern_ops"]),
            models.Index(fields=["type", "-handled_at"], name="webhook_events_type"),
            models.Index(  # most events are a success, and need no index
                fields=["status", "-handled_at"],
                name="webhook_events_unusual",
                condition=models.Q(status__in=["ignored", "warning"]),
            ),
        ]

    def __str__(self) -> str:
        return self.svix_id


class DeliveryRefusals(models.Model):
    """How often deliveries were refused on a day (UTC) for one of arrivals.REASONS, and nothing of them."""

    day = models.DateField()
    reason = models.CharField(max_length=16)
    times = models.BigIntegerField()
    last_at = models.DateTimeField()

    class Meta:
        db_table = "webhook_refusals"
        default_permissions = ()  # the overview shows the figures
        constraints = [models.UniqueConstraint(fields=["day", "reason"], name="webhook_refusals_day_reason")]

    def __str__(self) -> str:
        return f"{self.day} {self.reason}"

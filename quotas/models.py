"""The tables: plans, quotas, their ledger, Clerk's plan assignments, hourly totals and service keys."""

import hashlib
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Literal, NoReturn

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models, transaction
from django.db.models import F, Q
from django.db.models.functions import Now
from uuid_utils.compat import uuid7

from quotas.rules import periods, values, verbs
from quotas.rules.values import MAX_UNITS, EntryKind, Quota, Snapshot
from quotas.rules.zones import zone
from quotas.store.manager import QuotaManager

UNITS = (MinValueValidator(0), MaxValueValidator(MAX_UNITS))
DAY_SECONDS = 86_400
MAX_ACTIONS = 200  # of a plan: the console's form has two fields for each
MAX_PERIOD_SECONDS = values.MAX_PERIOD // timedelta(seconds=1)


def validate_timezone(name: str) -> None:
    try:
        zone(name)
    except KeyError:
        raise ValidationError("Name a time zone such as Europe/Berlin or UTC.") from None


def validate_period(seconds: int | None) -> None:
    if seconds is None or not 1 <= seconds <= MAX_PERIOD_SECONDS:
        longest = f"{values.MAX_PERIOD.days} d"
        raise ValidationError(f"Write a period of 1 s to {longest}, such as 24 h, 7 d, 30 min or 90 s.")


def validate_actions(actions: object) -> None:
    """Require {"name": cost}. The error names each action that is wrong, and the fix."""
    if not isinstance(actions, dict) or len(actions) > MAX_ACTIONS:
        raise ValidationError(f"Give each action a name and a cost; at most {MAX_ACTIONS} actions.")
    found = ((name, fault_of_action(name, cost)) for name, cost in actions.items())
    if faults := [f"{name!r:.80}: {fault}" for name, fault in found if fault]:
        raise ValidationError(faults)


def fault_of_action(name: str, cost: object) -> str:
    if not values.ACTION_NAME.fullmatch(name):
        return "the name must have 1 to 64 of the characters A-Z a-z 0-9 _ . : -"
    if type(cost) is not int or not 1 <= cost <= MAX_UNITS:
        return f"the cost must be a whole number from 1 to {MAX_UNITS}"
    return ""


class PlanRules(models.Model):
    """The rules of a plan in one version."""

    class ResetPolicy(models.TextChoices):
        ROLLING = "rolling", "rolling: a period after the last reset"
        ANCHORED = "anchored", "anchored: every period since the user’s first day, at the same time"
        DAILY = "daily", "daily: every day at midnight"
        WEEKLY = "weekly", "weekly: every Monday at midnight"
        MONTHLY = "monthly", "monthly: at midnight, on the day of the month on which the user began"

    version = models.PositiveIntegerField(default=1, editable=False)
    allowance = models.BigIntegerField(
        null=True, blank=True, validators=UNITS, help_text="Units a period; empty is unlimited."
    )
    reset_policy = models.CharField(max_length=16, choices=ResetPolicy, default=ResetPolicy.ROLLING)
    period_seconds = models.PositiveIntegerField(
        default=DAY_SECONDS,
        validators=[MinValueValidator(1), MaxValueValidator(MAX_PERIOD_SECONDS)],
        help_text="For rolling and anchored; a day is 86400.",
    )
    timezone = models.CharField(
        max_length=64,
        default="UTC",
        validators=[validate_timezone],
        help_text="For daily, weekly and monthly, such as Europe/Berlin.",
    )
    actions = models.JSONField(
        default=dict,
        blank=True,
        validators=[validate_actions],
        help_text='What a named action costs: {"generate": 1}.',
    )

    class Meta:
        abstract = True

    def named(self, name: str) -> values.Plan:
        return values.Plan(
            name=name,
            version=self.version,
            allowance=self.allowance,
            reset_policy=self.reset_policy,
            period=timedelta(seconds=self.period_seconds),
            timezone=self.timezone,
            actions=self.actions,
        )

    RULES: ClassVar = ["allowance", "reset_policy", "period_seconds", "timezone", "actions"]


class PlanManager(models.Manager["Plan"]):
    def locked(self) -> dict[str, "Plan"]:
        """Lock all plans until the transaction ends, each time in one order, and return them by name."""
        list(self.select_for_update(no_key=True).order_by("name").values_list("name"))
        # Read anew: a statement that waited for a lock does not see the rows that were added meanwhile.
        return {plan.name: plan for plan in self.all()}

    def choose_default(self, name: str) -> None:
        """Make this plan the default. Raises ValidationError if it is archived."""
        with transaction.atomic():
            if self.locked()[name].is_archived:
                raise ValidationError(f"The plan {name} is archived: unarchive it before it is the default.")
            self.filter(is_default=True).exclude(pk=name).update(is_default=False)
            self.filter(pk=name).update(is_default=True)

    def archive(self, name: str, *, is_archived: bool = True) -> None:
        """Archive a plan, or unarchive it. Raises ValidationError for the default plan."""
        with transaction.atomic():
            if is_archived and self.locked()[name].is_default:
                raise ValidationError(
                    f"The plan {name} is the default: choose another default before you archive it."
                )
            self.filter(pk=name).update(is_archived=is_archived)


class Plan(PlanRules):
    """A plan in its newest version: how many units a user gets, and when the quota resets."""

    name = models.CharField(
        max_length=40,
        primary_key=True,
        validators=[RegexValidator(rf"\A{values.PLAN_NAME.pattern}\Z", "Use a-z, 0-9, _ and -, at most 40.")],
        help_text="The plan's slug in Clerk. It cannot be changed later.",
    )
    version_id = models.UUIDField(null=True, editable=False)  # of the PlanVersion with these rules
    is_default = models.BooleanField(default=False, help_text="The plan of a user who has no other.")
    is_public = models.BooleanField(default=True, help_text="Whether GET /api/v1/plans lists it.")
    # An archived plan stays with its users, and Clerk may still assign it; nobody else can choose it.
    is_archived = models.BooleanField("archived", default=False, db_default=False)

    objects = PlanManager()

    class Meta:
        db_table = "plans"
        ordering = ["name"]
        constraints = [
            models.UniqueConstraint("is_default", condition=Q(is_default=True), name="plans_one_default"),
            models.CheckConstraint(
                condition=~Q(is_archived=True, is_default=True), name="plans_default_not_archived"
            ),
            models.CheckConstraint(
                condition=Q(allowance__isnull=True) | Q(allowance__range=(0, MAX_UNITS)),
                name="plans_allowance_in_range",
            ),
            models.CheckConstraint(
                condition=Q(period_seconds__range=(1, MAX_PERIOD_SECONDS)), name="plans_period_in_range"
            ),
            models.CheckConstraint(
                condition=Q(reset_policy__in=list(periods.RESET_POLICIES)), name="plans_reset_policy_known"
            ),
        ]

    def __str__(self) -> str:
        return self.name

    def save(self, **options: Any) -> None:
        """Save, and add a version if a rule has changed; running periods continue under the old one."""
        rules = {rule: getattr(self, rule) for rule in self.RULES}
        with transaction.atomic():
            # One edit at a time. Lock the plan, not its last version: after a wait there may be a later one.
            Plan.objects.select_for_update(no_key=True).filter(pk=self.name).first()
            last = PlanVersion.objects.filter(plan_id=self.name).order_by("version").last()
            is_new = last is None or any(rules[rule] != getattr(last, rule) for rule in rules)
            self.version = (last.version if last else 0) + is_new
            self.version_id = last.id if last and not is_new else uuid7()
            if (names := options.get("update_fields")) is not None:
                options["update_fields"] = {*names, *self.RULES, "version", "version_id"}
            super().save(**options)
            if is_new:
                PlanVersion.objects.create(
                    id=self.version_id, plan=self, version=self.version, valid_from=Now(), **rules
                )

    @property
    def value(self) -> values.Plan:
        return self.named(self.name)


class PlanVersion(PlanRules):
    """The rules of a plan from `valid_from` on. A version is never changed."""

    id = models.UUIDField(primary_key=True)
    plan = models.ForeignKey(Plan, on_delete=models.PROTECT, related_name="versions", db_index=False)
    valid_from = models.DateTimeField()  # by the database's clock, as in the ledger

    class Meta:
        db_table = "plan_versions"
        constraints = [models.UniqueConstraint(fields=["plan", "version"], name="plan_versions_version_once")]

    def __str__(self) -> str:
        return f"{self.plan_id} {self.version}"

    @property
    def value(self) -> values.Plan:
        return self.named(self.plan_id)


class ChallengeQuota(models.Model):
    """One user's quota. Only the manager's verbs change it; it is never deleted."""

    user_id = models.CharField(max_length=128, primary_key=True)
    email = models.CharField(max_length=320, blank=True, default="")
    plan = models.ForeignKey(Plan, on_delete=models.PROTECT, db_index=False)
    plan_source = models.CharField(max_length=8, db_default=values.PlanSource.DEFAULT.value)
    plan_version = models.PositiveIntegerField(default=1)
    quota_limit = models.BigIntegerField(null=True)
    quota_remaining = models.BigIntegerField()
    # These are known if usage_seq is seq: otherwise a release without them was the last to write the row.
    period_consumed = models.BigIntegerField(null=True)
    period_given = models.BigIntegerField(null=True)
    last_reset_date = models.DateTimeField()
    resets_at = models.DateTimeField(null=True)
    anchor_at = models.DateTimeField()
    period_seq = models.BigIntegerField()
    refused_at = models.DateTimeField(null=True)
    left_until = models.DateTimeField(null=True)
    seq = models.BigIntegerField()
    usage_seq = models.BigIntegerField(null=True)
    updated_at = models.DateTimeField()
    clerk_updated_at = models.DateTimeField(null=True)
    deleted_at = models.DateTimeField(null=True)

    objects = QuotaManager()

    class Meta:
        db_table = "challenge_quotas"
        ordering = ["user_id"]
        verbose_name = "quota"
        permissions = [("change_plan_of_quota", "Can change the plan of a quota")]
        indexes = [  # none on a column that a spend changes: it would prevent HOT updates
            models.Index(fields=["plan"], name="quotas_plan"),
            models.Index(fields=["email"], name="quotas_email", opclasses=["varchar_pattern_ops"]),
            models.Index(fields=["user_id"], name="quotas_deleted", condition=Q(deleted_at__isnull=False)),
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(quota_remaining__range=(0, MAX_UNITS)), name="quotas_remaining_in_range"
            ),
            models.CheckConstraint(
                condition=Q(quota_limit__range=(0, MAX_UNITS))
                | Q(quota_limit__isnull=True, quota_remaining=0),
                name="quotas_limit_in_range",
            ),
            models.CheckConstraint(
                condition=Q(period_seq__gte=1, period_seq__lte=F("seq")), name="quotas_period_has_begun"
            ),
        ]

    def __str__(self) -> str:
        return self.user_id

    def save(self, *args: object, **kwargs: object) -> NoReturn:
        raise TypeError("Change a quota with a verb of its manager: the ledger must record it.")

    def delete(self, *args: object, **kwargs: object) -> NoReturn:
        raise TypeError("A quota is never deleted: its manager's delete() leaves a tombstone.")

    @property
    def state(self) -> values.State:
        return values.State(
            user_id=self.user_id,
            plan=self.plan_id,
            plan_source=self.plan_source,
            plan_version=self.plan_version,
            quota_limit=self.quota_limit,
            quota_remaining=self.quota_remaining,
            period_consumed=self.period_consumed,  # type: ignore[arg-type] # see periods.as_shown
            period_given=self.period_given,  # type: ignore[arg-type]
            last_reset_date=self.last_reset_date,
            resets_at=self.resets_at,  # type: ignore[arg-type]
            anchor_at=self.anchor_at,
            period_seq=self.period_seq,
            refused_at=self.refused_at,
            left_until=self.left_until,
            seq=self.seq,
            usage_seq=self.usage_seq,
            updated_at=self.updated_at,
            deleted_at=self.deleted_at,
        )

    def snapshot(self, now: datetime) -> Snapshot:
        """Return the snapshot that the store would read at `now`, for an outcome that is not stored."""
        plan = self.plan.value
        in_force = plan
        if self.plan_version != plan.version:
            # No query for one version: a list of quotas has prefetched all.
            in_force = next(
                version.value for version in self.plan.versions.all() if version.version == self.plan_version
            )
        state = periods.as_shown(self.state, in_force)
        return Snapshot(self.user_id, now, plan, in_force, state, None, None, values.NO_IDS)

    def effective(self, now: datetime) -> Quota:
        """Return the quota that a request at `now` would find, after a reset if it is due."""
        return verbs.effective(self.snapshot(now))


class LedgerEntry(models.Model):
    """One event of a quota, and the state after it. Never changed; `prune_ledger` removes old entries."""

    KINDS: ClassVar = [(kind.value, kind.value) for kind in EntryKind]

    id = models.UUIDField(primary_key=True)
    # No foreign-key constraint: it would cost each spend a look-up, and a quota's row is never deleted.
    user = models.ForeignKey(
        ChallengeQuota,
        on_delete=models.DO_NOTHING,
        related_name="entries",
        db_column="user_id",
        db_constraint=False,
        db_index=False,
    )
    seq = models.BigIntegerField()
    kind = models.CharField(max_length=16, choices=KINDS)
    cost = models.BigIntegerField()
    delta = models.BigIntegerField()
    plan = models.CharField(max_length=40)
    plan_source = models.CharField(max_length=8, db_default=values.PlanSource.DEFAULT.value)
    plan_version = models.PositiveIntegerField(default=1)
    quota_limit = models.BigIntegerField(null=True)
    balance_after = models.BigIntegerField()
    period_consumed = models.BigIntegerField(null=True)
    period_given = models.BigIntegerField(null=True)
    last_reset_date = models.DateTimeField()
    anchor_at = models.DateTimeField()
    resets_at = models.DateTimeField()
    period_seq = models.BigIntegerField()
    created_at = models.DateTimeField()
    actor_kind = models.CharField(max_length=16)
    actor_id = models.CharField(max_length=150)
    act = models.CharField(max_length=128, blank=True)
    reason = models.CharField(max_length=200, blank=True)
    action = models.CharField(max_length=64, blank=True)
    metadata = models.JSONField(null=True)
    # "verb:kind of caller:key"; the API accepts keys of up to 128 characters (quotas/api/idempotency.py).
    idempotency_key = models.CharField(max_length=160, null=True)  # noqa: DJ001 - unique where it is set
    fingerprint = models.CharField(max_length=64, blank=True)
    refund_of = models.UUIDField(null=True)

    class Meta:
        db_table = "ledger_entries"
        ordering = ["-id"]  # ids are time-ordered: the newest first, by the primary key
        verbose_name_plural = "ledger entries"
        indexes = [
            models.Index(
                fields=["user", "refund_of"],
                name="ledger_refunds",
                condition=Q(refund_of__isnull=False),
            ),
            models.Index(
                fields=["resets_at", "user", "seq"],
                name="ledger_exhausted",
                condition=Q(balance_after=0, quota_limit__isnull=False),
            ),
            models.Index(
                fields=["created_at", "user"], name="ledger_refusals", condition=Q(kind=EntryKind.REFUSED)
            ),
            # Not for spends: so frequent that a scan by id finds them, and each would have to update it.
            models.Index(fields=["kind", "id"], name="ledger_kinds", condition=~Q(kind=EntryKind.CONSUMED)),
        ]
        constraints = [
            models.UniqueConstraint(fields=["user", "seq"], name="ledger_seq_once"),
            models.UniqueConstraint(
                fields=["user", "idempotency_key"],
                condition=Q(idempotency_key__isnull=False),
                name="ledger_key_once",
            ),
            models.CheckConstraint(
                condition=Q(kind__in=[kind.value for kind in EntryKind]), name="ledger_kind_known"
            ),
            models.CheckConstraint(
                condition=Q(balance_after__range=(0, MAX_UNITS)), name="ledger_balance_in_range"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.user_id} #{self.seq} {self.kind}"


class PlanAssignment(models.Model):
    """Clerk's latest plan assignment to a user: one for each billed item, and one for the user's metadata.

    Items begin and end independently, and their events may arrive in any order. With one row for each item,
    every order leads to the same plan. A plan that staff chose is in the quota's row instead.
    """

    class Source(models.TextChoices):
        BILLING = values.PlanSource.BILLING.value
        METADATA = values.PlanSource.METADATA.value

    id = models.UUIDField(primary_key=True)
    user_id = models.CharField(max_length=128)
    source = models.CharField(max_length=8, choices=Source)
    external_id = models.CharField(max_length=128, blank=True)  # of the billed item; "" for metadata
    plan = models.CharField(max_length=128, blank=True)  # its name in Clerk, perhaps unknown here; "" is none
    # Of an item that costs nothing, as Clerk Billing gives one to each sign-up: nobody misses its plan here.
    is_free = models.BooleanField(default=False, db_default=False)
    updated_at = models.DateTimeField()  # by Clerk's clock

    class Meta:
        db_table = "plan_assignments"
        constraints = [
            models.UniqueConstraint(
                fields=["user_id", "source", "external_id"], name="plan_assignments_item_once"
            )
        ]

    def __str__(self) -> str:
        return f"{self.user_id} {self.source} {self.plan or 'none'}"


class HourlyTotal(models.Model):
    """The totals of one hour over all users. Spends do not write here: see quotas/reports/totals.py."""

    hour = models.DateTimeField(primary_key=True)  # its beginning, by the database's clock
    spent = models.BigIntegerField()
    refused = models.BigIntegerField()

    class Meta:
        db_table = "hourly_totals"

    def __str__(self) -> str:
        return f"{self.hour:%Y-%m-%d %H:00}: {self.spent} spent, {self.refused} refused"


class CannotRotate(Exception):
    """The service key cannot be rotated; the text says why, and what to do."""


class ServiceKey(models.Model):
    """The key by which one of the product's own servers signs in. Its text is shown once and not stored."""

    SCOPES: ClassVar = ("read", "consume", "refund", "adjust", "admin")
    ACTIVE: ClassVar = Q(revoked_at=None) & (Q(expires_at=None) | Q(expires_at__gt=Now()))

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    name = models.CharField(max_length=100, help_text="Who uses it, such as: api server.")
    prefix = models.CharField(max_length=8, unique=True, editable=False)
    digest = models.CharField(max_length=64, editable=False)  # SHA-256: the key has 256 random bits
    scopes = models.JSONField(default=list)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        db_table = "service_keys"
        ordering = ["name"]

    def __str__(self) -> str:
        return f"{self.name} (qs_{self.prefix}_…)"

    @classmethod
    def make(
        cls, name: str, scopes: Iterable[str], expires_at: datetime | None = None
    ) -> tuple["ServiceKey", str]:
        """Store a new key; return it with its text, which is not stored."""
        prefix = secrets.token_hex(4)
        text = f"qs_{prefix}_{secrets.token_urlsafe(32)}"
        digest = cls.digest_of(text)
        key = cls(name=name, prefix=prefix, digest=digest, scopes=sorted(scopes), expires_at=expires_at)
        key.save(force_insert=True)
        return key, text

    @property
    def state(self) -> Literal["active", "expired", "revoked"]:
        if self.revoked_at:
            return "revoked"
        return "expired" if self.expires_at and self.expires_at <= datetime.now(UTC) else "active"

    def revoke(self) -> bool:
        """Revoke the key; return False if it was revoked before, which leaves the time as it was."""
        unrevoked = ServiceKey.objects.filter(pk=self.pk, revoked_at=None)
        return unrevoked.update(revoked_at=datetime.now(UTC)) > 0

    def rotate(
        self, overlap: timedelta, new_expires_at: datetime | None = None
    ) -> tuple["ServiceKey", str, datetime]:
        """Store a new key with this one's name and scopes, and let this one expire after the overlap.

        Return the new key, its text, and when this one expires. Raises CannotRotate.
        """
        with transaction.atomic():
            # One rotation at a time. Look for the others after the wait: a new one may be there by then.
            old = ServiceKey.objects.select_for_update(no_key=True).get(pk=self.pk)
            if old.state != "active":
                raise CannotRotate(f"{old} is {old.state}: create a new key.")
            if other := ServiceKey.objects.filter(self.ACTIVE, name=old.name).exclude(pk=old.pk).first():
                raise CannotRotate(
                    f"{other} is active too: if {old} was rotated already, use that one. "
                    "Only the single active key of a name can be rotated: revoke the other one first."
                )
            if old.expires_at and new_expires_at is None:
                raise CannotRotate(f"{old} has a limited life: say with --days how long the new one lives.")
            ends_at = min(datetime.now(UTC) + overlap, old.expires_at or datetime.max.replace(tzinfo=UTC))
            ServiceKey.objects.filter(pk=old.pk).update(expires_at=ends_at)
            return *self.make(old.name, old.scopes, new_expires_at), ends_at

    @staticmethod
    def digest_of(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

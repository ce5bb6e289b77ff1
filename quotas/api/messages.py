"""The JSON of requests and of responses: each message is declared once.

A class gives the parsing of its message and the schema in the OpenAPI description, which also shows its
`example`. Names and types are those of the JSON.
"""

import json
from collections.abc import Iterable, Mapping
from decimal import Decimal
from itertools import chain
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from msgspec import UNSET, Meta, Struct, UnsetType, ValidationError, convert
from msgspec.structs import FieldInfo, fields

from quotas.models import ChallengeQuota, LedgerEntry, Plan
from quotas.problems import INVALID_REQUEST, of_refusal
from quotas.reports.history import Explanation
from quotas.reports.reasons import reason
from quotas.rules import values
from quotas.rules.outcomes import Forecast
from quotas.rules.periods import RESET_POLICIES
from quotas.rules.values import MAX_UNITS, EntryKind, PlanSource, rfc3339
from quotas.store.manager import Receipt

JSON = dict[str, Any]
AnyEntry = LedgerEntry | values.Entry


def _named(schema: str) -> Meta:
    return Meta(extra_json_schema={"$ref": f"#/components/schemas/{schema}"})


def _one_of(choices: Iterable[str], description: str = "") -> Meta:
    return Meta(description=description or None, extra_json_schema={"enum": [*choices]})


def _must(sentence: str, **limits: Any) -> Meta:
    """Return the limits of a member of a request, and the sentence for a client that breaks them."""
    return Meta(**limits, extra={"must": sentence})


def _text(max_length: int) -> Meta:
    return _must(
        f"must be a string of 1 to {max_length} characters.",
        min_length=1,
        max_length=max_length,
        extra_json_schema={"pattern": r"^[^\u0000]+$"},  # strict_json.py refuses U+0000
    )


UserId = Annotated[str, _named("UserId")]
Instant = Annotated[str, _named("Instant")]
Uuid = Annotated[str, Meta(extra_json_schema={"format": "uuid"})]
PlanName = Annotated[str, Meta(pattern="^[a-z0-9_-]{1,40}$")]
Source = Annotated[str, _one_of(PlanSource, "Where the choice of the plan comes from.")]
Units = Annotated[int, Meta(ge=0, le=MAX_UNITS)]
Spendable = Annotated[Units, Meta(description=f"Units that can be spent now; {MAX_UNITS} if unlimited.")]
Cost = Annotated[int, _must(f"must be a whole number from 1 to {MAX_UNITS}.", ge=1, le=MAX_UNITS)]
Change = Annotated[int, Meta(ge=-MAX_UNITS, le=MAX_UNITS)]
Difference = Annotated[
    Change,
    _must(
        f"must be a whole number from -{MAX_UNITS} to {MAX_UNITS}, and not 0.",
        extra_json_schema={"not": {"const": 0}},
    ),
]
Limit = Annotated[Units, Meta(description="Units per period; null if unlimited.")] | None
Seq = Annotated[
    int,
    Meta(ge=1, le=2**63 - 1, description="The entry's place in the user's ledger, from 1, without gaps."),
]
Seconds = Annotated[int, Meta(ge=0, le=2**63 - 1, description="Whole seconds, rounded up.")]
Policy = Annotated[str, _one_of(RESET_POLICIES)]
Period = (
    Annotated[
        int,
        Meta(ge=1, le=MAX_UNITS, description="null for calendar months, whose lengths differ."),
    ]
    | None
)
Metadata = Annotated[
    Mapping[str, Any], Meta(description="Stored with the entry. Numbers come back without an exponent.")
]
MAX_METADATA_BYTES = 2048  # without whitespace between the tokens
Reason = Annotated[
    str, _text(200), Meta(description="The reason, which services and staff see in the history.")
]


class Body(Struct, forbid_unknown_fields=True):
    """The body of a request. A member that is UNSET was not sent, and its verb's default applies."""

    example: ClassVar[JSON]

    @classmethod
    def of(cls, members: JSON) -> Self:
        """Raises a 400 Problem for the first fault."""
        try:
            return convert(members, cls)
        except ValidationError:
            raise INVALID_REQUEST(fault=_fault_of(cls, members)) from None

    @property
    def given(self) -> JSON:
        """The members that were sent, or have a default."""
        members = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: value for name, value in members.items() if value is not UNSET}


def _fault_of(message: type[Body], members: JSON) -> str:
    """Return one sentence about the first member that the message does not take."""
    declared = {field.name: field for field in fields(message)}
    for name in members:
        if name not in declared:
            return f"The member {name[:40]!r} is unknown: send only {', '.join(declared)}."
    wrong = next(field for field in declared.values() if not _takes(field, members))
    return f"{wrong.name}: {_must_of(wrong.type)}"


def _takes(field: FieldInfo, members: JSON) -> bool:
    try:
        if field.name in members or field.required:
            convert(members.get(field.name, UNSET), field.type)
    except ValidationError:
        return False
    return True


def _must_of(type_: Any) -> str:
    parts = get_args(type_)
    own = (part.extra["must"] for part in parts if isinstance(part, Meta) and part.extra)
    return next(chain(own, filter(None, map(_must_of, parts))), "")


class CheckRequest(Body):
    cost: Annotated[Cost, Meta(description="Default: the plan's price of the action, or 1.")] | UnsetType = (
        UNSET
    )
    action: Annotated[str, _text(64), Meta(description="The name of an action of the plan.")] | UnsetType = (
        UNSET
    )

    example = {"cost": 2}


class ConsumeRequest(CheckRequest):
    metadata: Annotated[JSON, _must("must be an object."), Meta(description="At most 2 KiB.")] | UnsetType = (
        UNSET
    )

    example = {"cost": 1, "metadata": {"model": "small"}}

    def __post_init__(self) -> None:
        if self.metadata is not UNSET and _length_stored(self.metadata) > MAX_METADATA_BYTES:
            raise INVALID_REQUEST(
                fault="metadata: must not be longer than 2 KiB, with 1e3 written out as 1000."
            )


class RefundRequest(Body):
    reason: Reason
    amount: Annotated[Cost, Meta(description="Default: all that can still be refunded.")] | UnsetType = UNSET

    example = {"amount": 1, "reason": "llm_timeout"}


class AdjustRequest(Body):
    delta: Annotated[Difference, Meta(description="Units to add; negative: to take away.")]
    reason: Reason

    example = {"delta": 50, "reason": "goodwill"}

    def __post_init__(self) -> None:
        if self.delta == 0:
            raise INVALID_REQUEST(fault=f"delta: {_must_of(Difference)}")


class ResetRequest(Body):
    reason: Reason

    example = {"reason": "asked for by support"}


class ChangePlanRequest(Body):
    plan: (
        Annotated[
            str,
            _text(40),
            Meta(description="null returns the choice to billing, metadata or the default plan."),
        ]
        | None
    )
    on_change: Annotated[
        Literal["keep", "reset", "prorate"],
        _must("must be keep, reset or prorate.", extra_json_schema={"type": "string"}),
        Meta(
            description="keep: units already used stay used; reset: a new period begins; prorate: the "
            "difference is added in proportion to the rest of the period."
        ),
    ] = "keep"
    reason: Reason | UnsetType = UNSET

    example = {"plan": "free", "on_change": "keep"}


def _length_stored(metadata: JSON) -> int:
    """The bytes of a JSON object without whitespace, as it was sent and as PostgreSQL writes it out."""
    compact = json.dumps(metadata, ensure_ascii=False, separators=(",", ":"))
    return len(compact.encode()) + _written_out(metadata)


def _written_out(value: Any) -> int:
    """How many characters a value gains because jsonb has no exponents: 1e308 has 309 digits."""
    if isinstance(value, float):
        return len(f"{Decimal(repr(value)):f}") - len(repr(value))
    if isinstance(value, dict):
        return sum(map(_written_out, value.values()))
    return sum(map(_written_out, value)) if isinstance(value, list) else 0


class SimpleQuotaAnswer(Struct, forbid_unknown_fields=True):
    """The three members of `GET /api/quota`, which never change.

    The end of the period is not among them. It is `last_reset_date` plus 24 hours under a rolling plan of one
    day, but not under daily, weekly or monthly plans: `GET /api/v1/quota` has it as `resets_at`.
    """

    user_id: UserId
    quota_remaining: Spendable
    last_reset_date: Instant

    @classmethod
    def of(cls, quota: values.Quota) -> Self:
        return cls(quota.user_id, quota.spendable, rfc3339(quota.last_reset_date))


class QuotaAnswer(Struct):
    user_id: UserId
    plan: PlanName
    unlimited: bool
    quota_limit: Limit
    quota_used: Annotated[
        Units,
        Meta(description="Units consumed in this period less refunds, without those of an unlimited plan."),
    ]
    quota_remaining: Spendable
    reset_policy: Policy
    period_seconds: Period
    timezone: str
    last_reset_date: Instant
    resets_at: Instant
    seconds_to_reset: Seconds

    @classmethod
    def of(cls, quota: values.Quota) -> Self:
        plan = quota.plan
        return cls(
            user_id=quota.user_id,
            plan=plan.name,
            unlimited=quota.is_unlimited,
            quota_limit=quota.quota_limit,
            quota_used=quota.used,
            quota_remaining=quota.spendable,
            reset_policy=plan.reset_policy,
            period_seconds=period_seconds(plan),
            timezone=plan.timezone,
            last_reset_date=rfc3339(quota.last_reset_date),
            resets_at=rfc3339(quota.resets_at),
            seconds_to_reset=quota.seconds_to_reset,
        )


class ReceiptAnswer(Struct):
    """What the answer to every verb that makes an entry begins with."""

    id: Uuid
    user_id: UserId
    seq: Seq
    created_at: Instant
    quota: QuotaAnswer


def _receipt(receipt: Receipt) -> JSON:
    entry = receipt.entry
    return {
        "id": str(entry.id),
        "user_id": entry.user_id,
        "seq": entry.seq,
        "created_at": rfc3339(entry.created_at),
        "quota": QuotaAnswer.of(receipt.quota),
    }


class ConsumptionAnswer(ReceiptAnswer):
    cost: Cost
    action: str | None
    refunded: Annotated[
        Units,
        Meta(
            description="Units of this consumption that refunds have given back or cancelled so far. Do not "
            "do its work again for a replay, and never if this is above 0."
        ),
    ]

    @classmethod
    def of(cls, receipt: Receipt) -> Self:
        entry = receipt.entry
        action, refunded = entry.action or None, receipt.refunded
        return cls(**_receipt(receipt), cost=entry.cost, action=action, refunded=refunded)


class CheckAnswer(Struct):
    """What a spend would be answered with now. Nothing is spent, and another request may spend first."""

    allowed: bool
    cost: Annotated[Cost, Meta(description="As sent; without it the plan's price of the action, or 1.")]
    remaining_after: (
        Annotated[Units, Meta(description=f"Units that would be left; {MAX_UNITS} if unlimited.")] | None
    )
    code: (
        Annotated[str, Meta(description="`quota_exhausted` or `cost_exceeds_limit`; null if allowed.")] | None
    )
    detail: Annotated[str, Meta(description="One plain sentence that can be shown to users.")]
    resets_at: Instant
    retry_after: (
        Annotated[
            int,
            Meta(ge=1, le=2**63 - 1, description="As Retry-After of a 429; null without one."),
        ]
        | None
    )
    quota: QuotaAnswer

    @classmethod
    def of(cls, forecast: Forecast) -> Self:
        problem = of_refusal(forecast.refusal) if forecast.refusal else None
        return cls(
            allowed=problem is None,
            cost=forecast.cost,
            remaining_after=forecast.remaining_after,
            code=problem.type.code if problem else None,
            detail=problem.detail if problem else _granted(forecast),
            resets_at=rfc3339(forecast.quota.resets_at),
            retry_after=problem.retry_after if problem else None,
            quota=QuotaAnswer.of(forecast.quota),
        )


def _granted(forecast: Forecast) -> str:
    is_unlimited, left = forecast.quota.is_unlimited, forecast.remaining_after
    rest = ": there is no limit" if is_unlimited else f", with {left} left after it"
    return f"A spend of {forecast.cost} would be granted{rest}."


class RefundAnswer(ReceiptAnswer):
    consumption_id: Uuid
    amount: Annotated[Units, Meta(description="Units given back; 0 if the consumption's period is over.")]
    period_closed: bool

    @classmethod
    def of(cls, receipt: Receipt) -> Self:
        entry = receipt.entry
        return cls(
            **_receipt(receipt),
            consumption_id=str(entry.refund_of),
            amount=entry.amount,
            period_closed=entry.is_period_closed,
        )


class AdjustmentAnswer(ReceiptAnswer):
    delta: Change
    reason: str

    @classmethod
    def of(cls, receipt: Receipt) -> Self:
        return cls(**_receipt(receipt), delta=receipt.entry.delta, reason=receipt.entry.reason)


class OwnEntryAnswer(Struct):
    """The members of an entry that its user may see."""

    id: Uuid
    seq: Seq
    kind: Annotated[str, _one_of(EntryKind)]
    delta: Annotated[Change, Meta(description="Units added; negative if taken away.")]
    balance_after: Units
    action: str | None
    created_at: Instant
    metadata: Metadata | None

    @classmethod
    def of(cls, entry: AnyEntry) -> Self:
        return cls(**_own_entry(entry))


def _own_entry(entry: AnyEntry) -> JSON:
    return {
        "id": str(entry.id),
        "seq": entry.seq,
        "kind": entry.kind,
        "delta": entry.delta,
        "balance_after": entry.balance_after,
        "action": entry.action or None,
        "created_at": rfc3339(entry.created_at),
        "metadata": entry.metadata,
    }


class ActorAnswer(Struct):
    kind: Annotated[str, _one_of(("user", "service", "staff", "webhook", "command"))]
    id: str
    act: Annotated[str, Meta(description="The impersonator, if the user is impersonated.")] | None


class EntryAnswer(OwnEntryAnswer):
    """The members of an entry for services and staff: also the actor, the reason, and the state after it."""

    cost: Annotated[Units, Meta(description="Units requested.")]
    plan: PlanName
    plan_source: Source
    quota_limit: Limit
    used_after: Annotated[Units, Meta(description="As `quota_used`; null in entries made before 0.2.")] | None
    given_after: Annotated[Change, Meta(description="Units that staff added in the period.")] | None
    last_reset_date: Instant
    resets_at: Instant
    period_seq: Annotated[Seq, Meta(description="The seq of the period's first entry.")]
    actor: ActorAnswer
    reason: str | None
    refund_of: Annotated[Uuid, Meta(description="The consumption that was refunded.")] | None

    @classmethod
    def of(cls, entry: AnyEntry) -> Self:
        return cls(
            **_own_entry(entry),
            cost=entry.cost,
            plan=entry.plan,
            plan_source=entry.plan_source,
            quota_limit=entry.quota_limit,
            used_after=entry.period_consumed,
            given_after=entry.period_given,
            last_reset_date=rfc3339(entry.last_reset_date),
            resets_at=rfc3339(entry.resets_at),
            period_seq=entry.period_seq,
            actor=ActorAnswer(entry.actor_kind, entry.actor_id, entry.act or None),
            reason=entry.reason or None,
            refund_of=str(entry.refund_of) if entry.refund_of else None,
        )


NextCursor = Annotated[str, Meta(description="The `cursor` of the next page; null on the last page.")] | None


class OwnHistoryAnswer(Struct):
    entries: list[OwnEntryAnswer]
    next_cursor: NextCursor


class HistoryAnswer(Struct):
    entries: list[EntryAnswer]
    next_cursor: NextCursor


class SpendAnswer(Struct):
    """Whether a spend would have been granted."""

    cost: Cost
    granted: bool
    code: Annotated[str, Meta(description="The code of the refusal; null if granted.")] | None
    detail: str | None


class ExplanationAnswer(Struct):
    at: Instant
    sentence: Annotated[
        str,
        Meta(description="What the plan gives, what was used of it, and when the quota resets, for people."),
    ]
    deleted: bool
    reset_was_due: Annotated[bool, Meta(description="A reset was due, but no request had triggered it yet.")]
    plan_source: Source
    quota: QuotaAnswer
    spend: SpendAnswer
    entries: Annotated[
        list[EntryAnswer],
        Meta(description="The entries of the period up to that time, newest first, at most 100."),
    ]

    @classmethod
    def of(cls, explained: Explanation, cost: int) -> Self:
        refused = of_refusal(explained.refusal) if explained.refusal else None
        return cls(
            at=rfc3339(explained.quota.at),
            sentence=reason(explained),
            deleted=explained.is_deleted,
            reset_was_due=explained.is_reset_due,
            plan_source=explained.plan_source,
            quota=QuotaAnswer.of(explained.quota),
            spend=SpendAnswer(
                cost=cost,
                granted=refused is None,
                code=refused.type.code if refused else None,
                detail=refused.detail if refused else None,
            ),
            entries=[EntryAnswer.of(entry) for entry in explained.entries],
        )


class UserAnswer(Struct):
    """A user in the list of all, with the quota as of now."""

    user_id: UserId
    email: str | None
    plan: PlanName
    plan_source: Source
    quota_limit: Limit
    quota_remaining: Spendable
    quota_used: Units
    last_reset_date: Instant
    resets_at: Instant
    updated_at: Annotated[Instant, Meta(description="The last spend, refusal, reset or other change.")]
    deleted_at: Instant | None

    @classmethod
    def of(cls, row: ChallengeQuota, quota: values.Quota) -> Self:
        return cls(
            user_id=row.user_id,
            email=row.email or None,
            plan=quota.plan.name,
            plan_source=row.plan_source,
            quota_limit=quota.quota_limit,
            quota_remaining=quota.spendable,
            quota_used=quota.used,
            last_reset_date=rfc3339(quota.last_reset_date),
            resets_at=rfc3339(quota.resets_at),
            updated_at=rfc3339(row.updated_at),
            deleted_at=rfc3339(row.deleted_at) if row.deleted_at else None,
        )


class UserPageAnswer(Struct):
    """A page may have fewer users than `limit`, even none: continue while there is a `next_cursor`."""

    users: list[UserAnswer]
    next_cursor: NextCursor


class PublicPlanAnswer(Struct):
    name: PlanName
    is_default: bool
    unlimited: bool
    allowance: Limit
    reset_policy: Policy
    period_seconds: Period
    timezone: str
    actions: Annotated[dict[str, Cost], Meta(description="The cost of each named action.")]

    @classmethod
    def of(cls, plan: Plan) -> Self:
        return cls(
            name=plan.name,
            is_default=plan.is_default,
            unlimited=plan.allowance is None,
            allowance=plan.allowance,
            reset_policy=plan.reset_policy,
            period_seconds=period_seconds(plan.value),
            timezone=plan.timezone,
            actions=plan.actions,
        )


class PublicPlansAnswer(Struct):
    plans: list[PublicPlanAnswer]


def period_seconds(plan: values.Plan) -> int | None:
    return int(plan.window.total_seconds()) if plan.window else None

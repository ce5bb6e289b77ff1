"""The schemas of requests and responses in the OpenAPI description."""

from typing import Any

from quotas.api import messages
from quotas.api.openapi_examples import PROBLEMS
from quotas.rules.periods import RESET_POLICIES
from quotas.rules.values import MAX_UNITS, USER_ID, EntryKind, OnChange, PlanSource

JSON = dict[str, Any]


def ref(section: str, name: str) -> JSON:
    return {"$ref": f"#/components/{section}/{name}"}


def integer(minimum: int = 0, maximum: int = MAX_UNITS, **more: Any) -> JSON:
    return {"type": "integer", "minimum": minimum, "maximum": maximum, **more}


def text(max_length: int, **more: Any) -> JSON:
    """Return the schema of a string in a request: not empty, without U+0000."""
    return {"type": "string", "minLength": 1, "maxLength": max_length, "pattern": r"^[^\u0000]+$", **more}


def nullable(schema: JSON) -> JSON:
    return {**schema, "type": [schema["type"], "null"]}


def answer_object(**members: JSON) -> JSON:
    """Return the schema of an object in a response: all members are required, later versions may add more."""
    return {"type": "object", "required": [*members], "properties": members}


def request_object(*required: str, **members: JSON) -> JSON:
    """Return the schema of an object in a request: no other members are allowed."""
    schema = {"type": "object", "properties": members, "additionalProperties": False}
    return {**schema, "required": [*required]} if required else schema


STRING, BOOLEAN = {"type": "string"}, {"type": "boolean"}
UUID = {"type": "string", "format": "uuid"}
USER_ID_SCHEMA = ref("schemas", "UserId")
INSTANT = ref("schemas", "Instant")
QUOTA = ref("schemas", "Quota")
PLAN_NAME = {"type": "string", "pattern": "^[a-z0-9_-]{1,40}$"}
PLAN_SOURCE = {
    "type": "string",
    "enum": [source.value for source in PlanSource],
    "description": "Where the choice of the plan comes from.",
}
LIMIT = nullable(integer(description="Units per period; null if unlimited."))
METADATA = {"type": "object", "description": "Stored with the entry. Numbers come back without an exponent."}
REASON = text(200, description="The reason, which services and staff see in the history.")
SEQ = integer(1, 2**63 - 1, description="The entry's place in the user's ledger, from 1, without gaps.")
PERIOD = {
    "reset_policy": {"type": "string", "enum": [*RESET_POLICIES]},
    "period_seconds": nullable(integer(1, description="null for calendar months, whose lengths differ.")),
    "timezone": STRING,
}
RECEIPT_MEMBERS = {"id": UUID, "user_id": USER_ID_SCHEMA, "seq": SEQ, "created_at": INSTANT, "quota": QUOTA}
OWN_ENTRY_MEMBERS = {
    "id": UUID,
    "seq": SEQ,
    "kind": {"type": "string", "enum": [kind.value for kind in EntryKind]},
    "delta": integer(-MAX_UNITS, description="Units added; negative if taken away."),
    "balance_after": integer(),
    "action": nullable(STRING),
    "created_at": INSTANT,
    "metadata": nullable(METADATA),
}
ENTRY_MEMBERS = {
    **OWN_ENTRY_MEMBERS,
    "cost": integer(description="Units requested."),
    "plan": PLAN_NAME,
    "plan_source": PLAN_SOURCE,
    "quota_limit": LIMIT,
    "used_after": nullable(integer(description="As `quota_used`; null in entries made before 0.2.")),
    "given_after": nullable(integer(-MAX_UNITS, description="Units that staff added in the period.")),
    "last_reset_date": INSTANT,
    "resets_at": INSTANT,
    "period_seq": SEQ | {"description": "The seq of the period's first entry."},
    "actor": answer_object(
        kind={"type": "string", "enum": ["user", "service", "staff", "webhook", "command"]},
        id=STRING,
        act=nullable({**STRING, "description": "The impersonator, if the user is impersonated."}),
    ),
    "reason": nullable(STRING),
    "refund_of": nullable(UUID | {"description": "The consumption that was refunded."}),
}
NEXT_CURSOR = nullable({**STRING, "description": "The `cursor` of the next page; null on the last page."})

SCHEMAS: JSON = {
    "UserId": {"type": "string", "pattern": f"^{USER_ID.pattern}$"},
    "Instant": {
        "type": "string",
        "format": "date-time",
        "pattern": r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{6})?Z$",
        "description": "RFC 3339, in UTC with `Z`.",
    },
    "SimpleQuota": {
        **answer_object(
            user_id=USER_ID_SCHEMA,
            quota_remaining=integer(description=f"Units that can be spent now; {MAX_UNITS} if unlimited."),
            last_reset_date=INSTANT,
        ),
        "additionalProperties": False,
    },
    "Quota": answer_object(
        user_id=USER_ID_SCHEMA,
        plan=PLAN_NAME,
        unlimited=BOOLEAN,
        quota_limit=LIMIT,
        quota_used=integer(
            description="Units consumed in this period less refunds, without those of an unlimited plan."
        ),
        quota_remaining=integer(description=f"Units that can be spent now; {MAX_UNITS} if unlimited."),
        **PERIOD,
        last_reset_date=INSTANT,
        resets_at=INSTANT,
        seconds_to_reset=integer(0, 2**63 - 1, description="Whole seconds, rounded up."),
    ),
    "Consumption": answer_object(**RECEIPT_MEMBERS, cost=integer(1), action=nullable(STRING)),
    "Refund": answer_object(
        **RECEIPT_MEMBERS,
        consumption_id=UUID,
        amount=integer(description="Units given back; 0 if the consumption's period is over."),
        period_closed=BOOLEAN,
    ),
    "Adjustment": answer_object(**RECEIPT_MEMBERS, delta=integer(-MAX_UNITS), reason=STRING),
    "OwnEntry": answer_object(**OWN_ENTRY_MEMBERS),
    "Entry": answer_object(**ENTRY_MEMBERS),
    "OwnHistory": answer_object(
        entries={"type": "array", "items": ref("schemas", "OwnEntry")}, next_cursor=NEXT_CURSOR
    ),
    "History": answer_object(
        entries={"type": "array", "items": ref("schemas", "Entry")}, next_cursor=NEXT_CURSOR
    ),
    "Explanation": answer_object(
        at=INSTANT,
        deleted=BOOLEAN,
        reset_was_due={**BOOLEAN, "description": "A reset was due, but no request had triggered it yet."},
        plan_source=PLAN_SOURCE,
        quota=QUOTA,
        spend=answer_object(
            cost=integer(1),
            granted=BOOLEAN,
            code=nullable({**STRING, "description": "The code of the refusal; null if granted."}),
            detail=nullable(STRING),
        ),
        entries={
            "type": "array",
            "items": ref("schemas", "Entry"),
            "description": "The entries of the period up to that time, newest first, at most 100.",
        },
    ),
    "Plans": answer_object(
        plans={
            "type": "array",
            "items": answer_object(
                name=PLAN_NAME,
                is_default=BOOLEAN,
                unlimited=BOOLEAN,
                allowance=LIMIT,
                **PERIOD,
                actions={
                    "type": "object",
                    "additionalProperties": integer(1),
                    "description": "The cost of each named action.",
                },
            ),
        }
    ),
    "OpenAPI": {"type": "object", "required": ["openapi", "info", "paths"]},
    "ConsumeRequest": request_object(
        cost=integer(1, description="Default: the plan's price of the action, or 1."),
        action=text(64, description="The name of an action of the plan."),
        metadata=METADATA | {"description": f"At most {messages.Metadata.max_bytes // 1024} KiB."},
    ),
    "RefundRequest": request_object(
        "reason", amount=integer(1, description="Default: all that can still be refunded."), reason=REASON
    ),
    "AdjustRequest": request_object(
        "delta",
        "reason",
        delta=integer(-MAX_UNITS, description="Units to add; negative: to take away.")
        | {"not": {"const": 0}},
        reason=REASON,
    ),
    "ResetRequest": request_object("reason", reason=REASON),
    "ChangePlanRequest": request_object(
        "plan",
        plan=nullable(
            text(40, description="null returns the choice to billing, metadata or the default plan.")
        ),
        on_change={
            "type": "string",
            "enum": [choice.value for choice in OnChange],
            "default": OnChange.KEEP.value,
            "description": "keep: units already used stay used; reset: a new period begins; prorate: the "
            "difference is added in proportion to the rest of the period.",
        },
        reason=REASON,
    ),
}
SCHEMAS["Problem"] = {
    **answer_object(
        type={"type": "string", "format": "uri-reference"},
        title=STRING,
        status=integer(400, 599),
        code={"type": "string", "enum": [*PROBLEMS]},
        detail={**STRING, "description": "One plain sentence that can be shown to users."},
    ),
    "description": "RFC 9457. `code` is stable.",
}
SCHEMAS["QuotaExhausted"] = {
    "allOf": [
        ref("schemas", "Problem"),
        answer_object(
            **{"violated-policies": {"type": "array", "items": PLAN_NAME}},
            quota_limit=integer(),
            quota_remaining=integer(),
            cost=integer(1),
            resets_at=INSTANT,
            retry_after=integer(1, 2**63 - 1),
        ),
    ]
}

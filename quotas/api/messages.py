"""The JSON of requests, checked strictly, and of responses."""

import json
from decimal import Decimal
from typing import Any

from rest_framework import serializers

from quotas.models import LedgerEntry, Plan
from quotas.reports.history import Explanation
from quotas.rules import values
from quotas.rules.values import MAX_UNITS, OnChange, Quota, rfc3339
from quotas.store.manager import Receipt


class WholeNumber(serializers.Field[int, Any, int, Any]):
    """A JSON integer from 1 to MAX_UNITS; 1.0, "1" and true are refused."""

    def to_internal_value(self, data: object) -> int:
        if type(data) is not int or not 1 <= data <= MAX_UNITS:
            raise serializers.ValidationError(f"must be a whole number from 1 to {MAX_UNITS}.")
        return data


class Difference(serializers.Field[int, Any, int, Any]):
    """A JSON integer from -MAX_UNITS to MAX_UNITS, except 0."""

    def to_internal_value(self, data: object) -> int:
        if type(data) is not int or not 1 <= abs(data) <= MAX_UNITS:
            raise serializers.ValidationError(
                f"must be a whole number from -{MAX_UNITS} to {MAX_UNITS}, and not 0."
            )
        return data


class Text(serializers.Field[str, Any, str, Any]):
    """A JSON string of 1 to `max_length` characters."""

    def __init__(self, max_length: int, **options: Any) -> None:
        super().__init__(**options)
        self.max_length = max_length

    def to_internal_value(self, data: object) -> str:
        if not isinstance(data, str) or not 1 <= len(data) <= self.max_length:
            raise serializers.ValidationError(f"must be a string of 1 to {self.max_length} characters.")
        return data


class Metadata(serializers.Field[dict[str, Any], Any, dict[str, Any], Any]):
    """A JSON object of at most 2 KiB, as it was sent and as PostgreSQL writes it out."""

    max_bytes = 2048  # without whitespace between the tokens

    def to_internal_value(self, data: object) -> dict[str, Any]:
        if not isinstance(data, dict):
            raise serializers.ValidationError("must be an object.")
        compact = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        if len(compact.encode()) + _written_out(data) > self.max_bytes:
            raise serializers.ValidationError("must not be longer than 2 KiB, with 1e3 written out as 1000.")
        return data


def _written_out(value: Any) -> int:
    """How many characters a value gains because jsonb has no exponents: 1e308 has 309 digits."""
    if isinstance(value, float):
        return len(f"{Decimal(repr(value)):f}") - len(repr(value))
    if isinstance(value, dict):
        return sum(map(_written_out, value.values()))
    return sum(map(_written_out, value)) if isinstance(value, list) else 0


class StrictSerializer(serializers.Serializer[dict[str, Any]]):
    """Refuses unknown members, so that a misspelled `ammount` is not ignored."""

    def to_internal_value(self, data: Any) -> Any:
        for name in data:
            if name not in self.fields:
                known = ", ".join(self.fields)
                unknown = f"The member {name[:40]!r} is unknown: send only {known}."
                raise serializers.ValidationError({"non_field_errors": [unknown]})
        return super().to_internal_value(data)


class ConsumeSerializer(StrictSerializer):
    cost = WholeNumber(required=False)
    action = Text(64, required=False)
    metadata = Metadata(required=False)


class RefundSerializer(StrictSerializer):
    amount = WholeNumber(required=False)
    reason = Text(200)


class AdjustSerializer(StrictSerializer):
    delta = Difference()
    reason = Text(200)


class ResetSerializer(StrictSerializer):
    reason = Text(200)


class ChangePlanSerializer(StrictSerializer):
    plan = Text(40, allow_null=True)
    on_change = serializers.ChoiceField([choice.value for choice in OnChange], default=OnChange.KEEP.value)
    reason = Text(200, required=False)


def simple_quota(quota: Quota) -> dict[str, Any]:
    """The three members of `GET /api/quota`, which never change."""
    return {
        "user_id": quota.user_id,
        "quota_remaining": quota.spendable,
        "last_reset_date": rfc3339(quota.last_reset_date),
    }


def full_quota(quota: Quota) -> dict[str, Any]:
    return {
        "user_id": quota.user_id,
        "plan": quota.plan.name,
        "unlimited": quota.is_unlimited,
        "quota_limit": quota.quota_limit,
        "quota_used": quota.used,
        "quota_remaining": quota.spendable,
        **_period(quota.plan),
        "last_reset_date": rfc3339(quota.last_reset_date),
        "resets_at": rfc3339(quota.resets_at),
        "seconds_to_reset": quota.seconds_to_reset,
    }


def consumption(receipt: Receipt) -> dict[str, Any]:
    entry = receipt.entry
    return {**_receipt(receipt), "cost": entry.cost, "action": entry.action or None}


def refund(receipt: Receipt) -> dict[str, Any]:
    entry = receipt.entry
    return {
        **_receipt(receipt),
        "consumption_id": str(entry.refund_of),
        "amount": entry.amount,
        "period_closed": entry.is_period_closed,
    }


def adjustment(receipt: Receipt) -> dict[str, Any]:
    return {**_receipt(receipt), "delta": receipt.entry.delta, "reason": receipt.entry.reason}


def own_entry(entry: LedgerEntry) -> dict[str, Any]:
    """The members of an entry that its user may see."""
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


def full_entry(entry: LedgerEntry) -> dict[str, Any]:
    """The members of an entry for services and staff: also the actor, the reason, and the state after it."""
    return {
        **own_entry(entry),
        "cost": entry.cost,
        "plan": entry.plan,
        "plan_source": entry.plan_source,
        "quota_limit": entry.quota_limit,
        "used_after": entry.period_consumed,
        "given_after": entry.period_given,
        "last_reset_date": rfc3339(entry.last_reset_date),
        "resets_at": rfc3339(entry.resets_at),
        "period_seq": entry.period_seq,
        "actor": {"kind": entry.actor_kind, "id": entry.actor_id, "act": entry.act or None},
        "reason": entry.reason or None,
        "refund_of": str(entry.refund_of) if entry.refund_of else None,
    }


def explanation(explained: Explanation, cost: int) -> dict[str, Any]:
    refusal = explained.refusal
    return {
        "at": rfc3339(explained.quota.at),
        "deleted": explained.is_deleted,
        "reset_was_due": explained.is_reset_due,
        "plan_source": explained.plan_source,
        "quota": full_quota(explained.quota),
        "spend": {
            "cost": cost,
            "granted": refusal is None,
            "code": refusal.code if refusal else None,
            "detail": str(refusal) if refusal else None,
        },
        "entries": [full_entry(entry) for entry in explained.entries],
    }


def shown_plan(plan: Plan) -> dict[str, Any]:
    return {
        "name": plan.name,
        "is_default": plan.is_default,
        "unlimited": plan.allowance is None,
        "allowance": plan.allowance,
        **_period(plan.value),
        "actions": plan.actions,
    }


def _receipt(receipt: Receipt) -> dict[str, Any]:
    entry = receipt.entry
    return {
        "id": str(entry.id),
        "user_id": entry.user_id,
        "seq": entry.seq,
        "created_at": rfc3339(entry.created_at),
        "quota": full_quota(receipt.quota),
    }


def _period(plan: values.Plan) -> dict[str, Any]:
    return {
        "reset_policy": plan.reset_policy,
        "period_seconds": int(plan.window.total_seconds()) if plan.window else None,
        "timezone": plan.timezone,
    }

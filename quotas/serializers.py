"""The JSON of requests, checked strictly, and of answers."""

import json
from typing import Any

from rest_framework import serializers

from quotas.models import Receipt
from quotas.policy import MAX_UNITS, Quota, rfc3339


class WholeNumber(serializers.Field[int, Any, int, Any]):
    """An integer of JSON from 1 to MAX_UNITS: 1.0, "1" and true are none."""

    def to_internal_value(self, data: object) -> int:
        if type(data) is not int or not 1 <= data <= MAX_UNITS:
            raise serializers.ValidationError(f"must be a whole number from 1 to {MAX_UNITS}.")
        return data


class Text(serializers.Field[str, Any, str, Any]):
    """A JSON string of 1 to `most` characters."""

    def __init__(self, most: int, **options: Any) -> None:
        super().__init__(**options)
        self.most = most

    def to_internal_value(self, data: object) -> str:
        if not isinstance(data, str) or not 1 <= len(data) <= self.most:
            raise serializers.ValidationError(f"must be a text of 1 to {self.most} characters.")
        return data


class Metadata(serializers.Field[dict[str, Any], Any, dict[str, Any], Any]):
    """A JSON object of at most 2 KiB, kept with the entry as it came."""

    most = 2048  # bytes, written compactly

    def to_internal_value(self, data: object) -> dict[str, Any]:
        if not isinstance(data, dict):
            raise serializers.ValidationError("must be an object.")
        compact = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        if len(compact.encode()) > self.most:
            raise serializers.ValidationError("must not be longer than 2 KiB.")
        return data


class StrictSerializer(serializers.Serializer[dict[str, Any]]):
    """Refuses members that it does not know: it catches `ammount`."""

    def to_internal_value(self, data: Any) -> Any:
        for name in data:
            if name not in self.fields:
                known = ", ".join(self.fields)
                unknown = f"{name[:40]!r} is not known here; known are: {known}."
                raise serializers.ValidationError({"non_field_errors": [unknown]})
        return super().to_internal_value(data)


class ConsumeSerializer(StrictSerializer):
    cost = WholeNumber(required=False)
    action = Text(64, required=False)
    metadata = Metadata(required=False)


def simple_quota(quota: Quota) -> dict[str, Any]:
    """The three members of `GET /api/quota`, frozen."""
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
        "reset_policy": quota.plan.reset_policy,
        "period_seconds": int(quota.plan.period.total_seconds()),
        "timezone": quota.plan.timezone,
        "last_reset_date": rfc3339(quota.last_reset_date),
        "resets_at": rfc3339(quota.resets_at),
        "seconds_to_reset": quota.seconds_to_reset,
    }


def consumption(receipt: Receipt) -> dict[str, Any]:
    entry = receipt.entry
    return {
        "id": str(entry.id),
        "user_id": entry.user_id,
        "seq": entry.seq,
        "cost": entry.cost,
        "action": entry.action or None,
        "created_at": rfc3339(entry.created_at),
        "quota": full_quota(receipt.quota),
    }

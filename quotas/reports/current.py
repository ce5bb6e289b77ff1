"""Quotas as a request would find them now, without a query for each."""

from datetime import datetime
from typing import cast

from django.db.models import QuerySet
from django.db.models.functions import Now

from quotas.models import ChallengeQuota
from quotas.rules.values import Quota


def effective_quotas() -> QuerySet[ChallengeQuota]:
    """Return quotas with everything that their display needs, so that no row costs a query of its own."""
    quotas = ChallengeQuota.objects.annotate(now=Now())
    return quotas.prefetch_related("plan__versions")  # one Plan for all its rows, unlike select_related


def read_clock(quota: ChallengeQuota) -> datetime:
    """Return the database's clock at the read of `quota`: the rules use no other clock."""
    return cast(datetime, quota.now)  # type: ignore[attr-defined] # annotated by effective_quotas


def state_of(quota: Quota) -> str:
    """Return healthy, low (at most a fifth is left) or exhausted."""
    limit, remaining = quota.quota_limit, quota.quota_remaining
    if limit is None or remaining * 5 > limit:
        return "healthy"
    return "low" if remaining else "exhausted"

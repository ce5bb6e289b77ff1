"""The headers about a quota; only this module depends on the draft of RateLimit."""

from datetime import timedelta
from functools import lru_cache

import http_sf
from django.conf import settings

from quotas.rules.values import Quota


def rate_limit_headers(quota: Quota) -> dict[str, str]:
    """Return RateLimit-Policy and RateLimit for a quota; {} if it is unlimited or the setting is off.

    draft-ietf-httpapi-ratelimit-headers-11: `"free";q=20;w=86400` and `"free";r=12;t=43211`, with w
    and t in seconds. The name of the policy is that of the plan.
    """
    if settings.QUOTA_RATELIMIT_DRAFT == "off" or quota.quota_limit is None:
        return {}
    return {
        "RateLimit-Policy": _policy(quota.plan.name, quota.quota_limit, quota.plan.window),
        "RateLimit": f"{_name(quota.plan.name)};r={quota.quota_remaining};t={quota.seconds_to_reset}",
    }


@lru_cache(maxsize=256)  # all users share a few plans
def _policy(name: str, limit: int, window: timedelta | None) -> str:
    return f"{_name(name)};q={limit}" + (f";w={int(window.total_seconds())}" if window else "")


@lru_cache(maxsize=256)
def _name(name: str) -> str:
    return str(http_sf.ser([(name, {})]))

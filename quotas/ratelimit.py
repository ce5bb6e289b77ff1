"""What the headers tell of a quota; the one place that knows which draft of RateLimit is in force."""

import http_sf
from django.conf import settings

from quotas.policy import Quota


def fields(quota: Quota) -> dict[str, str]:
    """Return RateLimit-Policy and RateLimit for a quota; none if it is unlimited or they are off.

    draft-ietf-httpapi-ratelimit-headers-11: `"free";q=20;w=86400` and `"free";r=12;t=43211`, with w
    and t in seconds. The policy's name is the plan's.
    """
    if settings.QUOTA_RATELIMIT_DRAFT == "off" or quota.quota_limit is None:
        return {}
    name, window = quota.plan.name, quota.plan.window
    policy = {"q": quota.quota_limit, **({"w": int(window.total_seconds())} if window else {})}
    limit = {"r": quota.quota_remaining, "t": quota.seconds_to_reset}
    return {"RateLimit-Policy": _item(name, policy), "RateLimit": _item(name, limit)}


def retry_after(quota: Quota) -> int:
    """Return the whole seconds that a refused client shall wait, rounded up, at least 1."""
    return max(1, quota.seconds_to_reset)


def _item(name: str, parameters: dict[str, int]) -> str:
    return str(http_sf.ser([(name, parameters)]))  # type: ignore[list-item] # its types know no parameters

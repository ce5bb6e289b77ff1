"""The answers of the tuned peers, formatted by hand, with the product's JSON members and header fields."""

import hashlib
import json
import re
from datetime import UTC, datetime
from typing import Any, NamedTuple

MAX_UNITS = 2_147_483_647
KEY = re.compile(r"[A-Za-z0-9._~:/+=-]{1,128}")
PROBLEM = {
    400: b'{"type":"about:blank","status":400,"code":"invalid_request"}',
    401: b'{"type":"about:blank","status":401,"code":"token_malformed"}',
    404: b'{"type":"about:blank","status":404,"code":"unknown_user_id"}',
    422: b'{"type":"about:blank","status":422,"code":"idempotency_key_reused"}',
    429: b'{"type":"about:blank","status":429,"code":"quota_exhausted"}',
}


class Invalid(Exception):
    """The request is malformed: a 400."""


class Answer(NamedTuple):
    status: int
    body: bytes
    fields: dict[str, str]


def problem(status: int) -> Answer:
    return Answer(status, PROBLEM[status], {})


def cost_of(body: bytes) -> int:
    try:
        request = json.loads(body)
        cost = request.get("cost", 1)
    except (ValueError, AttributeError):
        raise Invalid from None
    if type(cost) is not int or not 1 <= cost <= MAX_UNITS or request.keys() - {"cost"}:
        raise Invalid
    return cost


def stored_key(header: str | None) -> str | None:
    if header is None:
        return None
    if not KEY.fullmatch(header):
        raise Invalid
    return f"consume:user:{header}"


def fingerprint(cost: int) -> str:
    return hashlib.sha256(f'{{"cost":{cost}}}'.encode()).hexdigest()


def quota(user_id: str, row: Any) -> Answer:
    """Answer with a row of GET."""
    if row is None:
        return problem(404)
    remaining, last_reset_date, limit = row
    body = (
        f'{{"user_id":"{user_id}","quota_remaining":{remaining},'
        f'"last_reset_date":"{rfc3339(last_reset_date)}"}}'
    )
    return Answer(200, body.encode(), fields(limit, remaining, seconds_to_reset(last_reset_date)))


def bare(user_id: str, row: Any) -> Answer:
    """Answer with a row of BARE."""
    if row is None:
        return problem(429)
    remaining, last_reset_date = row
    body = (
        f'{{"user_id":"{user_id}","quota_remaining":{remaining},'
        f'"last_reset_date":"{rfc3339(last_reset_date)}"}}'
    )
    return Answer(201, body.encode(), {})


def consumption(user_id: str, row: Any, expected: str) -> Answer:
    """Answer with a row of CONSUME; `expected` is the fingerprint of this request."""
    if row is None:
        return problem(404)
    kind, entry_id, seq, cost, plan, limit, remaining, last_reset, resets_at, created_at, stored = row
    seconds = max(0, int((resets_at - created_at).total_seconds()))
    headers = fields(limit, remaining, seconds)
    if kind == "refused":
        return Answer(429, PROBLEM[429], {**headers, "Retry-After": str(max(1, seconds))})
    if kind == "old" and stored != expected:
        return problem(422)
    if kind == "old":
        headers["Idempotent-Replayed"] = "true"
    body = (
        f'{{"id":"{entry_id}","user_id":"{user_id}","seq":{seq},"created_at":"{rfc3339(created_at)}",'
        f'"quota":{{"user_id":"{user_id}","plan":"{plan}","unlimited":false,"quota_limit":{limit},'
        f'"quota_used":{max(0, limit - remaining)},"quota_remaining":{remaining},"reset_policy":"rolling",'
        f'"period_seconds":86400,"timezone":"UTC","last_reset_date":"{rfc3339(last_reset)}",'
        f'"resets_at":"{rfc3339(resets_at)}","seconds_to_reset":{seconds}}},"cost":{cost},"action":null}}'
    )
    return Answer(201, body.encode(), headers)


def fields(limit: int, remaining: int, seconds: int) -> dict[str, str]:
    return {
        "RateLimit-Policy": f'"free";q={limit};w=86400',
        "RateLimit": f'"free";r={remaining};t={seconds}',
        "Cache-Control": "no-store",
    }


def seconds_to_reset(last_reset_date: datetime) -> int:
    return max(0, 86_400 - int((datetime.now(UTC) - last_reset_date).total_seconds()))


def rfc3339(instant: datetime) -> str:
    return instant.isoformat(timespec="milliseconds").replace("+00:00", "Z")

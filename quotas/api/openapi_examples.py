"""An example of each request, response and problem in the OpenAPI description."""

from typing import Any

from quotas.rules.values import MAX_UNITS

NOW, BEFORE, AFTER = (
    "2026-09-24T19:59:49.500000Z",
    "2026-09-24T08:00:00.123456Z",
    "2026-09-25T08:00:00.123456Z",
)
ENTRY_ID, USER_EXAMPLE = "019978a4-8a4c-7c3e-9d3b-5f3f4f0e9a11", "user_2abc"
_rolling_example = {"reset_policy": "rolling", "period_seconds": 86_400, "timezone": "UTC"}
_quota_example = {
    "user_id": USER_EXAMPLE,
    "plan": "free",
    "unlimited": False,
    "quota_limit": 20,
    "quota_used": 8,
    "quota_remaining": 12,
    **_rolling_example,
    "last_reset_date": BEFORE,
    "resets_at": AFTER,
    "seconds_to_reset": 43_211,
}
_receipt_example = {
    "id": ENTRY_ID,
    "user_id": USER_EXAMPLE,
    "seq": 42,
    "created_at": NOW,
    "quota": _quota_example,
}
_own_entry_example = {
    "id": ENTRY_ID,
    "seq": 42,
    "kind": "consumed",
    "delta": -1,
    "balance_after": 12,
    "action": "generate",
    "created_at": NOW,
    "metadata": {"model": "small"},
}
_entry_example = {
    **_own_entry_example,
    "cost": 1,
    "plan": "free",
    "plan_source": "default",
    "quota_limit": 20,
    "used_after": 8,
    "given_after": 0,
    "last_reset_date": BEFORE,
    "resets_at": AFTER,
    "period_seq": 35,
    "actor": {"kind": "user", "id": USER_EXAMPLE, "act": None},
    "reason": None,
    "refund_of": None,
}
EXAMPLES: dict[str, Any] = {  # by the name of the schema
    "SimpleQuota": {"user_id": USER_EXAMPLE, "quota_remaining": 12, "last_reset_date": BEFORE},
    "Quota": _quota_example,
    "Consumption": {**_receipt_example, "cost": 1, "action": "generate"},
    "Refund": {**_receipt_example, "consumption_id": ENTRY_ID, "amount": 1, "period_closed": False},
    "Adjustment": {**_receipt_example, "delta": 50, "reason": "goodwill"},
    "OwnHistory": {"entries": [_own_entry_example], "next_cursor": "42"},
    "History": {"entries": [_entry_example], "next_cursor": None},
    "Explanation": {
        "at": NOW,
        "deleted": False,
        "reset_was_due": False,
        "plan_source": "default",
        "quota": _quota_example,
        "spend": {"cost": 1, "granted": True, "code": None, "detail": None},
        "entries": [_entry_example],
    },
    "Plans": {
        "plans": [
            {
                "name": "free",
                "is_default": True,
                "unlimited": False,
                "allowance": 20,
                **_rolling_example,
                "actions": {"generate": 1},
            }
        ]
    },
    "OpenAPI": {"openapi": "3.1.1", "info": {"title": "Quotasite", "version": "1"}, "paths": {}},
    "ConsumeRequest": {"cost": 1, "metadata": {"model": "small"}},
    "RefundRequest": {"amount": 1, "reason": "llm_timeout"},
    "AdjustRequest": {"delta": 50, "reason": "goodwill"},
    "ResetRequest": {"reason": "asked for by support"},
    "ChangePlanRequest": {"plan": "free", "on_change": "keep"},
}

PROBLEMS = {  # code: status and an example of the detail, as the code raises it
    "bad_request": (400, "The request is malformed, or its Host is not one of ALLOWED_HOSTS."),
    "malformed_length": (400, "Content-Length must be a whole number."),
    "body_missing": (400, "The body is empty: send a JSON object, at least {}."),
    "malformed_json": (400, "The body cannot be read as JSON: it is not an object."),
    "invalid_request": (400, f"cost: must be a whole number from 1 to {MAX_UNITS}."),
    "idempotency_key_missing": (
        400,
        "Send an Idempotency-Key, such as a UUID made for this action, so that a retry is safe.",
    ),
    "idempotency_key_malformed": (
        400,
        "Idempotency-Key must be one value of 1 to 128 characters from A-Z a-z 0-9 . _ ~ : / + = -, "
        "such as a UUID.",
    ),
    "token_missing": (401, "Send the session token: Authorization: Bearer <await getToken()>."),
    "token_malformed": (401, "The Authorization header must be: Bearer <token>."),
    "token_expired": (401, "The token has expired: get a new one from Clerk before each request."),
    "token_not_yet_valid": (401, "The token is not valid yet: check the clock of this server."),
    "token_signature": (
        401,
        "The signature does not match the key: another Clerk instance issued the token, or it is forged.",
    ),
    "token_issuer": (
        401,
        "The iss claim is not the issuer that CLERK_ISSUER or CLERK_PUBLISHABLE_KEY configures.",
    ),
    "token_azp": (401, "The azp claim is not one of the origins in CLERK_AUTHORIZED_PARTIES."),
    "token_kind": (401, "The typ header must be JWT: send a session token of Clerk."),
    "session_pending": (401, "The session is pending: the user has sign-in tasks to finish."),
    "key_unknown": (401, "This service key is not known: see Service keys in the admin."),
    "key_expired": (401, "This service key has expired: make a new one."),
    "key_revoked": (401, "This service key was revoked: make a new one."),
    "user_only": (403, "This address is for signed-in users: with a service key, use /api/v1/users/."),
    "service_only": (403, "This address is for service keys, not for session tokens."),
    "scope_missing": (403, "This service key lacks the scope refund."),
    "not_found": (404, "There is nothing at this address: see /api/docs."),
    "unknown_user_id": (404, "The user id in the path is malformed: use the user's id from Clerk."),
    "consumption_not_found": (404, "This user has no consumption with this id, or it was pruned."),
    "unknown_plan": (404, "There is no plan with this name: see GET /api/v1/plans."),
    "not_opened_yet": (404, "This user had no quota at that time."),
    "method_not_allowed": (405, "This address does not support this method: see the Allow header."),
    "adjustment_out_of_range": (
        409,
        f"An adjustment by -50 would leave -38: the balance is 12, and must stay from 0 to {MAX_UNITS}.",
    ),
    "refund_too_large": (409, "Only 1 of this consumption's units can still be refunded, not 5."),
    "already_refunded": (409, "This consumption has already been refunded in full."),
    "user_deleted": (410, "This user was deleted: the quota is closed permanently."),
    "history_pruned": (410, f"The history of that time was pruned: ask for {BEFORE} or later."),
    "body_timeout": (408, "The body did not arrive in time: send it together with its headers."),
    "length_required": (411, "Send the body with a Content-Length, not in chunks."),
    "body_too_large": (413, "The body must not be longer than 64 KiB."),
    "unsupported_media_type": (415, "Send JSON, with Content-Type: application/json."),
    "cost_exceeds_limit": (422, "A cost of 50 can never be paid: at most 20 can be spent at once."),
    "unknown_action": (422, "The plan free has no action 'draw'; its actions are: generate."),
    "cost_below_price": (422, "The action 'generate' costs 3: a user cannot pay less for it."),
    "idempotency_key_reused": (422, "This Idempotency-Key was used for another request: use a new key."),
    "instant_in_future": (422, "at: must not be in the future."),
    "quota_exhausted": (429, "Quota exhausted: 0 of 20 left, 20 more at 2026-09-25T08:00:01Z."),
    "server_error": (500, "The server failed to handle this request, and logged the error."),
    "database_unavailable": (
        503,
        "The database is unavailable, but nothing was lost: try again with the same Idempotency-Key.",
    ),
    "keys_unavailable": (503, "The key of this token could not be fetched from Clerk: try again shortly."),
    "no_default_plan": (503, "There is no default plan: mark a plan as the default in the admin."),
}
MEMBERS: dict[str, Any] = {  # code: the additional members of the problem
    "history_pruned": {"earliest": BEFORE},
    "quota_exhausted": {
        "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
        "title": "Quota exceeded",
        "violated-policies": ["free"],
        "quota_limit": 20,
        "quota_remaining": 0,
        "cost": 1,
        "resets_at": AFTER,
        "retry_after": 43_211,
    },
}

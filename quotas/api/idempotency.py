"""Read the Idempotency-Key header."""

import re
from contextlib import suppress

import http_sf

from quotas.problems import IDEMPOTENCY_KEY_MALFORMED

# The ledger has 32 characters more for the verb and the kind of caller (quotas/models.py).
MAX_QUOTED = 2 * 128 + 2  # characters; each one may be escaped. A longer header would hold up the event loop
RAW_KEY = re.compile(r"[A-Za-z0-9._~:/+=-]{1,128}")


def idempotency_key(header: str | None) -> str | None:
    """Return the key of an Idempotency-Key header; `abc` and the structured field `"abc"` are the same key.

    Raises a 400 Problem if the header is empty, too long, repeated, or has other characters.
    """
    if header is None:
        return None
    if RAW_KEY.fullmatch(header):
        return header
    if header.startswith('"') and len(header) <= MAX_QUOTED:
        with suppress(http_sf.StructuredFieldError):
            match http_sf.parse(header.encode(), tltype="item"):
                case (str(value), {**parameters}) if 1 <= len(value) <= 128 and not parameters:
                    return value
    raise IDEMPOTENCY_KEY_MALFORMED()

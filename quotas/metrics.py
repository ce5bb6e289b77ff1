"""What is counted, for `GET /metrics`. A label's values are few, and never a user's, a key's or a token's."""

from prometheus_client import Counter, Gauge

DELIVERIES = Counter(
    "quotasite_webhook_deliveries", "Deliveries of Clerk's, by what became of them.", ["type", "outcome"]
)
KEY_FETCHES = Counter("quotasite_jwks_fetches", "Fetches of the keys at CLERK_JWKS_URL.", ["outcome"])
KEYS_FETCHED_AT = Gauge(
    "quotasite_jwks_fetched_timestamp_seconds",
    "When the keys at CLERK_JWKS_URL were last fetched, by any process; 0 is never.",
    multiprocess_mode="livemostrecent",
)

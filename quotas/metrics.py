"""What is counted, for `GET /metrics`. A label's values are few, and never a user's, a key's or a token's."""

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter(
    "quotasite_requests",
    "Requests by verb (the name of the address in urls.py), by outcome (granted, replayed, ok, a problem's "
    "code, or http_404 and the like where there is none), and by status.",
    ["verb", "outcome", "status"],
)
SECONDS = Histogram(
    "quotasite_request_seconds",
    "How long requests took, by verb; without the time in the server's queue.",
    ["verb"],
    buckets=(0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5),
)
LOST_RACES = Counter("quotasite_lost_races", "Changes decided anew because another request came first.")
DATABASE_ERRORS = Counter("quotasite_database_errors", "Requests that failed because of the database.")
DELIVERIES = Counter(
    "quotasite_webhook_deliveries", "Deliveries of Clerk's, by what became of them.", ["type", "outcome"]
)
KEY_FETCHES = Counter("quotasite_jwks_fetches", "Fetches of the keys at CLERK_JWKS_URL.", ["outcome"])
KEYS_FETCHED_AT = Gauge(
    "quotasite_jwks_fetched_timestamp_seconds",
    "When the keys at CLERK_JWKS_URL were last fetched, by any process; 0 is never.",
    multiprocess_mode="livemostrecent",
)

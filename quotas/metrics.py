"""The metrics of `GET /metrics`. A label has few values, and never those of a user, a key or a token."""

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter(
    "quotasite_requests",
    "Requests by verb (the route's name in urls.py), by outcome (granted, replayed, ok, a problem's code, or "
    "http_ and the status, such as http_404), and by status.",
    ["verb", "outcome", "status"],
)
SECONDS = Histogram(
    "quotasite_request_seconds",
    "Duration of requests by verb, without the time in the server's queue.",
    ["verb"],
    buckets=(0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5),
)
LOST_RACES = Counter("quotasite_lost_races", "Changes retried because another request changed the row first.")
DATABASE_ERRORS = Counter("quotasite_database_errors", "Requests that failed because of the database.")
DELIVERIES = Counter(
    "quotasite_webhook_deliveries", "Clerk's webhook deliveries by type and outcome.", ["type", "outcome"]
)
LAST_DELIVERY_AT = Gauge(
    "quotasite_webhook_last_delivery_timestamp_seconds",
    "Time of Clerk's last verified delivery, by the database; 0 is never.",
    multiprocess_mode="livemostrecent",
)
KEY_FETCHES = Counter("quotasite_jwks_fetches", "Fetches of the keys at CLERK_JWKS_URL.", ["outcome"])
KEYS_FETCHED_AT = Gauge(
    "quotasite_jwks_fetched_timestamp_seconds",
    "Time of the last fetch of the keys at CLERK_JWKS_URL by any process; 0 is never.",
    multiprocess_mode="livemostrecent",
)

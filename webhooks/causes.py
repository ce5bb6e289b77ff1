"""Why deliveries do not arrive: what one sees, and what to do. docs/clerk.md has the same table."""

from typing import NamedTuple


class Cause(NamedTuple):
    cause: str
    seen: str
    remedy: str


CAUSES = (
    Cause(
        "the webhook was never added, is disabled, or has a wrong address",
        "no delivery here, refused or not; failed attempts in Clerk's dashboard, if it is enabled",
        "correct the address, https://YOUR-HOST/webhooks/clerk",
    ),
    Cause(
        "a wrong signing secret",
        "deliveries refused by their signature here; 400 delivery_refused in the dashboard",
        "set CLERK_WEBHOOK_SIGNING_SECRET to that endpoint's",
    ),
    Cause(
        "the service was down, or the network failed",
        "failed attempts in the dashboard, then a success",
        "nothing: Clerk repeats a delivery for a bit over a day",
    ),
    Cause(
        "it was down for longer than Clerk repeats",
        "attempts that are marked as failed for good; after some days Clerk may disable the endpoint",
        "enable it, replay the failed messages in the dashboard, or run backfill_quotas",
    ),
    Cause(
        "the rows were lost: a SQLite file that a deploy erased, or a restored backup",
        "users without a quota in report_drift; check --deploy refuses SQLite there (quotas.E001)",
        "use PostgreSQL; run backfill_quotas",
    ),
    Cause(
        "the user signed up before the webhook was added",
        "no delivery for that user",
        "run backfill_quotas",
    ),
)

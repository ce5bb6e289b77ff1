"""The internals of the product that the bench uses, each with the reason why nothing public serves.

All other modules of the bench import only `quotas.models` and `webhooks.models`; `lint-imports` checks that.
"""

# tokens.py times this function alone, with its cache and without. Over HTTP it is a small part of a request.
from quotas.access.session_tokens import _verified as verified_tokens
from quotas.access.session_tokens import verify as verify_session_token

# `Actor` and `Exhausted` belong to the manager's verbs: who acts, and what `consume` raises. admin_pages.py
# uses the rest to compute a month of spending for each user by a clock of their own, whereas the manager goes
# by the database's clock.
from quotas.rules import verbs
from quotas.rules.outcomes import Change, Exhausted
from quotas.rules.values import Actor, Entry, Plan, Request, Snapshot, State

# growth.py measures a batch of the size that the event loop allows, and the chaos of held rows paces its
# control by how long the site waits for one.
from quotas.store.batches import MAX_BATCH

# pgbench.py has PostgreSQL alone run exactly the statements that the store sends. A copy would soon differ.
from quotas.store.rows import ENTRY_COLUMNS, PLAN_COLUMNS, STATE_COLUMNS, entry_names
from quotas.store.sql import LOCK_SECONDS, compare_and_swap, snapshot_query

__all__ = [
    "ENTRY_COLUMNS",
    "LOCK_SECONDS",
    "MAX_BATCH",
    "PLAN_COLUMNS",
    "STATE_COLUMNS",
    "Actor",
    "Change",
    "Entry",
    "Exhausted",
    "Plan",
    "Request",
    "Snapshot",
    "State",
    "compare_and_swap",
    "entry_names",
    "snapshot_query",
    "verbs",
    "verified_tokens",
    "verify_session_token",
]

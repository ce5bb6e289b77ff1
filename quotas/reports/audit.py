"""What must be true of every ledger, as SQL checks.

Each `Check` is one statement, so it sees one instant of the database even while spends continue: a relation
whose rows have a `user_id` and a `seq`, and the conditions that make a row a fault. The text is the same for
PostgreSQL and SQLite, and only faulty rows leave the database.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

from django.db import connection, transaction

from quotas.models import ChallengeQuota, LedgerEntry
from quotas.reports.prune import MIN_AGE
from quotas.rules.values import MAX_UNITS
from quotas.store.direct import clock

Parameters = dict[str, Any]
MAX_AHEAD = timedelta(seconds=2)  # of an entry, before it counts as made in the future


class Fault(NamedTuple):
    """A condition that a user's ledger violates, and the entry that violates it."""

    user_id: str
    seq: int
    kind: str
    detail: str

    def __str__(self) -> str:
        return f"{self.user_id} seq {self.seq}: {self.kind}: {self.detail}"


class Census(NamedTuple):
    users: int
    entries: int


@dataclass(frozen=True, slots=True)
class Check:
    """A relation over the ledger; `{one}` stands for the condition that selects a single user.

    `faults` maps each kind of fault to its condition and its detail, a template for the row's columns.
    """

    relation: str
    faults: Mapping[str, tuple[str, str]]

    def statement(self, *, of_one_user: bool) -> str:
        """Return the query for the faulty rows: their columns, then one boolean for each kind of fault."""
        conditions = [f"({condition})" for condition, _ in self.faults.values()]
        relation = self.relation.format(one="t.user_id = %(user_id)s" if of_one_user else "1 = 1")
        return (
            f"SELECT f.*, {', '.join(conditions)} FROM ({relation}) AS f "  # noqa: S608 - only constants
            f"WHERE {' OR '.join(conditions)} ORDER BY user_id, seq"
        )


# Each entry with its neighbours, the newest also with the user's row. An entry begins a period with its
# allowance, or moves what was consumed or given as its kind allows and leaves the rest of the state alone.
# The balance follows from that. Entries of releases before 0.2 state only the balance.
ENTRIES = Check(
    """
    SELECT t.user_id, t.seq, t.kind, t.cost, t.delta, t.balance_after, t.period_seq, t.created_at,
        COALESCE(t.quota_limit, 0) AS allowance, t.quota_limit IS NULL AS is_unlimited,
        t.period_consumed AS consumed, t.period_given AS given,
        t.period_consumed - LAG(t.period_consumed) OVER w AS used_more,
        t.period_given - LAG(t.period_given) OVER w AS given_more,
        t.refund_of IS NOT NULL AS is_tied,
        LAG(t.seq) OVER w AS seq_before,
        LAG(t.kind) OVER w AS kind_before,
        LAG(t.period_seq) OVER w AS period_before,
        LAG(t.created_at) OVER w AS created_before,
        COALESCE(
            t.kind = 'reset' AND t.reason <> '' AND LAG(t.last_reset_date) OVER w > t.created_at, FALSE
        ) AS is_clock_mended,
        CASE t.seq WHEN 1 THEN 0 ELSE LAG(t.balance_after) OVER w END AS balance_before,
        t.plan <> LAG(t.plan) OVER w
            OR t.plan_source <> LAG(t.plan_source) OVER w
            OR t.anchor_at <> LAG(t.anchor_at) OVER w AS is_other_plan,
        t.plan_version <> LAG(t.plan_version) OVER w
            OR COALESCE(t.quota_limit, -1) <> LAG(COALESCE(t.quota_limit, -1)) OVER w
            OR t.last_reset_date <> LAG(t.last_reset_date) OVER w
            OR t.resets_at <> LAG(t.resets_at) OVER w
                AND t.period_consumed + LAG(t.period_consumed) OVER w IS NOT NULL AS is_other_term,
        LEAD(t.seq) OVER w IS NULL AS is_newest,
        q.user_id IS NULL AS is_rowless, q.seq AS row_seq, q.quota_remaining AS row_balance,
        q.plan_id <> t.plan
            OR q.plan_source <> t.plan_source
            OR q.plan_version <> t.plan_version
            OR COALESCE(q.quota_limit, -1) <> COALESCE(t.quota_limit, -1)
            OR q.last_reset_date <> t.last_reset_date
            OR q.anchor_at <> t.anchor_at
            OR q.updated_at <> t.created_at
            OR q.period_seq <> t.period_seq
            OR q.usage_seq = q.seq AND (
                q.period_consumed <> t.period_consumed
                OR q.period_given <> t.period_given
                OR q.resets_at <> t.resets_at
            ) AS is_other_row,
        (q.deleted_at IS NOT NULL) <> (t.kind = 'deleted') AS is_other_end,
        t.plan, t.plan_version, v.id IS NULL AS is_unversioned,
        COALESCE(v.allowance, -1) <> COALESCE(t.quota_limit, -1) AS is_other_allowance
    FROM ledger_entries AS t
    LEFT JOIN challenge_quotas AS q ON q.user_id = t.user_id
    LEFT JOIN plan_versions AS v ON v.plan_id = t.plan AND v.version = t.plan_version
    WHERE {one}
    WINDOW w AS (PARTITION BY t.user_id ORDER BY t.seq, t.id)
    """,
    {
        "gap": ("seq > seq_before + 1", "seq {seq} follows seq {seq_before}"),
        "duplicate": ("seq = seq_before", "more than one entry has seq {seq}"),
        "start": (
            "seq < 1 OR (seq = 1) <> (kind = 'opened')",
            "seq {seq} is {kind}: seq 1, and no other, must be opened",
        ),
        # After pruning, the oldest entry begins a period, and is at least MIN_AGE old.
        "lost prefix": (
            "seq_before IS NULL AND seq > 1 AND (seq <> period_seq OR created_at > %(young)s)",
            "starts with seq {seq} of period {period_seq}, at {created_at}: pruning never leaves this",
        ),
        "chain": (
            "balance_after <> balance_before + delta",
            "{balance_before} {delta:+} is not {balance_after}",
        ),
        "negative": ("balance_after < 0", "the balance is {balance_after}"),
        "allowance": (
            "seq = period_seq AND kind <> 'imported' AND balance_after <> allowance",
            "a period with an allowance of {allowance} begins with a balance of {balance_after}",
        ),
        "amount": (
            """
            CASE kind
                WHEN 'consumed' THEN cost < 1 OR delta <> CASE WHEN is_unlimited THEN 0 ELSE -cost END
                    AND NOT (consumed IS NOT NULL AND balance_before = %(max_units)s)
                WHEN 'refunded' THEN delta < 0 OR delta > cost
                WHEN 'refused' THEN delta <> 0
                WHEN 'deleted' THEN delta <> 0
                WHEN 'imported' THEN cost < 0
                ELSE cost <> 0
            END
            """,
            "{kind} with cost {cost} and delta {delta:+}",
        ),
        "balance": (
            """
            consumed + given IS NOT NULL AND balance_after <> CASE
                WHEN is_unlimited OR allowance + given < consumed THEN 0
                WHEN allowance + given - consumed > %(max_units)s THEN %(max_units)s
                ELSE allowance + given - consumed
            END
            """,
            "of {allowance}, with {given:+} by staff and {consumed} consumed, {balance_after} are left",
        ),
        "usage": (
            """
            CASE
                WHEN kind = 'imported' THEN given < 0
                    OR consumed <> CASE WHEN is_unlimited THEN 0 ELSE cost END
                WHEN seq = period_seq THEN consumed <> 0 OR given <> 0
                WHEN kind = 'consumed' THEN used_more <> CASE WHEN is_unlimited THEN 0 ELSE cost END
                    OR given_more <> 0
                WHEN kind = 'refunded' THEN used_more NOT IN (0, -cost) OR given_more <> 0
                WHEN kind = 'adjusted' THEN used_more <> 0
                WHEN kind = 'plan_changed' THEN consumed < 0
                ELSE used_more <> 0 OR given_more <> 0
            END
            """,
            "{kind} with cost {cost} moves what was consumed by {used_more}, what was given by {given_more}",
        ),
        # A change of plan may continue another period than the running one.
        "period": (
            """
            CASE
                WHEN seq = period_seq THEN kind NOT IN ('opened', 'imported', 'reset', 'plan_changed')
                ELSE kind IN ('opened', 'imported', 'reset')
                    OR period_seq <> period_before AND kind <> 'plan_changed'
            END
            """,
            "{kind} in period {period_seq}, after an entry of period {period_before}",
        ),
        "state": (
            "kind NOT IN ('imported', 'plan_changed') AND (is_other_plan AND NOT is_clock_mended "
            "OR is_other_term AND seq <> period_seq)",
            "{kind} changes the plan, its source or version, the limit, the anchor or the reset date",
        ),
        "version": (
            "is_unversioned OR seq = period_seq AND is_other_allowance",
            "version {plan_version} of the plan {plan} does not exist, or does not give {allowance}",
        ),
        # A reset by staff brings a period that a clock ahead began in the future back to the present.
        "time": (
            "created_at < created_before AND NOT is_clock_mended",
            "created at {created_at}, before the previous entry at {created_before}",
        ),
        "future": (
            "is_newest AND created_at > %(soon)s",
            "created at {created_at}, in the future of the database's clock: it was ahead. Reset the quota",
        ),
        "after deletion": ("kind_before = 'deleted'", "{kind} after the deletion"),
        "import": ("kind = 'imported' AND seq <> 2", "seq {seq} is imported: only seq 2 can be"),
        "tie": (
            "is_tied <> (kind = 'refunded')",
            "{kind}: each refund, and no other entry, must name a consumption",
        ),
        "no row": ("is_newest AND is_rowless", "entries up to seq {seq}, but the user has no row"),
        "row's seq": (
            "is_newest AND seq <> row_seq",
            "the row has seq {row_seq}, the newest entry seq {seq}",
        ),
        "row's balance": (
            "is_newest AND balance_after <> row_balance",
            "the row has a balance of {row_balance}, the newest entry {balance_after}",
        ),
        "row's state": (
            "is_newest AND is_other_row AND NOT is_rowless",
            "plan, limit, period or dates of the row differ from the newest entry's",
        ),
        "row's end": (
            "is_newest AND is_other_end AND NOT is_rowless",
            "the row and the newest entry ({kind}) disagree about deletion",
        ),
    },
)

EMPTY = Check(
    """
    SELECT t.user_id, t.seq FROM challenge_quotas AS t
    WHERE {one} AND NOT EXISTS (SELECT 1 FROM ledger_entries AS e WHERE e.user_id = t.user_id)
    """,
    {"no entries": ("1 = 1", "the row has seq {seq}, but there is no entry")},
)

# A second proof, independent of the chain: it sums the costs of spends instead of their deltas. No more may
# be spent in a period than the largest allowance in force in it and what staff gave. Of an import that brings
# more than the allowance, the allowance counts. Releases before 0.2
# forgot at a change of plan what had been used: of their entries all deltas count as given, and refunds with
# them. Of these a period whose first entry is missing is skipped: its allowance is unknown, and `gap` or
# `lost prefix` reports it. So is one that has entries of both.
PERIODS = Check(
    """
    SELECT s.user_id, s.period_seq, s.seq, s.first_seq, s.is_old, s.is_new,
        CASE WHEN s.is_old THEN s.given ELSE s.most END AS given,
        CASE WHEN s.is_old THEN s.taken ELSE s.taken - s.refunded END AS taken
    FROM (
        SELECT t.user_id, t.period_seq, MIN(t.seq) AS first_seq, MAX(t.seq) AS seq,
            COUNT(t.period_consumed) = 0 AS is_old, COUNT(t.period_consumed) = COUNT(*) AS is_new,
            SUM(CASE
                WHEN t.seq = t.period_seq THEN COALESCE(t.quota_limit, 0)
                WHEN t.kind = 'consumed' THEN 0
                ELSE t.delta
            END) AS given,
            MAX(COALESCE(t.quota_limit, 0)) + MAX(t.period_given) AS most,
            SUM(CASE
                WHEN t.kind = 'consumed' AND t.quota_limit IS NOT NULL THEN t.cost
                WHEN t.kind = 'imported' AND t.cost < t.quota_limit THEN t.cost
                WHEN t.kind = 'imported' THEN COALESCE(t.quota_limit, 0)
                ELSE 0
            END) AS taken,
            SUM(CASE
                WHEN t.kind = 'consumed' AND t.quota_limit IS NOT NULL THEN COALESCE(r.refunded, 0) ELSE 0
            END) AS refunded
        FROM ledger_entries AS t LEFT JOIN (
            SELECT t.user_id, t.refund_of, SUM(t.cost) AS refunded FROM ledger_entries AS t
            WHERE {one} AND t.refund_of IS NOT NULL GROUP BY t.user_id, t.refund_of
        ) AS r ON r.user_id = t.user_id AND r.refund_of = t.id
        WHERE {one} GROUP BY t.user_id, t.period_seq
    ) AS s
    """,
    {
        "overspend": (
            "taken > given AND (is_new OR is_old AND first_seq = period_seq)",
            "{taken} units spent of {given} in period {period_seq}",
        )
    },
)

# The same for the row: what it says was consumed is the sum of the costs since its period's first entry, less
# the refunds of these.
USAGE = Check(
    """
    SELECT t.user_id, t.seq, t.period_seq, t.period_consumed AS consumed, MIN(e.seq) AS first_seq,
        SUM(CASE
            WHEN e.kind IN ('consumed', 'imported') AND e.quota_limit IS NOT NULL THEN e.cost
            WHEN c.quota_limit IS NOT NULL THEN -e.cost
            ELSE 0
        END) AS summed
    FROM challenge_quotas AS t
    JOIN ledger_entries AS e ON e.user_id = t.user_id AND e.seq >= t.period_seq
    LEFT JOIN ledger_entries AS c
        ON c.user_id = e.user_id AND c.id = e.refund_of AND c.seq >= t.period_seq
    WHERE {one} AND t.usage_seq = t.seq
    GROUP BY t.user_id, t.seq, t.period_seq, t.period_consumed
    """,
    {
        "row's usage": (
            "first_seq = period_seq AND summed <> consumed",
            "{summed} units were consumed since seq {period_seq}, but the row says {consumed}",
        )
    },
)

# A late refund gives nothing and belongs to a later period, so it may outlive its pruned consumption.
REFUNDS = Check(
    """
    SELECT t.user_id, t.seq, t.cost, t.delta, t.period_seq, t.refund_of,
        c.seq AS spend_seq, c.kind AS spend_kind, c.cost AS spent, c.period_seq AS spend_period,
        SUM(t.cost) OVER (PARTITION BY t.user_id, t.refund_of ORDER BY t.seq) AS refunded,
        EXISTS (SELECT 1 FROM ledger_entries AS o WHERE o.user_id = t.user_id AND o.seq = 1) AS is_whole
    FROM ledger_entries AS t LEFT JOIN ledger_entries AS c ON c.user_id = t.user_id AND c.id = t.refund_of
    WHERE {one} AND t.refund_of IS NOT NULL
    """,
    {
        "refund of nothing": (
            "CASE WHEN spend_seq IS NULL THEN cost > 0 OR delta > 0 OR is_whole "
            "ELSE spend_kind <> 'consumed' OR spend_seq >= seq END",
            "{refund_of} is not an earlier consumption of this user",
        ),
        "double refund": (
            "refunded > spent",
            "{refunded} units refunded of {spent} that seq {spend_seq} spent",
        ),
        "late refund": (
            "spend_seq < period_seq AND (cost > 0 OR delta > 0)",
            "{delta:+} in period {period_seq} for a spend of period {spend_period}",
        ),
    },
)

DUPLICATE_KEYS = Check(
    """
    SELECT t.user_id, t.idempotency_key, MAX(t.seq) AS seq, COUNT(*) AS times
    FROM ledger_entries AS t WHERE {one} AND t.idempotency_key IS NOT NULL
    GROUP BY t.user_id, t.idempotency_key
    """,
    {"duplicate key": ("times > 1", "{times} entries have the idempotency key {idempotency_key}")},
)

CHECKS = (ENTRIES, EMPTY, PERIODS, USAGE, REFUNDS, DUPLICATE_KEYS)


@contextmanager
def one_snapshot() -> Iterator[None]:
    """Make all reads in the block see one instant of the database, on PostgreSQL.

    Inside an open transaction each statement sees an instant of its own; so it does on SQLite, where one
    transaction would block spends.
    """
    if connection.in_atomic_block or connection.vendor != "postgresql":
        yield
        return
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield


def faults(user_id: str | None = None) -> Iterator[Fault]:
    """Yield each fault in the ledger of one user, or of all users.

    Exhaust or close the iterator before the next query on this connection.
    """
    with one_snapshot():
        now = clock()
        parameters = {
            "user_id": user_id,
            "max_units": MAX_UNITS,
            "young": connection.ops.adapt_datetimefield_value(now - MIN_AGE),
            "soon": connection.ops.adapt_datetimefield_value(now + MAX_AHEAD),
        }
        for check in CHECKS:
            yield from _faults_of(check, parameters)


def census(user_id: str | None = None) -> Census:
    """Count the users and entries that `faults` checks."""
    filters = {} if user_id is None else {"user_id": user_id}
    entries = LedgerEntry.objects.filter(**filters)
    return Census(ChallengeQuota.objects.filter(**filters).count(), entries.count())


def _faults_of(check: Check, parameters: Parameters) -> Iterator[Fault]:
    statement = check.statement(of_one_user=parameters["user_id"] is not None)
    with connection.chunked_cursor() as cursor:
        cursor.execute(statement, parameters)
        names = [column[0] for column in cursor.description]
        for row in cursor:
            columns = dict(zip(names, row, strict=False))
            flags = row[-len(check.faults) :]
            for is_faulty, (kind, (_, detail)) in zip(flags, check.faults.items(), strict=True):
                if is_faulty:
                    yield Fault(columns["user_id"], columns["seq"], kind, detail.format(**columns))

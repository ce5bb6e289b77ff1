"""The statements of the verbs, as constant text with named parameters.

Running constant text takes a quarter of the CPU time that the ORM needs for the same query.
"""
# ruff: noqa: S608 - the text is put together from names in this file only

from collections.abc import Iterable
from functools import lru_cache

from quotas.store.rows import (
    ENTRY_ARRAYS,
    ENTRY_COLUMNS,
    PLAN_COLUMNS,
    STATE_COLUMNS,
    SWAP_COLUMNS,
    entry_names,
)

VERSION_COLUMNS = ("plan_id", *tuple(PLAN_COLUMNS)[1:])  # of a plan's version
MUTABLE_COLUMNS = tuple(STATE_COLUMNS)[1:]  # what a change may set

CLOCK = {
    # now() is the transaction's start: stale after a lock wait. A standby, whose rows may be old, has no
    # transaction ids, so it raises READ_ONLY (errors.py); a primary never evaluates that branch.
    "postgresql": """
        CASE WHEN pg_is_in_recovery() THEN CAST(CAST(pg_current_xact_id() AS text) AS timestamptz)
        ELSE clock_timestamp() END""",
    # sqlite3 converts the value by the type that the column's name ends with.
    "sqlite": """strftime('%%Y-%%m-%%d %%H:%%M:%%f', 'now') AS "clock [datetime]\"""",
}


CLOCK["citus"] = CLOCK["postgresql"]

JSON_COLUMNS = (".actions", ".metadata")  # read as text and decoded only where needed


def _select_list(alias: str, names: Iterable[str]) -> str:
    each = (f"{alias}.{name}" for name in names)
    return ", ".join(f"CAST({name} AS text)" if name.endswith(JSON_COLUMNS) else name for name in each)


def _placeholders(names: Iterable[str]) -> str:
    return ", ".join(f"%({name})s" for name in names)


def _arrays(names: Iterable[str], types: Iterable[str]) -> str:
    return ", ".join(f"%({name}s)s::{kind}[]" for name, kind in zip(names, types, strict=True))


# Which of a user's assignments counts: billing with a plan of ours, then metadata, then billing with the
# default plan or an unknown one, as Clerk Billing gives to each sign-up; of one rank the latest.
# `a` is the assignment, `b` its plan; NULL if it is unknown.
FIRST_ASSIGNMENT = """
    ORDER BY CASE
        WHEN a.source = 'billing' AND NOT {is_default} THEN 1
        WHEN a.source = 'metadata' THEN 2
        ELSE 3
    END, a.updated_at DESC, a.id DESC LIMIT 1
"""


def _refunded(consumption: str) -> str:
    """The units of a consumption that its refunds asked for."""
    return f"""(
        SELECT COALESCE(SUM(r.cost), 0) FROM ledger_entries AS r
        WHERE r.user_id = u.user_id AND r.refund_of = {consumption}.id
    )"""


# Only a replay of a consumption asks for its refunds: for any other request nothing is looked up.
_ENTRY_REFUNDED = f"CASE WHEN e.kind = 'consumed' THEN {_refunded('e')} END"

# What a snapshot may include besides the row: more columns and joins. Those with a parameter: `argument`.
INCLUDES = {
    "": ("", ""),
    # Argument: entry id. The consumption, the version it was made under, its units that refunds asked for.
    "consumption": (
        f", {_select_list('c', ENTRY_COLUMNS)}, {_select_list('x', VERSION_COLUMNS)}, {_refunded('c')}",
        """LEFT JOIN ledger_entries AS c ON c.user_id = u.user_id AND c.id = %(argument)s
        LEFT JOIN plan_versions AS x ON x.plan_id = c.plan AND x.version = c.plan_version""",
    ),
    # Argument: plan name. The plan's current version. An archived plan is only for those who have it.
    "target": (
        f", {_select_list('t', PLAN_COLUMNS)}",
        """LEFT JOIN plans AS t
            ON t.name = %(argument)s AND (NOT t.is_archived OR t.name = q.plan_id)""",
    ),
    # The plan that Clerk's assignments lead to, and its source. Without a known one it is the default.
    "clerk": (
        f", {_select_list('t', PLAN_COLUMNS)}, CASE WHEN k.name IS NULL THEN 'default' ELSE c.source END",
        f"""LEFT JOIN plan_assignments AS c ON c.user_id = u.user_id AND c.id = (
            SELECT a.id FROM plan_assignments AS a LEFT JOIN plans AS b ON b.name = a.plan
            WHERE a.user_id = u.user_id AND a.plan <> ''
            {FIRST_ASSIGNMENT.format(is_default="b.is_default")}
        )
        LEFT JOIN plans AS k ON k.name = c.plan
        LEFT JOIN plans AS t
            ON t.name = COALESCE(k.name, (SELECT f.name FROM plans AS f WHERE f.is_default))""",
    ),
}


# Returns exactly one row: the clock, the id of the newest version of the user's plan (without a row of the
# default plan), that plan, the version in force in the running period, and the row; if `keyed`, the entry of
# that key, the version it was made under, and its units that were refunded; then the columns of INCLUDES.
# Missing parts are NULL; a NULL plan means that no default is set.
# `without_plans` selects only name and version of the plan: for plan versions that are cached already.
@lru_cache
def snapshot_query(
    dialect: str, include: str = "", *, keyed: bool = True, without_plans: bool = False
) -> str:
    columns, joins = INCLUDES[include]
    user = "varchar" if dialect == "sqlite" else "text"
    plan = _select_list("p", tuple(PLAN_COLUMNS)[:2] if without_plans else PLAN_COLUMNS)
    of_row = of_entry = of_entry_plan = ""
    if not without_plans:
        plan = f"{plan}, {_select_list('v', VERSION_COLUMNS)}"
        of_row = "LEFT JOIN plan_versions AS v ON v.plan_id = q.plan_id AND v.version = q.plan_version"
        of_entry = "LEFT JOIN plan_versions AS w ON w.plan_id = e.plan AND w.version = e.plan_version"
        of_entry_plan = f", {_select_list('w', VERSION_COLUMNS)}"
    if keyed:
        columns = f", {_select_list('e', ENTRY_COLUMNS)}{of_entry_plan}, {_ENTRY_REFUNDED}{columns}"
        joins = f"""
        LEFT JOIN ledger_entries AS e ON e.user_id = u.user_id AND e.idempotency_key = %(key)s
        {of_entry}
        {joins}"""
    return f"""
        SELECT {CLOCK[dialect]}, p.version_id, {plan}, {_select_list("q", STATE_COLUMNS)}{columns}
        FROM (SELECT CAST(%(user_id)s AS {user}) AS user_id) AS u
        LEFT JOIN challenge_quotas AS q ON q.user_id = u.user_id
        LEFT JOIN plans AS p
            ON p.name = COALESCE(q.plan_id, (SELECT d.name FROM plans AS d WHERE d.is_default))
        {of_row}
        {joins}
        """


# The same for many users at once, without plans: a row for each of the arrays' users (and keys), in their
# order. PostgreSQL takes an array of unknown length for ten rows: each look-up is LATERAL with a LIMIT, so
# that no number of users makes it read a whole table instead.
@lru_cache
def snapshots_query(*, keyed: bool) -> str:
    asked, of_entry, columns = _arrays(["user_id"], ["text"]), "", ""
    if keyed:
        asked = _arrays(["user_id", "key"], ["text", "text"])
        columns = f", {_select_list('e', ENTRY_COLUMNS)}, {_ENTRY_REFUNDED}"
        of_entry = """
        LEFT JOIN LATERAL (
            SELECT * FROM ledger_entries AS e
            WHERE e.user_id = u.user_id AND e.idempotency_key = u.key LIMIT 1
        ) AS e ON true"""
    return f"""
        SELECT {CLOCK["postgresql"]}, {_select_list("p", ("version_id", "name", "version"))},
            {_select_list("q", STATE_COLUMNS)}{columns}
        FROM unnest({asked}) WITH ORDINALITY AS u (user_id, {"key, " if keyed else ""}number)
        LEFT JOIN LATERAL (
            SELECT * FROM challenge_quotas AS q WHERE q.user_id = u.user_id LIMIT 1
        ) AS q ON true
        LEFT JOIN LATERAL (
            SELECT * FROM plans AS p
            WHERE p.name = COALESCE(q.plan_id, (SELECT d.name FROM plans AS d WHERE d.is_default)) LIMIT 1
        ) AS p ON true{of_entry}
        ORDER BY u.number
        """


LOCK_SECONDS = 2  # that a statement or a transaction waits for a row that another one has locked
# PostgreSQL evaluates it before it looks for the row.
_WITH_TIMEOUT = f"(SELECT set_config('lock_timeout', '{LOCK_SECONDS}s', true)) <> ''"
_UNLESS_LOCKED = """EXISTS (
    SELECT 1 FROM challenge_quotas WHERE user_id = %(user_id)s FOR NO KEY UPDATE SKIP LOCKED
)"""

# Waits for the row's lock; locks nothing if there is no row.
# A statement of its own: only a later statement sees what the previous holder of the lock wrote.
_LOCKED = "SELECT 1 FROM challenge_quotas WHERE user_id = %(user_id)s"
LOCK = {"postgresql": f"{_LOCKED} AND {_WITH_TIMEOUT} FOR UPDATE", "citus": f"{_LOCKED} FOR UPDATE"}

# Under a stricter isolation level, which a role may have as its default, a row lock is of no use.
BEGIN, COMMIT = "BEGIN ISOLATION LEVEL READ COMMITTED", "COMMIT"

# Parameters: the STATE_COLUMNS, and the seq that was read.
# Updates the row only if that seq is still its own. The CASE empties a tombstone's e-mail in
# the same text, so that every verb shares one statement.
_UPDATE = f"""
    UPDATE challenge_quotas SET {", ".join(f"{name} = %({name})s" for name in MUTABLE_COLUMNS)},
        email = CASE WHEN {{deleted_at}} IS NULL THEN email ELSE '' END
    WHERE user_id = %(user_id)s AND seq = %(seq_read)s
"""
_INSERT = f"INSERT INTO challenge_quotas (email, {', '.join(STATE_COLUMNS)})"
_ENTRIES = f"INSERT INTO ledger_entries ({', '.join(ENTRY_COLUMNS)})"


@lru_cache(maxsize=16)
def compare_and_swap(entries: int, *, waits: bool = True) -> str:
    """Update the row and insert its entries in one statement, both or neither. Row count: entries inserted.

    Parameters: as _UPDATE, and the entry_names of each entry. Unless it waits, it passes over a locked row.
    """
    update = _UPDATE.format(deleted_at="%(deleted_at)s::timestamptz")
    condition = _WITH_TIMEOUT if waits else _UNLESS_LOCKED
    return f"""
        WITH done AS ({update} AND {condition} RETURNING user_id)
        {_ENTRIES} SELECT e.* FROM done, {_values(entries)} WHERE e.user_id = done.user_id
        """


# The entries of exactly those users whose rows were written: each entry joins its own row.
_ENTRIES_OF_DONE = f"""
    {_ENTRIES} SELECT e.* FROM done
    JOIN unnest({_arrays(ENTRY_ARRAYS, ENTRY_ARRAYS.values())}) AS e ({", ".join(ENTRY_COLUMNS)})
        ON e.user_id = done.user_id
"""

# Inserts the rows that are missing, and entries for only these. Row count: entries inserted.
# Two requests may open the same row at once: the second waits, finds the row and inserts nothing.
# Parameters: those of INSERT_ROW and INSERT_ENTRY as arrays, their names with an s.
OPEN_ROWS = f"""
    WITH done AS (
        {_INSERT} SELECT '', s.* FROM unnest({_arrays(STATE_COLUMNS, STATE_COLUMNS.values())}) AS s
        WHERE {_WITH_TIMEOUT} ON CONFLICT (user_id) DO NOTHING RETURNING user_id
    )
    {_ENTRIES_OF_DONE}
"""


# Updates the rows that are still as they were read, and inserts their entries. Returns their users.
# It locks the rows in the order of their users, as every such statement does, so that two do not wait for
# each other, and passes over those that somebody else has locked.
# Parameters: those of _UPDATE and of its entries as arrays, their names with an s; one row a user.
SWAP_ROWS = f"""
    WITH asked AS (
        SELECT * FROM unnest({_arrays(SWAP_COLUMNS, SWAP_COLUMNS.values())}) AS s ({", ".join(SWAP_COLUMNS)})
    ),
    held AS (
        SELECT user_id FROM challenge_quotas WHERE user_id = ANY (%(user_ids)s::text[])
        ORDER BY user_id FOR NO KEY UPDATE SKIP LOCKED
    ),
    done AS (
        UPDATE challenge_quotas AS q SET {", ".join(f"{name} = asked.{name}" for name in MUTABLE_COLUMNS)},
            email = CASE WHEN asked.deleted_at IS NULL THEN q.email ELSE '' END
        FROM asked JOIN held ON held.user_id = asked.user_id
        WHERE q.user_id = held.user_id AND q.seq = asked.seq_read RETURNING q.user_id
    ),
    entered AS ({_ENTRIES_OF_DONE})
    SELECT user_id FROM done
"""


def _values(entries: int) -> str:
    """Return rows with typed values: PostgreSQL treats a bare NULL or literal in VALUES as text."""
    rows = [
        ", ".join(
            f"%({name})s::{kind}"
            for name, kind in zip(entry_names(number), ENTRY_COLUMNS.values(), strict=True)
        )
        for number in range(entries)
    ]
    return f"(VALUES {', '.join(f'({row})' for row in rows)}) AS e ({', '.join(ENTRY_COLUMNS)})"


# The same in plain statements, for one transaction. SQLite has no data-modifying WITH, and Citus makes a
# two-phase commit of it, which takes three times the CPU.
UPDATE_ROW = {
    "sqlite": _UPDATE.format(deleted_at="%(deleted_at)s"),
    "citus": _UPDATE.format(deleted_at="%(deleted_at)s::timestamptz"),
}
INSERT_ROW = f"{_INSERT} VALUES ('', {_placeholders(STATE_COLUMNS)}) ON CONFLICT (user_id) DO NOTHING"
INSERT_ENTRY = f"{_ENTRIES} VALUES ({_placeholders(entry_names(0))})"

# `at` is Clerk's time of the e-mail. The latest e-mail wins in any order of
# arrival, and a tombstone takes none. It leaves `seq` alone, so it commutes with every verb.
NOTE_PROFILE = """
    UPDATE challenge_quotas SET email = %(email)s, clerk_updated_at = %(at)s
    WHERE user_id = %(user_id)s AND deleted_at IS NULL
        AND (clerk_updated_at IS NULL OR clerk_updated_at < %(at)s)
"""

# `updated_at` is Clerk's time of the assignment. The latest assignment of each item wins in any order of
# arrival. Of two billing assignments of the same time, the end of the item wins. Of two metadata assignments
# of the same time, the one that arrives last wins: the setting for the key was changed.
NOTE_ASSIGNMENT = """
    INSERT INTO plan_assignments (id, user_id, source, external_id, plan, is_free, updated_at)
    VALUES (%(id)s, %(user_id)s, %(source)s, %(external_id)s, %(plan)s, %(is_free)s, %(updated_at)s)
    ON CONFLICT (user_id, source, external_id) DO UPDATE
    SET plan = excluded.plan, updated_at = excluded.updated_at,
        is_free = excluded.is_free OR plan_assignments.is_free AND plan_assignments.plan = excluded.plan
    WHERE plan_assignments.updated_at < excluded.updated_at
        OR plan_assignments.updated_at = excluded.updated_at
            AND (excluded.source = 'metadata' OR plan_assignments.plan <> '' OR excluded.plan = '')
"""

# What was consumed and given in the entries of `counted`, and the seq of the first and of the first refusal.
# A refund counts if its consumption does. An adjustment of a balance that stayed 0 shows only in the sum of
# what was given by then.
_USAGE = """
    MIN(t.seq) AS first_seq, MAX(CASE WHEN t.kind = 'refused' THEN t.created_at END) AS refused_at,
    CAST(COALESCE(SUM(CASE
        WHEN t.kind IN ('consumed', 'imported') AND t.quota_limit IS NOT NULL THEN t.cost
        WHEN c.quota_limit IS NOT NULL THEN -t.cost
    END), 0) AS bigint) AS consumed,
    CAST(COALESCE(SUM(CASE
        WHEN t.kind IN ('adjusted', 'imported') THEN COALESCE(t.period_given - t.given_before, t.delta)
    END), 0) AS bigint) AS given
    FROM counted AS t LEFT JOIN counted AS c ON c.id = t.refund_of
"""
_ENTRIES_OF_USER = """
    SELECT t.*, LAG(t.period_given) OVER (ORDER BY t.seq) AS given_before
    FROM ledger_entries AS t, asked WHERE t.user_id = %(user_id)s AND t.seq <= asked.seq
"""

# Parameters: user id, seq and period_seq of the row. The end and the usage of the running period, for a row
# that was last written by a release that did not keep them.
RUNNING_USAGE = f"""
    WITH asked AS (SELECT %(seq)s AS seq, %(period_seq)s AS period_seq),
    counted AS ({_ENTRIES_OF_USER} AND t.seq >= asked.period_seq)
    SELECT MAX(CASE WHEN t.seq = (SELECT seq FROM asked) THEN t.resets_at END) AS "resets_at [datetime]",
        {_USAGE}
"""

# Parameters: user id and seq of the row, and the fields of a periods.Lookback. The begin and the usage of
# the period in which a plan finds the user, the latest end of a period since the last refill, and if the plan
# was left in that period: its limit, its end, and its version. A refill that somebody asked for is the
# opening, a change of plan that began a period, or a reset with a reason (one that was due has none).
USAGE_BY_PLAN = f"""
    WITH asked AS (
        SELECT %(seq)s AS seq, %(plan)s AS plan, %(since)s AS since, %(begins_at)s AS begins_at,
            %(now)s AS now, %(is_due)s AS is_due, %(next_begin)s AS next_begin
    ),
    running AS (
        SELECT t.seq, t.last_reset_date FROM ledger_entries AS t, asked
        WHERE t.user_id = %(user_id)s AND t.seq <= asked.seq AND t.seq = t.period_seq
        ORDER BY t.seq DESC LIMIT 1
    ),
    last_of_plan AS (
        SELECT t.* FROM ledger_entries AS t, asked
        WHERE t.user_id = %(user_id)s AND t.seq <= asked.seq AND t.plan = asked.plan AND t.resets_at > now
        ORDER BY t.seq DESC LIMIT 1
    ),
    needed AS (
        SELECT seq FROM running
        UNION ALL
        SELECT period_seq FROM last_of_plan
        UNION ALL
        SELECT MIN(t.seq) FROM ledger_entries AS t, asked
        WHERE t.user_id = %(user_id)s AND t.seq <= asked.seq AND (t.created_at >= since OR t.resets_at > now)
    ),
    recent AS ({_ENTRIES_OF_USER} AND t.seq >= (SELECT MIN(seq) FROM needed) - 1),
    refill AS (
        SELECT seq, last_reset_date FROM recent WHERE seq = period_seq AND (kind <> 'reset' OR reason <> '')
        ORDER BY seq DESC LIMIT 1
    ),
    taken_up AS (SELECT * FROM last_of_plan WHERE seq >= COALESCE((SELECT seq FROM refill), 0)),
    fresh AS (
        SELECT r.*, CASE WHEN kind = 'consumed' THEN last_reset_date ELSE
            MAX(CASE WHEN seq = period_seq THEN last_reset_date END) OVER (ORDER BY seq) END AS began_at
        FROM recent AS r WHERE seq >= COALESCE((SELECT seq FROM refill), 0)
    ),
    begins AS (
        SELECT last_reset_date AS at FROM running, asked WHERE NOT is_due
        UNION ALL
        SELECT next_begin FROM asked WHERE is_due
        UNION ALL
        SELECT CASE WHEN f.last_reset_date > a.begins_at THEN f.last_reset_date ELSE a.begins_at END
        FROM asked AS a LEFT JOIN refill AS f ON 1 = 1
        UNION ALL
        SELECT CASE WHEN began_at > since THEN began_at ELSE since END
        FROM fresh, asked WHERE resets_at > now AND began_at IS NOT NULL
    ),
    counted AS (
        SELECT f.* FROM fresh AS f LEFT JOIN taken_up AS l ON 1 = 1
        WHERE CASE WHEN l.seq IS NULL THEN f.created_at >= (SELECT MIN(at) FROM begins)
            ELSE f.seq >= l.period_seq END
    ),
    sums AS (SELECT {_USAGE})
    SELECT COALESCE(l.last_reset_date, (SELECT MIN(at) FROM begins)) AS "begins_at [datetime]",
        s.first_seq, s.consumed, s.given, s.refused_at AS "refused_at [datetime]",
        (SELECT MAX(resets_at) FROM fresh) AS "left_until [datetime]",
        l.quota_limit, l.resets_at AS "ends_at [datetime]", {_select_list("v", VERSION_COLUMNS)}
    FROM sums AS s LEFT JOIN taken_up AS l ON 1 = 1
    LEFT JOIN plan_versions AS v ON v.plan_id = l.plan AND v.version = l.plan_version
"""

# Whether a write whose reply was lost was carried out.
ENTRY_EXISTS = "SELECT 1 FROM ledger_entries WHERE user_id = %(user_id)s AND id = %(entry_id)s"

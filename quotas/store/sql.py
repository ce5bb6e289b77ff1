"""The few statements that serve every verb, as text.

Constant text through a cursor costs a quarter of what the ORM takes to build the same query, and
says in plain sight what each verb rests on. The values are always parameters.
"""
# ruff: noqa: S608 - only names written in this file are put into the text

from functools import lru_cache

# In the order of policy.State, policy.Plan and policy.Entry.
STATE = (
    "user_id", "plan_id", "plan_source", "plan_version", "quota_limit", "quota_remaining", "last_reset_date",
    "anchor_at", "period_seq", "refused_at", "seq", "updated_at", "deleted_at",
)  # fmt: skip
STATE_TYPES = (
    "text", "text", "text", "bigint", "bigint", "bigint", "timestamptz",
    "timestamptz", "bigint", "timestamptz", "bigint", "timestamptz", "timestamptz",
)  # fmt: skip
PLAN = ("name", "version", "allowance", "reset_policy", "period_seconds", "timezone", "actions")
VERSION = ("plan_id", *PLAN[1:])  # the same, of a plan as it was
ENTRY = (
    "id", "user_id", "seq", "kind", "cost", "delta", "plan", "plan_source", "plan_version", "quota_limit",
    "balance_after", "last_reset_date", "anchor_at", "resets_at", "period_seq", "created_at", "actor_kind",
    "actor_id", "act", "reason", "action", "metadata", "idempotency_key", "fingerprint", "refund_of",
)  # fmt: skip
ENTRY_TYPES = (
    "uuid", "text", "bigint", "text", "bigint", "bigint", "text", "text", "bigint", "bigint",
    "bigint", "timestamptz", "timestamptz", "timestamptz", "bigint", "timestamptz", "text", "text", "text",
    "text", "text", "jsonb", "text", "text", "uuid",
)  # fmt: skip
MOVING = STATE[1:]  # what a change may set

CLOCK = {
    "postgresql": "clock_timestamp()",  # now() is the transaction's start: stale after a lock wait
    # The name tells the driver what it is, as a column's type does.
    "sqlite": """strftime('%%Y-%%m-%%d %%H:%%M:%%f', 'now') AS "clock [datetime]\"""",
}


AS_TEXT = (".actions", ".metadata")  # JSON, which is read where it is needed


def _columns(alias: str, names: tuple[str, ...]) -> str:
    each = (f"{alias}.{name}" for name in names)
    return ", ".join(f"CAST({name} AS text)" if name.endswith(AS_TEXT) else name for name in each)


def _holes(count: int) -> str:
    return "(" + ", ".join(["%s"] * count) + ")"


# What a verb may want to know besides: more columns, more joins, and at most one parameter.
ALSO = {
    "": ("", ""),
    # Entry id: the consumption, and the units of it that were asked back before.
    "consumption": (
        f""", {_columns("c", ENTRY)}, (
            SELECT COALESCE(SUM(r.cost), 0) FROM ledger_entries AS r
            WHERE r.user_id = u.user_id AND r.refund_of = c.id
        )""",
        "LEFT JOIN ledger_entries AS c ON c.user_id = u.user_id AND c.id = %s",
    ),
    # Plan's name: the plan as it is now.
    "target": (f", {_columns('t', PLAN)}", "LEFT JOIN plans AS t ON t.name = %s"),
    # No parameter: the plan that Clerk's word leads to, and which word that is. The first one counts,
    # billing before metadata; if it names a plan that is not there, the default plan stands in.
    "clerk": (
        f", {_columns('t', PLAN)}, CASE WHEN k.name IS NULL THEN 'default' ELSE c.source END",
        """LEFT JOIN plan_assignments AS c ON c.user_id = u.user_id AND c.id = (
            SELECT a.id FROM plan_assignments AS a WHERE a.user_id = u.user_id AND a.plan <> ''
            ORDER BY a.source = 'metadata', a.updated_at DESC, a.id DESC LIMIT 1
        )
        LEFT JOIN plans AS k ON k.name = c.plan
        LEFT JOIN plans AS t
            ON t.name = COALESCE(k.name, (SELECT f.name FROM plans AS f WHERE f.is_default))""",
    ),
}


# Parameters: user id, the stored idempotency key if it is keyed, and that of ALSO.
# One row, always: the clock, the user's plan (the default one if he has no row), the version of it that
# his running period goes by, and his row; if keyed, the entry of that key and the version it was made
# under; then those of ALSO. NULL where there is none. No plan at all means that no default is set.
# Lean: of the plan its name and version only, no other versions, nothing of ALSO.
@lru_cache
def snapshot(vendor: str, also: str = "", *, keyed: bool = True, lean: bool = False) -> str:
    columns, joins = ALSO[also]
    user = "text" if vendor == "postgresql" else "varchar"
    plan, of_row, of_entry = _columns("p", PLAN[:2] if lean else PLAN), "", ""
    if not lean:
        plan = f"{plan}, {_columns('v', VERSION)}"
        of_row = "LEFT JOIN plan_versions AS v ON v.plan_id = q.plan_id AND v.version = q.plan_version"
        of_entry = "LEFT JOIN plan_versions AS w ON w.plan_id = e.plan AND w.version = e.plan_version"
    if keyed:
        columns = f", {_columns('e', ENTRY)}{'' if lean else ', ' + _columns('w', VERSION)}{columns}"
        joins = f"""
        LEFT JOIN ledger_entries AS e ON e.user_id = u.user_id AND e.idempotency_key = %s
        {of_entry}
        {joins}"""
    return f"""
        SELECT {CLOCK[vendor]}, {plan}, {_columns("q", STATE)}{columns}
        FROM (SELECT CAST(%s AS {user}) AS user_id) AS u
        LEFT JOIN challenge_quotas AS q ON q.user_id = u.user_id
        LEFT JOIN plans AS p
            ON p.name = COALESCE(q.plan_id, (SELECT d.name FROM plans AS d WHERE d.is_default))
        {of_row}
        {joins}
        """


# Parameters: user id. Waits for its turn on a busy row; takes nothing where there is no row.
# It is a statement of its own, because the next one must see what the holder before us wrote.
LOCK = "SELECT 1 FROM challenge_quotas WHERE user_id = %s FOR UPDATE"

# Parameters: the MOVING columns, deleted_at again, user id, the seq that was read.
# Changes the row only if nobody else did since; a tombstone loses its e-mail.
# The CASE keeps one text for every verb.
_UPDATE = f"""
    UPDATE challenge_quotas SET {", ".join(f"{name} = %s" for name in MOVING)},
        email = CASE WHEN {{deleted_at}} IS NULL THEN email ELSE '' END
    WHERE user_id = %s AND seq = %s
"""
_INSERT = f"INSERT INTO challenge_quotas (email, {', '.join(STATE)})"
_ENTRIES = f"INSERT INTO ledger_entries ({', '.join(ENTRY)})"


@lru_cache(maxsize=8)
def swap(entries: int) -> str:
    """Change the row and add its entries, both or neither, in one statement. Rows: entries added.

    Parameters: as _UPDATE, then the ENTRY columns of each entry.
    """
    update = _UPDATE.format(deleted_at="%s::timestamptz")
    return f"""
        WITH done AS ({update} RETURNING user_id)
        {_ENTRIES} SELECT e.* FROM done, {_values(entries)} WHERE e.user_id = done.user_id
        """


def _arrays(types: tuple[str, ...]) -> str:
    return ", ".join(f"%s::{kind}[]" for kind in types)


# Makes the rows that are missing, with the entries of just these. Rows: entries added.
# Two requests may open the same row at once: the second waits, finds it there and adds nothing.
# Parameters: each of the STATE columns as an array over the rows, then each of the ENTRY columns.
OPEN_ROWS = f"""
    WITH done AS (
        {_INSERT} SELECT '', s.* FROM unnest({_arrays(STATE_TYPES)}) AS s
        ON CONFLICT (user_id) DO NOTHING RETURNING user_id
    )
    {_ENTRIES} SELECT e.* FROM done
    JOIN unnest({_arrays(ENTRY_TYPES)}) AS e ({", ".join(ENTRY)}) ON e.user_id = done.user_id
"""


def _values(entries: int) -> str:
    """Typed rows: a bare NULL or literal in VALUES would be text to PostgreSQL."""
    row = "(" + ", ".join(f"%s::{kind}" for kind in ENTRY_TYPES) + ")"
    return f"(VALUES {', '.join([row] * entries)}) AS e ({', '.join(ENTRY)})"


# SQLite has no data-modifying WITH: the same in steps, inside one BEGIN IMMEDIATE transaction.
SQLITE_UPDATE = _UPDATE.format(deleted_at="%s")
SQLITE_INSERT = f"{_INSERT} VALUES (''{', %s' * len(STATE)}) ON CONFLICT (user_id) DO NOTHING"
SQLITE_ENTRY = f"{_ENTRIES} VALUES {_holes(len(ENTRY))}"

# Parameters: e-mail, Clerk's time of it, user id, that time again. The later word wins, whichever comes
# first, and a tombstone takes none; `seq` is left alone, so that it commutes with every verb.
NOTE_PROFILE = """
    UPDATE challenge_quotas SET email = %s, clerk_updated_at = %s
    WHERE user_id = %s AND deleted_at IS NULL AND (clerk_updated_at IS NULL OR clerk_updated_at < %s)
"""

# Parameters: id, user id, source, external id, plan, Clerk's time of it. The latest word on each item
# counts, whichever comes first. Of two of the same time about what is billed, the end of it counts;
# metadata of the same time differ only by the setting that says where to look.
NOTE_ASSIGNMENT = """
    INSERT INTO plan_assignments (id, user_id, source, external_id, plan, updated_at)
    VALUES (%s, %s, %s, %s, %s, %s)
    ON CONFLICT (user_id, source, external_id) DO UPDATE
    SET plan = excluded.plan, updated_at = excluded.updated_at
    WHERE plan_assignments.updated_at < excluded.updated_at
        OR plan_assignments.updated_at = excluded.updated_at
            AND (excluded.source = 'metadata' OR plan_assignments.plan <> '' OR excluded.plan = '')
"""

# Parameters: user id, entry id. Tells whether a store whose answer was lost had been carried out.
ENTRY_EXISTS = "SELECT 1 FROM ledger_entries WHERE user_id = %s AND id = %s"

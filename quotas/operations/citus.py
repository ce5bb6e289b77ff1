"""How the tables are spread over the nodes of a Citus cluster: all that is a user's on one shard.

The schema is made for it: the application makes the ids, and `user_id` can join every key. What is still
to be done is worked out from what the database tells of itself, as statements in their order. Nothing
here needs Citus, but for carrying them out.
"""

from collections.abc import Iterator
from typing import NamedTuple

from django.db import connection

# A table of users' rows belongs in here: the first begins a group, the others are kept beside it.
DISTRIBUTED_TABLES = ("challenge_quotas", "ledger_entries", "plan_assignments", "webhook_events")
# Small, and read with every request: each node has a copy.
REFERENCE_TABLES = ("plans", "plan_versions")
DISTRIBUTION_COLUMN = "user_id"
HASH, COPY = "h", "n"  # how pg_dist_partition calls the two

# Parameters: the extension's name.
HAS_EXTENSION = "SELECT EXISTS (SELECT FROM pg_extension WHERE extname = %s)"

# The tables of this schema, and of what type a user_id is that is text (staff's accounts have numbers).
TABLES = f"""
    SELECT c.relname, format_type(a.atttypid, a.atttypmod)
    FROM pg_class AS c
    LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid
        AND a.attname = '{DISTRIBUTION_COLUMN}' AND NOT a.attisdropped
        AND a.atttypid IN ('text'::regtype, 'varchar'::regtype)
    WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')
"""  # noqa: S608 - only names written in this file are put into the text
# What may be there once only. A column that is an expression has no name.
KEYS_QUERY = """
    SELECT t.relname, i.relname, x.indisprimary, ARRAY(
        SELECT a.attname::text FROM unnest(x.indkey::int2[]) WITH ORDINALITY AS k (attnum, place)
        JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attnum = k.attnum
        WHERE k.place <= x.indnkeyatts ORDER BY k.place
    )
    FROM pg_index AS x
    JOIN pg_class AS t ON t.oid = x.indrelid
    JOIN pg_class AS i ON i.oid = x.indexrelid
    WHERE x.indisunique AND t.relnamespace = current_schema()::regnamespace
    ORDER BY 1, 2
"""
REFERENCES = f"""
    SELECT t.relname, c.conname, r.relname, pg_get_constraintdef(c.oid), EXISTS (
        SELECT FROM unnest(c.conkey, c.confkey) AS k (here, there)
        JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attnum = k.here
            AND a.attname = '{DISTRIBUTION_COLUMN}'
        JOIN pg_attribute AS b ON b.attrelid = r.oid AND b.attnum = k.there
            AND b.attname = '{DISTRIBUTION_COLUMN}'
    )
    FROM pg_constraint AS c
    JOIN pg_class AS t ON t.oid = c.conrelid
    JOIN pg_class AS r ON r.oid = c.confrelid
    WHERE c.contype = 'f' AND t.relnamespace = current_schema()::regnamespace
    ORDER BY 1, 2
"""  # noqa: S608 - only names written in this file are put into the text
PLACES = """
    SELECT c.relname, d.partmethod::text FROM pg_dist_partition AS d
    JOIN pg_class AS c ON c.oid = d.logicalrelid
    WHERE c.relnamespace = current_schema()::regnamespace
"""


class CannotDistribute(Exception):
    """What Citus would refuse, or what nobody has decided yet. Nothing was changed."""


class Key(NamedTuple):
    """A primary key or another unique index."""

    table: str
    name: str
    is_primary: bool
    columns: list[str]


class Reference(NamedTuple):
    """A foreign key."""

    table: str
    name: str
    target: str
    definition: str
    ties_users: bool  # user_id to user_id


class ClusterSchema(NamedTuple):
    """What the database tells of its tables."""

    tables: dict[str, str | None]  # and of what type a user_id is that is text
    keys: list[Key]
    references: list[Reference]
    places: dict[str, str]  # HASH or COPY, of the tables that are distributed


def has_extension(name: str = "citus") -> bool:
    with connection.cursor() as cursor:
        cursor.execute(HAS_EXTENSION, [name])
        return bool(cursor.fetchone()[0])


def read_schema() -> ClusterSchema:
    """Return how the tables are now, from PostgreSQL's catalogue and, where it is there, from Citus'."""
    with connection.cursor() as cursor:
        cursor.execute(TABLES)
        tables = dict(cursor.fetchall())
        cursor.execute(KEYS_QUERY)
        keys = [Key(*row) for row in cursor.fetchall()]
        cursor.execute(REFERENCES)
        references = [Reference(*row) for row in cursor.fetchall()]
        cursor.execute("SELECT to_regclass('pg_dist_partition') IS NOT NULL")
        places = {}
        if cursor.fetchone()[0]:
            cursor.execute(PLACES)
            places = dict(cursor.fetchall())
    return ClusterSchema(tables, keys, references, places)


def distribution(schema: ClusterSchema) -> list[str]:
    """Return the statements that are still to be run, in one transaction; none if all is done.

    Raises CannotDistribute.
    """
    for fault in _schema_faults(schema):
        raise CannotDistribute(fault)
    new = {table for table in (*REFERENCE_TABLES, *DISTRIBUTED_TABLES) if table not in schema.places}
    # While one of its two tables is distributed and the other is not, a foreign key may not be enforced.
    loose = [it for it in schema.references if {it.table, it.target} & new]
    if not new:
        return []
    return [
        # One connection a node: foreign keys tie the shards to the copies that the transaction has changed.
        "SET LOCAL citus.multi_shard_modify_mode TO 'sequential'",
        *(f"ALTER TABLE {it.table} DROP CONSTRAINT {_quote(it.name)}" for it in loose),
        *(f"SELECT create_reference_table('{table}')" for table in REFERENCE_TABLES if table in new),
        *(_widen(key) for key in schema.keys if key.table in new and _lacks_user(key)),
        *(_spread(table) for table in DISTRIBUTED_TABLES if table in new),
        *(f"ALTER TABLE {it.table} ADD CONSTRAINT {_quote(it.name)} {it.definition}" for it in loose),
    ]


def _schema_faults(schema: ClusterSchema) -> Iterator[str]:
    for table in (*DISTRIBUTED_TABLES, *REFERENCE_TABLES):
        if table not in schema.tables:
            yield f"There is no table {table}: run manage.py migrate."
        wanted = HASH if table in DISTRIBUTED_TABLES else COPY
        if schema.places.get(table, wanted) != wanted:
            yield f"{table} is distributed in another way already: undistribute it first."
    types = {schema.tables[table] for table in DISTRIBUTED_TABLES}
    if len(types) > 1:
        tables = ", ".join(DISTRIBUTED_TABLES)
        yield f"The {DISTRIBUTION_COLUMN} of {tables} must be of one type, so that they are kept together."
    for table, of_users in schema.tables.items():
        if of_users and table not in DISTRIBUTED_TABLES:
            yield f"{table} has a {DISTRIBUTION_COLUMN}, and citus.py does not say where it belongs."
    for key in schema.keys:
        if _lacks_user(key) and not key.is_primary:
            column = DISTRIBUTION_COLUMN
            yield f"{key.name} is unique in all of {key.table}: Citus needs the {column} in it."
    for it in schema.references:
        if not _is_kept_together(it):
            yield f"{it.name}: Citus has no foreign keys from {it.table} to {it.target} between nodes."


def _lacks_user(key: Key) -> bool:
    return key.table in DISTRIBUTED_TABLES and DISTRIBUTION_COLUMN not in key.columns


def _is_kept_together(it: Reference) -> bool:
    """Tell whether every row has the one that it refers to on its own node."""
    if it.table in DISTRIBUTED_TABLES:
        return it.target in REFERENCE_TABLES or (it.target in DISTRIBUTED_TABLES and it.ties_users)
    if it.table in REFERENCE_TABLES:
        return it.target in REFERENCE_TABLES
    return it.target not in (*REFERENCE_TABLES, *DISTRIBUTED_TABLES)


def _widen(key: Key) -> str:
    """The same key with the user in it, at its end: ids are searched by their order, too."""
    columns = ", ".join([*key.columns, DISTRIBUTION_COLUMN])
    name = _quote(key.name)
    return f"ALTER TABLE {key.table} DROP CONSTRAINT {name}, ADD CONSTRAINT {name} PRIMARY KEY ({columns})"


def _spread(table: str) -> str:
    beside = "none" if table == DISTRIBUTED_TABLES[0] else DISTRIBUTED_TABLES[0]
    return f"SELECT create_distributed_table('{table}', '{DISTRIBUTION_COLUMN}', colocate_with => '{beside}')"


def _quote(name: str) -> str:
    return connection.ops.quote_name(name)

"""How the tables are distributed over the nodes of a Citus cluster: all rows of a user on one shard.

The schema allows it: the application generates the ids, and `user_id` can join every key. The catalogs of
the database determine which statements remain to be run. Only running them needs Citus.
"""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from django.db import OperationalError, connection, transaction

from quotas.store.errors import LOCK_NOT_AVAILABLE, sqlstate

# Each table of users' rows must be listed: Citus keeps the others on the nodes of the first. All other tables
# are small: each node has a copy, so that each can coordinate.
DISTRIBUTED_TABLES = ("challenge_quotas", "ledger_entries", "plan_assignments", "webhook_events")
REQUIRED_TABLES = (*DISTRIBUTED_TABLES, "plans", "plan_versions")
SETTINGS = """
-- Afterwards, start the service with DATABASE_DISTRIBUTED=1: else each spend is a two-phase commit.
-- And on each node that coordinates: else a change whose node was lost stays invisible for a minute,
-- and its user's next request waits for it. max_prepared_transactions must not be below max_connections.
ALTER SYSTEM SET citus.recover_2pc_interval = '5s';
SELECT pg_reload_conf();
""".strip()
DISTRIBUTION_COLUMN = "user_id"
LOCK_TRIES, SECONDS_BETWEEN_TRIES = 60, 0.2
HASH, COPY = "h", "n"  # partmethod in pg_dist_partition

# Parameters: the extension's name.
HAS_EXTENSION = "SELECT EXISTS (SELECT FROM pg_extension WHERE extname = %s)"

# The tables of this schema, and the type of their user_id if it is text: staff accounts have integers.
TABLES = f"""
    SELECT c.relname, format_type(a.atttypid, a.atttypmod)
    FROM pg_class AS c
    LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid
        AND a.attname = '{DISTRIBUTION_COLUMN}' AND NOT a.attisdropped
        AND a.atttypid IN ('text'::regtype, 'varchar'::regtype)
    WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')
"""  # noqa: S608 - only constants of this file are interpolated
# Primary keys and other unique indexes. The list of columns omits expressions, which have no name.
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
"""  # noqa: S608 - only constants of this file are interpolated
# Citus has no identity columns of type integer, and a node that coordinates draws ids above its range: so the
# ids of staff and their sessions are widened, and what refers to them.
NARROW_IDS = """
    SELECT t.relname, a.attname FROM pg_attribute AS a JOIN pg_class AS t ON t.oid = a.attrelid
    WHERE t.relnamespace = current_schema()::regnamespace AND t.relkind IN ('r', 'p')
        AND a.atttypid = 'integer'::regtype AND NOT a.attisdropped
        AND (a.attidentity <> '' OR EXISTS (
            SELECT FROM pg_constraint AS c WHERE c.contype = 'f' AND c.conrelid = t.oid
                AND a.attnum = ANY (c.conkey)
        ))
    ORDER BY 1, 2
"""
PLACES = """
    SELECT c.relname, d.partmethod::text FROM pg_dist_partition AS d
    JOIN pg_class AS c ON c.oid = d.logicalrelid
    WHERE c.relnamespace = current_schema()::regnamespace
"""


class CannotDistribute(Exception):
    """Citus would refuse the schema, or a table is not listed here. Nothing was changed."""


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
    """The tables of the database, from its catalogs."""

    tables: dict[str, str | None]  # name to type of user_id, None unless it is text
    keys: list[Key]
    references: list[Reference]
    narrow_ids: list[tuple[str, str]]  # table and column
    places: dict[str, str]  # name to HASH or COPY, of the distributed tables


def has_extension(name: str = "citus") -> bool:
    with connection.cursor() as cursor:
        cursor.execute(HAS_EXTENSION, [name])
        return bool(cursor.fetchone()[0])


def read_schema() -> ClusterSchema:
    """Read the catalogs of PostgreSQL and, if it is installed, of Citus."""
    with connection.cursor() as cursor:
        cursor.execute(TABLES)
        tables = dict(cursor.fetchall())
        cursor.execute(KEYS_QUERY)
        keys = [Key(*row) for row in cursor.fetchall()]
        cursor.execute(REFERENCES)
        references = [Reference(*row) for row in cursor.fetchall()]
        cursor.execute(NARROW_IDS)
        narrow_ids = cursor.fetchall()
        cursor.execute("SELECT to_regclass('pg_dist_partition') IS NOT NULL")
        places = {}
        if cursor.fetchone()[0]:
            cursor.execute(PLACES)
            places = dict(cursor.fetchall())
    return ClusterSchema(tables, keys, references, narrow_ids, places)


def distribution(schema: ClusterSchema) -> list[str]:
    """Return the statements that remain to be run, in one transaction; none if all tables are distributed.

    Raises CannotDistribute.
    """
    for fault in _schema_faults(schema):
        raise CannotDistribute(fault)
    copied = sorted(schema.tables.keys() - set(DISTRIBUTED_TABLES))
    new = schema.tables.keys() - schema.places.keys()
    # No foreign key may exist while only one of its two tables is distributed: drop it, and add it again.
    foreign_keys = [fk for fk in schema.references if {fk.table, fk.target} & new]
    if not new:
        return []
    return [
        # All at once, before anything else. No order is that of all verbs: a spend that holds one of them and
        # waits for another deadlocks with us, so give up before PostgreSQL, after a second, ends one of us.
        "SET LOCAL lock_timeout TO '500ms'",
        f"LOCK TABLE {', '.join([*DISTRIBUTED_TABLES, *copied])} IN ACCESS EXCLUSIVE MODE",
        "SET LOCAL lock_timeout TO DEFAULT",
        # One connection per node: foreign keys tie the shards to copies that this transaction has changed.
        "SET LOCAL citus.multi_shard_modify_mode TO 'sequential'",
        *(f"ALTER TABLE {fk.table} DROP CONSTRAINT {_quote(fk.name)}" for fk in foreign_keys),
        *(
            f"ALTER TABLE {table} ALTER COLUMN {column} TYPE bigint"
            for table, column in schema.narrow_ids
            if table in new and table not in DISTRIBUTED_TABLES
        ),
        *(f"SELECT create_reference_table('{table}')" for table in copied if table in new),
        *(_widen(key) for key in schema.keys if key.table in new and _lacks_user(key)),
        *(_distribute(table) for table in DISTRIBUTED_TABLES if table in new),
        *(f"ALTER TABLE {fk.table} ADD CONSTRAINT {_quote(fk.name)} {fk.definition}" for fk in foreign_keys),
    ]


def carry_out(statements: list[str], show: Callable[[str], object]) -> None:
    """Run the statements in one transaction, and show each; begin again if a lock cannot be had in time."""
    for tries_left in reversed(range(LOCK_TRIES)):
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                for statement in statements:
                    show(f"{statement};")
                    cursor.execute(statement)
            return
        except OperationalError as error:
            if sqlstate(error) != LOCK_NOT_AVAILABLE or not tries_left:
                raise
            time.sleep(SECONDS_BETWEEN_TRIES)


def _schema_faults(schema: ClusterSchema) -> Iterator[str]:
    for table in REQUIRED_TABLES:
        if table not in schema.tables:
            yield f"There is no table {table}: run manage.py migrate."
    for table in schema.tables:
        method = HASH if table in DISTRIBUTED_TABLES else COPY
        if schema.places.get(table, method) != method:
            yield f"{table} is already distributed in another way: undistribute it first."
    types = {schema.tables[table] for table in DISTRIBUTED_TABLES}
    if len(types) > 1:
        tables = ", ".join(DISTRIBUTED_TABLES)
        yield f"The {DISTRIBUTION_COLUMN} of {tables} must have one type, for Citus to keep them together."
    for table, type_of_user_id in schema.tables.items():
        if type_of_user_id and table not in DISTRIBUTED_TABLES:
            yield f"{table} has a {DISTRIBUTION_COLUMN}, but quotas/operations/citus.py does not list it."
    for key in schema.keys:
        if _lacks_user(key) and not key.is_primary:
            column = DISTRIBUTION_COLUMN
            yield f"The unique index {key.name} on {key.table} has no key column {column}, as Citus needs."
    for fk in schema.references:
        if not _is_colocated(fk):
            yield f"{fk.name}: Citus does not support a foreign key from {fk.table} to {fk.target}."


def _lacks_user(key: Key) -> bool:
    return key.table in DISTRIBUTED_TABLES and DISTRIBUTION_COLUMN not in key.columns


def _is_colocated(fk: Reference) -> bool:
    """Whether every row is on the same node as the row that it refers to."""
    if fk.target not in DISTRIBUTED_TABLES:
        return True
    return fk.table in DISTRIBUTED_TABLES and fk.ties_users


def _widen(key: Key) -> str:
    """Append the user to the key: last, because queries also search ids by their order."""
    columns = ", ".join([*key.columns, DISTRIBUTION_COLUMN])
    name = _quote(key.name)
    return f"ALTER TABLE {key.table} DROP CONSTRAINT {name}, ADD CONSTRAINT {name} PRIMARY KEY ({columns})"


def _distribute(table: str) -> str:
    first = "none" if table == DISTRIBUTED_TABLES[0] else DISTRIBUTED_TABLES[0]
    return f"SELECT create_distributed_table('{table}', '{DISTRIBUTION_COLUMN}', colocate_with => '{first}')"


def _quote(name: str) -> str:
    return connection.ops.quote_name(name)

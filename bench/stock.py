"""The databases: one for each system, with the same users and the same spends at the start."""

import os
from contextlib import suppress
from typing import NamedTuple

import psycopg
from psycopg import sql

from bench.internals import Exhausted
from bench.peers import statements
from bench.serving import ALLOWANCE
from tests.tools.postgres import Server

SPENDERS = [f"user_{number:05}" for number in range(2_000)]
HOT = "user_hot"
KEY = "bench-of-the-replay"  # with which each user has spent one unit before the run


class Balance(NamedTuple):
    remaining: int  # units of all users together
    entries: int  # of the ledger; 0 without one


def url(server: Server, database: str) -> str:
    return sibling(server.url, database)


def sibling(database_url: str, database: str) -> str:
    """Return the URL of another database on the same server."""
    return f"{database_url.rpartition('/')[0]}/{database}"


def create(database_url: str, database: str, template: str = "template1") -> None:
    """Create a database on the server of `database_url`."""
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
        sql.Identifier(database), sql.Identifier(template)
    )
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(statement)


def drop(database_url: str, database: str) -> None:
    statement = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(database))
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(statement)


def make_ours(server: Server) -> None:
    """Create and fill our database, and set up Django for it."""
    create(server.url, "ours")
    os.environ.update(
        DATABASE_URL=url(server, "ours"),
        DJANGO_SETTINGS_MODULE="quotasite.settings",
        SECRET_KEY="of a bench",
        QUOTA_DEFAULT_ALLOWANCE=str(ALLOWANCE),
    )
    import django

    django.setup()
    open_ours(url(server, "ours"))


def make_peer(server: Server, name: str) -> None:
    create(server.url, name)
    open_peer(name, url(server, name))


def open_ours(database_url: str) -> None:
    """Migrate, then spend a unit of each user and refuse each once, by the manager's verbs.

    Django must be set up for this database.
    """
    from django.core.management import call_command
    from django.db import connection

    from quotas.models import ChallengeQuota

    call_command("migrate", verbosity=0)
    with connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit = off")
    for user_id in (*SPENDERS, HOT):
        ChallengeQuota.objects.consume(user_id, 1, key=KEY)
        with suppress(Exhausted):  # the first refusal of a period is stored, later ones are not
            ChallengeQuota.objects.consume(user_id, ALLOWANCE)
    connection.close()
    _vacuum(database_url)


def open_peer(server: str, database_url: str) -> None:
    """Create the peer's tables, with the same users and their spends."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        if server == "seed":
            connection.execute("""
                CREATE TABLE challenge_quotas (
                    id serial PRIMARY KEY, user_id varchar NOT NULL UNIQUE,
                    quota_remaining integer NOT NULL, last_reset_date timestamptz NOT NULL
                )""")
            connection.execute(
                """INSERT INTO challenge_quotas (user_id, quota_remaining, last_reset_date)
                SELECT id, %s, now() FROM unnest(%s::text[]) AS id""",
                [ALLOWANCE - 1, [*SPENDERS, HOT]],
            )
        else:
            connection.execute(statements.TABLES)
            fill = statements.FILL.format(allowance="%(allowance)s::bigint", users="%(users)s::text[]")
            connection.execute(fill, {"allowance": ALLOWANCE, "users": [*SPENDERS, HOT]})
            _spend_once(connection)
    _vacuum(database_url)


def balance(database_url: str) -> Balance:
    with psycopg.connect(database_url) as connection:
        columns = connection.execute(
            "SELECT count(*) FROM information_schema.columns "
            "WHERE table_name = 'challenge_quotas' AND column_name = 'seq'"
        ).fetchone()
        entries = "sum(seq)" if columns and columns[0] else "0"
        row = connection.execute(f"SELECT sum(quota_remaining), {entries} FROM challenge_quotas").fetchone()
    assert row
    return Balance(int(row[0]), int(row[1]))


def _spend_once(connection: "psycopg.Connection[tuple[object, ...]]") -> None:
    from uuid_utils.compat import uuid7

    from bench.peers import answers

    names = ("user", "cost", "key", "id", "fingerprint")
    statement = statements.CONSUME.format(**{name: f"%({name})s" for name in names})
    same = {"cost": 1, "key": answers.stored_key(KEY), "fingerprint": answers.fingerprint(1)}
    connection.execute("SET synchronous_commit = off")
    with connection.cursor() as cursor:
        for user_id in (*SPENDERS, HOT):
            cursor.execute(statement, {"user": user_id, "id": uuid7(), **same})


def _vacuum(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")

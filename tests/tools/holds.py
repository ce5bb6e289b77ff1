"""Rows that another session keeps from everybody else until a block ends."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg


@contextmanager
def row_held(database_url: str, user_id: str) -> Iterator[None]:
    with psycopg.connect(database_url) as holder:
        holder.execute("SELECT 1 FROM challenge_quotas WHERE user_id = %s FOR UPDATE", [user_id])
        yield


@contextmanager
def row_half_opened(database_url: str, user_id: str, *, like: str) -> Iterator[None]:
    """Insert the row of a user who has none, a copy of another user's, and roll back in the end.

    Whoever opens the row meanwhile waits.
    """
    copy = """INSERT INTO challenge_quotas SELECT made.* FROM challenge_quotas AS q,
        jsonb_populate_record(q, jsonb_build_object('user_id', %s::text)) AS made WHERE q.user_id = %s"""
    with psycopg.connect(database_url) as holder:
        holder.execute(copy, [user_id, like])
        yield
        holder.rollback()

"""What a million spends leave behind in the tables: `python -m bench.bloat [--spends N]`.

pgbench sends the store's own statement, prepared, by many connections for the same 2,000 users: with
autovacuum as it comes, with the setting that docs/performance.md gives, and while somebody holds an old
snapshot, as a backup does. Needs pgbench. Takes ten minutes on a quiet machine.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import django
import psycopg
from django.db import connection

from bench.crowd import multiply, run, use
from tests.tools.overheard import ENTRIES, QUOTAS, USER, overheard
from tests.tools.postgres import Server, engine

PGBENCH = shutil.which("pgbench")
USERS, CONNECTIONS = 2_000, 16
SPENDS, HELD = 1_000_000, 100_000
SETTINGS = {ENTRIES: "autovacuum_freeze_min_age = 0"}  # what we recommend
# Values that nothing else has, so that they are found again among a statement's parameters.
SEQ, REST = 7_000_001, 1_500_000_003
MOMENT = """
    SELECT user_id, seq AS was, seq + 1 AS next, quota_remaining - 1 AS rest, clock_timestamp() AS now,
        (lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0')
            || '7' || substr(made, 1, 3) || '8' || substr(made, 4, 15))::uuid AS id,
        'a key as long as usual ' || made AS key
    FROM {quotas}, LATERAL md5(random()::text || user_id || seq) AS made WHERE user_id = {user} \\gset
"""


class Grown(NamedTuple):
    """What the server counts of a table."""

    updates: int
    hot: int
    dead: int
    vacuums: int
    table: int  # bytes
    indexes: int


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.bloat", allow_abbrev=False)
    parser.add_argument("--spends", type=int, default=SPENDS)
    spends = parser.parse_args().spends
    if not PGBENCH:
        print("pgbench was not found (apt install postgresql-contrib)", file=sys.stderr)
        return 1
    with Server() as server, tempfile.TemporaryDirectory() as folder:
        os.environ.update(
            DATABASE_URL=server.url, DJANGO_SETTINGS_MODULE="quotasite.settings", SECRET_KEY="of a bench"
        )
        django.setup()
        print(engine(server.url), flush=True)
        script = Path(folder, "spend.sql")
        stock(script)
        for name, settings in (("by default", {}), ("with our setting", SETTINGS)):
            copy_as(name.replace(" ", "_"))
            for table, options in settings.items():
                run(f"ALTER TABLE {table} SET ({options})")
            look(server, name, script, spends)
            freeze()
        copy_as("held")
        held = connection.copy()
        held.inc_thread_sharing()
        with held.cursor() as cursor:
            cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            cursor.execute(f"SELECT COUNT(*) FROM {QUOTAS}")
            look(server, "while a snapshot is held", script, HELD)
            cursor.execute("COMMIT")
        held.close()
        look(server, "after that", script, HELD)
        freeze()
    return 0


def copy_as(database: str) -> None:
    """Go on with a fresh copy of what was stocked."""
    use("postgres")
    run(f"CREATE DATABASE {database} TEMPLATE quotasite")
    use(database)


def stock(script: Path) -> None:
    """Make the users, with enough to spend, and the script that spends."""
    from django.core.management import call_command

    from quotas.models import ChallengeQuota, Plan

    call_command("migrate", verbosity=0)
    plan = Plan.objects.get(is_default=True)
    plan.allowance = 2_000_000_000
    plan.save()
    ChallengeQuota.objects.current("user_played")
    multiply(USERS)
    (user_id,) = run(f"SELECT {USER.format(number=1)}")[0]
    run(f"UPDATE {QUOTAS} SET seq = {SEQ}, quota_remaining = {REST} WHERE user_id = %s", [user_id])
    with overheard() as sent:
        entry = ChallengeQuota.objects.consume(user_id, key="sentinel").entry
    assert connection.connection
    variables = {user_id: "user_id", SEQ: "was", SEQ + 1: "next", REST - 1: "rest", entry.id: "id"}
    variables |= {entry.created_at: "now", entry.idempotency_key: "key"}
    known = {
        value: f":{variables[value]}" if value in variables else literal(value)
        for value in (it for it in sent[-1].values if not isinstance(it, dict | list))
    }
    holes = [known[value] for value in sent[-1].values]
    parts = sent[-1].text.split("%s")
    swap = "".join(chain.from_iterable(zip(parts, [*holes, ""], strict=True)))
    moment = MOMENT.format(quotas=QUOTAS, user=USER.format(number=":number"))
    script.write_text(f"\\set number random(1, {USERS})\n{' '.join(moment.split())}\n{swap};\n")


def literal(value: Any) -> str:
    """A constant as SQL; an instant without colons, which would be variables to pgbench."""
    if isinstance(value, datetime):
        value = f"{value:%Y%m%dT%H%M%S.%f%z}"
    return psycopg.sql.Literal(value).as_string()


def look(server: Server, name: str, script: Path, spends: int) -> None:
    """Spend, and tell what became of the tables."""
    before = {table: grown(table) for table in (QUOTAS, ENTRIES)}
    began = time.monotonic()
    told = spend(server, str(connection.settings_dict["NAME"]), script, spends)
    seconds = time.monotonic() - began
    print(f"\n{name}: {spends:,} spends by {CONNECTIONS} connections in {seconds:.0f} s; {told}")
    for table, then in before.items():
        now = grown(table)
        updates = now.updates - then.updates
        hot = f"{updates:,} updates, {100 * (now.hot - then.hot) / updates:.2f} % HOT, " if updates else ""
        print(
            f"  {table}: {hot}{now.dead:,} dead rows, {now.vacuums - then.vacuums} autovacuums, "
            f"table {then.table / 2**20:.1f} to {now.table / 2**20:.1f} MiB, "
            f"indexes {then.indexes / 2**20:.1f} to {now.indexes / 2**20:.1f} MiB",
            flush=True,
        )


def spend(server: Server, database: str, script: Path, spends: int) -> str:
    command = [str(PGBENCH), "-M", "prepared", "-n", "-c", str(CONNECTIONS), "-j", "2"]
    command += ["-t", str(spends // CONNECTIONS), "-f", str(script)]
    command += ["-h", "127.0.0.1", "-p", str(server.port), "-U", "quotasite", database]
    fast = {**os.environ, "PGOPTIONS": "-c synchronous_commit=off"}  # what is left behind is the same
    done = subprocess.run(command, capture_output=True, text=True, env=fast)
    if done.returncode or "ERROR" in done.stderr:
        raise SystemExit(done.stderr[-2_000:])
    return next(line for line in done.stdout.splitlines() if line.startswith("tps"))


def grown(table: str) -> Grown:
    run("SELECT pg_stat_force_next_flush()")
    run("SELECT pg_stat_clear_snapshot()")
    return Grown(
        *run(
            "SELECT n_tup_upd, n_tup_hot_upd, n_dead_tup, autovacuum_count, pg_table_size(relid), "
            "pg_indexes_size(relid) FROM pg_stat_user_tables WHERE relname = %s",
            [table],
        )[0]
    )


def freeze() -> None:
    """Tell what is left to the vacuum that PostgreSQL forces before its transaction ids run out."""
    run("CREATE EXTENSION IF NOT EXISTS pg_visibility")
    for table in (QUOTAS, ENTRIES):
        pages = run(f"SELECT pg_relation_size('{table}') / 8192")[0][0]
        visible, frozen = run(f"SELECT * FROM pg_visibility_map_summary('{table}')")[0]
        began = time.monotonic()
        run(f"VACUUM (FREEZE) {table}")
        seconds = time.monotonic() - began
        print(
            f"  {table}: of {pages:,} pages {visible:,} all visible, {frozen:,} all frozen; "
            f"VACUUM FREEZE took {seconds:.2f} s",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())

"""How a million spends bloat the tables: `python -m bench.bloat [--spends N]`.

pgbench sends the store's own statement, prepared, over many connections for the same 2,000 users: with
PostgreSQL's default autovacuum, with the setting that docs/performance.md gives, and while another session
holds an old snapshot, as a backup does. Needs pgbench. Takes ten minutes on a quiet machine.
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
SPENDS, SPENDS_WHILE_HELD = 1_000_000, 100_000
RECOMMENDED = {ENTRIES: "autovacuum_freeze_min_age = 0"}
# Values that occur nowhere else, so that they identify parameters of the captured statement.
SEQ, BALANCE = 7_000_001, 1_500_000_003
MOMENT = """
    SELECT user_id, seq AS was, seq + 1 AS next, quota_remaining - 1 AS balance, clock_timestamp() AS now,
        (lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0')
            || '7' || substr(made, 1, 3) || '8' || substr(made, 4, 15))::uuid AS id,
        'a key as long as usual ' || made AS key
    FROM {quotas}, LATERAL md5(random()::text || user_id || seq) AS made WHERE user_id = {user} \\gset
"""


class Growth(NamedTuple):
    """PostgreSQL's statistics of a table."""

    updates: int
    hot: int
    dead: int
    vacuums: int
    table: int  # bytes
    indexes: int  # bytes


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.bloat", allow_abbrev=False, description=__doc__)
    parser.add_argument("--spends", type=int, default=SPENDS, help="%(default)s by default")
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
        make_users(script)
        for name, settings in (("by default", {}), ("with our setting", RECOMMENDED)):
            copy_to(name.replace(" ", "_"))
            for table, options in settings.items():
                run(f"ALTER TABLE {table} SET ({options})")
            measure(server, name, script, spends)
            freeze()
        copy_to("held")
        held = connection.copy()
        held.inc_thread_sharing()
        with held.cursor() as cursor:
            cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            cursor.execute(f"SELECT COUNT(*) FROM {QUOTAS}")
            measure(server, "while a snapshot is held", script, SPENDS_WHILE_HELD)
            cursor.execute("COMMIT")
        held.close()
        measure(server, "after that", script, SPENDS_WHILE_HELD)
        freeze()
    return 0


def copy_to(database: str) -> None:
    """Continue with a fresh copy of the users, in another database."""
    use("postgres")
    run(f"CREATE DATABASE {database} TEMPLATE quotasite")
    use(database)


def make_users(script: Path) -> None:
    """Create the users, with enough units, and write the script that spends."""
    from django.core.management import call_command

    from quotas.models import ChallengeQuota, Plan

    call_command("migrate", verbosity=0)
    plan = Plan.objects.get(is_default=True)
    plan.allowance = 2_000_000_000
    plan.save()
    ChallengeQuota.objects.current("user_played")
    multiply(USERS)
    (user_id,) = run(f"SELECT {USER.format(number=1)}")[0]
    run(f"UPDATE {QUOTAS} SET seq = {SEQ}, quota_remaining = {BALANCE} WHERE user_id = %s", [user_id])
    with overheard() as sent:
        entry = ChallengeQuota.objects.consume(user_id, key="sentinel").entry
    assert connection.connection
    variables = {user_id: "user_id", SEQ: "was", SEQ + 1: "next", BALANCE - 1: "balance", entry.id: "id"}
    variables |= {entry.created_at: "now", entry.idempotency_key: "key"}
    values = sent[-1].values
    parameters = [f":{variables[value]}" if value in variables else literal(value) for value in values]
    parts = sent[-1].text.split("%s")
    swap = "".join(chain.from_iterable(zip(parts, [*parameters, ""], strict=True)))
    moment = MOMENT.format(quotas=QUOTAS, user=USER.format(number=":number"))
    script.write_text(f"\\set number random(1, {USERS})\n{' '.join(moment.split())}\n{swap};\n")


def literal(value: Any) -> str:
    """Return a constant as SQL; an instant without colons, which pgbench takes for variables."""
    if isinstance(value, datetime):
        value = f"{value:%Y%m%dT%H%M%S.%f%z}"
    return psycopg.sql.Literal(value).as_string()


def measure(server: Server, name: str, script: Path, spends: int) -> None:
    """Spend, and print how the tables grew."""
    before = {table: growth(table) for table in (QUOTAS, ENTRIES)}
    began = time.monotonic()
    rate = spend(server, str(connection.settings_dict["NAME"]), script, spends)
    seconds = time.monotonic() - began
    print(f"\n{name}: {spends:,} spends by {CONNECTIONS} connections in {seconds:.0f} s; {rate}")
    for table, then in before.items():
        now = growth(table)
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
    fast = {**os.environ, "PGOPTIONS": "-c synchronous_commit=off"}  # the bloat is the same
    done = subprocess.run(command, capture_output=True, text=True, env=fast)
    if done.returncode or "ERROR" in done.stderr:
        raise SystemExit(done.stderr[-2_000:])
    return next(line for line in done.stdout.splitlines() if line.startswith("tps"))


def growth(table: str) -> Growth:
    run("SELECT pg_stat_force_next_flush()")
    run("SELECT pg_stat_clear_snapshot()")
    return Growth(
        *run(
            "SELECT n_tup_upd, n_tup_hot_upd, n_dead_tup, autovacuum_count, pg_table_size(relid), "
            "pg_indexes_size(relid) FROM pg_stat_user_tables WHERE relname = %s",
            [table],
        )[0]
    )


def freeze() -> None:
    """Print the work left for the vacuum that PostgreSQL forces before its transaction ids run out."""
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

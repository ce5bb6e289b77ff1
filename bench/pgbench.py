"""PostgreSQL alone: pgbench sends exactly the statements of quotas/store/sql.py, prepared, and no others.

Their parameters are its own random choices, and expressions for the values that Python would have computed.
"""

import re
import shutil
import subprocess
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from bench.internals import (
    ENTRY_COLUMNS,
    PLAN_COLUMNS,
    STATE_COLUMNS,
    compare_and_swap,
    entry_names,
    snapshot_query,
)
from bench.stock import SPENDERS
from tests.tools.postgres import of_debian

CLIENTS, THREADS = 16, 2
USER = "'user_' || lpad((:number)::text, 5, '0')"
PICK = f"\\set number random(0, {len(SPENDERS) - 1})\n"
# Names for the columns of the snapshot, each with a prefix: state and entry share some.
FOUND = (
    "clock",
    "newest_id",
    *(f"plan_{name}" for name in [*PLAN_COLUMNS][:2]),
    *(f"state_{name}" for name in STATE_COLUMNS),
    *(f"entry_{name}" for name in ENTRY_COLUMNS),
)
# A time-ordered id, as the application makes it.
ENTRY_ID = (
    "(lpad(to_hex((extract(epoch FROM :clock::timestamptz) * 1000000)::bigint), 16, '0')"
    " || lpad(to_hex(:client_id::bigint * 100000000 + :count::bigint), 16, '0'))::uuid"
)
STATE = {name: f":state_{name}" for name in STATE_COLUMNS} | {
    "quota_remaining": ":state_quota_remaining::bigint - 1",
    "period_consumed": ":state_period_consumed::bigint + 1",
    "refused_at": "NULL",
    "left_until": "NULL",
    "seq": ":state_seq::bigint + 1",
    "usage_seq": ":state_seq::bigint + 1",
    "updated_at": ":clock",
    "deleted_at": "NULL",
}
ENTRY = {
    "id": ENTRY_ID,
    "user_id": ":state_user_id",
    "seq": STATE["seq"],
    "kind": "'consumed'",
    "cost": "1",
    "delta": "-1",
    "plan": ":state_plan_id",
    "plan_source": ":state_plan_source",
    "plan_version": ":state_plan_version",
    "quota_limit": ":state_quota_limit",
    "balance_after": STATE["quota_remaining"],
    "period_consumed": STATE["period_consumed"],
    "period_given": ":state_period_given",
    "last_reset_date": ":state_last_reset_date",
    "anchor_at": ":state_anchor_at",
    "resets_at": ":state_resets_at",
    "period_seq": ":state_period_seq",
    "created_at": ":clock",
    "actor_kind": "'user'",
    "actor_id": ":state_user_id",
    "act": "''",
    "reason": "''",
    "action": "''",
    "metadata": "NULL",
    "idempotency_key": "'pgbench-' || :random_seed::text || '-' || :client_id::text || '-' || :count::text",
    "fingerprint": "repeat('0', 64)",
    "refund_of": "NULL",
}


def program() -> str | None:
    """Return the path of this machine's pgbench, or None."""
    folder = of_debian(Path())
    found = folder / "pgbench" if folder else None
    return str(found) if found and found.exists() else shutil.which("pgbench")


def read() -> str:
    """Return the script of a GET: the snapshot."""
    snapshot = snapshot_query("postgresql", keyed=False, without_plans=True)
    return PICK + filled(snapshot, {"user_id": USER}) + ";\n"


def spend() -> str:
    """Return the script of a consume with a key: the snapshot, then the compare-and-swap."""
    entry = dict(zip(entry_names(0), (f"({ENTRY[name]})" for name in ENTRY_COLUMNS), strict=True))
    swap = filled(compare_and_swap(1), {**STATE, "seq_read": ":state_seq", **entry})
    found = {"user_id": USER, "key": ENTRY["idempotency_key"]}
    snapshot = filled(snapshot_query("postgresql", without_plans=True), found)
    return (
        f"{PICK}\\set count :count + 1\n"
        f"SELECT * FROM ({snapshot}) AS found ({', '.join(FOUND)}) \\gset\n{swap};\n"
    )


def filled(statement: str, values: dict[str, str]) -> str:
    """Return the statement with these values for its placeholders."""
    return re.sub(r"\s+", " ", statement % values).strip()


def run(script: Path, database_url: str, *, seconds: int) -> tuple[int, float]:
    """Return how many transactions were executed, and in how many seconds."""
    executable = program()
    assert executable
    server = conninfo_to_dict(database_url)
    command = [executable, "-M", "prepared", "-n", "-c", str(CLIENTS), "-j", str(THREADS), "-T", str(seconds)]
    command += ["-D", "count=0", "-f", str(script), "--random-seed=time"]
    command += ["-h", str(server["host"]), "-p", str(server["port"])]
    command += ["-U", str(server["user"]), str(server["dbname"])]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60)
    number = re.search(r"transactions actually processed: (\d+)", done.stdout)
    rate = re.search(r"tps = ([0-9.]+)", done.stdout)
    if not (number and rate):
        raise RuntimeError(done.stdout)
    return int(number[1]), int(number[1]) / max(float(rate[1]), 0.001)

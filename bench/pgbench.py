"""PostgreSQL alone: pgbench sends the very statements of quotas/sql.py, prepared, and nothing else.

Only its own random choices and the values that Python would have made are put into their holes.
"""

import re
import shutil
import subprocess
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from bench.stock import SPENDERS
from quotas.store import sql
from tests.tools.postgres import of_debian

CLIENTS, THREADS = 16, 2
USER = "'user_' || lpad((:number)::text, 5, '0')"
PICK = f"\\set number random(0, {len(SPENDERS) - 1})\n"
# The columns of the snapshot that the next state is made of, under names of their own: state and
# entry have the same ones.
FOUND = (
    "clock",
    *(f"plan_{name}" for name in sql.PLAN_COLUMNS[:2]),
    *(f"state_{name}" for name in sql.STATE_COLUMNS),
    *(f"entry_{name}" for name in sql.ENTRY_COLUMNS),
)
# An id in the order of time, as the application makes it.
ENTRY_ID = (
    "(lpad(to_hex((extract(epoch FROM :clock::timestamptz) * 1000000)::bigint), 16, '0')"
    " || lpad(to_hex(:client_id::bigint * 100000000 + :count::bigint), 16, '0'))::uuid"
)
STATE = {name: f":state_{name}" for name in sql.STATE_COLUMNS} | {
    "quota_remaining": ":state_quota_remaining::bigint - 1",
    "refused_at": "NULL",
    "seq": ":state_seq::bigint + 1",
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
    "last_reset_date": ":state_last_reset_date",
    "anchor_at": ":state_anchor_at",
    "resets_at": ":state_last_reset_date::timestamptz + interval '1 day'",
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
    """The pgbench of this machine, if it has one."""
    beside = of_debian(Path())
    found = beside / "pgbench" if beside else None
    return str(found) if found and found.exists() else shutil.which("pgbench")


def read() -> str:
    """The script of a GET: the snapshot."""
    return PICK + filled(sql.snapshot_query("postgresql", keyed=False, lean=True), [USER]) + ";\n"


def spend() -> str:
    """The script of a consume with a key: the snapshot, and the store that it leads to."""
    guarded = [*(STATE[name] for name in sql.MUTABLE_COLUMNS), "NULL", ":state_user_id", ":state_seq"]
    swap = filled(sql.compare_and_swap(1), [*guarded, *(f"({ENTRY[name]})" for name in sql.ENTRY_COLUMNS)])
    key = ENTRY["idempotency_key"]
    snapshot = filled(sql.snapshot_query("postgresql", lean=True), [USER, key])
    return (
        f"{PICK}\\set count :count + 1\n"
        f"SELECT * FROM ({snapshot}) AS found ({', '.join(FOUND)}) \\gset\n{swap};\n"
    )


def filled(statement: str, values: list[str]) -> str:
    """The statement with these in its holes, in order."""
    parts = re.split("%s", statement)
    assert len(parts) == len(values) + 1, "a statement of quotas/sql.py has got other parameters"
    text = parts[0] + "".join(f"{value}{part}" for value, part in zip(values, parts[1:], strict=True))
    return re.sub(r"\s+", " ", text).strip()


def run(script: Path, database_url: str, *, seconds: int) -> tuple[int, float]:
    """Return how many transactions were done, and in how many seconds."""
    found = program()
    assert found
    told = conninfo_to_dict(database_url)
    command = [found, "-M", "prepared", "-n", "-c", str(CLIENTS), "-j", str(THREADS), "-T", str(seconds)]
    command += ["-D", "count=0", "-f", str(script), "--random-seed=time"]
    command += [
        "-h",
        str(told["host"]),
        "-p",
        str(told["port"]),
        "-U",
        str(told["user"]),
        str(told["dbname"]),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60)
    number = re.search(r"transactions actually processed: (\d+)", done.stdout)
    rate = re.search(r"tps = ([0-9.]+)", done.stdout)
    if not (number and rate):
        raise RuntimeError(done.stdout)
    return int(number[1]), int(number[1]) / max(float(rate[1]), 0.001)

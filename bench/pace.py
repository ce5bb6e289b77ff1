"""How many rows a second the maintenance commands process: `python -m bench.pace [--users N]`.

Runs the commands on a throw-away PostgreSQL: the backfill from a stand-in for Clerk in its own process, first
without any row and then with every row present; then the audit, a dry run of the pruning, and the pruning, of
three closed periods and an open one for each user.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO

import django
from django.conf import settings
from django.core.management import call_command

from bench.crowd import BulkLoad, multiply, run
from bench.time_travel import age_by
from tests.tools.clerk_api import ClerkAPI
from tests.tools.overheard import ENTRIES, QUOTAS
from tests.tools.postgres import Server, engine

USERS = 100_000
PERIODS, SPENDS = 3, 4  # closed periods of each user, and spends in each period


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.pace", allow_abbrev=False, description=__doc__)
    parser.add_argument("--users", type=int, default=USERS, help="%(default)s by default")
    users = parser.parse_args().users
    with Server() as server:
        os.environ.update(
            DATABASE_URL=server.url, DJANGO_SETTINGS_MODULE="quotasite.settings", SECRET_KEY="of a bench"
        )
        django.setup()
        print(engine(server.url), flush=True)
        call_command("migrate", verbosity=0)
        with clerk(users) as url:
            settings.CLERK_API_URL, settings.CLERK_SECRET_KEY = url, ClerkAPI.key
            measure("backfill, no row present", "users", users, "backfill_quotas")
            measure("backfill, all present", "users", users, "backfill_quotas")
        run(f"TRUNCATE {QUOTAS}, {ENTRIES}")
        play()
        with BulkLoad(server):
            multiply(users)
        entries = run(f"SELECT COUNT(*) FROM {ENTRIES}")[0][0]
        measure("audit", "entries", entries, "audit_ledger")
        measure("audit of one user", "entries", entries // users, "audit_ledger", user=some_user())
        measure("pruning, dry run", "entries", entries, "prune_ledger", older_than=60, dry_run=True)
        measure("pruning", "entries", entries, "prune_ledger", older_than=60)
        left = run(f"SELECT COUNT(*) FROM {ENTRIES}")[0][0]
        print(f"{entries - left:,} of {entries:,} entries were pruned")
        measure("audit of what is left", "entries", left, "audit_ledger")
    return 0


@contextmanager
def clerk(users: int) -> Iterator[str]:
    """Serve the stand-in for Clerk with so many users; yield its URL."""
    command = [sys.executable, "-m", "tests.tools.clerk_api", str(users)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield process.stdout.readline().strip()  # it exits at the end of its input


def play() -> None:
    """Write one user's periods, all but the last of them long closed."""
    from quotas.models import ChallengeQuota

    for period in range(PERIODS):
        for spend in range(SPENDS):
            ChallengeQuota.objects.consume("user_played", 1, key=f"spend {spend} of {period}")
        for statement in age_by("100 days"):
            run(statement, ["user_played"])
    ChallengeQuota.objects.consume("user_played", 1)


def some_user() -> str:
    return str(run(f"SELECT user_id FROM {QUOTAS} LIMIT 1")[0][0])


def measure(name: str, unit: str, count: int, command: str, **options: object) -> None:
    """Run a command, and print how fast it was and the last line of its output."""
    output = StringIO()
    began = time.monotonic()
    call_command(command, stdout=output, stderr=StringIO(), **options)
    seconds = time.monotonic() - began
    rate = f"{count:,} {unit} in {seconds:.1f} s, {count / seconds:,.0f} a second"
    print(f"{name:<26}{rate:<56}{output.getvalue().strip().splitlines()[-1]}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""How many rows a second the work behind the scenes does: `python -m bench.pace [--users N]`.

The commands themselves, on a throw-away PostgreSQL: the backfill from Clerk's stand-in, which is a
process of its own, and again with every row there; then the audit, a dry run of the pruning and the
pruning, of three closed periods of each user and a running one.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from io import StringIO

import django
from django.conf import settings
from django.core.management import call_command

from bench.crowd import Hurry, multiply, run
from tests.tools.clerk_api import ClerkAPI
from tests.tools.overheard import ENTRIES, QUOTAS
from tests.tools.postgres import Server, engine

USERS = 100_000
PERIODS, SPENDS = 3, 4  # of a user, and of each of his periods


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.pace", allow_abbrev=False)
    parser.add_argument("--users", type=int, default=USERS)
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
            work("backfill, all new", "users", users, "backfill_quotas")
            work("backfill, all there", "users", users, "backfill_quotas")
        run(f"TRUNCATE {QUOTAS}, {ENTRIES}")
        play()
        with Hurry(server):
            multiply(users)
        entries = run(f"SELECT COUNT(*) FROM {ENTRIES}")[0][0]
        work("audit", "entries", entries, "audit_ledger")
        work("audit of one user", "entries", entries // users, "audit_ledger", user=some_user())
        work("pruning, a dry run", "entries", entries, "prune_ledger", older_than=60, dry_run=True)
        work("pruning", "entries", entries, "prune_ledger", older_than=60)
        left = run(f"SELECT COUNT(*) FROM {ENTRIES}")[0][0]
        print(f"{entries - left:,} of {entries:,} entries were pruned")
        work("audit of what is left", "entries", left, "audit_ledger")
    return 0


@contextmanager
def clerk(users: int) -> Iterator[str]:
    """Clerk's stand-in with so many users; its address."""
    command = [sys.executable, "-m", "tests.tools.clerk_api", str(users)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield process.stdout.readline().strip()  # it ends with its input


def play() -> None:
    """A user's periods, all but the last of them long ago."""
    from quotas.models import ChallengeQuota
    from quotasite.demo.tour import shift

    for period in range(PERIODS):
        for spend in range(SPENDS):
            ChallengeQuota.objects.consume("user_played", 1, key=f"spend {spend} of {period}")
        shift("user_played", timedelta(days=100))
    ChallengeQuota.objects.consume("user_played", 1)


def some_user() -> str:
    return str(run(f"SELECT user_id FROM {QUOTAS} LIMIT 1")[0][0])


def work(name: str, what: str, count: int, command: str, **options: object) -> None:
    """Carry a command out, and print how quick it was and what it said."""
    said = StringIO()
    began = time.monotonic()
    call_command(command, stdout=said, stderr=StringIO(), **options)
    seconds = time.monotonic() - began
    rate = f"{count:,} {what} in {seconds:.1f} s, {count / seconds:,.0f} a second"
    print(f"{name:<24}{rate:<56}{said.getvalue().strip().splitlines()[-1]}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

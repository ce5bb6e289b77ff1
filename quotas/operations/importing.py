"""A run of `import_quotas`: from the rows of another service to quotas with a ledger."""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from zoneinfo import ZoneInfo

from django.conf import settings
from django.db import connection, reset_queries
from django.db.models import Exists, OuterRef, Q
from tqdm import tqdm

from quotas.models import ChallengeQuota, LedgerEntry, Plan
from quotas.operations.import_sources import SourceRow, UnusableRow
from quotas.operations.old_table import foreign_tables
from quotas.rules.outcomes import UnknownPlan
from quotas.rules.values import Actor, EntryKind, ImportedUsage
from quotas.store.direct import clock
from quotas.store.manager import Opened

ACTOR = Actor(kind="command", id="import_quotas")
USERS_PER_BATCH = 1_000  # in a transaction
MAX_LISTED = 1_000  # rows that are left out, each with its reason; the others are counted

# Of the rows of one user, the one that used most stays; of equal ones, that of the latest reset. A SQLite
# database without a name spills to a file when it outgrows its cache, and vanishes when closed: memory does
# not grow with the rows.
SCRATCH = """
    PRAGMA journal_mode = OFF;
    CREATE TABLE usages (
        user_id TEXT PRIMARY KEY, place TEXT, last_reset INTEGER, used INTEGER, remaining INTEGER
    ) WITHOUT ROWID;
"""
FIND = "SELECT place, last_reset, used, remaining FROM usages WHERE user_id = ?"
KEEP = "INSERT OR REPLACE INTO usages VALUES (?, ?, ?, ?, ?)"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Batch = Mapping[str, ImportedUsage]  # by user id
Store = Callable[[Batch], Opened]


@dataclass(slots=True)
class Import:
    """One run, and its counts so far."""

    zone: ZoneInfo  # of instants without an offset
    report: Callable[[str], object]  # called with each line for the operator
    rows: int = 0
    left_out: int = 0
    made: int = 0
    present: int = 0
    tombstoned: int = 0
    opened_otherwise: int = 0  # of those who are present: no import made their quota

    def run(self, rows: Iterable[SourceRow], store: Store, allowance: int | None) -> None:
        """Read all rows, then store their users batch by batch. Raises CannotRead.

        `allowance` is the plan's: the run reports how many have more left.
        """
        with closing(sqlite3.connect("")) as scratch:
            scratch.executescript(SCRATCH)
            now = clock()
            for row in tqdm(rows, desc="reading", unit=" rows", disable=None):  # None: on a terminal only
                self.rows += 1
                self._read(row, now, scratch)
            [[users, above]] = scratch.execute(
                "SELECT count(*), count(*) FILTER (WHERE remaining > ?) FROM usages", [allowance]
            )
            with tqdm(total=users, desc="importing", unit=" users", disable=None) as bar:
                for batch in _batches(scratch):
                    self._add(batch, store(batch))
                    bar.update(len(batch))
                    reset_queries()  # under DEBUG Django keeps the text of every statement
        if above:
            self.report(
                f"{above} users have more left than the plan's {allowance} units, and keep them only until "
                "their reset: is its allowance right?"
            )
        if self.left_out > MAX_LISTED:
            self.report(f"and {self.left_out - MAX_LISTED} more rows that were left out")

    @property
    def summary(self) -> str:
        return (
            f"rows {self.rows}, imported {self.made}, already here {self.present}, "
            f"deleted here {self.tombstoned}, left out {self.left_out}"
        )

    @property
    def faults(self) -> Iterator[str]:
        """Yield what an operator must look at."""
        if self.left_out:
            yield f"{self.left_out} rows were left out, for the reasons above."
        if self.opened_otherwise:
            yield (
                f"{self.opened_otherwise} users have a quota here that no import made, but a delivery, the "
                "backfill or their first request: what they had left was not taken over."
            )

    def _read(self, row: SourceRow, now: datetime, scratch: sqlite3.Connection) -> None:
        try:
            usage = row.usage(self.zone, now)
        except UnusableRow as error:
            self._leave_out(row.place, row.user_id, str(error))
            return
        ticks = (usage.last_reset_date - EPOCH) // datetime.resolution
        read = (row.place, ticks, usage.used, usage.remaining)
        if kept := scratch.execute(FIND, (row.user_id,)).fetchone():
            read, other = sorted((read, kept), key=_rank, reverse=True)
            reason = f"this user is there twice; {read[0]}, which used more or was reset later, counts"
            self._leave_out(other[0], row.user_id, reason)
        scratch.execute(KEEP, (row.user_id, *read))

    def _leave_out(self, place: str, user_id: str, reason: str) -> None:
        self.left_out += 1
        if self.left_out <= MAX_LISTED:
            self.report(f"{place}: {user_id!r:.60}: {reason}")

    def _add(self, batch: Batch, opened: Opened) -> None:
        self.made += opened.made
        self.present += opened.present
        self.tombstoned += opened.tombstoned
        self.opened_otherwise += _opened_otherwise(batch) if opened.present else 0


def destination(plan: str | None, source: str, *, dry_run: bool) -> tuple[Store, int | None]:
    """Return the store that opens quotas under the plan (None: the default plan), and the plan's allowance.

    The store of a dry run only counts. Raises UnknownPlan.
    """
    quotas = ChallengeQuota.objects
    count: Store = quotas.census
    allowance: int | None = settings.QUOTA_DEFAULT_ALLOWANCE
    if foreign_tables(connection):  # there is no table of ours yet; migrate makes the default plan alone
        if plan:
            raise UnknownPlan
        count = _count_as_missing
    else:
        found = Plan.objects.filter(Q(pk=plan) if plan else Q(is_default=True)).first()
        if plan and not found:
            raise UnknownPlan
        allowance = found.allowance if found else None
    if dry_run:
        return count, allowance
    return partial(quotas.import_many, plan=plan, reason=f"from {source}"[:200], actor=ACTOR), allowance


def _count_as_missing(batch: Batch) -> Opened:
    return Opened(len(batch), 0, 0)


def _opened_otherwise(batch: Batch) -> int:
    imported = LedgerEntry.objects.filter(user=OuterRef("pk"), seq=2, kind=EntryKind.IMPORTED)
    here = ChallengeQuota.objects.filter(pk__in=list(batch), deleted_at=None)
    return here.exclude(Exists(imported)).count()


def _rank(read: tuple[str, int, int | None, int | None]) -> tuple[int, int]:
    _, last_reset, used, remaining = read
    return (-(remaining or 0) if used is None else used, last_reset)


def _batches(scratch: sqlite3.Connection) -> Iterator[dict[str, ImportedUsage]]:
    """Yield the users in the order of their ids, so that two runs cannot deadlock."""
    found = scratch.execute("SELECT user_id, last_reset, used, remaining FROM usages ORDER BY user_id")
    while rows := found.fetchmany(USERS_PER_BATCH):
        yield {
            user_id: ImportedUsage(EPOCH + last_reset * datetime.resolution, used, remaining)
            for user_id, last_reset, used, remaining in rows
        }

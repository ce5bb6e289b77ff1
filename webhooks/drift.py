"""Compare all users in Clerk with all quotas here, and report the differences. Writes nothing.

Users sign up and deliveries arrive during the comparison. So each difference is checked again at the end,
in Clerk and here, and only one of the same kind is reported.
"""

import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from quotas.models import ChallengeQuota, PlanAssignment
from quotas.reports.waiting import waiting_among
from webhooks.clerk.backend_api import find_users, walk_users
from webhooks.clerk.payloads import ClerkUser, UnusablePayload, read_user

USERS_PER_CHUNK = 500  # rows in one query, and users in one second check
KINDS = {
    "missing": "in Clerk, but no row here",
    "tombstoned": "in Clerk, but permanently closed here",
    "orphan": "a row here, but not in Clerk",
    "email": "the e-mail differs",
    "plan": "the plan in Clerk's metadata differs",
    "waiting": "Clerk assigned another plan, which the user does not have",
}
COMPARED = ("email", "plan", "waiting")  # kinds of which both values are shown


# The users that the walk has seen, and those that differ. A SQLite database without a name is private, spills
# to a file when it outgrows its cache, and vanishes when closed: memory does not grow with the users.
SCRATCH = """
    PRAGMA journal_mode = OFF;
    CREATE TABLE seen (user_id TEXT PRIMARY KEY) WITHOUT ROWID;
    CREATE TABLE suspects (kind TEXT, user_id TEXT, PRIMARY KEY (kind, user_id)) WITHOUT ROWID;
"""


class Drift(NamedTuple):
    """A user who differs between Clerk and the database."""

    kind: str  # of KINDS
    user_id: str
    here: str | None  # "live", "closed", the e-mail or the plan; None without a row
    clerk: str | None

    def __str__(self) -> str:
        is_compared = self.kind in COMPARED
        values = f": {_shown(self.here)} here, {_shown(self.clerk)} in Clerk" if is_compared else ""
        return f"{self.user_id}: {self.kind}: {KINDS[self.kind]}{values}"

    @property
    def without_email(self) -> "Drift":
        """The same with "hidden" for an e-mail, which is personal; that there is none stays visible."""
        if self.kind != "email":
            return self
        return self._replace(here=self.here and "hidden", clerk=self.clerk and "hidden")


@dataclass(slots=True)
class Comparison:
    """One comparison, and its counts so far."""

    on_page: Callable[[int], object]  # called with the number of users in it
    on_wait: Callable[[float], None]  # as for `walk_users`
    users: int = 0  # in Clerk
    unusable: int = 0  # of them, without a usable id: they can have no row
    rows: int = 0  # here, without tombstones
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def figures(self) -> dict[str, int]:
        seen = {"users": self.users, "odd": self.unusable, "rows": self.rows}  # published names
        return {**seen, "drifts": self.total, **self.counts}

    @property
    def summary(self) -> str:
        kinds = ", ".join(f"{kind} {count}" for kind, count in self.counts.items())
        return f"{self.users} users in Clerk, {self.rows} live quotas here, {self.total} drifts ({kinds})"

    def drifts(self) -> Iterator[Drift]:
        """Yield the differences, kind by kind, each in the order of the ids. Raises as `walk_users` does."""
        with closing(sqlite3.connect("")) as scratch:
            scratch.executescript(SCRATCH)
            self._walk_clerk(scratch)
            self._walk_rows(scratch)
            for kind in KINDS:
                for drift in self._still_there(kind, scratch):
                    self.counts[kind] += 1
                    yield drift

    def _walk_clerk(self, scratch: sqlite3.Connection) -> None:
        for page in walk_users(on_wait=self.on_wait):
            users, unusable = _users_by_id(page)
            self.users += len(page)
            self.unusable += unusable
            scratch.executemany("INSERT OR IGNORE INTO seen VALUES (?)", [(user_id,) for user_id in users])
            _suspect(scratch, _differences(users, users))
            self.on_page(len(page))

    def _walk_rows(self, scratch: sqlite3.Connection) -> None:
        """Find rows that the walk has not seen; by key, because a pooler lets no cursor stay open."""
        live, last = ChallengeQuota.objects.filter(deleted_at=None).order_by("user_id"), ""
        while chunk := list(
            live.filter(user_id__gt=last).values_list("user_id", flat=True)[:USERS_PER_CHUNK]
        ):
            marks = ", ".join("?" * len(chunk))
            seen = scratch.execute(f"SELECT user_id FROM seen WHERE user_id IN ({marks})", chunk)  # noqa: S608
            unseen = set(chunk).difference(user_id for (user_id,) in seen)
            _suspect(scratch, (Drift("orphan", user_id, "live", None) for user_id in unseen))
            self.rows += len(chunk)
            last = chunk[-1]

    def _still_there(self, kind: str, scratch: sqlite3.Connection) -> Iterator[Drift]:
        suspects = scratch.execute("SELECT user_id FROM suspects WHERE kind = ? ORDER BY user_id", (kind,))
        while chunk := [user_id for (user_id,) in suspects.fetchmany(USERS_PER_CHUNK)]:
            users, _ = _users_by_id(find_users(chunk, on_wait=self.on_wait))
            yield from (drift for drift in _differences(chunk, users) if drift.kind == kind)


def _shown(value: str | None) -> str:
    return repr(value) if value else "none"


def _users_by_id(page: list[dict[str, object]]) -> tuple[dict[str, ClerkUser], int]:
    """Return the users by id, and how many have no usable one; of an unusable user only the id is read."""
    users: dict[str, ClerkUser] = {}
    unusable = 0
    for data in page:
        try:
            user = read_user(data)
        except UnusablePayload:
            try:
                user = read_user({"id": data.get("id")})
            except UnusablePayload:
                unusable += 1
                continue
        users[user.user_id] = user
    return users, unusable


def _suspect(scratch: sqlite3.Connection, drifts: Iterator[Drift]) -> None:
    scratch.executemany(
        "INSERT OR IGNORE INTO suspects VALUES (?, ?)", [(drift.kind, drift.user_id) for drift in drifts]
    )


def _differences(user_ids: Collection[str], users: Mapping[str, ClerkUser]) -> Iterator[Drift]:
    """Compare these users, as Clerk returned them, with the database as it is now, in the given order."""
    columns = ("email", "clerk_updated_at", "deleted_at", "plan")
    rows = ChallengeQuota.objects.only(*columns).in_bulk(list(user_ids))
    assignments = known_assignments(users.values())
    waiting = waiting_among(user_ids)
    for user_id in user_ids:
        user, row = users.get(user_id), rows.get(user_id)
        if row is None:
            if user is not None:
                yield Drift("missing", user_id, None, "live")
        elif user is None:
            if row.deleted_at is None:
                yield Drift("orphan", user_id, "live", None)
        elif row.deleted_at is not None:
            yield Drift("tombstoned", user_id, "closed", "live")
        else:
            if user.updated_at is not None:
                yield from _stale(user, user.updated_at, row, assignments.get(user_id))
            if user_id in waiting:
                yield Drift("waiting", user_id, row.plan_id, waiting[user_id])


def _stale(
    user: ClerkUser, updated_at: datetime, row: ChallengeQuota, assignment: PlanAssignment | None
) -> Iterator[Drift]:
    """Compare what Clerk dates: where ours has the later time, Clerk's response was the stale one."""
    if user.email != row.email and (row.clerk_updated_at is None or row.clerk_updated_at <= updated_at):
        yield Drift("email", user.user_id, row.email, user.email)
    if newer_plan(user, assignment):
        yield Drift("plan", user.user_id, assignment.plan if assignment else "", user.plan)


def known_assignments(users: Iterable[ClerkUser]) -> dict[str, PlanAssignment]:
    """Return the stored assignments by metadata of those users whose metadata were read, by user id."""
    user_ids = [user.user_id for user in users if user.plan is not None]
    if not user_ids:  # the setting is off
        return {}
    assignments = PlanAssignment.objects.filter(
        source=PlanAssignment.Source.METADATA, external_id="", user_id__in=user_ids
    )
    return {assignment.user_id: assignment for assignment in assignments}


def newer_plan(user: ClerkUser, assignment: PlanAssignment | None) -> tuple[str, datetime] | None:
    """Return the plan in the user's metadata, with its time, if the stored one differs and is no later."""
    if user.plan is None or user.updated_at is None:
        return None
    known, known_at = (assignment.plan, assignment.updated_at) if assignment else ("", user.updated_at)
    return (user.plan, user.updated_at) if user.plan != known and known_at <= user.updated_at else None

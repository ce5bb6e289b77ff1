"""Users who wait for a plan: Clerk assigned it before it existed here, so they have another one.

Of several assignments only the one that counts (FIRST_ASSIGNMENT of store/sql.py) lets a user wait. Nobody
waits whose plan staff chose, nor for the unknown plan of an item that costs nothing.
"""

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from django.db import connection

from quotas.models import ChallengeQuota
from quotas.reports.counts import MoreThan, counted, users_in_words
from quotas.rules.outcomes import Deleted
from quotas.rules.values import PLAN_NAME, Actor
from quotas.store.direct import await_assignments
from quotas.store.sql import FIRST_ASSIGNMENT

MAX_PLANS_COUNTED = 1_000  # by name
MAX_PLANS_LISTED = 20  # where people read them
MAX_NAME_SHOWN = 40  # characters: an unknown name is a stranger's text
USERS_PER_PAGE = 5_000
REASON = "waited for this plan"  # in the ledger

# Each user with an assignment that may let them wait, and the assignment that counts for them.
_CANDIDATES = """
    FROM (
        SELECT DISTINCT q.user_id, q.plan_id FROM plan_assignments AS a
        JOIN challenge_quotas AS q ON q.user_id = a.user_id
        LEFT JOIN plans AS b ON b.name = a.plan
        WHERE a.plan <> '' AND a.plan <> q.plan_id AND q.plan_source <> 'staff' AND q.deleted_at IS NULL
            AND {candidate} {{condition}}
    ) AS c
    JOIN plan_assignments AS l ON l.id = (
        SELECT a.id FROM plan_assignments AS a LEFT JOIN plans AS b ON b.name = a.plan
        WHERE a.user_id = c.user_id AND a.plan <> '' AND {counted}
        {order}
    )
    LEFT JOIN plans AS k ON k.name = l.plan
"""
_OF_OURS = _CANDIDATES.format(
    candidate="b.name IS NOT NULL",
    counted="b.name IS NOT NULL",
    order=FIRST_ASSIGNMENT.format(is_default="b.is_default"),
)
# As if every plan existed that costs something.
_UNKNOWN = _CANDIDATES.format(
    candidate="b.name IS NULL AND NOT a.is_free",
    counted="(b.name IS NOT NULL OR NOT a.is_free)",
    order=FIRST_ASSIGNMENT.format(is_default="COALESCE(b.is_default, FALSE)"),
)
_WAITS = {_OF_OURS: "l.plan <> c.plan_id", _UNKNOWN: "k.name IS NULL"}


class Waiting(NamedTuple):
    """How many users wait for a plan."""

    plan: str  # its name in Clerk
    users: int
    is_known: bool = False

    @property
    def shown(self) -> str:
        return shown_name(self.plan)

    @property
    def in_words(self) -> str:
        return users_in_words(self.users, "waits", "wait") + " for it"

    @property
    def sentence(self) -> str:
        wait = self.in_words
        if self.is_known:
            return f"plan {self.shown}: {wait}; give it with apply_plans or on its page in the admin"
        return f"no plan {self.shown}: {wait}; add it with apply_plans or in the admin"

    @property
    def can_be_added(self) -> bool:
        return not self.is_known and PLAN_NAME.fullmatch(self.plan) is not None


def shown_name(plan: str) -> str:
    """Return a plan's name in Clerk in a form that is safe in a terminal and not too long."""
    if PLAN_NAME.fullmatch(plan):
        return plan
    return repr(plan) if len(plan) <= MAX_NAME_SHOWN else f"{plan[:MAX_NAME_SHOWN]!r}…"


def waiting_for_ours(plan: str | None = None, *, most: int | None = None) -> list[Waiting]:
    """Return for which of our plans users wait (or for this one), and how many; most users first.

    At most `most` users are looked at, if it is given; then `users` is a MoreThan if there are more.
    """
    return _counted(_OF_OURS, plan, most)


def waiting_for_unknown(plan: str | None = None, *, most: int | None = None) -> list[Waiting]:
    """The same for plans that do not exist here."""
    return _counted(_UNKNOWN, plan, most)


def _counted(source: str, plan: str | None, most: int | None) -> list[Waiting]:
    of_one = "" if plan is None else "AND a.plan = %s"
    limit = "" if most is None else f"LIMIT {most + 1}"
    text = f"""
        SELECT CASE WHEN {_WAITS[source]} THEN l.plan ELSE '' END AS waits_for, COUNT(*),
            SUM(COUNT(*)) OVER ()
        {source.format(condition=f"{of_one} {limit}")}
        GROUP BY waits_for ORDER BY 2 DESC, 1 LIMIT {MAX_PLANS_COUNTED + 1}
    """
    rows = _rows(text, [] if plan is None else [plan])
    return [
        Waiting(name, users if most is None or looked_at <= most else MoreThan(users - 1), source is _OF_OURS)
        for name, users, looked_at in rows
        if name and plan in (None, name)
    ]


def sentences(found: Collection[Waiting]) -> Iterator[str]:
    """Yield a sentence for each plan, and if there are more than MAX_PLANS_LISTED one for the rest."""
    for number, waiting in enumerate(found):
        if number == MAX_PLANS_LISTED:
            yield f"and {counted(len(found) - number, 'more plan')}"
            return
        yield waiting.sentence


def waiting_among(user_ids: Collection[str]) -> dict[str, str]:
    """Return of these users those who wait, each with the name of the plan, known here or not."""
    found: dict[str, str] = {}
    for source in (_OF_OURS, _UNKNOWN) if user_ids else ():
        among = f"AND q.user_id IN ({', '.join(['%s'] * len(user_ids))})"
        text = f"SELECT c.user_id, l.plan {source.format(condition=among)} WHERE {_WAITS[source]}"
        found |= dict(_rows(text, user_ids))
    return found


def give_plans(actor: Actor, plan: str | None = None) -> Iterator[bool]:
    """Give the users who wait for a plan of ours (or for this one) what Clerk assigned, one after the other.

    Yield of each whether they got it. It may be stopped and repeated: who has the plan waits no more.
    """
    await_assignments()
    for user_id in _who_wait(plan):
        try:
            yield ChallengeQuota.objects.follow_assignments(user_id, actor=actor, reason=REASON)
        except Deleted:  # meanwhile
            yield False


def _who_wait(plan: str | None) -> Iterator[str]:
    """Read on by the ids where a page ended: a user may stop waiting meanwhile."""
    condition = "AND q.user_id > %s" + ("" if plan is None else " AND a.plan = %s")
    text = f"""
        SELECT c.user_id, CASE WHEN {_WAITS[_OF_OURS]} THEN l.plan ELSE '' END
        {_OF_OURS.format(condition=f"{condition} ORDER BY q.user_id LIMIT {USERS_PER_PAGE}")}
        ORDER BY c.user_id
    """
    last = ""
    while page := _rows(text, [last] if plan is None else [last, plan]):
        yield from (user_id for user_id, name in page if name and plan in (None, name))
        last = page[-1][0]


def _rows(text: str, parameters: Collection[str]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(text, [*parameters])
        rows: list[tuple[Any, ...]] = cursor.fetchall()
    return rows

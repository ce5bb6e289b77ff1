"""Reading the ledger: a user's entries, and the state of a quota at any past instant."""

from dataclasses import dataclass
from datetime import datetime

from django.db.models import Q, QuerySet

from quotas.models import ChallengeQuota, LedgerEntry, PlanVersion
from quotas.rules import outcomes, periods, values, verbs
from quotas.rules.outcomes import Forecast, Refusal
from quotas.rules.values import EntryKind, Quota, Snapshot, State
from quotas.store.direct import clock

MAX_ENTRIES_EXPLAINED = 100  # of the period, in an explanation


class NotOpenedYet(Exception):
    """The user had no quota at that instant."""


class HistoryPruned(Exception):
    """The entries of that time were pruned; `earliest` is the first instant that can be explained."""

    def __init__(self, earliest: datetime) -> None:
        super().__init__(earliest)
        self.earliest = earliest


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a quota stood as it did: its state, the entries that led to it, and the outcome of a spend."""

    quota: Quota
    plan_source: str
    is_deleted: bool
    is_reset_due: bool  # due, but not carried out yet: no request had come since
    entries: list[LedgerEntry]  # of the period at that instant, newest first
    spend: Forecast | Refusal  # of a spend at that instant

    @property
    def refusal(self) -> Refusal | None:
        """The refusal that the spend would have met, or None."""
        return self.spend.refusal if isinstance(self.spend, Forecast) else self.spend


def entries_page(user_id: str, *, before: int | None, limit: int) -> list[LedgerEntry]:
    """Return at most `limit` entries, newest first, all older than the seq `before`. Raises Deleted."""
    if ChallengeQuota.objects.filter(pk=user_id, deleted_at__isnull=False).exists():
        raise outcomes.Deleted
    older = Q() if before is None else Q(seq__lt=before)
    return list(_entries(user_id).filter(older)[:limit])


def explain(user_id: str, at: datetime | None, cost: int) -> Explanation:
    """Return how the quota stood at `at`, and what a spend of `cost` would have met, from the history alone.

    None is now, by the database's clock: as for a request, the newest entry counts, even if a clock that was
    ahead dated it later. Raises NotOpenedYet or HistoryPruned.
    """
    entries = _entries(user_id)
    entry = (entries if at is None else entries.filter(created_at__lte=at)).first()
    at = at or clock()
    if entry is None:
        oldest = _entries(user_id).last()
        if oldest and oldest.seq > 1:
            raise HistoryPruned(oldest.created_at)
        raise NotOpenedYet
    state = _state_after(entry)
    running = Q(version=entry.plan_version)
    rules = _version(entry.plan, running)
    # The version that an entry names was in force, even if another machine's clock dates it later.
    plan = _version(entry.plan, running | Q(version__gt=entry.plan_version, valid_from__lte=at))
    snapshot = Snapshot(user_id, at, plan, rules, state, None, None, values.NO_IDS)
    return Explanation(
        quota=verbs.effective(snapshot),
        plan_source=state.plan_source,
        is_deleted=state.deleted_at is not None,
        is_reset_due=not state.deleted_at and periods.is_due(state, at),
        entries=list(
            _entries(user_id).filter(seq__range=(entry.period_seq, entry.seq))[:MAX_ENTRIES_EXPLAINED]
        ),
        spend=verbs.forecast(snapshot, values.Request(values.Actor("user", user_id)), cost),
    )


def _entries(user_id: str) -> QuerySet[LedgerEntry]:
    return LedgerEntry.objects.filter(user_id=user_id).order_by("-seq")


def _version(plan: str, condition: Q) -> values.Plan:
    """Return the newest version of the plan that meets the condition; versions are never removed."""
    return PlanVersion.objects.filter(condition, plan=plan).latest("version").value


def _state_after(entry: LedgerEntry) -> State:
    """Return the row as it was when this entry was the newest, without what no spend needs."""
    consumed, given = values.usage_shown(
        entry.quota_limit, entry.balance_after, entry.period_consumed, entry.period_given
    )
    return State(
        user_id=entry.user_id,
        plan=entry.plan,
        plan_source=entry.plan_source,
        plan_version=entry.plan_version,
        quota_limit=entry.quota_limit,
        quota_remaining=entry.balance_after,
        period_consumed=consumed,
        period_given=given,
        last_reset_date=entry.last_reset_date,
        resets_at=entry.resets_at,
        anchor_at=entry.anchor_at,
        period_seq=entry.period_seq,
        refused_at=None,
        left_until=None,
        seq=entry.seq,
        usage_seq=entry.seq,
        updated_at=entry.created_at,
        deleted_at=entry.created_at if entry.kind == EntryKind.DELETED else None,
    )

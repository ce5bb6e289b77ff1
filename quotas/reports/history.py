"""Reading the ledger: what happened to a quota, and how it stood at any past instant."""

from dataclasses import dataclass
from datetime import datetime

from django.db.models import Q, QuerySet

from quotas.models import ChallengeQuota, LedgerEntry, PlanVersion
from quotas.rules import outcomes, periods, values, verbs
from quotas.rules.outcomes import Outcome, Refusal
from quotas.rules.values import EntryKind, Quota, Snapshot, State

MAX_ENTRIES_EXPLAINED = 100  # of the period that an explanation shows


class NotOpenedYet(Exception):
    """The user had no quota then."""


class HistoryPruned(Exception):
    """The entries of that time are gone; `earliest` is the first instant that can be explained."""

    def __init__(self, earliest: datetime) -> None:
        super().__init__(earliest)
        self.earliest = earliest


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a quota stood as it did: the state, the entries that led to it, what a spend would have met."""

    quota: Quota
    plan_source: str
    is_deleted: bool
    is_reset_due: bool  # the reset had not been carried out yet: nobody had asked since
    entries: list[LedgerEntry]  # of the running period, newest first
    spend: Outcome  # what a spend would have come to

    @property
    def refusal(self) -> Refusal | None:
        """What the spend would have been refused with."""
        return self.spend if isinstance(self.spend, Refusal) else getattr(self.spend, "refusal", None)


def entries_page(user_id: str, *, before: int | None, limit: int) -> list[LedgerEntry]:
    """Return the newest `limit` entries, or those older than the seq `before`. Raises policy.Deleted."""
    if ChallengeQuota.objects.filter(pk=user_id, deleted_at__isnull=False).exists():
        raise outcomes.Deleted
    older = Q() if before is None else Q(seq__lt=before)
    return list(_entries(user_id).filter(older)[:limit])


def explain(user_id: str, at: datetime, cost: int) -> Explanation:
    """Tell how the quota stood at `at`, from the ledger alone, and what a spend of `cost` would have met.

    Raises NotOpenedYet or HistoryPruned.
    """
    entry = _entries(user_id).filter(created_at__lte=at).first()
    if entry is None:
        oldest = _entries(user_id).last()
        if oldest and oldest.seq > 1:
            raise HistoryPruned(oldest.created_at)
        raise NotOpenedYet
    state = _state_after(entry)
    running = Q(version=entry.plan_version)
    rules = _version(entry.plan, running)
    # A version that an entry goes by was in force, whatever the clocks of two machines said of it.
    plan = _version(entry.plan, running | Q(version__gt=entry.plan_version, valid_from__lte=at))
    snapshot = Snapshot(user_id, at, plan, rules, state, None, None, values.NO_IDS)
    return Explanation(
        quota=verbs.effective(snapshot),
        plan_source=state.plan_source,
        is_deleted=state.deleted_at is not None,
        is_reset_due=not state.deleted_at and periods.is_due(rules, state, at),
        entries=list(
            _entries(user_id).filter(seq__lte=entry.seq, period_seq=entry.period_seq)[:MAX_ENTRIES_EXPLAINED]
        ),
        spend=verbs.consume(snapshot, values.Request(values.Actor("user", user_id)), cost),
    )


def _entries(user_id: str) -> QuerySet[LedgerEntry]:
    return LedgerEntry.objects.filter(user_id=user_id).order_by("-seq")


def _version(plan: str, wanted: Q) -> values.Plan:
    """The newest of the wanted versions; they are never removed."""
    return PlanVersion.objects.filter(wanted, plan=plan).latest("version").value


def _state_after(entry: LedgerEntry) -> State:
    """The row as it was when this entry was the newest."""
    return State(
        user_id=entry.user_id,
        plan=entry.plan,
        plan_source=entry.plan_source,
        plan_version=entry.plan_version,
        quota_limit=entry.quota_limit,
        quota_remaining=entry.balance_after,
        last_reset_date=entry.last_reset_date,
        anchor_at=entry.anchor_at,
        period_seq=entry.period_seq,
        refused_at=None,
        seq=entry.seq,
        updated_at=entry.created_at,
        deleted_at=entry.created_at if entry.kind == EntryKind.DELETED else None,
    )

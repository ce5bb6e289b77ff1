"""The verbs as methods of the quotas' manager: each decides by quotas/rules and stores the outcome."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime
from functools import partial
from typing import Any, Concatenate, Generic, NamedTuple, ParamSpec, TypeVar
from uuid import UUID

from django.conf import settings
from django.db import models, transaction

from quotas.rules import values, verbs
from quotas.rules.outcomes import Change, Forecast, Outcome, Refusal, Replay
from quotas.rules.values import MAX_UNITS, Actor, Quota, Request, Snapshot
from quotas.store import direct
from quotas.store.commit import commit
from quotas.store.steps import Result, SnapshotQuery, Steps
from quotas.store.thread import lock, run_steps


class Receipt(NamedTuple):
    """The result of a verb: its entry, the quota right after that entry, and whether it is a replay.

    `refunded`: of a consumption, its units that refunds have given back or cancelled by now.
    """

    entry: values.Entry
    quota: Quota
    quota_now: Quota  # at the time of this request, which for a replay is later
    is_replay: bool
    refunded: int = 0


class PlanChange(NamedTuple):
    """The result of a change of plan. It has no entry, because often none is made."""

    quota: Quota
    quota_now: Quota
    is_replay: bool


class Opened(NamedTuple):
    """Counts of a batch of users: rows made, rows already present, tombstones."""

    made: int
    present: int
    tombstoned: int


# `json.dumps` with these options would create an encoder for each call.
encode_canonically = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode

P = ParamSpec("P")
QuotaRow = TypeVar("QuotaRow", bound=models.Model)


class BoundVerb(Generic[P, Result]):
    """A verb of a manager. A call runs its steps in this thread; `steps` returns them, for another driver."""

    def __init__(self, steps: Callable[P, Steps[Result]]) -> None:
        self.steps = steps

    def __call__(self, *args: P.args, **options: P.kwargs) -> Result:
        return run_steps(self.steps(*args, **options))


class Verb(Generic[P, Result]):
    """Makes a verb of a method that returns its steps."""

    def __init__(self, steps: Callable[Concatenate[Any, P], Steps[Result]]) -> None:
        self._steps = steps
        self.__doc__ = steps.__doc__

    def __get__(self, manager: object, owner: type) -> BoundVerb[P, Result]:
        return BoundVerb(partial(self._steps, manager))


class QuotaManager(models.Manager[QuotaRow]):
    """The verbs. Each takes a user id, decides by quotas/rules and stores the outcome.

    A verb raises `outcomes.Refusal` if the rules refuse it, ValueError for an invalid user id, and
    `django.db.OperationalError` if the database cannot be reached or takes no writes.
    """

    @Verb
    def current(self, user_id: str, *, actor: Actor | None = None) -> Steps[Quota]:
        """Return the quota; it is opened if missing and reset if due."""
        request = Request(actor or Actor("user", user_id))
        found: Change = yield from self._commit(user_id, verbs.current, request, expects_change=False)
        return found.quota

    @Verb
    def open_missing(self, user_id: str, *, actor: Actor) -> Steps[Quota]:
        """Open the quota if it is missing; leave an existing one as it is, due or not."""
        found: Change = yield from self._commit(user_id, verbs.open_missing, Request(actor))
        return found.quota

    @Verb
    def consume(
        self,
        user_id: str,
        cost: int | None = None,
        *,
        action: str = "",
        metadata: Mapping[str, Any] | None = None,
        key: str | None = None,
        actor: Actor | None = None,
    ) -> Steps[Receipt]:
        """Spend `cost` units, all or nothing, and once per idempotency key.

        The default cost is the plan's price of `action`, or 1 without an action. Raises Exhausted if too few
        units are left, CostExceedsLimit, UnknownAction, CostBelowPrice, KeyReused or Deleted.
        """
        if cost is not None:
            _require_units(cost)
        request = _keyed_request(
            "consume",
            {"cost": cost, "action": action, "metadata": metadata},
            actor=actor or Actor("user", user_id),
            key=key,
            action=action,
            metadata=metadata,
        )
        return (yield from self._write(user_id, partial(verbs.consume, cost=cost), request))

    @Verb
    def forecast(
        self, user_id: str, cost: int | None = None, *, action: str = "", actor: Actor | None = None
    ) -> Steps[Forecast]:
        """Return what a spend would meet, with the arguments of `consume`; a missing quota stays missing.

        Raises UnknownAction, CostBelowPrice or Deleted.
        """
        if cost is not None:
            _require_units(cost)
        request = Request(actor or Actor("user", user_id), action=action)
        verb = partial(verbs.forecast, cost=cost)
        found: Forecast = yield from self._commit(user_id, verb, request, expects_change=False)
        return found

    @Verb
    def adjust(
        self, user_id: str, delta: int, *, reason: str, actor: Actor, key: str | None = None
    ) -> Steps[Receipt]:
        """Add `delta` units, or remove them if it is negative, until the next reset.

        Raises AdjustmentOutOfRange if this would leave a balance below 0 or above MAX_UNITS, or if the quota
        is unlimited.
        """
        _require_units(abs(delta))
        request = _keyed_request(
            "adjust", {"delta": delta, "reason": reason}, actor=actor, key=key, reason=_require_reason(reason)
        )
        return (yield from self._write(user_id, partial(verbs.adjust, delta=delta), request))

    @Verb
    def reset(self, user_id: str, *, reason: str, actor: Actor, key: str | None = None) -> Steps[Receipt]:
        """Refill to the plan's allowance, whether or not the quota is due."""
        request = _keyed_request(
            "reset", {"reason": reason}, actor=actor, key=key, reason=_require_reason(reason)
        )
        return (yield from self._write(user_id, verbs.reset, request))

    @Verb
    def refund(
        self,
        user_id: str,
        consumption_id: UUID,
        amount: int | None = None,
        *,
        reason: str,
        actor: Actor,
        key: str | None = None,
    ) -> Steps[Receipt]:
        """Give back `amount` units (None: all that is left) of one consumption.

        The refund never lifts the balance above the allowance, and gives nothing back after the consumption's
        period: the entry's `amount` is what was given back. Raises ConsumptionNotFound, RefundTooLarge or
        AlreadyRefunded.
        """
        if amount is not None:
            _require_units(amount)
        request = _keyed_request(
            "refund",
            {"consumption": str(consumption_id), "amount": amount, "reason": reason},
            actor=actor,
            key=key,
            reason=_require_reason(reason),
        )
        verb = partial(verbs.refund, amount=amount)
        return (yield from self._write(user_id, verb, request, ("consumption", consumption_id)))

    @Verb
    def consumption(self, user_id: str, consumption_id: UUID) -> Steps[Receipt]:
        """Return a consumption as its spend was answered; `refunded` and `quota_now` are as of now.

        Raises ConsumptionNotFound or Deleted.
        """
        request, include = Request(Actor("user", user_id)), ("consumption", consumption_id)
        verb = verbs.show_consumption
        found: Replay = yield from self._commit(user_id, verb, request, include, expects_change=False)
        return _receipt(found, is_replay=False)

    @Verb
    def change_plan(
        self,
        user_id: str,
        plan: str | None,
        on_change: values.OnChange = values.OnChange.KEEP,
        *,
        actor: Actor,
        reason: str = "",
        key: str | None = None,
    ) -> Steps[PlanChange]:
        """Give the user the plan that staff chose, or, if None, the one that Clerk's assignments lead to.

        Raises UnknownPlan.
        """
        request = _keyed_request(
            "change_plan",
            {"plan": plan, "on_change": str(on_change), "reason": reason},
            actor=actor,
            key=key,
            reason=reason,
        )
        if plan is None:  # a missing row cannot be locked, and Clerk may assign another plan meanwhile
            yield from self._commit(user_id, verbs.open_missing, Request(actor))
        verb = partial(verbs.change_plan, on_change=on_change)
        outcome: Change | Replay = yield from self._commit(user_id, verb, request, _including(plan))
        is_replay = isinstance(outcome, Replay)
        return PlanChange(outcome.quota, outcome.quota_now, is_replay)

    def assign_plan(
        self,
        user_id: str,
        source: str,
        plan: str,
        *,
        external_id: str = "",
        is_free: bool = False,
        updated_at: datetime,
        actor: Actor,
        reason: str = "",
    ) -> bool:
        """Store Clerk's assignment of `plan` ("": none), and apply the plan that the assignments now lead to.

        Return whether it was stored: it is not if a later assignment of the same item is there. A plan that
        staff chose stays. An unknown plan is stored, but the default plan is applied. Raises Deleted.
        """
        with transaction.atomic():
            self.open_missing(user_id, actor=actor)
            lock(user_id)  # always before the assignment's row: another order could deadlock
            if not direct.note_assignment(user_id, source, external_id, plan, updated_at, is_free=is_free):
                return False
            self.follow_assignments(user_id, actor=actor, reason=reason)
        return True

    @Verb
    def follow_assignments(self, user_id: str, *, actor: Actor, reason: str = "") -> Steps[bool]:
        """Apply the plan that Clerk's assignments lead to, unless staff chose; return whether it was missing.

        Raises Deleted.
        """
        request = Request(actor, reason=reason)
        outcome = yield from self._commit(user_id, verbs.follow_assignments, request, _including(None))
        return isinstance(outcome, Change) and bool(outcome.entries)

    def before_change(self, user_id: str, plan: str | None) -> Snapshot:
        """Return the snapshot from which a change of plan would be decided now; `plan` as in change_plan."""
        return direct.read_snapshot(user_id, SnapshotQuery(None, *_including(plan)))

    @Verb
    def delete(self, user_id: str, *, actor: Actor, reason: str = "") -> Steps[None]:
        """Close the quota permanently: the row becomes a tombstone without an e-mail."""
        yield from self._commit(user_id, verbs.delete, Request(actor, reason=reason))

    def note_profile(self, user_id: str, email: str, clerk_updated_at: datetime) -> bool:
        """Store the e-mail unless a later one is stored or the user is deleted; return whether it was."""
        return direct.note_profiles([(user_id, email, clerk_updated_at)]) > 0

    def open_many(self, users: Iterable[tuple[str, str, datetime | None]], *, actor: Actor) -> Opened:
        """Open the missing quotas of a batch of (user_id, e-mail, clerk_updated_at), all or none."""
        profiles = {user_id: (email, updated_at) for user_id, email, updated_at in users}
        for user_id in profiles:
            _require_user_id(user_id)
        with transaction.atomic():
            opened = self._open_missing(profiles, partial(verbs.open_missing, request=Request(actor)))
            direct.note_profiles((user_id, email, at) for user_id, (email, at) in profiles.items() if at)
        return opened

    def import_many(
        self,
        usages: Mapping[str, values.ImportedUsage],
        plan: str | None = None,
        *,
        reason: str,
        actor: Actor,
    ) -> Opened:
        """Open the missing quotas of a batch as another service left them, all or none; `usages` by user id.

        They get the given plan, as if staff had chosen it, or the default plan. Raises UnknownPlan.
        """
        for user_id in usages:
            _require_user_id(user_id)
        request = Request(actor, reason=reason)

        def decide(snapshot: Snapshot) -> Outcome:
            return verbs.import_usage(snapshot, request, usages[snapshot.user_id])

        with transaction.atomic():
            return self._open_missing(usages, decide, plan)

    def _open_missing(
        self, user_ids: Collection[str], decide: Callable[[Snapshot], Outcome], plan: str | None = None
    ) -> Opened:
        known = self._known(user_ids)
        missing = [user_id for user_id in user_ids if user_id not in known]
        query = SnapshotQuery(None, *_including(plan)) if plan else SnapshotQuery()
        made = direct.open_many(missing, decide, query)
        tombstoned = sum(known.values())
        return Opened(made, len(user_ids) - made - tombstoned, tombstoned)

    def census(self, user_ids: Iterable[str]) -> Opened:
        """Return what `open_many` would return, without a change."""
        ids = set(user_ids)
        known = self._known(ids)
        tombstoned = sum(known.values())
        return Opened(len(ids) - len(known), len(known) - tombstoned, tombstoned)

    def _known(self, user_ids: Iterable[str]) -> dict[str, bool]:
        """Return whether each user's row is a tombstone, without the users who have no row."""
        rows = self.filter(user_id__in=user_ids).values_list("user_id", "deleted_at")
        return {user_id: deleted_at is not None for user_id, deleted_at in rows}

    def _commit(
        self,
        user_id: str,
        verb: Callable[[Snapshot, Request], Outcome | Forecast],
        request: Request,
        include: tuple[str, Any] = ("", None),
        *,
        expects_change: bool = True,
    ) -> Steps[Any]:
        """Read, decide, write: every verb goes through here. Return its outcome, or raise the refusal."""
        _require_user_id(user_id)
        query = SnapshotQuery(request.idempotency_key, *include)
        if not _may_open(user_id, request.actor):
            request = request._replace(may_open=False)

        def decide(snapshot: Snapshot) -> Outcome | Forecast:
            return verb(snapshot, request)

        outcome = yield from commit(user_id, decide, query, expects_change=expects_change)
        if isinstance(outcome, Refusal):
            raise outcome
        if isinstance(outcome, Change) and outcome.refusal:
            raise outcome.refusal
        return outcome

    def _write(
        self,
        user_id: str,
        verb: Callable[[Snapshot, Request], Outcome],
        request: Request,
        include: tuple[str, Any] = ("", None),
    ) -> Steps[Receipt]:
        outcome: Change | Replay = yield from self._commit(user_id, verb, request, include)
        if isinstance(outcome, Change):
            quota = outcome.quota
            return Receipt(outcome.entries[-1], quota, quota, is_replay=False)
        return _receipt(outcome, is_replay=True)


def _receipt(found: Replay, *, is_replay: bool) -> Receipt:
    return Receipt(found.entry, found.quota, found.quota_now, is_replay, found.refunded)


def _keyed_request(
    verb: str, arguments: Mapping[str, object], *, actor: Actor, key: str | None, **recorded: Any
) -> Request:
    """Return a request; with a key it has a fingerprint, which separates a retry from a reuse of the key."""
    if key is None:
        return Request(actor, **recorded)
    canonical = encode_canonically(arguments)
    return Request(
        actor,
        idempotency_key=f"{verb}:{actor.kind}:{key}",
        fingerprint=hashlib.sha256(canonical.encode()).hexdigest(),
        **recorded,
    )


def _including(plan: str | None) -> tuple[str, str | None]:
    """What a snapshot includes for a change to this plan; None: the one that Clerk's assignments lead to."""
    return ("clerk", None) if plan is None else ("target", plan)


def _may_open(user_id: str, actor: Actor) -> bool:
    """Whether the actor may open a quota for this id: QUOTA_USER_IDS restricts services."""
    if actor.kind != "service" or settings.QUOTA_USER_IDS == "any":
        return True
    return settings.QUOTA_USER_IDS == "clerk" and bool(values.CLERK_USER_ID.fullmatch(user_id))


def _require_user_id(user_id: str) -> None:
    if not values.USER_ID.fullmatch(user_id):
        raise ValueError("A user id has 1 to 128 characters of A-Z a-z 0-9 _ : . @ -.")


def _require_units(units: int) -> None:
    if not 1 <= units <= MAX_UNITS:
        raise ValueError(f"Give a whole number of units from 1 to {MAX_UNITS}.")


def _require_reason(reason: str) -> str:
    if not 1 <= len(reason) <= 200:
        raise ValueError("Give a reason of 1 to 200 characters.")
    return reason

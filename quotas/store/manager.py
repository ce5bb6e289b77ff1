"""The verbs, on the manager of the quotas."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import partial, wraps
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar
from uuid import UUID

from django.db import models, transaction

from quotas.rules import outcomes, values, verbs
from quotas.rules.outcomes import Change, Outcome, Refusal
from quotas.rules.values import MAX_UNITS, Actor, Quota, Request, Snapshot
from quotas.store import commit
from quotas.store.errors import Result


class Receipt(NamedTuple):
    """What a verb did: its entry, the quota right after it, and whether it was done before."""

    entry: values.Entry
    quota: Quota
    quota_now: Quota  # as it is now, which for a replay is later
    is_replay: bool


class PlanChange(NamedTuple):
    """How a change of plan left the quota; there is no entry if he had the plan already."""

    quota: Quota
    quota_now: Quota
    is_replay: bool


class Opened(NamedTuple):
    """What became of a batch of users: rows made, there already, closed for good."""

    made: int
    present: int
    tombstoned: int


P = ParamSpec("P")
QuotaRow = TypeVar("QuotaRow", bound=models.Model)


def _run_in_thread(steps: Callable[P, commit.Steps[Result]]) -> Callable[P, Result]:
    """The verb that takes these steps by its thread's own connection."""

    @wraps(steps)
    def verb(*args: P.args, **options: P.kwargs) -> Result:
        return commit.run_steps(steps(*args, **options))

    return verb


def _as_one_writer(
    steps: Callable[Concatenate["QuotaManager[QuotaRow]", str, P], commit.Steps[Result]],
) -> Callable[Concatenate["QuotaManager[QuotaRow]", str, P], Result]:
    """The same for what writes: threads that mean one user's row take turns."""

    @wraps(steps)
    def verb(self: "QuotaManager[QuotaRow]", user_id: str, /, *args: P.args, **options: P.kwargs) -> Result:
        with commit.one_writer(user_id):
            return commit.run_steps(steps(self, user_id, *args, **options))

    return verb


class QuotaManager(models.Manager[QuotaRow]):
    """The verbs. Each takes the user's id, asks policy.py, and makes the answer stick.

    Two are there as steps too, `reading` and `consuming`, for whoever brings a connection of his own.
    All of them raise a `policy.Refusal` for what the rules turn down, ValueError for an id that is
    none, and `django.db.OperationalError` when the database cannot be reached.
    """

    def reading(self, user_id: str, *, actor: Actor | None = None) -> commit.Steps[Quota]:
        """Return the quota as it stands now; it is opened if missing and reset if due."""
        outcome = yield from self._carrying_out(
            user_id, verbs.current, Request(actor or Actor("user", user_id))
        )
        return outcome.quota

    current = _run_in_thread(reading)

    def open_missing(self, user_id: str, *, actor: Actor) -> Quota:
        """Make the row if there is none; a quota that is there is left as it is, due or not."""
        return self._carry_out(user_id, verbs.open_missing, Request(actor)).quota

    def consuming(
        self,
        user_id: str,
        cost: int | None = None,
        *,
        action: str = "",
        metadata: Mapping[str, Any] | None = None,
        key: str | None = None,
        actor: Actor | None = None,
    ) -> commit.Steps[Receipt]:
        """Spend `cost` units, all or nothing, and once per idempotency key.

        Without a cost it is what the plan asks for `action`, or 1. Raises Exhausted when too few
        are left, CostExceedsLimit, UnknownAction, CostBelowPrice, KeyReused or Deleted.
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
        return (yield from self._writing(user_id, partial(verbs.consume, cost=cost), request))

    consume = _as_one_writer(consuming)

    def adjust(
        self, user_id: str, delta: int, *, reason: str, actor: Actor, key: str | None = None
    ) -> Receipt:
        """Add `delta` units (negative: take them away) until the next reset, for a reason.

        Raises AdjustmentOutOfRange where a balance below 0 or above MAX_UNITS would be left.
        """
        _require_units(abs(delta))
        request = _keyed_request(
            "adjust", {"delta": delta, "reason": reason}, actor=actor, key=key, reason=_require_reason(reason)
        )
        return self._write(user_id, partial(verbs.adjust, delta=delta), request)

    def reset(self, user_id: str, *, reason: str, actor: Actor, key: str | None = None) -> Receipt:
        """Refill to the plan's allowance now, for a reason."""
        request = _keyed_request(
            "reset", {"reason": reason}, actor=actor, key=key, reason=_require_reason(reason)
        )
        return self._write(user_id, verbs.reset, request)

    def refund(
        self,
        user_id: str,
        consumption_id: UUID,
        amount: int | None = None,
        *,
        reason: str,
        actor: Actor,
        key: str | None = None,
    ) -> Receipt:
        """Give back `amount` units (all that is left if None) of one consumption, for a reason.

        A closed period gets nothing back, and the balance is not lifted above the allowance: the
        entry's `amount` tells what was given. Raises ConsumptionNotFound, RefundTooLarge or
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
        return self._write(user_id, verb, request, ("consumption", consumption_id))

    def change_plan(
        self,
        user_id: str,
        plan: str | None,
        on_change: values.OnChange = values.OnChange.KEEP,
        *,
        actor: Actor,
        reason: str = "",
        key: str | None = None,
    ) -> PlanChange:
        """Give the user a plan of staff's choice, or the one that Clerk's word leads to if None.

        Raises UnknownPlan.
        """
        request = _keyed_request(
            "change_plan",
            {"plan": plan, "on_change": str(on_change), "reason": reason},
            actor=actor,
            key=key,
            reason=reason,
        )
        verb = partial(verbs.change_plan, on_change=on_change)
        include = ("clerk", None) if plan is None else ("target", plan)
        outcome = self._carry_out(user_id, verb, request, include)
        is_replay = isinstance(outcome, outcomes.Replay)
        return PlanChange(outcome.quota, outcome.quota_now, is_replay)

    def assign_plan(
        self,
        user_id: str,
        source: str,
        plan: str,
        *,
        external_id: str = "",
        updated_at: datetime,
        actor: Actor,
        reason: str = "",
    ) -> bool:
        """Note that Clerk says the user has `plan` ("": none), and give him what its word now leads to.

        Tell whether it was noted: a later word on the same item may be known. A plan that staff chose
        stays; a plan that is not there is noted, and the default one stands in. Raises Deleted.
        """
        with transaction.atomic():
            self.open_missing(user_id, actor=actor)
            commit.lock(user_id)  # before the word's own row, as all do, so that no two wait for each other
            if not commit.note_assignment(user_id, source, external_id, plan, updated_at):
                return False
            self._carry_out(user_id, verbs.follow_assignments, Request(actor, reason=reason), ("clerk", None))
        return True

    def clerks_word(self, user_id: str) -> tuple[values.Plan | None, str]:
        """Return the plan that Clerk's words lead to, and which of them (of PlanSource) does."""
        found = commit.read_snapshot(user_id, commit.SnapshotQuery(include="clerk"))
        return found.target, found.target_source

    def delete(self, user_id: str, *, actor: Actor, reason: str = "") -> None:
        """Close the quota for good: the row becomes a tombstone without its e-mail."""
        self._carry_out(user_id, verbs.delete, Request(actor, reason=reason))

    def note_profile(self, user_id: str, email: str, clerk_updated_at: datetime) -> bool:
        """Note the e-mail unless a later one is known or the user is deleted; tell whether it was."""
        return commit.note_profiles([(user_id, email, clerk_updated_at)]) > 0

    def open_many(self, users: Iterable[tuple[str, str, datetime | None]], *, actor: Actor) -> Opened:
        """Make the missing rows of a batch of (user_id, e-mail, clerk_updated_at), all or none."""
        profiles = {user_id: (email, updated_at) for user_id, email, updated_at in users}
        for user_id in profiles:
            _require_user_id(user_id)
        with transaction.atomic():
            known = self._known(profiles)
            missing = [user_id for user_id in profiles if user_id not in known]
            made = commit.open_many(missing, partial(verbs.open_missing, request=Request(actor)))
            commit.note_profiles((user_id, email, at) for user_id, (email, at) in profiles.items() if at)
        tombstoned = sum(known.values())
        return Opened(made, len(profiles) - made - tombstoned, tombstoned)

    def census(self, user_ids: Iterable[str]) -> Opened:
        """Tell what `open_many` would do, and do nothing."""
        ids = set(user_ids)
        known = self._known(ids)
        tombstoned = sum(known.values())
        return Opened(len(ids) - len(known), len(known) - tombstoned, tombstoned)

    def _known(self, user_ids: Iterable[str]) -> dict[str, bool]:
        """Those of the users who have a row, and whether it is a tombstone."""
        rows = self.filter(user_id__in=user_ids).values_list("user_id", "deleted_at")
        return {user_id: deleted_at is not None for user_id, deleted_at in rows}

    def _carrying_out(
        self,
        user_id: str,
        verb: Callable[[Snapshot, Request], Outcome],
        request: Request,
        include: tuple[str, Any] = ("", None),
    ) -> commit.Steps[Change | outcomes.Replay]:
        """Read, decide, store: the one path of every verb."""
        _require_user_id(user_id)
        look = commit.SnapshotQuery(request.idempotency_key, *include)
        outcome = yield from commit.commit(user_id, lambda snapshot: verb(snapshot, request), look)
        if isinstance(outcome, Refusal):
            raise outcome
        if isinstance(outcome, Change) and outcome.refusal:
            raise outcome.refusal
        return outcome

    _carry_out = _run_in_thread(_carrying_out)

    def _writing(
        self,
        user_id: str,
        verb: Callable[[Snapshot, Request], Outcome],
        request: Request,
        include: tuple[str, Any] = ("", None),
    ) -> commit.Steps[Receipt]:
        outcome = yield from self._carrying_out(user_id, verb, request, include)
        if isinstance(outcome, Change):
            return Receipt(outcome.entries[-1], outcome.quota, outcome.quota_now, is_replay=False)
        return Receipt(outcome.entry, outcome.quota, outcome.quota_now, is_replay=True)

    _write = _as_one_writer(_writing)


def _keyed_request(
    verb: str, asked: Mapping[str, object], *, actor: Actor, key: str | None, **remembered: Any
) -> Request:
    """A request whose key is stored with a fingerprint of what was asked, to tell a retry from a reuse."""
    if key is None:
        return Request(actor, **remembered)
    canonical = json.dumps(asked, sort_keys=True, separators=(",", ":"))
    return Request(
        actor,
        idempotency_key=f"{verb}:{actor.kind}:{key}",
        fingerprint=hashlib.sha256(canonical.encode()).hexdigest(),
        **remembered,
    )


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

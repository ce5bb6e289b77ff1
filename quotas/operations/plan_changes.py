"""What a file of plans changes here: shown before, and applied as a whole or not at all."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from django.db import transaction

from quotas.models import Plan, PlanRules
from quotas.operations.plan_file import Columns
from quotas.reports.counts import users_in_words
from quotas.reports.plan_edits import (
    LABELS,
    Edit,
    PlanImpact,
    edits_between,
    impact_of,
    of_archiving,
    of_new_default,
)
from quotas.reports.waiting import waiting_for_ours, waiting_for_unknown


class PlanChange(NamedTuple):
    """What the file changes in a plan, and which users this affects."""

    name: str
    is_new: bool
    edits: list[Edit]
    impact: PlanImpact | None  # of rules that are edited
    sentences: list[str]  # which users a new default, or the archiving, affects
    waiting: int  # users who get the plan because Clerk assigned it already


class Applied(NamedTuple):
    """What a file changes, or has changed."""

    changes: list[PlanChange]  # without the plans that are as in the file
    others: list[str]  # plans here that the file does not name: they stay


def compare(wanted: Mapping[str, Columns]) -> Applied:
    """Return what the file would change now."""
    return _compare(wanted, {plan.name: plan for plan in Plan.objects.all()})


def apply(wanted: Mapping[str, Columns]) -> Applied:
    """Change the plans as in the file, all in one transaction, and return what was changed.

    Raises IntegrityError if another session adds one of the new plans meanwhile.
    """
    with transaction.atomic():
        here = Plan.objects.locked()
        applied = _compare(wanted, here)
        edited = [change.name for change in applied.changes if change.edits and change.name in wanted]
        for name in edited:
            _save(here.get(name), name, wanted[name])
        for name in edited:
            if wanted[name]["is_default"]:
                Plan.objects.choose_default(name)
        for name in edited:
            if wanted[name]["is_archived"]:
                Plan.objects.archive(name)
    return applied


def _save(plan: Plan | None, name: str, columns: Columns) -> None:
    """Save the rules. A plan is not archived before another default is chosen, but unarchived before that."""
    options: dict[str, Any] = (
        {"update_fields": ["is_public", "is_archived"]} if plan else {"force_insert": True}
    )
    plan = plan or Plan(name=name)
    for column in (*PlanRules.RULES, "is_public"):
        setattr(plan, column, columns[column])
    plan.is_archived = plan.is_archived and columns["is_archived"]
    plan.save(**options)


def _compare(wanted: Mapping[str, Columns], here: Mapping[str, Plan]) -> Applied:
    waiting = {found.plan: found.users for found in (*waiting_for_ours(), *waiting_for_unknown())}
    default = next((name for name, columns in wanted.items() if columns["is_default"]), None)
    changes = []
    for name, columns in wanted.items():
        before = columns_of(here[name]) if name in here else None
        after = {**columns, "is_default": name == default if default or not before else before["is_default"]}
        edits, users = edits_between(before, after), waiting.get(name, 0)
        if edits or users:
            impact, touched = _impact(here.get(name), columns), [*_touched(name, edits)]
            changes.append(PlanChange(name, not before, edits, impact, touched, users))
    others = [name for name in here if name not in wanted]
    if default and (old := next((name for name in others if here[name].is_default), None)):
        changes.append(PlanChange(old, False, [Edit("default", "yes", "no")], None, [], 0))
    return Applied(changes, others)


def _touched(name: str, edits: list[Edit]) -> Iterator[str]:
    for edit in edits:
        if (edit.label, edit.after) == ("default", "yes"):
            yield of_new_default()
        if (edit.label, edit.after) == ("archived", "yes"):
            yield of_archiving(name)


def _impact(plan: Plan | None, columns: Columns) -> PlanImpact | None:
    """Return the impact of the edited rules; None for a new plan, or if no rule is edited."""
    if not plan or all(getattr(plan, rule) == columns[rule] for rule in PlanRules.RULES):
        return None
    edited = Plan(name=plan.name, **{rule: columns[rule] for rule in PlanRules.RULES})
    return impact_of(edited.value)


def lines_of(applied: Applied, *, dry_run: bool) -> Iterator[str]:
    """Yield for an operator what a file changes, or has changed."""
    for change in applied.changes:
        yield f"{change.name}{': new' if change.is_new else ''}"
        yield from (f"  {edit}" for edit in change.edits)
        if change.impact:
            yield from (f"  {line}" for line in _lines_of_impact(change.impact))
        yield from (f"  {sentence}" for sentence in change.sentences)
        if change.waiting:
            yield f"  {users_in_words(change.waiting)} waited for it: Clerk has assigned it to them."
    if not applied.changes:
        yield "Nothing to do: the plans are as in the file."
    for name in applied.others:
        yield f"{name} is not in the file, and stays."
    if applied.changes and dry_run:
        yield "Dry run: nothing was changed."


def _lines_of_impact(impact: PlanImpact) -> Iterator[str]:
    yield impact.sentence
    for state, now, saved, counted in impact.lines if impact.users else ():
        yield f"{state}: {now} now, {saved} after saving, {counted} if used units counted at once"
    if impact.users:
        yield impact.basis


def columns_of(plan: Plan) -> Columns:
    return {column: getattr(plan, column) for column in LABELS}

"""What staff can do with a plan besides editing it: each act is shown before and after, then confirmed."""

import time
from collections.abc import Callable, Collection
from typing import NamedTuple

from django.db import OperationalError, transaction

from quotas.models import Plan
from quotas.reports.counts import MAX_COUNTED, users_in_words
from quotas.reports.plan_edits import Edit, of_archiving, of_new_default
from quotas.reports.waiting import (
    MAX_PLANS_LISTED,
    Waiting,
    give_plans,
    waiting_for_ours,
    waiting_for_unknown,
)
from quotas.rules.values import Actor
from quotas.store.errors import is_statement_timeout

GIVE_SECONDS = 20  # of one request; then the next one continues


class Act(NamedTuple):
    """An act on one plan. `run` also takes who acts, and returns the success message."""

    title: str
    button: str
    edits: Callable[[Plan], list[tuple[str, Edit]]]  # by plan
    sentences: Callable[[Plan], list[str]]
    run: Callable[[Plan, Actor], str]
    is_possible: Callable[[Plan], bool]
    impossible: str  # why it cannot be done, and the fix


def _choose_default(plan: Plan, actor: Actor) -> str:
    Plan.objects.choose_default(plan.name)
    return f"The plan {plan} is the default now."


def _edits_of_default(plan: Plan) -> list[tuple[str, Edit]]:
    old = Plan.objects.filter(is_default=True).exclude(pk=plan.name)
    changes = [(before.name, Edit("default", "yes", "no")) for before in old]
    return [*changes, (plan.name, Edit("default", "no", "yes"))]


def _archive(plan: Plan, actor: Actor) -> str:
    Plan.objects.archive(plan.name)
    return f"The plan {plan} is archived."


def _unarchive(plan: Plan, actor: Actor) -> str:
    Plan.objects.archive(plan.name, is_archived=False)
    return f"The plan {plan} is not archived any more."


def users_wait_for(plan: Plan) -> bool:
    return bool(waiting_for_ours(plan.name, most=MAX_COUNTED))


def _sentences_of_waiting(plan: Plan) -> list[str]:
    waiting = waiting_for_ours(plan.name, most=MAX_COUNTED)
    return [
        f"{users_in_words(found.users, 'waits', 'wait')} for this plan: Clerk assigned it before it existed "
        "here. Their periods continue, and what they used counts against the allowance of this plan. Users "
        "whose plan staff chose keep theirs."
        for found in waiting
    ]


def _give(plan: Plan, actor: Actor) -> str:
    given, deadline = 0, time.monotonic() + GIVE_SECONDS
    for was_given in give_plans(actor, plan.name):
        given += was_given
        if time.monotonic() > deadline:
            break
    return f"{users_in_words(given, 'has', 'have')} the plan {plan} now."


ACTS = {
    "default": Act(
        title="Make {} the default plan",
        button="Make it the default",
        edits=_edits_of_default,
        sentences=lambda plan: [of_new_default()],
        run=_choose_default,
        is_possible=lambda plan: not (plan.is_default or plan.is_archived),
        impossible="This plan is the default already, or it is archived: unarchive it first.",
    ),
    "archive": Act(
        title="Archive the plan {}",
        button="Archive",
        edits=lambda plan: [(plan.name, Edit("archived", "no", "yes"))],
        sentences=lambda plan: [of_archiving(plan.name)],
        run=_archive,
        is_possible=lambda plan: not (plan.is_default or plan.is_archived),
        impossible="This plan is archived already, or it is the default: choose another default first.",
    ),
    "unarchive": Act(
        title="Unarchive the plan {}",
        button="Unarchive",
        edits=lambda plan: [(plan.name, Edit("archived", "yes", "no"))],
        sentences=lambda plan: ["Staff and the API can give it to users again."],
        run=_unarchive,
        is_possible=lambda plan: plan.is_archived,
        impossible="This plan is not archived.",
    ),
    "give": Act(
        title="Give the plan {} to the users who wait for it",
        button="Give it to them",
        edits=lambda plan: [],
        sentences=_sentences_of_waiting,
        run=_give,
        is_possible=users_wait_for,
        impossible="No user waits for this plan.",
    ),
}


class WaitingList(NamedTuple):
    """The plans that users wait for, as far as a page lists them."""

    shown: Collection[Waiting]
    more: int  # plans
    is_late: bool = False  # the count took too long for a page


def waiting_list() -> WaitingList:
    try:
        with transaction.atomic():
            found = [*waiting_for_ours(most=MAX_COUNTED), *waiting_for_unknown(most=MAX_COUNTED)]
    except OperationalError as error:
        if not is_statement_timeout(error):
            raise
        return WaitingList([], 0, is_late=True)
    return WaitingList(found[:MAX_PLANS_LISTED], max(0, len(found) - MAX_PLANS_LISTED))

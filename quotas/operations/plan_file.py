"""plans.toml: the plans as a file, read as a whole with all its faults, and written from the plans here."""

import json
import sys
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from django.core.exceptions import ValidationError

from quotas.models import DAY_SECONDS, Plan, validate_actions, validate_period, validate_timezone
from quotas.reports.plan_edits import LABELS
from quotas.reports.waiting import shown_name
from quotas.rules.durations import duration_in_words, seconds_in
from quotas.rules.periods import RESET_POLICIES
from quotas.rules.values import MAX_UNITS, PLAN_NAME

UNLIMITED = "unlimited"
KNOWN_FIELDS = ", ".join(LABELS.values())


class BadPlanFile(Exception):
    """The file cannot be applied; `faults` are all reasons, each with its place and the fix."""

    def __init__(self, faults: Collection[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def _allowance(value: object) -> int | None:
    if value == UNLIMITED:
        return None
    if type(value) is not int or not 0 <= value <= MAX_UNITS:
        raise ValidationError(f'Write a whole number from 0 to {MAX_UNITS}, or "{UNLIMITED}".')
    return value


def _reset_policy(value: object) -> str:
    if not isinstance(value, str) or value not in RESET_POLICIES:
        raise ValidationError(f"Write one of: {', '.join(RESET_POLICIES)}.")
    return value


def _period(value: object) -> int:
    seconds = seconds_in(value) if isinstance(value, str) else None
    validate_period(seconds)
    return seconds or 0  # validated


def _timezone(value: object) -> str:
    validate_timezone(name := str(value))
    return name


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValidationError("Write true or false.")
    return value


def _actions(value: object) -> object:
    validate_actions(value)
    return value


REQUIRED = object()
# By the column: how its value is read, which raises ValidationError, and the value without the field.
READERS: dict[str, tuple[Callable[[Any], Any], object]] = {
    "allowance": (_allowance, REQUIRED),
    "reset_policy": (_reset_policy, "rolling"),
    "period_seconds": (_period, DAY_SECONDS),
    "timezone": (_timezone, "UTC"),
    "actions": (_actions, {}),
    "is_public": (_flag, True),
    "is_default": (_flag, False),
    "is_archived": (_flag, False),
}

Columns = Mapping[str, Any]  # of a plan, by LABELS


def read_plans(name: str) -> dict[str, Columns]:
    """Return the columns of each plan of the file (`-` is standard input). Raises BadPlanFile."""
    try:
        text = (sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()).decode()
    except OSError as error:
        raise BadPlanFile([f"It cannot be read: {error.strerror}."]) from None
    except UnicodeDecodeError:
        raise BadPlanFile(["It is not UTF-8: save it in that encoding."]) from None
    default = Plan.objects.filter(is_default=True).first()
    return parse(text, default.name if default else "")


def parse(text: str, default_now: str = "") -> dict[str, Columns]:
    """Return the columns of each plan. Raises BadPlanFile.

    `default_now` is the default plan that is here: the file must leave one.
    """
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also of a number or a nesting beyond Python's limits
        raise BadPlanFile([f"It is not TOML: {error}."]) from None
    faults = [f"{name}: unknown; write each plan as [plans.NAME]." for name in content if name != "plans"]
    plans, found = content.get("plans"), dict[str, Columns]()
    if not isinstance(plans, dict) or not plans:
        faults.append("It has no plans: write each plan as [plans.NAME].")
        plans = {}
    for name, fields in plans.items():
        found[name] = _read_plan(name, fields, faults)
    faults += _faults_of_default(plans, found, default_now)
    if faults:
        raise BadPlanFile(faults)
    return found


def _read_plan(name: str, fields: object, faults: list[str]) -> Columns:
    """Return the columns that can be read, and add what is wrong with the others to the faults."""
    place = f"plans.{shown_name(name)}"
    if not PLAN_NAME.fullmatch(name):
        faults.append(f"{place}: a name has 1 to 40 of the characters a-z 0-9 _ -, as the slug in Clerk.")
    if not isinstance(fields, dict):
        faults.append(f"{place}: write it as a table, [plans.NAME].")
        return {}
    for field in [field for field in fields if field not in LABELS.values()]:
        meant = get_close_matches(field, LABELS.values(), 1)
        guess = f" Did you mean {meant[0]}?" if meant else ""
        faults.append(f"{place}.{field!s:.40}: unknown; known are {KNOWN_FIELDS}.{guess}")
    columns = {}
    for column, (read, default) in READERS.items():
        field = LABELS[column]
        try:
            if field not in fields and default is REQUIRED:
                raise ValidationError(f'It is missing: write a number of units, or "{UNLIMITED}".')
            columns[column] = read(fields[field]) if field in fields else default
        except ValidationError as error:
            faults += [f"{place}.{field}: {message}" for message in error.messages]
    return columns


def _faults_of_default(
    plans: Mapping[str, Any], found: Mapping[str, Columns], default_now: str
) -> Iterator[str]:
    """Yield what would leave no default plan, or more than one, or an archived one."""
    chosen = [name for name, columns in found.items() if columns.get("is_default")]
    for name in chosen[1:]:
        yield f"plans.{name}.default: {chosen[0]} is the default already, and only one plan can be."
    default = chosen[0] if chosen else default_now
    columns = found.get(default, {})
    if columns.get("is_archived"):
        yield f"plans.{default}.archived: it is the default plan: write default = true in another plan."
    if columns.get("is_default") is False and "default" in plans[default]:
        yield f"plans.{default}.default: it is the default plan: write default = true in another plan."


def export(plans: Iterable[Plan]) -> str:
    """Return a file that describes these plans, so that to apply it changes nothing."""
    return "\n".join("\n".join(_exported(plan)) + "\n" for plan in plans)


def _exported(plan: Plan) -> Iterator[str]:
    yield f"[plans.{plan.name}]"
    yield f"allowance = {json.dumps(UNLIMITED) if plan.allowance is None else plan.allowance}"
    yield f"reset_policy = {json.dumps(plan.reset_policy)}"
    yield f"period = {json.dumps(duration_in_words(plan.period_seconds))}"
    yield f"timezone = {json.dumps(plan.timezone)}"
    yield f"public = {json.dumps(plan.is_public)}"
    if plan.is_default:
        yield "default = true"
    if plan.is_archived:
        yield "archived = true"
    if plan.actions:
        yield f"[plans.{plan.name}.actions]"
        yield from (f"{json.dumps(action)} = {cost}" for action, cost in sorted(plan.actions.items()))

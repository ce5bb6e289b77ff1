"""The form of a plan: its period in words, and its actions as rows."""

import re
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, ClassVar

from django import forms
from django.core.exceptions import ValidationError
from django.template.loader import render_to_string
from django.utils.safestring import SafeString

from quotas.models import Plan, PlanRules, fault_of_action, validate_period
from quotas.rules.durations import duration_in_words, seconds_in

EMPTY_ROWS = 3  # for new actions

Rows = Sequence[tuple[str, str]]  # names and costs, as typed


class PeriodField(forms.CharField):
    """Seconds, typed as 24 h, 7 d, 30 min or 90 s."""

    def prepare_value(self, value: Any) -> Any:
        return duration_in_words(value) if isinstance(value, int) else value

    def to_python(self, value: Any) -> Any:
        validate_period(seconds := seconds_in(super().to_python(value) or ""))
        return seconds


class ActionRows(forms.Widget):
    """A row of two inputs for each action, and some empty ones: it needs no script."""

    def render(
        self, name: str, value: Any, attrs: Mapping[str, Any] | None = None, renderer: Any = None
    ) -> SafeString:
        rows = [*(value.items() if isinstance(value, dict) else value or ())]
        while rows and not any(rows[-1]):
            rows.pop()
        rows += [("", "")] * (0 if self.is_hidden else EMPTY_ROWS)
        context = {"name": name, "rows": rows, "is_hidden": self.is_hidden}
        return render_to_string("admin/quotas/action_rows.html", context)

    def value_from_datadict(self, data: Any, files: object, name: str) -> Rows:
        names, costs = data.getlist(f"{name}_name"), data.getlist(f"{name}_cost")
        return [*zip_longest(names, costs, fillvalue="")]

    def value_omitted_from_data(self, data: Any, files: object, name: str) -> bool:
        return f"{name}_name" not in data

    def id_for_label(self, id_: str) -> str:
        return ""  # each input has a label of its own


class HiddenActionRows(ActionRows):
    input_type = "hidden"


class ActionsField(forms.Field):
    """{"name": cost} from rows. The error names each row that is wrong, and the fix."""

    widget = ActionRows
    hidden_widget = HiddenActionRows

    def to_python(self, value: Rows | None) -> dict[str, int]:
        actions: dict[str, int] = {}
        rows, faults = dict[str, int](), []
        for number, (name, cost) in enumerate(value or (), start=1):
            name, cost = name.strip(), cost.strip()
            if not name and not cost:
                continue
            units = int(cost) if re.fullmatch("[0-9]{1,10}", cost) else None
            fault = fault_of_action(name, units)
            if first := rows.get(name):
                fault = f"row {first} has this name already: remove one of them"
            if fault or units is None:
                faults.append(f"Row {number}, {name!r:.80}: {fault}.")
            else:
                actions[name] = units
            rows[name] = number
        if faults:
            raise ValidationError(faults)
        return actions


class PlanForm(forms.ModelForm):  # type: ignore[type-arg]
    period_seconds = PeriodField(
        label="Period",
        initial=PlanRules._meta.get_field("period_seconds").default,
        help_text="Such as 24 h, 7 d, 30 min or 90 s; of rolling and anchored plans.",
    )
    actions = ActionsField(
        required=False,
        help_text=(
            "What a named action costs. To remove an action, empty its row. To get more empty rows, save and "
            "open the plan again."
        ),
    )

    class Meta:
        model = Plan
        fields: ClassVar = ["name", "is_public", *PlanRules.RULES]
        labels: ClassVar = {"reset_policy": "Resets", "is_public": "Is public", "timezone": "Time zone"}

"""`manage.py help`: our own commands first, each with what it does, then those of Django and its apps."""

import re
import textwrap

from django.core import management as django_management
from django.core.management import find_commands, get_commands, load_command_class

from quotas.management.failures import CommandLine

OURS = ("quotasite", "webhooks", "quotas")
WIDTH = 100


class Utility(CommandLine):
    def main_help_text(self, commands_only: bool = False) -> str:
        if commands_only or self.settings_exception:
            return super().main_help_text(commands_only)
        commands = get_commands()
        ours = sorted(our_commands(), key=_by_object)
        column = max(map(len, ours)) + 2
        others = " ".join(sorted(set(commands) - set(ours)))
        return "\n".join(
            (
                "",
                f"Type '{self.prog_name} help COMMAND' for its options.",
                "",
                "Commands of Quotasite:",
                *(f"    {name:{column}}{_summary(name)}" for name in ours),
                "",
                "Commands of Django and its apps:",
                textwrap.fill(others, WIDTH, initial_indent="    ", subsequent_indent="    "),
            )
        )


def our_commands() -> set[str]:
    """Return the names of our commands, without those of Django that we extend."""
    django = find_commands(django_management.__path__[0])
    return {name for name, app in get_commands().items() if app in OURS}.difference(django, ["runserver"])


def _by_object(name: str) -> tuple[str, str]:
    """Return a sort key that puts create_service_key beside list_service_keys."""
    verb, _, thing = name.partition("_")
    return thing, verb


def _summary(name: str) -> str:
    command = load_command_class(get_commands()[name], name)
    return re.split(r"[.:,](?:\s|$)", command.help, maxsplit=1)[0]

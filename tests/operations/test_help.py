"""What an operator reads before they run a command."""

import pytest
from django.core.management import get_commands, load_command_class

from quotasite.management.help import our_commands
from tests.tools.forked import manage

pytestmark = pytest.mark.once
COMMANDS = sorted(our_commands())


def test_our_commands_come_first_with_what_they_do() -> None:
    ours, _, others = manage("help").stdout.partition("Commands of Django and its apps:")
    described = dict(line.split(maxsplit=1) for line in ours.splitlines() if line.startswith("    "))
    assert sorted(described) == COMMANDS
    assert described["audit_ledger"] == "Verify every ledger"
    assert {"check", "createsuperuser", "axes_reset_username"} <= set(others.split())
    assert not set(COMMANDS) & set(others.split())


def test_commands_for_one_thing_stand_together() -> None:
    ours = manage("help").stdout.partition("Commands of Django")[0].split("\n    ")
    places = [place for place, line in enumerate(ours) if "_service_key" in line.split()[0]]
    assert places == list(range(places[0], places[0] + 4))


def test_help_without_usable_settings_says_what_is_wrong() -> None:
    done = manage("help", DEBUG="perhaps")
    assert "DEBUG must be 1 or 0" in done.stdout
    assert done.returncode == 0


def test_a_shell_completes_every_command() -> None:
    assert set(COMMANDS) <= set(manage("help", "--commands").stdout.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name: str) -> None:
    command = load_command_class(get_commands()[name], name)
    parser = command.create_parser("manage.py", name)
    assert [option.dest for option in parser._actions if not option.help] == []


def test_the_words_of_the_backfills_last_line_are_explained() -> None:
    described = " ".join(manage("help", "backfill_quotas").stdout.split())
    assert "tombstoned (deleted, so left closed), odd (unusable, each listed with its reason)" in described

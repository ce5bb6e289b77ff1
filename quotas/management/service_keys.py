"""Service keys on the command line: found by an argument, printed once."""

import re

from django.core.management.base import BaseCommand, CommandError

from quotas.models import ServiceKey
from quotas.rules.values import rfc3339

KEY_HELP = "its name, or its id or first characters (qs_1a2b3c4d) as list_service_keys shows them"
MAX_DAYS = 3_660


def find_key(wanted: str) -> ServiceKey:
    """Return the key with this id or these first characters, or the one active key of this name.

    Raises CommandError, and never repeats what may be a whole key.
    """
    if match := re.fullmatch(r"qs_([0-9a-f]{8})(_.*)?", wanted):
        keys, shown = ServiceKey.objects.filter(prefix=match[1]), f"qs_{match[1]}_…"
    elif re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", wanted):
        keys, shown = ServiceKey.objects.filter(pk=wanted), wanted
    else:
        keys, shown = ServiceKey.objects.filter(ServiceKey.ACTIVE, name=wanted), f"active {wanted!r:.102}"
    found = list(keys) if wanted.isprintable() else []
    if not found:
        raise CommandError(f"There is no service key {shown}: manage.py list_service_keys shows all.")
    if len(found) > 1:
        prefixes = " or ".join(f"qs_{key.prefix}" for key in found)
        raise CommandError(f"{len(found)} active keys have this name: say which, {prefixes}.")
    return found[0]


def show_once(command: BaseCommand, key: ServiceKey, text: str) -> None:
    """Print the key's text alone on stdout, and what it is on stderr."""
    end = f"expires at {rfc3339(key.expires_at)}" if key.expires_at else "never expires"
    command.stderr.write(f"{key}: {', '.join(key.scopes)}; {end}. Store it now, it is not shown again:")
    command.stdout.write(text)

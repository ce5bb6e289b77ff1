"""Checks of where the variables come from, and of their names, for `manage.py check --deploy`."""

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Info, Tags, Warning, register

from quotasite.environment import ENV, READ, EnvFile

# Names in Clerk's SDKs, in Django and at hosts. The first of ours is the name to use; if one of ours is set,
# the other name is for another program.
OTHER_NAMES = {
    "ALLOWED_ORIGINS": ("CORS_ALLOWED_ORIGINS",),
    "CLERK_PEM_PUBLIC_KEY": ("CLERK_JWT_KEY", "CLERK_PUBLISHABLE_KEY"),
    "CLERK_WEBHOOK_SECRET": ("CLERK_WEBHOOK_SIGNING_SECRET",),
    "CORS_ORIGINS": ("CORS_ALLOWED_ORIGINS",),
    "DJANGO_ALLOWED_HOSTS": ("ALLOWED_HOSTS",),
    "DJANGO_SECRET_KEY": ("SECRET_KEY",),
    "JWT_KEY": ("CLERK_JWT_KEY", "CLERK_PUBLISHABLE_KEY"),
    "POSTGRES_URL": ("DATABASE_URL",),
    **{
        f"{prefix}CLERK_PUBLISHABLE_KEY": ("CLERK_PUBLISHABLE_KEY", "CLERK_JWT_KEY")
        for prefix in ("EXPO_PUBLIC_", "NEXT_PUBLIC_", "PUBLIC_", "REACT_APP_", "VITE_")
    },
    "SVIX_WEBHOOK_SECRET": ("CLERK_WEBHOOK_SIGNING_SECRET",),
}
MIN_LENGTH = 8  # of a name that a misspelt one may stand for: PORTS is not PORT
LIKENESS = 0.88  # of two names, from 0 to 1: METRIC_TOKEN is METRICS_TOKEN, DATABASE_URL_OLD not DATABASE_URL


@register(Tags.security, deploy=True)
def check_env_file(**kwargs: Any) -> list[CheckMessage]:
    """Show which variables `.env` sets, and find those that do not count, or that others can read."""
    return list(_file_messages(settings.ENV_FILE)) if settings.ENV_FILE else []


@register(Tags.security, deploy=True)
def check_names(**kwargs: Any) -> list[CheckMessage]:
    """Find variables that were meant for this service, under a name that it does not read."""
    return [
        Warning(
            f"{name} is set, which this service does not read, and {ours} is not.",
            hint=f"Rename {name} to {ours}.",
            id="quotasite.W009",
        )
        for name, ours in misnamed(ENV)
    ]


def misnamed(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield each name that stands for one of ours that is not set, and ours."""
    unset = {name for name in READ if len(name) >= MIN_LENGTH and not ENV.get(name)}
    for name in sorted(set(names) - READ):
        if others := OTHER_NAMES.get(name):
            if not any(ENV.get(ours) for ours in others):
                yield name, others[0]
        elif close := get_close_matches(name, unset, n=1, cutoff=LIKENESS):
            yield name, close[0]


def _file_messages(file: EnvFile) -> Iterator[CheckMessage]:
    ours, name = {name for name in READ if ENV.get(name)}, file.path.name
    yield Info(
        f"From {name}: {_listed(ours & file.taken)}. From the environment: {_listed(ours - file.taken)}.",
        id="quotasite.I001",
    )
    if outranked := READ & file.outranked:
        yield Warning(
            f"{name} and the environment differ, and the environment counts: {_listed(outranked)}.",
            hint="Set each variable in one place only.",
            id="quotasite.W010",
        )
    if unheard := {each for each in (*settings.SERVER_NUMBERS, "HOST") if _is_for_the_shell(each, file)}:
        yield Warning(
            f"{name} sets what the Procfile's line `web:` takes from the shell, which does not read that "
            f"file: {_listed(unheard)}.",
            hint=f"deploy/quotasite.service and compose.yaml pass {name} to it. If you start it by hand, "
            "export these variables before.",
            id="quotasite.W011",
        )
    if file.path.stat().st_mode & 0o004:
        yield Warning(
            f"Every user of this machine can read {name}, which holds secrets.",
            hint=f"chmod o= {name}",
            id="quotasite.W012",
        )


def _is_for_the_shell(name: str, file: EnvFile) -> bool:
    value, default = settings.SERVER_NUMBERS.get(name, (settings.HOST, "0.0.0.0"))  # noqa: S104
    return name in file.taken and bool(value != default)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"

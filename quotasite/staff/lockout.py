"""Limits password guessing at /admin/login: the functions that django-axes calls."""

import math
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Any

from axes.handlers.database import AxesDatabaseHandler
from axes.models import AccessAttempt
from django.conf import settings
from django.contrib.admin.forms import AdminAuthenticationForm
from django.core.validators import MaxLengthValidator
from django.db.models import Max
from django.db.models.signals import pre_save
from django.dispatch import receiver
from django.http import HttpRequest
from django.utils import timezone

UNKNOWN = "0.0.0.0"  # noqa: S104 - never bound to: all clients without a valid address share one lock
SITE_PREFIX = 64  # bits of an IPv6 address: a client controls every address in its /64


class LogInForm(AdminAuthenticationForm):
    """Refuses a name that is longer than any account's: the table of failures could not hold it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        name = self.fields["username"]  # Django sets its max_length too late to check it
        name.validators.append(MaxLengthValidator(name.max_length))  # type: ignore[attr-defined]


def client_address(request: HttpRequest) -> str:
    """Return the client's address; for IPv6 its /64 network, because a client gets a whole network.

    Each proxy appends the address of its caller to X-Forwarded-For, so with N trusted proxies the Nth
    from the right is the client. Everything to the left of it may be forged.
    """
    address = request.META.get("REMOTE_ADDR", "")
    if settings.TRUSTED_PROXIES and (forwarded := request.headers.get("X-Forwarded-For")):
        address = forwarded.split(",")[-settings.TRUSTED_PROXIES :][0]
    return _canonical(address.strip())


def client_in_log(username: str, address: str, user_agent: str, path: str, request: HttpRequest) -> str:
    """Return what axes logs of a client: never the name typed, which may be a password."""
    return address


def is_locked_out(request: HttpRequest) -> bool:
    """Return whether axes refused this log-in, or locked the client because it failed."""
    return bool(getattr(request, "axes_locked_out", False))


def seconds_locked(request: HttpRequest) -> int:
    """Return the seconds until axes forgets the failures of a client that is locked out."""
    [failures] = AxesDatabaseHandler().get_user_attempts(request, request.axes_credentials)  # type: ignore[attr-defined] # axes'
    latest = failures.aggregate(latest=Max("attempt_time"))["latest"] or timezone.now()
    return max(1, math.ceil((latest + settings.AXES_COOLOFF_TIME - timezone.now()).total_seconds()))


@receiver(pre_save, sender=AccessAttempt)
def keep_nothing_that_was_typed(sender: object, instance: Any, **kwargs: Any) -> None:
    """Empty the copies of the form and the query: axes masks only the fields whose names it knows."""
    instance.get_data = instance.post_data = ""


def _canonical(address: str) -> str:
    """Return the address without its port, for IPv6 the network; UNKNOWN if it is invalid."""
    if address.startswith("["):
        address = address[1:].partition("]")[0]
    elif address.count(":") == 1:
        address = address.partition(":")[0]
    try:
        parsed = ip_address(address)
    except ValueError:
        return UNKNOWN
    if not isinstance(parsed, IPv6Address):
        return str(parsed)
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(IPv6Network((int(parsed), SITE_PREFIX), strict=False).network_address)

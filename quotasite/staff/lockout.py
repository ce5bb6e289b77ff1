"""Who may go on guessing passwords at /admin/login: what django-axes asks of us."""

import math
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Any

from axes.handlers.database import AxesDatabaseHandler
from axes.models import AccessAttempt
from django.conf import settings
from django.db.models import Max
from django.db.models.signals import pre_save
from django.dispatch import receiver
from django.http import HttpRequest
from django.utils import timezone

UNKNOWN = "0.0.0.0"  # noqa: S104 - no address to bind: all who come without one share a lock
SITE_PREFIX = 64  # bits of an IPv6 address: whoever has one has all that begin alike


def client_address(request: HttpRequest) -> str:
    """Return where the request comes from; of IPv6 the network, which is what one client is given.

    Each proxy appends whom it was called by to X-Forwarded-For, so with N of our own the Nth from the
    right is the client. What stands to the left of it anybody may have written.
    """
    address = request.META.get("REMOTE_ADDR", "")
    if settings.TRUSTED_PROXIES and (forwarded := request.headers.get("X-Forwarded-For")):
        address = forwarded.split(",")[-settings.TRUSTED_PROXIES :][0]
    return _canonical(address.strip())


def client_in_log(username: str, address: str, user_agent: str, path: str, request: HttpRequest) -> str:
    """Return what axes calls a client in its log lines: not by the name typed, which may be a password."""
    return address


def is_locked_out(request: HttpRequest) -> bool:
    """Tell whether axes refused what was just sent, or refuses what comes next."""
    return bool(getattr(request, "axes_locked_out", False))


def seconds_locked(request: HttpRequest) -> int:
    """Return after how long all failures of a client that is locked out are forgotten."""
    [failures] = AxesDatabaseHandler().get_user_attempts(request, request.axes_credentials)  # type: ignore[attr-defined] # axes'
    latest = failures.aggregate(latest=Max("attempt_time"))["latest"] or timezone.now()
    return max(1, math.ceil((latest + settings.AXES_COOLOFF_TIME - timezone.now()).total_seconds()))


@receiver(pre_save, sender=AccessAttempt)
def keep_nothing_that_was_typed(sender: object, instance: Any, **kwargs: Any) -> None:
    """Empty the copies of the form and the query, which axes masks only where it knows the field's name."""
    instance.get_data = instance.post_data = ""


def _canonical(address: str) -> str:
    """Return the address without a port, or UNKNOWN."""
    if address.startswith("["):
        address = address[1:].partition("]")[0]
    elif address.count(":") == 1:
        address = address.partition(":")[0]
    try:
        found = ip_address(address)
    except ValueError:
        return UNKNOWN
    if not isinstance(found, IPv6Address):
        return str(found)
    if found.ipv4_mapped:
        return str(found.ipv4_mapped)
    return str(IPv6Network((int(found), SITE_PREFIX), strict=False).network_address)

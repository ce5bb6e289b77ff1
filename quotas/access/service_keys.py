"""Service keys of the product's own servers, with a cache of a few seconds."""

import hmac
import logging
import re
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from django.db import Error
from django.db.models import Q

from quotas.access.refusals import Fault, Refused
from quotas.models import ServiceKey
from quotas.rules.values import Actor
from quotas.store.errors import is_unavailable, translating_errors

log = logging.getLogger(__name__)

SERVICE_KEY = re.compile(r"qs_([0-9a-f]{8})_[A-Za-z0-9_-]{43}")
KEY_CACHE_SECONDS = 10  # seconds; a revoked key stops working after this time at the latest
MAX_CACHED_KEYS = 1_000
LAST_USED_RESOLUTION = timedelta(minutes=1)  # last_used_at is written at most this often


@dataclass(frozen=True, slots=True)
class Service:
    """The holder of a service key."""

    key_id: str
    scopes: frozenset[str]
    expires_at: datetime | None
    cached_at: float = field(default_factory=time.monotonic)

    @property
    def actor(self) -> Actor:
        return Actor("service", self.key_id)


_cache: dict[str, Service] = {}


def service_of(text: str) -> Service:
    """Return the holder of the key. Raises Refused with the reason."""
    return remembered(text) or _unexpired(_fetch(text))


def remembered(text: str) -> Service | None:
    """Return the holder of the key, or None if that takes a query. Raises Refused for an expired key."""
    service = _cache.get(ServiceKey.digest_of(text))
    if service is None or service.cached_at < time.monotonic() - KEY_CACHE_SECONDS:
        return None
    return _unexpired(service)


def _unexpired(service: Service) -> Service:
    if service.expires_at and service.expires_at <= datetime.now(UTC):
        raise Refused(Fault.KEY_EXPIRED)
    return service


def _fetch(text: str) -> Service:
    digest = ServiceKey.digest_of(text)
    match = SERVICE_KEY.fullmatch(text)
    key = match and ServiceKey.objects.filter(prefix=match[1]).first()
    if not key or not hmac.compare_digest(key.digest, digest):
        raise Refused(Fault.KEY_UNKNOWN)
    if key.revoked_at:
        raise Refused(Fault.KEY_REVOKED)
    _record_use(key)
    if len(_cache) >= MAX_CACHED_KEYS:
        _cache.clear()
    _cache[digest] = service = Service(str(key.id), frozenset(key.scopes), key.expires_at)
    return service


def _record_use(key: ServiceKey) -> None:
    now = datetime.now(UTC)
    if key.last_used_at is None or key.last_used_at <= now - LAST_USED_RESOLUTION:
        is_stale = Q(last_used_at=None) | Q(last_used_at__lte=now - LAST_USED_RESOLUTION)
        try:
            with translating_errors():
                ServiceKey.objects.filter(is_stale, pk=key.pk).update(last_used_at=now)
        except Error as error:
            # A lost race, a full disk, or on Citus any node that is away, since each has a copy of the keys:
            # that is no reason to refuse the key. If no request can be served, the next statement shows it.
            if not is_unavailable(error):
                raise
            log.warning("The use of a service key was not recorded: %r", str(error))

"""Service keys in the console: found by name, by prefix, by state."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from django.test import Client

from quotas.models import ServiceKey
from tests.tools.staff import sign_in, text

pytestmark = pytest.mark.django_db
KEYS = "/admin/quotas/servicekey/"


@pytest.fixture
def root() -> Client:
    now = datetime.now(UTC)
    for name, expires_at, revoked_at in [
        ("eternal", None, None),
        ("lasting", now + timedelta(days=1), None),
        ("expired", now - timedelta(days=1), None),
        ("revoked", None, now),
        ("both", now - timedelta(days=1), now),
    ]:
        key, _ = ServiceKey.make(name, ["read"], expires_at)
        ServiceKey.objects.filter(pk=key.pk).update(revoked_at=revoked_at)
    return sign_in(is_superuser=True)


def names(client: Client, **query: str) -> list[str]:
    return re.findall(r'field-name"><a[^>]*>(\w+)</a>', text(client.get(KEYS, query)))


@pytest.mark.parametrize(
    ("state", "found"),
    [
        ("active", ["eternal", "lasting"]),
        ("expired", ["expired"]),
        ("revoked", ["both", "revoked"]),
        ("nonsense", ["both", "eternal", "expired", "lasting", "revoked"]),
    ],
)
def test_keys_are_filtered_by_the_state_that_they_show(root: Client, state: str, found: list[str]) -> None:
    assert names(root, state=state) == found
    if state != "nonsense":
        page = text(root.get(KEYS, {"state": state}))
        assert re.findall(r'class="chip \w+">(\w+)<', page) == [state] * len(found)


def test_keys_are_found_by_a_part_of_the_name_or_of_the_key(root: Client) -> None:
    assert names(root, q="tern") == ["eternal"]
    assert names(root, q=ServiceKey.objects.get(name="lasting").prefix) == ["lasting"]
    assert names(root, q="nobody") == []

"""Every attack on a token or a delivery, against the deployed site: a 4xx, and nothing is stored."""

from collections.abc import Iterator
from contextlib import closing, suppress
from http.client import HTTPConnection
from typing import Any

import pytest

from quotas.models import ChallengeQuota, LedgerEntry
from tests.access.test_session_tokens import ATTACKS, UNSENDABLE
from tests.conftest import WEBHOOK_SECRET, delivery
from tests.tools.keys import mint
from tests.tools.site import served, url_of_the_test_database
from tests.webhooks.test_webhook import CREATED, FORGED
from webhooks.models import WebhookEvent

pytestmark = [pytest.mark.postgres, pytest.mark.django_db(transaction=True, serialized_rollback=True)]
CLOSED = 499  # stands for a status: the server closed the connection during the upload

Headers = list[tuple[str, str]]


@pytest.fixture(scope="module")
def port(django_db_setup: None, django_db_blocker: Any) -> Iterator[int]:
    with django_db_blocker.unblock():
        url = url_of_the_test_database()
    with served(url, workers=1, CLERK_WEBHOOK_SIGNING_SECRET=WEBHOOK_SECRET) as port:
        yield port


def test_every_token_of_the_table_is_refused(port: int) -> None:
    tokens = {name: attack() for name, (_, attack) in ATTACKS.items() if name not in UNSENDABLE}
    statuses = {name: ask(port, [bearer(token)]) for name, token in tokens.items()}
    others = {name: status for name, status in statuses.items() if status != 401}
    assert others.keys() == {"10 MB"}  # which the server refuses before Django
    assert set(others.values()) <= {431, CLOSED}
    assert ask(port, [bearer(mint()), bearer(mint())]) == 401
    assert_nothing_stored()
    assert ask(port, [bearer(mint())]) == 200


def test_every_delivery_of_the_table_is_refused(port: int) -> None:
    deliveries = {name: delivery(*CREATED, **change()) for name, change in FORGED.items()}
    statuses = {name: deliver(port, body, [*headers.items()]) for name, (body, headers) in deliveries.items()}
    assert {name: status for name, status in statuses.items() if not 400 <= status < 500} == {}
    assert_nothing_stored()
    body, headers = delivery(*CREATED)
    assert deliver(port, body, [*headers.items()]) == 200


def test_a_delivery_with_a_header_twice_is_refused(port: int) -> None:
    body, headers = delivery(*CREATED)
    headers["content-length"] = str(len(body))
    for name, value in headers.items():
        # RFC 9110 (8.6) lets a server accept the same length twice.
        for again in ("1",) if name == "content-length" else (value, "1"):
            assert deliver(port, body, [*headers.items(), (name, again)]) == 400, (name, again)
    assert_nothing_stored()


def bearer(token: str) -> tuple[str, str]:
    return "authorization", f"Bearer {token}"


def ask(port: int, headers: Headers) -> int:
    return status_of(port, "GET", "/api/quota", headers)


def deliver(port: int, body: bytes, headers: Headers) -> int:
    return status_of(port, "POST", "/webhooks/clerk", headers, body)


def status_of(port: int, method: str, path: str, headers: Headers, body: bytes = b"") -> int:
    with closing(HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.putrequest(method, path)
        for name, value in headers:
            connection.putheader(name, value.encode("latin-1"))
        if not {"content-length", "transfer-encoding"} & {name for name, _ in headers}:
            connection.putheader("content-length", str(len(body)))
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # the server may respond before all is sent
                connection.endheaders(body)
            return connection.getresponse().status
        except ConnectionError:
            return CLOSED


def assert_nothing_stored() -> None:
    for rows in (WebhookEvent.objects, ChallengeQuota.objects, LedgerEntry.objects):
        assert not rows.exists()

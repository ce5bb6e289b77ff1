"""Deliveries signed by Svix's own JavaScript, an independent implementation of the sender."""

import json
import time
from base64 import b64encode
from datetime import UTC, datetime
from pathlib import Path

import pytest
import time_machine
from django.http import HttpResponse
from django.test import Client
from pytest_django import Settings

from quotas.models import ChallengeQuota
from tests.conftest import sign
from tests.tools.javascript import CLERK, HERE, SVIX, ask, install, run
from webhooks.clerk.deliveries import DeliveryRefused, verify_delivery
from webhooks.models import WebhookEvent

RECORDED = json.loads((HERE / "js_delivery.json").read_text("utf-8"))
SECRET = "whsec_" + b64encode(b"throw-away, made for this run only").decode()
FOREIGN_SECRET = "whsec_" + b64encode(b"the secret of another site ......").decode()
CREATED = RECORDED["body"].replace("user.updated", "user.created")
Sent = tuple[bytes, dict[str, str]]


@pytest.fixture
def signed(tmp_path: Path, settings: Settings) -> Sent:
    """A delivery that Svix's JavaScript signs now with the configured secret."""
    settings.CLERK_WEBHOOK_SIGNING_SECRET = [SECRET]
    signer = install(tmp_path, SVIX, "sign_delivery.mjs")
    answer = run("node", signer, SECRET, str(int(time.time())), stdin=CREATED)
    assert answer.returncode == 0, answer.stderr
    sent = json.loads(answer.stdout)
    return sent["body"].encode(), sent["headers"]


def post(body: bytes, headers: dict[str, str]) -> HttpResponse:
    return Client().post("/webhooks/clerk", body, content_type="application/json", headers=headers)


@pytest.mark.full
@pytest.mark.django_db
def test_a_delivery_that_javascript_signs_now_opens_a_quota_over_http(signed: Sent) -> None:
    answer = post(*signed)
    assert (answer.status_code, answer.json()) == (200, {"status": "success"})
    assert ChallengeQuota.objects.get().user_id == "user_2js"
    assert WebhookEvent.objects.get().type == "user.created"


@pytest.mark.full
@pytest.mark.django_db
def test_a_delivery_that_is_changed_on_its_way_from_javascript_stores_nothing(signed: Sent) -> None:
    body, headers = signed
    assert post(body.replace(b"user_2js", b"user_2jt"), headers).status_code == 400
    assert (WebhookEvent.objects.count(), ChallengeQuota.objects.count()) == (0, 0)


@pytest.mark.full
def test_clerks_own_javascript_believes_what_we_believe_and_nothing_else(
    tmp_path: Path, settings: Settings, signed: Sent
) -> None:
    now, body = int(time.time()), CREATED.encode()
    headers = sign("msg_1", now, body, SECRET)
    deliveries: dict[str, Sent] = {
        "signed by Svix": signed,
        "signed by our tests": (body, headers),
        "with another signature before it": (
            body,
            headers | {"svix-signature": f"v1,{'A' * 43}= {headers['svix-signature']}"},
        ),
        "with another version before it": (
            body,
            headers | {"svix-signature": f"v1a,AAAA {headers['svix-signature']}"},
        ),
        "another's secret": (body, sign("msg_1", now, body, FOREIGN_SECRET)),
        "too old": (body, sign("msg_1", now - 400, body, SECRET)),
        "too new": (body, sign("msg_1", now + 400, body, SECRET)),
        "another id": (body, headers | {"svix-id": "msg_2"}),
        "another time": (body, headers | {"svix-timestamp": str(now - 1)}),
        "a changed body": (body + b" ", headers),
        "garbage": (body, headers | {"svix-signature": "garbage"}),
        "another version alone": (
            body,
            headers | {"svix-signature": headers["svix-signature"].replace("v1,", "v2,")},
        ),
        "no signature": (body, headers | {"svix-signature": ""}),
    }
    backend = install(tmp_path, CLERK, "clerk_backend.mjs")
    as_json = [{"body": body.decode(), "headers": headers} for body, headers in deliveries.values()]
    reasons = ask(backend, deliveries=as_json, secret=SECRET)["deliveries"]
    by_clerk = {name for name, reason in zip(deliveries, reasons, strict=True) if reason is None}
    by_us = {name for name, sent in deliveries.items() if is_believed(*sent)}
    assert by_us == by_clerk == set(list(deliveries)[:4])


def is_believed(body: bytes, headers: dict[str, str]) -> bool:
    try:
        return bool(verify_delivery(body, headers))
    except DeliveryRefused:
        return False


@pytest.mark.django_db
def test_a_recorded_delivery_of_javascript_opens_a_quota_over_http_at_its_time(settings: Settings) -> None:
    settings.CLERK_WEBHOOK_SIGNING_SECRET = [RECORDED["secret"]]
    with at_its_time():
        answer = post(RECORDED["body"].encode(), RECORDED["headers"])
    assert (answer.status_code, answer.json()) == (200, {"status": "success"})
    assert ChallengeQuota.objects.get().user_id == "user_2js"


def test_a_recorded_delivery_of_javascript_is_verified_at_its_time(settings: Settings) -> None:
    settings.CLERK_WEBHOOK_SIGNING_SECRET = [RECORDED["secret"]]
    with at_its_time():
        delivery = verify_delivery(RECORDED["body"].encode(), RECORDED["headers"])
    assert (delivery.type, delivery.data["first_name"]) == ("user.updated", "Zoë 🎉 é")


def test_what_is_signed_is_the_bytes_and_not_their_meaning(settings: Settings) -> None:
    settings.CLERK_WEBHOOK_SIGNING_SECRET = [RECORDED["secret"]]
    again = json.dumps(json.loads(RECORDED["body"])).encode()
    with at_its_time(), pytest.raises(DeliveryRefused, match="does not match"):
        verify_delivery(again, RECORDED["headers"])


def at_its_time() -> time_machine.travel:
    instant = datetime.fromtimestamp(int(RECORDED["headers"]["svix-timestamp"]), UTC)
    return time_machine.travel(instant, tick=False)

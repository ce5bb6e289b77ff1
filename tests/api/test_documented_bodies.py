"""The bodies that docs/api.md shows work on a new installation; an action works once a plan defines it."""

import json
import re
from collections.abc import Callable
from datetime import timedelta

import pytest

from quotas.models import Plan, ServiceKey
from tests import ROOT
from tests.api.test_service import Service
from tests.conftest import USER, Api

pytestmark = pytest.mark.django_db
PAGE = (ROOT / "docs/api.md").read_text()
BODIES = {to: json.loads(body) for to, body in re.findall(r"^\| (\w+) \| `(\{.*?\})` \|", PAGE, re.MULTILINE)}
ACTION = json.loads(re.findall(r"instead of a cost: `(\{.*?\})`", PAGE)[0])


@pytest.fixture
def service() -> Service:
    return Service(ServiceKey.make("a server", ["read", "consume", "refund", "adjust", "admin"])[1])


def test_every_documented_body_is_accepted_for_a_new_user(service: Service) -> None:
    spent = service.post("consume", BODIES["consume"])
    answers = {
        "consume": spent,
        "refund": service.post(f"consumptions/{spent.json()['id']}/refund", BODIES["refund"]),
        "adjust": service.post("adjust", BODIES["adjust"]),
        "reset": service.post("reset", BODIES["reset"]),
        "plan": service.put("plan", BODIES["plan"]),
    }
    assert answers.keys() == BODIES.keys()
    statuses = {to: answer.status_code for to, answer in answers.items()}
    assert statuses == {"consume": 201, "refund": 201, "adjust": 201, "reset": 200, "plan": 200}


def test_a_user_may_send_the_documented_consumption_too(api: Api) -> None:
    assert api.consume(BODIES["consume"]).status_code == 201


def test_an_action_is_refused_until_the_plan_defines_it_and_the_users_next_period_begins(
    api: Api, shift: Callable[[str, timedelta], None]
) -> None:
    assert api.consume().status_code == 201  # this user's period is running
    plan = Plan.objects.get()
    plan.actions = {ACTION["action"]: 3}
    plan.save()
    refused = api.consume(ACTION)
    assert (refused.status_code, refused.json()["code"]) == (422, "unknown_action")
    assert api.signed_in_as("user_new").consume(ACTION).json()["cost"] == 3
    shift(USER, timedelta(days=1))
    assert api.consume(ACTION).json()["cost"] == 3

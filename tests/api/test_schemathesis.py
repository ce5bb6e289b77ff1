"""Schemathesis attacks the API from its description, with a real token and a real key."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
import yaml
from django.core.signals import request_finished, request_started
from django.db import close_old_connections, transaction
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from schemathesis.config import SchemathesisConfig
from schemathesis.hooks import HookContext
from schemathesis.specs.openapi.schemas import OpenApiSchema

from quotas.api.messages import MAX_METADATA_BYTES
from quotas.models import ServiceKey
from quotasite.wsgi import application
from tests import ROOT
from tests.conftest import USER, Settings
from tests.tools import keys

DESCRIPTION = yaml.safe_load((ROOT / "docs/openapi.yaml").read_text())
KEY = "qs_5c4e3a7e_" + "k" * 43
IN_AN_HOUR = int(time.time()) + 3_600
# The statuses of a well-formed request: it succeeds or the rules refuse it. Never a 400.
RULED = ["2xx", "404", "409", "410", "422", "429"]


def described(examples: int, *, deterministic: bool) -> OpenApiSchema:
    """Return the API as described, with credentials, and with `examples` requests to each operation."""
    token = keys.mint(sub=USER, exp=IN_AN_HOUR)
    config = SchemathesisConfig.from_dict(
        {
            "auth": {"openapi": {"sessionToken": {"bearer": token}, "serviceKey": {"bearer": KEY}}},
            "checks": {"positive_data_acceptance": {"expected-statuses": RULED}},
            "generation": {
                "max-examples": examples,
                "deterministic": deterministic,
                "allow-x00": False,  # in metadata, U+0000 is a 400
            },
        }
    )
    schema = schemathesis.openapi.from_path(ROOT / "docs/openapi.yaml", config=config)
    schema.app = application
    schema.hook("map_body")(within_what_no_schema_can_say)
    return schema


def within_what_no_schema_can_say(context: HookContext, body: Any) -> Any:
    """Correct a body: in JSON Schema 1.0 is an integer, and no keyword limits the bytes of an object."""
    if not isinstance(body, dict):
        return body
    whole = {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in body.items()
    }
    if isinstance(body.get("metadata"), dict) and len(json.dumps(body["metadata"])) > MAX_METADATA_BYTES:
        whole["metadata"] = {}
    return whole


@schemathesis.check
def the_operation_lists_the_code(
    context: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> None:
    """The schemas of problems are the same for all operations: the examples list what each may answer."""
    responses = DESCRIPTION["paths"][case.operation.path][case.operation.method]["responses"]
    answer = responses.get(str(response.status_code), {})
    answer = DESCRIPTION["components"]["responses"].get(answer.get("$ref", "")[-3:], answer)
    if listed := answer.get("content", {}).get("application/problem+json"):
        problem = response.json()
        assert (problem["status"], problem["code"] in listed["examples"]) == (response.status_code, True)


quick = described(5, deterministic=True)
thorough = described(60, deterministic=False)


@pytest.fixture(autouse=True)
def served(db: None, settings_for_clerk: Settings) -> Iterator[None]:
    """Store the service key, and let the application respond inside the transaction of the test."""
    settings_for_clerk.ALLOWED_HOSTS = ["localhost"]
    scopes = list(ServiceKey.SCOPES)
    ServiceKey(name="a test", prefix=KEY[3:11], digest=ServiceKey.digest_of(KEY), scopes=scopes).save()
    for signal in (request_started, request_finished):
        signal.disconnect(close_old_connections)
    yield
    for signal in (request_started, request_finished):
        signal.connect(close_old_connections)


@quick.parametrize()
def test_every_operation_keeps_its_description(case):
    case.call_and_validate()


@pytest.mark.full
@thorough.parametrize()
def test_every_operation_keeps_its_description_at_length(case):
    case.call_and_validate()


class Order(thorough.as_state_machine()):
    """Sequences of operations that follow the links of a consumption; each starts with the same database."""

    def setup(self):
        self.beginning = transaction.savepoint()

    def teardown(self):
        transaction.savepoint_rollback(self.beginning)


@pytest.mark.full
def test_operations_in_any_order_keep_their_description():
    effort = {"max_examples": 40, "stateful_step_count": 10}
    Order.run(settings=hypothesis_settings(**effort, deadline=None, suppress_health_check=list(HealthCheck)))

"""The OpenAPI description matches the API: every route, every code, every response."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.staticfiles import finders
from django.core.management import call_command
from django.test import Client
from drf_spectacular.generators import SchemaGenerator
from jsonschema import Draft202012Validator

from quotas.api import openapi, openapi_examples, urls
from quotas.api.endpoints import ENDPOINTS, OwnQuota, Scope
from quotas.api.errors import PROBLEM_TYPES
from quotas.models import Plan, ServiceKey
from tests import ROOT
from tests.conftest import USER
from tests.site.test_page_policy import STRICT

COMMITTED = ROOT / "docs/openapi.yaml"
UNDESCRIBED = {"/api/docs", "/api/"}  # the page of the description, and the 404 of every other address
DESCRIPTION = json.loads(json.dumps(SchemaGenerator().get_schema(public=True)))
COMPONENTS = DESCRIPTION["components"]
once = pytest.mark.once


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in DESCRIPTION["paths"].items():
        for method, operation in methods.items():
            yield path, method.upper(), operation


def faults(instance: object, shape: dict[str, Any]) -> list[str]:
    found = Draft202012Validator({**shape, "components": COMPONENTS}).iter_errors(instance)
    return [f"{error.json_path}: {error.message}" for error in found]


def named(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def routes(patterns: list[Any], above: str = "/api/") -> Iterator[str]:
    for pattern in patterns:
        path = above + re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", str(pattern.pattern))
        yield from routes(pattern.url_patterns, path) if hasattr(pattern, "url_patterns") else [path]


@once
def test_the_committed_description_is_the_code_s(tmp_path):
    """If it fails, run `python manage.py spectacular --file docs/openapi.yaml`."""
    written = tmp_path / "openapi.yaml"
    call_command("spectacular", validate=True, fail_on_warn=True, file=written)
    assert written.read_text() == COMMITTED.read_text()


@once
@pytest.mark.parametrize("name", COMPONENTS["schemas"])
def test_every_shape_is_a_json_schema(name):
    Draft202012Validator.check_schema(COMPONENTS["schemas"][name])


@once
def test_every_reference_leads_somewhere():
    for kind, name in re.findall(r'"#/components/(\w+)/([^"]+)"', json.dumps(DESCRIPTION)):
        assert name in COMPONENTS[kind]


@once
def test_every_route_is_described():
    assert {*routes(urls.urlpatterns)} == {*DESCRIPTION["paths"]} | UNDESCRIBED


@once
def test_every_problem_is_described_with_its_status():
    described = {
        code: int(status)
        for status, answer in COMPONENTS["responses"].items()
        for code in answer["content"]["application/problem+json"]["examples"]
    }
    assert described == {declared.code: declared.status for declared in PROBLEM_TYPES}
    assert COMPONENTS["schemas"]["Problem"]["properties"]["code"]["enum"] == [*described]


@once
def test_every_code_but_that_of_another_method_is_told_of_by_an_operation():
    answers = [answer for *_, operation in operations() for answer in operation["responses"].values()]
    answers = [COMPONENTS["responses"].get(answer.get("$ref", "")[-3:], answer) for answer in answers]
    codes = {code for answer in answers for code in next(iter(answer["content"].values()))["examples"]}
    assert {declared.code for declared in PROBLEM_TYPES} - codes == {"method_not_allowed"}


MESSAGES = [name for name in COMPONENTS["examples"] if name in COMPONENTS["schemas"]]


@once
@pytest.mark.parametrize("name", MESSAGES)
def test_every_example_has_its_shape(name):
    assert not faults(COMPONENTS["examples"][name]["value"], named(name))


@once
@pytest.mark.parametrize("problem", openapi_examples.PROBLEMS, ids=lambda problem: problem.type.code)
def test_every_example_of_a_problem_has_its_shape(problem):
    code, status = problem.type.code, problem.type.status
    answer = COMPONENTS["responses"][str(status)]["content"]["application/problem+json"]
    example = COMPONENTS["examples"][code]["value"]
    assert not faults(example, answer["schema"])
    assert (example["status"], example["code"]) == (status, code)


@once
@pytest.mark.parametrize(
    "name", [name for name in openapi.PARAMETERS if "example" in openapi.PARAMETERS[name]]
)
def test_every_example_of_a_parameter_has_its_shape(name):
    assert not faults(openapi.PARAMETERS[name]["example"], openapi.PARAMETERS[name]["schema"])


GUIDE = (ROOT / "docs/api.md").read_text()


@once
def test_the_guide_lists_every_endpoint():
    rows = re.findall(r"^\| `(\w+) /api/([^?`]+)[^`]*` \| (\S+) \|", GUIDE, re.MULTILINE)
    assert {*rows} == {
        (endpoint.method, endpoint.path.replace("consumption_id", "id"), who_may(endpoint))
        for endpoint in ENDPOINTS
    }


def who_may(endpoint):
    match endpoint.access:
        case Scope(name):
            return f"`{name}`"
        case OwnQuota():
            return "user"
    return "any"


BODIES = {
    "consumeOwn": {"cost": 2, "action": "generate", "metadata": {"model": "small"}},
    "checkOwn": {"action": "generate"},
    "check": {"cost": 2},
    "consume": {"cost": 2},
    "refund": {"amount": 1, "reason": "llm_timeout"},
    "adjust": {"delta": -1, "reason": "a test"},
    "reset": {"reason": "a test"},
    "changePlan": {"plan": "pro", "on_change": "prorate"},
}


@pytest.fixture
def ask(api, make_quota):
    """Send the request of an operation with the credentials that it needs; each history has entries."""
    Plan.objects.filter(is_default=True).update(actions={"generate": 2})
    Plan(name="pro", allowance=None, reset_policy="monthly").save()
    make_quota(remaining=12)
    spent = api.consume({"metadata": {"model": "small"}}).json()["id"]
    _, key = ServiceKey.make("a test", ServiceKey.SCOPES)

    def send(path, method, operation, **headers):
        if "serviceKey" in operation["security"][0]:
            headers = {"Authorization": f"Bearer {key}", "Idempotency_Key": "k-1"} | headers
        path = path.format(user_id=USER, consumption_id=spent)
        body = json.dumps(BODIES[operation["operationId"]]) if operation["operationId"] in BODIES else b""
        return api.send(method, path, body, **headers)

    return send


def exact(shape: Any) -> Any:
    """Return the schema with undescribed members of a response forbidden."""
    if isinstance(shape, dict):
        closed = {"additionalProperties": False} if "properties" in shape and "required" in shape else {}
        return {**{name: exact(value) for name, value in shape.items()}, **closed}
    return [exact(item) for item in shape] if isinstance(shape, list) else shape


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("path", "method", "operation"),
    [pytest.param(*found, id=found[2]["operationId"]) for found in operations() if found[2]["security"]],
)
def test_an_actual_answer_is_as_described_to_the_last_member(ask, path, method, operation):
    answer = ask(path, method, operation)
    described = operation["responses"][str(answer.status_code)]
    assert answer.status_code in (200, 201)
    shape = described["content"][answer["Content-Type"]]["schema"]
    exactly = Draft202012Validator({**shape, "components": exact(COMPONENTS)})
    assert not [error.message for error in exactly.iter_errors(answer.json())]
    assert {"RateLimit", "RateLimit-Policy"} & {*answer.headers} <= {*described["headers"]}


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("path", "method", "operation"),
    [pytest.param(*found, id=found[2]["operationId"]) for found in operations() if found[2]["security"]],
)
@pytest.mark.parametrize("token", ["", "Bearer no.such.token", "Bearer qs_none"])
def test_an_actual_refusal_is_as_described(ask, path, method, operation, token):
    answer = ask(path, method, operation, Authorization=token)
    described = COMPONENTS["responses"]["401"]
    content = described["content"][answer["Content-Type"]]
    assert operation["responses"][str(answer.status_code)] == {"$ref": "#/components/responses/401"}
    assert not faults(answer.json(), content["schema"])
    assert answer.json()["code"] in content["examples"]
    assert {*described["headers"]} <= {*answer.headers}


@pytest.mark.django_db
def test_an_exhausted_quota_is_as_described(ask, api, make_quota):
    make_quota("user_2", remaining=0)
    answer = api.signed_in_as("user_2").consume()
    described = COMPONENTS["responses"]["429"]
    assert not faults(answer.json(), described["content"][answer["Content-Type"]]["schema"])
    assert {*described["headers"]} <= {*answer.headers}


# The two addresses without authentication


@pytest.fixture
def visitor(settings_for_clerk):
    return Client(raise_request_exception=False)


@once
def test_the_description_is_given_to_anybody(visitor):
    answer = visitor.get("/api/schema")
    assert (answer.status_code, answer["Content-Type"]) == (200, "application/json")
    assert answer.json() == DESCRIPTION


@once
def test_the_page_keeps_a_strict_policy(visitor):
    page = visitor.get("/api/docs")
    assert set(page["Content-Security-Policy"].split("; ")) == STRICT | {"img-src 'self' data:"}
    assert not re.search(r"<style|\bstyle=|<script(?![^>]*\bsrc=)|\bon\w+=", page.content.decode())


@once
def test_the_page_s_files_are_local(visitor):
    page = visitor.get("/api/docs").content.decode()
    files = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(files) == 6
    for file in files:
        found = file.startswith("/static/") and finders.find(file.removeprefix("/static/"))
        assert found or visitor.get(file)["Content-Type"] == "application/javascript"


@once
@pytest.mark.parametrize("path", ["/api/schema", "/api/docs"])
def test_what_is_open_is_only_read(visitor, path):
    answer = visitor.post(path, "{}", content_type="application/json")
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")

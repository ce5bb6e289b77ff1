"""docs/api.md against the API: its answers, its scopes, its limits, and its sentences of problems."""

import json
import re
from typing import Any

import pytest

from quotas.access import session_tokens
from quotas.api import idempotency, messages, openapi_examples, queries, strict_json
from quotas.api.endpoints import ENDPOINTS, Scope
from quotas.api.middleware import MAX_BODY_BYTES
from quotas.api.openapi import message_schemas
from quotas.reports import history, users
from quotas.rules.values import MAX_UNITS, PLAN_NAME, USER_ID
from quotasite.observing.request_log import REQUEST_ID
from tests import ROOT
from tests.api.test_documented_bodies import BODIES
from tests.api.test_service import service_with
from tests.conftest import Api

PAGE = (ROOT / "docs/api.md").read_text()
JANE = "user_2abc"
QUOTA, ENTRIES = "a quota", "a list of entries"
EXAMPLE = re.compile(r"^`(\w+ /api/[^`]+)`[^\n]*(?:\n[^\n]+)*\n\n```json\n(.*?)```", re.MULTILINE | re.DOTALL)
EXAMPLES = dict(EXAMPLE.findall(PAGE))  # by their requests
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z")
MOMENT = re.compile(r"\d\d:\d\d:\d\d UTC on \d+ \w+ \d{4}")  # in a sentence
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
SECONDS = ("seconds_to_reset", "retry_after")


def normal(value: Any, name: str = "") -> Any:
    """Replace what differs in each run: ids, times, and the seconds to the reset."""
    if isinstance(value, dict):
        return {member: normal(inner, member) for member, inner in value.items()}
    if isinstance(value, list):
        return [normal(item) for item in value]
    if name in SECONDS and isinstance(value, int):
        return "seconds"
    return UUID.sub("id", MOMENT.sub("time", INSTANT.sub("time", value))) if isinstance(value, str) else value


def shape(value: Any) -> Any:
    """Return the names of a message's members, of a list those of its first item."""
    return [*value] if isinstance(value, dict) else shape(value[0])


def shortened(answer: dict[str, Any], shown: dict[str, Any], shapes: dict[str, Any]) -> dict[str, Any]:
    """Put the page's sign where the page has one, and the answer a value of that shape."""
    return {
        name: sign if (sign := shown.get(name)) in [*shapes] and shape(value) == shapes[sign] else value
        for name, value in answer.items()
    }


@pytest.fixture
def story(api: Api) -> dict[str, Any]:
    """The answers to the requests of the page, in its order."""
    jane, service = api.signed_in_as(JANE), service_with().of(JANE)
    answers = [jane.quota(), jane.get("/api/v1/quota"), service.post("consume", BODIES["consume"])]
    spend = answers[-1].json()["id"]
    answers += [
        service.post("check", {"cost": 2}, None),
        service.post(f"consumptions/{spend}/refund", BODIES["refund"]),
        service.post("adjust", BODIES["adjust"]),
        jane.get("/api/v1/quota/history?limit=1"),
        service.get("history?limit=1"),
        service.get("explain"),
        service.get("/api/v1/users"),
        service.get("/api/v1/plans"),
        jane.consume({"cost": 15}),
    ]
    return dict(zip(EXAMPLES, [answer.json() for answer in answers], strict=True))


@pytest.mark.django_db
@pytest.mark.parametrize("request_", EXAMPLES)
def test_an_answer_is_as_the_page_shows_it(story: dict[str, Any], request_: str) -> None:
    quota, page = story["GET /api/v1/quota"], story["GET /api/v1/users/user_2abc/history?limit=1"]
    shown = json.loads(EXAMPLES[request_].replace("{…}", f'"{QUOTA}"').replace("[…]", f'"{ENTRIES}"'))
    answer = shortened(story[request_], shown, {QUOTA: shape(quota), ENTRIES: shape(page["entries"])})
    assert normal(shown) == normal(answer)


@pytest.mark.django_db
def test_the_other_addresses_have_the_answers_that_the_page_names(api: Api) -> None:
    service = service_with().of(JANE)
    own, spent = api.signed_in_as(JANE).consume(BODIES["consume"]), service.post("consume", {})
    quotas = [
        service.get("quota"),
        service.post("reset", BODIES["reset"]),
        service.put("plan", BODIES["plan"]),
    ]
    later = service.get(f"consumptions/{spent.json()['id']}")
    assert (later.status_code, shape(later.json()), shape(own.json())) == (200, *[shape(spent.json())] * 2)
    assert [shape(quota.json()) for quota in quotas] == [shape(spent.json()["quota"])] * 3


@pytest.mark.once
def test_each_answer_is_shown_once() -> None:
    answers = {endpoint.answer for endpoint in ENDPOINTS}
    assert len(EXAMPLES) == len(answers) + 1  # and the 429


@pytest.mark.once
def test_each_scope_has_its_addresses() -> None:
    table = PAGE.partition("| scope |")[2].partition("No scope includes")[0]
    listed = {
        (scope, method, path.rstrip("/"))
        for scope, row in re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.MULTILINE)
        for method, path in re.findall(r"`(\w+) (/[^`]*)`", row)
    }
    assert listed == {
        (endpoint.access.name, endpoint.method, below_users(endpoint.path))
        for endpoint in ENDPOINTS
        if isinstance(endpoint.access, Scope)
    }


def below_users(path: str) -> str:
    return path.removeprefix("v1/users").replace("consumption_id", "id")


@pytest.mark.django_db
def test_no_scope_includes_another(settings_for_clerk: object) -> None:
    refused = service_with("admin").get("quota")
    assert (refused.status_code, refused.json()["code"]) == (403, "scope_missing")
    spent = service_with("consume").post("consume", {})
    refused = service_with("consume").refund(spent.json()["id"])
    assert (spent.status_code, refused.json()["code"]) == (201, "scope_missing")


def max_length(message: str, member: str) -> int:
    return int(message_schemas()[message]["properties"][member]["maxLength"])


LIMITS = {
    "a body": f"{MAX_BODY_BYTES['/api/'] // 1024} KiB, {strict_json.MAX_NESTING} levels of nesting",
    "the query of an address": f"{queries.MAX_QUERY:,} characters",
    "a session token": f"{session_tokens.MAX_TOKEN // 1024} KiB",
    "a user id": f"`{USER_ID.pattern}`",
    "an `Idempotency-Key`": f"`{idempotency.RAW_KEY.pattern}`",
    "an `X-Request-Id` of yours": f"`{REQUEST_ID.pattern}`; another one is replaced",
    "the name of a plan": f"`{PLAN_NAME.pattern}`",
    "`cost`, `amount`, `delta`, a balance": f"{MAX_UNITS:,}",
    "`action`": f"{max_length('ConsumeRequest', 'action')} characters",
    "`reason`": f"{max_length('RefundRequest', 'reason')} characters",
    "`metadata`": f"{messages.MAX_METADATA_BYTES // 1024} KiB without blanks, with 1e3 as 1000",
    "`limit`": f"1 to {queries.MAX_PAGE_SIZE}, {queries.DEFAULT_PAGE_SIZE} without it",
    "a page of the ledger": f"{queries.MAX_PAGE_BYTES // 2**20} MiB, even if it has fewer than `limit`",
    "a page of users": f"looks at {users.MAX_ROWS_PER_PAGE:,} users",
    "the entries in an explanation": f"{history.MAX_ENTRIES_EXPLAINED}",
    "`at`, `seen_since`": "a time with an offset, such as `2026-09-24T08:00:00Z`, not in the future",
}


@pytest.mark.once
def test_the_limits_are_those_of_the_code() -> None:
    table = PAGE.partition("### Limits")[2].partition("## Answers")[0]
    rows = dict(re.findall(r"^\| (.+?) \| (.+) \|$", table, re.MULTILINE))
    assert {name: limit for name, limit in rows.items() if name != "what"} == LIMITS


PROBLEMS = re.findall(r"^\| (\d+) \| `(\w+)` \| (.*) \| (.+) \|$", PAGE, re.MULTILINE)


@pytest.mark.once
def test_each_problem_has_its_sentence_and_what_to_do() -> None:
    shown = [(int(status), code, sentence.replace("\\<", "<")) for status, code, sentence, _ in PROBLEMS]
    made = [(each.type.status, each.type.code, each.detail) for each in openapi_examples.PROBLEMS]
    assert sorted(shown) == sorted(made)
    assert all(to_do.strip() for *_, to_do in PROBLEMS)

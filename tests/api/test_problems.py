"""What all responses share: the form of errors, what a browser may read, request ids, and the probes."""

import ast
import re
import time
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from django.db.migrations.recorder import MigrationRecorder
from django.test import Client

from quotas.access.jwks import key_set
from quotas.api.errors import PROBLEM_TYPES
from quotas.problems import of_refusal
from quotas.rules import outcomes
from quotas.rules.values import Plan, Quota
from tests import ROOT
from tests.site.test_settings import OF_APPS
from tests.tools import keys
from tests.tools.key_server import KeyServer
from tests.tools.keys import PARTY, REMOVE

pytestmark = pytest.mark.django_db
CONSUME = "/api/v1/quota/consume"
STRANGER = "https://evil.example"
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
another_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def in_seconds(seconds):
    return int(time.time()) + seconds


def listed(answer, header):
    return {item.strip().lower() for item in answer[header].split(",")}


# Refused tokens

TOKENS = {
    "token_malformed": lambda: keys.mint(exp=REMOVE),
    "token_expired": lambda: keys.mint(exp=in_seconds(-60)),
    "token_not_yet_valid": lambda: keys.mint(nbf=in_seconds(60)),
    "token_signature": lambda: keys.mint(key=another_key),
    "token_issuer": lambda: keys.mint(iss=STRANGER),
    "token_azp": lambda: keys.mint(azp=STRANGER),
    "token_kind": lambda: keys.mint(header={"cat": "cl_B7d4PD222AAA"}),
    "session_pending": lambda: keys.mint(v2=True, sts="pending"),
}


@pytest.mark.parametrize("code", TOKENS)
def test_a_refused_token_is_a_401_that_says_which_check_failed(api, code):
    answer = api.get("/api/quota", Authorization=f"Bearer {TOKENS[code]()}")
    assert (answer.status_code, answer.json()["code"]) == (401, code)
    assert answer["WWW-Authenticate"] == (
        f'Bearer error="invalid_token", error_description="{answer.json()["detail"]}"'
    )


@pytest.mark.parametrize("path", ["/api/quota", "/api/v1/quota"])
def test_without_a_token_the_challenge_is_bare(api, path):
    answer = api.get(path, Authorization="")
    assert (answer.status_code, answer.json()["code"]) == (401, "token_missing")
    assert answer["WWW-Authenticate"] == "Bearer"


def test_the_challenge_quotes_nothing_of_the_token(api):
    answer = api.get("/api/quota", Authorization=f"Bearer {keys.mint(iss='https://evil')}")
    assert answer.json()["code"] == "token_issuer"
    assert "evil" not in answer["WWW-Authenticate"] + answer.json()["detail"]


def test_the_scheme_is_read_in_any_case(api):
    assert api.get("/api/quota", Authorization=f"bEARER {keys.mint()}").status_code == 200


def test_without_a_key_to_check_tokens_with_the_api_is_unavailable(api, settings):
    settings.CLERK_JWT_KEY = ""
    answer = api.quota()
    assert (answer.status_code, answer.json()["code"]) == (503, "keys_unavailable")
    assert int(answer["Retry-After"]) > 0


def test_a_staff_session_is_nobody_to_the_api(admin_client):
    answer = admin_client.get("/api/quota")
    assert (answer.status_code, answer.json()["code"]) == (401, "token_missing")


# Faults of the server


def test_a_fault_of_the_server_is_a_problem_that_says_nothing_of_its_cause(api, monkeypatch):
    def fail(*_):
        raise RuntimeError("the secret is 1234")

    monkeypatch.setattr("quotas.api.responses.rate_limit_headers", fail)
    answer = api.quota()
    assert (answer.status_code, answer["Content-Type"]) == (500, "application/problem+json")
    assert answer.json()["code"] == "server_error"
    assert b"1234" not in answer.content


def test_without_a_default_plan_nobody_gets_a_quota_and_the_reason_is_told(api):
    from quotas.models import Plan

    Plan.objects.update(is_default=False)
    answer = api.quota()
    assert (answer.status_code, answer.json()["code"]) == (503, "no_default_plan")
    assert "admin" in answer.json()["detail"]


# What a browser may read


def test_a_configured_origin_may_read_the_answer(api):
    answer = api.get("/api/quota", Origin=PARTY)
    assert answer["Access-Control-Allow-Origin"] == PARTY
    assert "origin" in listed(answer, "Vary")


def test_a_configured_origin_may_read_five_headers(api):
    assert listed(api.get("/api/quota", Origin=PARTY), "Access-Control-Expose-Headers") == {
        "ratelimit",
        "ratelimit-policy",
        "retry-after",
        "idempotent-replayed",
        "x-request-id",
    }


def test_no_cookie_is_asked_for(api):
    assert "Access-Control-Allow-Credentials" not in api.get("/api/quota", Origin=PARTY)


@pytest.mark.parametrize(
    "origin",
    [STRANGER, "null", "http://app.example.com", f"{PARTY}:8443", f"{PARTY}.evil.example", "https://"],
)
@pytest.mark.parametrize("method", ["GET", "OPTIONS"])
def test_another_origin_may_read_nothing(api, origin, method):
    answer = api.send(method, "/api/quota", Origin=origin, Access_Control_Request_Method="GET")
    assert not [name for name in answer.headers if name.lower().startswith("access-control-allow")]


def preflight(api, **request_headers):
    """Send the OPTIONS request of a browser before a POST, which has no token."""
    headers = {"Access_Control_Request_Method": "POST", "Origin": PARTY, **request_headers}
    return api.send("OPTIONS", CONSUME, Authorization="", **headers)


@pytest.mark.parametrize("header", ["authorization", "content-type", "idempotency-key"])
def test_a_preflight_allows_what_the_spa_sends(api, header):
    answer = preflight(api, Access_Control_Request_Headers=header)
    assert answer.status_code == 200
    assert answer["Access-Control-Allow-Origin"] == PARTY
    assert header in listed(answer, "Access-Control-Allow-Headers")
    assert "post" in listed(answer, "Access-Control-Allow-Methods")


ADDED_BY_LIBRARIES = [
    "baggage,sentry-trace",
    "traceparent,tracestate",
    "x-datadog-origin,x-datadog-parent-id,x-datadog-sampling-priority,x-datadog-trace-id",
    "x-client-version",
    "x-request-id",
    "ngrok-skip-browser-warning",
    "X-B3-TraceId, x-amzn-trace-id",
]


@pytest.mark.parametrize("names", ADDED_BY_LIBRARIES)
def test_a_preflight_allows_what_libraries_add(api, names):
    answer = preflight(api, Access_Control_Request_Headers=f"authorization,{names}")
    allowed = listed(answer, "Access-Control-Allow-Headers")
    assert {
        "authorization",
        "idempotency-key",
        *(name.strip().lower() for name in names.split(",")),
    } <= allowed
    assert "Access-Control-Allow-Credentials" not in answer
    assert int(answer["Access-Control-Max-Age"]) > 0
    assert listed(answer, "Vary") == {"origin", "access-control-request-headers"}


@pytest.mark.parametrize(
    "garbled", ["", "a b", "a\nb", "x-a,,x-b", "x-ü", "x-a,(x)", "x" * 4_097, "x-a,@x", "x-a;x-b"]
)
def test_a_garbled_list_of_headers_adds_none(api, garbled):
    plain = preflight(api)
    answer = preflight(api, Access_Control_Request_Headers=garbled)
    assert answer.status_code == 200
    assert answer["Access-Control-Allow-Headers"] == plain["Access-Control-Allow-Headers"]


def test_a_header_that_is_usual_is_named_once(api):
    answer = preflight(api, Access_Control_Request_Headers="authorization,baggage,baggage")
    names = answer["Access-Control-Allow-Headers"].split(", ")
    assert len(names) == len(set(names))


@pytest.mark.parametrize("origin", OF_APPS)
def test_apps_and_extensions_are_origins_too(api, settings, origin):
    settings.CLERK_AUTHORIZED_PARTIES = settings.CORS_ALLOWED_ORIGINS = [PARTY, origin]
    answer = api.signed_in_as("user_1", azp=origin).get("/api/quota", Origin=origin, Baggage="a=1")
    assert (answer.status_code, answer["Access-Control-Allow-Origin"]) == (200, origin)
    assert preflight(api, Origin=origin)["Access-Control-Allow-Origin"] == origin
    stranger = api.get("/api/quota", Origin=f"{origin}x")
    assert "Access-Control-Allow-Origin" not in stranger


ERRORS = {
    400: lambda api: api.consume(raw=b"{", Origin=PARTY),
    401: lambda api: api.get("/api/quota", Authorization="", Origin=PARTY),
    404: lambda api: api.get("/api/nothing", Origin=PARTY),
    411: lambda api: api.consume(Transfer_Encoding="chunked", Origin=PARTY),
    413: lambda api: api.consume(raw=b" " * 65_537, Origin=PARTY),
    422: lambda api: api.consume({"cost": 21}, Origin=PARTY),
    429: lambda api: api.consume({"cost": 20}, Origin=PARTY),
}


@pytest.mark.parametrize("status", ERRORS)
def test_a_configured_origin_may_read_errors_too(api, make_quota, status):
    make_quota(remaining=12)
    answer = ERRORS[status](api)
    assert answer.status_code == status
    assert answer["Access-Control-Allow-Origin"] == PARTY
    assert "retry-after" in listed(answer, "Access-Control-Expose-Headers")


def test_outside_the_api_no_origin_is_allowed(api):
    for path in ("/healthz", "/webhooks/clerk", "/admin/login/"):
        assert "Access-Control-Allow-Origin" not in api.get(path, Origin=PARTY)


# The request's id


@pytest.mark.parametrize("given", ["a", "0199-AbC", "x" * 64])
def test_a_well_formed_request_id_comes_back(api, given):
    assert api.get("/api/quota", X_Request_Id=given)["X-Request-Id"] == given


@pytest.mark.parametrize(
    "given", ["", "x" * 65, "a b", "a_b", "a\n", "a\r\nSet-Cookie: a=b", "é", "a\x00", "<a>"]
)
def test_a_malformed_request_id_is_replaced(api, given):
    answered = api.get("/api/quota", X_Request_Id=given)["X-Request-Id"]
    assert answered != given
    assert re.fullmatch(r"[0-9a-f-]{36}", answered)


def test_each_request_gets_an_id_of_its_own(api):
    assert api.quota()["X-Request-Id"] != api.quota()["X-Request-Id"]


@pytest.mark.parametrize("status", ERRORS)
def test_an_error_has_a_request_id(api, make_quota, status):
    make_quota(remaining=12)
    assert ERRORS[status](api)["X-Request-Id"]


# The probes


@pytest.fixture
def probe(settings_for_clerk):
    return Client(raise_request_exception=False)


def test_the_process_is_alive(probe, django_assert_num_queries):
    with django_assert_num_queries(0):
        answer = probe.get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "alive"})


def test_a_migrated_database_is_ready(probe):
    answer = probe.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (200, "ready")


@pytest.mark.parametrize("app", ["quotas", "webhooks", "auth"])
def test_a_missing_migration_is_not_ready_and_is_named(probe, app):
    last = MigrationRecorder.Migration.objects.filter(app=app).latest("id")
    last.delete()
    answer = probe.get("/readyz")
    assert (answer.status_code, answer.json()["code"]) == (503, "not_migrated")
    assert f"{app}.{last.name}" in answer.json()["detail"]
    assert int(answer["Retry-After"]) > 0


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_a_probe_is_never_kept_and_never_redirected(probe, path):
    answer = probe.get(path)
    assert answer.status_code == 200
    assert "no-store" in answer["Cache-Control"]


def test_without_keys_the_service_is_still_ready(probe, settings):
    settings.CLERK_JWT_KEY = settings.CLERK_JWKS_URL = ""
    assert probe.get("/readyz").json()["keys"] == "none"


def test_the_readiness_probe_starts_the_fetch_of_the_keys(probe, settings):
    with KeyServer() as server:
        settings.CLERK_JWT_KEY, settings.CLERK_JWKS_URL = "", server.url
        assert probe.get("/readyz").json()["keys"] == "JWKS"
        key_set(server.url).find(keys.KID)
        assert server.fetches == 1


@pytest.mark.parametrize("path", ["/api", "/api/", "/webhooks", "/webhooks/"])
def test_an_address_without_anything_is_no_redirect(api, path):
    answer = api.client.get(path)
    assert (answer.status_code, answer["Content-Type"]) == (404, "application/problem+json")


# Each problem is declared once


PLAN = Plan("free", 1, 20, "rolling", timedelta(days=1), "UTC", {"generate": 1})
QUOTA = Quota("user_1", PLAN, 20, 3, 17, 0, NOON, NOON + timedelta(days=1), NOON)
REFUSALS = [
    outcomes.Exhausted(QUOTA, 4, PLAN),
    outcomes.CostExceedsLimit(50, 20),
    outcomes.UnknownAction(PLAN, "draw"),
    outcomes.CostBelowPrice("generate", 3),
    outcomes.AdjustmentOutOfRange(-50, 12),
    outcomes.AdjustmentOutOfRange(5, None),
    outcomes.UnknownPlan(),
    outcomes.UnknownUser(),
    outcomes.ConsumptionNotFound(),
    outcomes.RefundTooLarge(5, 1),
    outcomes.AlreadyRefunded(),
    outcomes.Deleted(),
    outcomes.KeyReused(),
]


@pytest.mark.once
@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.code)
def test_what_the_rules_refuse_has_a_sentence(refusal):
    problem = of_refusal(refusal)
    assert problem.type.code == refusal.code
    assert problem.detail.endswith(".")
    assert "{" not in problem.detail


@pytest.mark.once
def test_no_refusal_is_left_out():
    assert {type(refusal) for refusal in REFUSALS} == {*outcomes.Refusal.__subclasses__()}


@pytest.mark.once
def test_no_sentence_of_a_problem_stands_twice():
    trees = [ast.parse(path.read_text()) for path in ROOT.glob("quotas/**/*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    sentences = [declared.sentence for declared in PROBLEM_TYPES if " " in declared.sentence]
    parts = [max(re.split(r"\{.*?\}|\d+", sentence), key=len) for sentence in sentences]
    assert len(parts) > 60
    assert [part for part in parts if sum(part in text for text in texts) != 1] == []

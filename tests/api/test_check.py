"""Whether a spend would be granted: asked by a user or a server, and nothing is spent or stored."""

from datetime import timedelta

import pytest

from quotas.models import ChallengeQuota, LedgerEntry, Plan, ServiceKey
from quotas.rules.values import MAX_UNITS
from tests.api.test_service import QUOTA, Service, code
from tests.conftest import STAFF, USER

pytestmark = pytest.mark.django_db
MEMBERS = {"allowed", "cost", "remaining_after", "code", "detail", "resets_at", "retry_after", "quota"}


@pytest.fixture
def service(api):
    return Service(ServiceKey.make("a server", ["read"])[1], client=api.client)


@pytest.fixture
def check(api):
    return lambda **body: api.check(body)


def stored():
    return list(ChallengeQuota.objects.values()), list(LedgerEntry.objects.values())


def test_a_spend_that_would_be_granted(check, make_quota):
    make_quota(remaining=18)
    answer = check(cost=2)
    body = answer.json()
    assert (answer.status_code, body.keys()) == (200, MEMBERS)
    assert (body["allowed"], body["cost"], body["remaining_after"]) == (True, 2, 16)
    assert body["detail"] == "A spend of 2 would be granted, with 16 left after it."
    assert (body["code"], body["retry_after"]) == (None, None)
    assert body["quota"].keys() == QUOTA
    assert (body["quota"]["quota_remaining"], body["resets_at"]) == (18, body["quota"]["resets_at"])
    assert answer["RateLimit"].startswith('"free";r=18;t=')
    assert "Idempotent-Replayed" not in answer


def test_a_spend_that_would_find_too_little(api, check, make_quota):
    make_quota(remaining=1)
    answer, refused = check(cost=2).json(), api.consume({"cost": 2}).json()
    assert (answer["allowed"], answer["remaining_after"]) == (False, None)
    assert (answer["code"], answer["detail"]) == ("quota_exhausted", refused["detail"])
    assert answer["retry_after"] - refused["retry_after"] in range(3)
    assert answer["resets_at"] == refused["resets_at"]


def test_a_spend_that_no_period_could_grant(check, make_quota):
    make_quota(remaining=18)
    body = check(cost=21).json()
    assert (body["allowed"], body["code"], body["cost"]) == (False, "cost_exceeds_limit", 21)
    assert (body["remaining_after"], body["retry_after"]) == (None, None)


@pytest.mark.parametrize("cost", [1, 3, 4, 20, 21, MAX_UNITS])
def test_it_says_what_a_spend_then_meets(api, check, make_quota, cost):
    make_quota(remaining=3)
    body, met = check(cost=cost).json(), api.consume({"cost": cost})
    assert (body["allowed"], body["code"]) == (met.status_code == 201, met.json().get("code"))
    if body["allowed"]:
        assert body["remaining_after"] == met.json()["quota"]["quota_remaining"]


def test_without_a_cost_it_is_the_price_of_the_action_or_1(check, make_quota):
    Plan.objects.update(actions={"generate": 5})
    make_quota(remaining=18)
    found = [check(**body).json() for body in ({}, {"action": "generate"}, {"action": "generate", "cost": 7})]
    assert [(body["cost"], body["remaining_after"]) for body in found] == [(1, 17), (5, 13), (7, 11)]


def test_a_request_that_no_quota_could_grant_is_refused_as_a_spend_is(api, check, service, make_quota):
    Plan.objects.update(actions={"generate": 5})
    make_quota(remaining=18)
    for body in ({"action": "paint"}, {"action": "generate", "cost": 4}):
        refused = check(**body)
        assert (refused.status_code, refused.json()) == (422, api.consume(body).json())
    assert service.post("check", {"action": "generate", "cost": 4}).json()["allowed"]


def test_nothing_is_stored_whatever_it_finds(check, service, make_quota, shift):
    make_quota(remaining=1)
    for later in (0, 30):  # hours: then a reset is due
        shift(USER, timedelta(hours=later))
        before = stored()
        for cost in (1, 2, 21):
            check(cost=cost)
            service.post("check", {"cost": cost})
        assert stored() == before


def test_a_reset_that_is_due_counts_as_carried_out(check, make_quota, shift):
    make_quota(remaining=0)
    shift(USER, timedelta(hours=24))
    body = check(cost=20).json()
    assert (body["allowed"], body["remaining_after"], body["quota"]["quota_remaining"]) == (True, 0, 20)
    assert body["quota"]["seconds_to_reset"] in range(86_390, 86_401)


def test_a_user_without_a_quota_is_answered_as_the_default_plan_would_open_it(check, service):
    found = [check(cost=2).json(), service.of("user_new").post("check", {"cost": 2}).json()]
    assert [(body["remaining_after"], body["quota"]["plan"]) for body in found] == [(18, "free")] * 2
    assert stored() == ([], [])


def test_without_a_limit_all_is_granted(check, make_quota):
    make_quota(allowance=None)
    body = check(cost=MAX_UNITS).json()
    assert (body["allowed"], body["remaining_after"]) == (True, MAX_UNITS)
    assert body["detail"] == f"A spend of {MAX_UNITS} would be granted: there is no limit."


def test_a_deleted_user_is_gone(check, make_quota):
    make_quota()
    ChallengeQuota.objects.delete(USER, actor=STAFF)
    assert code(check()) == (410, "user_deleted")


@pytest.mark.parametrize("key", [None, "k-1", "a b", "", "k" * 129])
def test_a_key_is_neither_needed_nor_read(api, service, make_quota, key):
    make_quota(remaining=18)
    api.consume({"cost": 5}, key="k-1")
    answer = service.post("check", {"cost": 2}, key)
    assert (answer.status_code, answer.json()["remaining_after"]) == (200, 11)


def test_metadata_are_not_taken(check):
    assert code(check(metadata={})) == (400, "invalid_request")


def test_each_caller_has_an_address_of_its_own(api, service, make_quota):
    make_quota()
    assert code(api.send("POST", f"/api/v1/users/{USER}/check", "{}")) == (403, "service_only")
    assert code(service.post("/api/v1/quota/check", {})) == (403, "user_only")

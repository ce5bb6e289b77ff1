"""A server asks for a consumption, such as one that a browser made: what it cost, and what was refunded."""

from datetime import timedelta
from uuid import uuid4

import pytest

from quotas.models import ChallengeQuota, LedgerEntry, Plan, ServiceKey
from tests.api.test_service import Service, code
from tests.conftest import USER

pytestmark = pytest.mark.django_db


@pytest.fixture
def service(api):
    return Service(ServiceKey.make("a server", ServiceKey.SCOPES)[1], client=api.client)


def test_a_consumption_is_shown_as_its_spend_was_answered(api, service, make_quota):
    Plan.objects.update(actions={"draw": 5})
    make_quota(remaining=12)
    spent = api.consume({"action": "draw", "metadata": {"a": 1}}).json()
    api.consume({"cost": 2})
    shown = service.get(f"consumptions/{spent['id']}")
    assert (shown.status_code, shown.json()) == (200, spent)
    assert shown.json()["quota"]["quota_remaining"] == 7


def test_it_is_no_replay_and_its_rate_limit_is_as_of_now(api, service, make_quota):
    make_quota(remaining=12)
    spent = api.consume({"cost": 5}).json()["id"]
    api.consume({"cost": 2})
    shown = service.get(f"consumptions/{spent}")
    assert "Idempotent-Replayed" not in shown
    assert shown["RateLimit"].startswith('"free";r=5;t=')
    assert shown["Cache-Control"] == "no-store"


def test_it_says_how_much_was_refunded_by_now(api, service, make_quota):
    make_quota(remaining=12)
    spent = api.consume({"cost": 5}).json()["id"]
    refunded = []
    for amount in (1, 3):
        refunded.append(service.get(f"consumptions/{spent}").json()["refunded"])
        service.refund(spent, amount=amount)
    assert [*refunded, service.get(f"consumptions/{spent}").json()["refunded"]] == [0, 1, 4]


def test_it_is_shown_under_the_plan_version_that_it_was_made_under(api, service, make_quota, shift):
    make_quota(remaining=12)
    spent = api.consume({"cost": 5}).json()
    plan = Plan.objects.get()
    plan.period_seconds = 3_600
    plan.save()
    shift(USER, timedelta(days=2))
    assert service.get("quota").json()["period_seconds"] == 3_600
    assert service.get(f"consumptions/{spent['id']}").json()["quota"]["period_seconds"] == 86_400


def test_a_read_of_a_consumption_carries_out_no_reset(api, service, make_quota, shift):
    make_quota(remaining=12)
    spent = api.consume({"cost": 5}).json()["id"]
    shift(USER, timedelta(days=2))
    before = list(ChallengeQuota.objects.values()), LedgerEntry.objects.count()
    shown = service.get(f"consumptions/{spent}")
    assert shown["RateLimit"].startswith('"free";r=20;t=')
    assert (list(ChallengeQuota.objects.values()), LedgerEntry.objects.count()) == before


def test_what_is_no_consumption_of_this_user_is_not_found(api, service, make_quota):
    make_quota("user_2")
    make_quota(remaining=12)
    of_another = api.signed_in_as("user_2").consume().json()["id"]
    no_spend = LedgerEntry.objects.get(user_id=USER, kind="adjusted").id
    for entry in (of_another, no_spend, uuid4()):
        assert code(service.get(f"consumptions/{entry}")) == (404, "consumption_not_found")


def test_for_a_user_without_a_quota_none_is_opened(service):
    assert code(service.get(f"consumptions/{uuid4()}")) == (404, "consumption_not_found")
    assert ChallengeQuota.objects.count() == 0


@pytest.mark.parametrize("entry", ["1", "x", "%00", "0" * 36, f"{uuid4()}x", f"{uuid4()}/", "..", "'"])
def test_what_is_no_id_is_not_found(service, entry):
    assert code(service.get(f"consumptions/{entry}")) == (404, "not_found")


def test_a_user_may_not_ask_for_it(api, service, make_quota):
    make_quota()
    spent = api.consume().json()["id"]
    assert code(api.get(f"/api/v1/users/{USER}/consumptions/{spent}")) == (403, "service_only")

"""The RateLimit fields: the exact bytes, on every response about a quota."""

import re
from datetime import timedelta

import pytest

from quotas.models import ChallengeQuota, Plan
from tests.api.test_service import service_with
from tests.conftest import STAFF, USER
from tests.tools import keys

pytestmark = pytest.mark.django_db


def fields(answer):
    """Return the two fields as sent, with T for the seconds to the reset, which depend on the clock."""
    sent = (answer.get("RateLimit-Policy"), answer.get("RateLimit"))
    return tuple(field and re.sub(r"(?<=;t=)[0-9]+\Z", "T", field) for field in sent)


def seconds(answer):
    return int(re.fullmatch(r'"[a-z0-9_-]+";r=[0-9]+;t=([0-9]+)', answer["RateLimit"])[1])


def edit_plan(**rules):
    plan = Plan.objects.get()
    for rule, value in rules.items():
        setattr(plan, rule, value)
    plan.save()


FREE = '"free";q=20;w=86400'


@pytest.mark.parametrize(
    ("rules", "sent"),
    [
        ({"reset_policy": "rolling"}, FREE),
        ({"reset_policy": "rolling", "period_seconds": 3_600}, '"free";q=20;w=3600'),
        ({"reset_policy": "anchored", "period_seconds": 90}, '"free";q=20;w=90'),
        ({"reset_policy": "daily", "period_seconds": 90}, FREE),
        ({"reset_policy": "weekly"}, '"free";q=20;w=604800'),
        ({"reset_policy": "monthly"}, '"free";q=20'),
        ({"allowance": 0}, '"free";q=0;w=86400'),
        ({"allowance": 2_147_483_647}, '"free";q=2147483647;w=86400'),
    ],
)
@pytest.mark.parametrize("path", ["/api/quota", "/api/v1/quota"])
def test_the_policy_says_how_much_in_how_many_seconds(api, path, rules, sent):
    edit_plan(**rules)
    assert fields(api.get(path)) == (sent, f'"free";r={rules.get("allowance", 20)};t=T')


def test_the_name_is_the_plans(api):
    Plan.objects.create(name="pro-2_x", allowance=50)
    ChallengeQuota.objects.change_plan(USER, "pro-2_x", actor=STAFF)
    assert fields(api.quota()) == ('"pro-2_x";q=50;w=86400', '"pro-2_x";r=50;t=T')


@pytest.mark.parametrize("reset_policy", ["rolling", "daily", "weekly", "monthly"])
def test_the_seconds_are_those_of_the_body(api, reset_policy):
    edit_plan(reset_policy=reset_policy)
    answer = api.get("/api/v1/quota")
    assert seconds(answer) == answer.json()["seconds_to_reset"] > 0


def test_the_seconds_are_what_is_left_of_the_period(api, make_quota, shift):
    make_quota()
    shift(USER, timedelta(hours=10))
    assert 14 * 3_600 - 60 < seconds(api.quota()) <= 14 * 3_600


def test_more_can_be_left_than_the_plan_gives(api, make_quota):
    make_quota(remaining=25)
    assert fields(api.quota()) == (FREE, '"free";r=25;t=T')


@pytest.mark.parametrize("path", ["/api/quota", "/api/v1/quota"])
def test_an_unlimited_quota_has_no_such_fields(api, make_quota, path):
    make_quota(allowance=None)
    assert fields(api.get(path)) == (None, None)


def test_an_edited_plan_is_announced_from_the_next_reset_on(api, make_quota, shift):
    make_quota()
    edit_plan(allowance=50, period_seconds=3_600)
    assert fields(api.quota()) == (FREE, '"free";r=20;t=T')
    shift(USER, timedelta(days=1))
    assert fields(api.quota()) == ('"free";q=50;w=3600', '"free";r=50;t=T')


def test_a_spend_tells_what_is_left_after_it(api, make_quota):
    make_quota(remaining=12)
    answer = api.consume({"cost": 5})
    assert (answer.status_code, *fields(answer)) == (201, FREE, '"free";r=7;t=T')
    assert seconds(answer) == answer.json()["quota"]["seconds_to_reset"]


@pytest.mark.parametrize("left", [0, 3])
def test_a_refusal_tells_what_is_left_and_agrees_with_its_retry_after(api, make_quota, left):
    make_quota(remaining=left)
    answer = api.consume({"cost": 5})
    assert (answer.status_code, *fields(answer)) == (429, FREE, f'"free";r={left};t=T')
    assert str(seconds(answer)) == answer["Retry-After"]


def test_a_replay_has_the_fields_of_now(api, make_quota, shift):
    make_quota(remaining=12)
    first = api.consume({"cost": 5}, key="k-1")
    api.consume({"cost": 6})
    shift(USER, timedelta(hours=1))
    second = api.consume({"cost": 5}, key="k-1")
    assert (second["Idempotent-Replayed"], *fields(second)) == ("true", FREE, '"free";r=1;t=T')
    assert 3_600 <= seconds(first) - seconds(second) < 3_660


def test_a_replay_after_the_period_has_the_fields_of_a_full_quota(api, make_quota, shift):
    make_quota(remaining=12)
    api.consume({"cost": 5}, key="k-1")
    shift(USER, timedelta(days=2))
    second = api.consume({"cost": 5}, key="k-1")
    assert (second.json()["quota"]["quota_remaining"], fields(second)[1]) == (7, '"free";r=20;t=T')


def test_every_verb_of_a_service_has_them(make_quota):
    make_quota(remaining=12)
    Plan.objects.create(name="pro", allowance=50, period_seconds=3_600)
    service = service_with()
    spend = service.post("consume", {"cost": 5})
    answers = [
        spend,
        service.post(f"consumptions/{spend.json()['id']}/refund", {"amount": 2, "reason": "r"}),
        service.post("adjust", {"delta": 20, "reason": "r"}),
        service.get("quota"),
        service.post("reset", {"reason": "r"}),
        service.put("plan", {"plan": "pro"}),
    ]
    assert [fields(answer) for answer in answers] == [
        (FREE, '"free";r=7;t=T'),
        (FREE, '"free";r=9;t=T'),
        (FREE, '"free";r=29;t=T'),
        (FREE, '"free";r=29;t=T'),
        (FREE, '"free";r=20;t=T'),
        ('"pro";q=50;w=3600', '"pro";r=50;t=T'),
    ]
    assert service.post("consume", {"cost": 50}).status_code == 201
    refused = service.post("consume", {"cost": 2})
    assert (refused.status_code, fields(refused)[1]) == (429, '"pro";r=0;t=T')


def test_the_setting_turns_them_off(api, make_quota, settings):
    settings.QUOTA_RATELIMIT_DRAFT = "off"
    make_quota(remaining=3)
    answers = [api.quota(), api.get("/api/v1/quota"), api.consume({"cost": 2}), api.consume({"cost": 2})]
    assert [answer.status_code for answer in answers] == [200, 200, 201, 429]
    assert [fields(answer) for answer in answers] == [(None, None)] * 4
    assert answers[3]["Retry-After"]  # which does not belong to that draft


def test_a_page_of_the_spa_may_read_them(api, make_quota):
    make_quota(remaining=1)
    for answer in (api.consume(Origin=keys.PARTY), api.consume(Origin=keys.PARTY)):
        assert answer["Access-Control-Allow-Origin"] == keys.PARTY
        exposed = set(answer["Access-Control-Expose-Headers"].split(", "))
        assert exposed >= {"RateLimit", "RateLimit-Policy", "Retry-After", "Idempotent-Replayed"}

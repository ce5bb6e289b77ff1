"""Spending: all or nothing, once per key, and a refusal that states when there is more."""

import math
from datetime import UTC, datetime, timedelta

import pytest

from quotas.models import ChallengeQuota, LedgerEntry, Plan
from quotas.problems import of_refusal
from quotas.rules.outcomes import Exhausted
from tests.conftest import STAFF, USER

pytestmark = pytest.mark.django_db
DAY = timedelta(days=1)


def remaining(user_id=USER):
    return ChallengeQuota.objects.get(pk=user_id).quota_remaining


def entries(kind, user_id=USER):
    return LedgerEntry.objects.filter(user_id=user_id, kind=kind).count()


def code(answer):
    return answer.status_code, answer.json().get("code")


def test_a_spend_costs_1_unless_it_says_more(api, make_quota):
    make_quota(remaining=12)
    answer = api.consume()
    assert (answer.status_code, answer.json()["cost"]) == (201, 1)
    assert answer.json()["quota"]["quota_remaining"] == remaining() == 11


def test_a_spend_takes_what_it_says(api, make_quota):
    make_quota(remaining=12)
    assert api.consume({"cost": 5}).json()["quota"]["quota_remaining"] == remaining() == 7


def test_the_last_units_can_be_spent(api, make_quota):
    make_quota(remaining=3)
    answer = api.consume({"cost": 3})
    assert (answer.status_code, remaining()) == (201, 0)


def test_one_unit_too_many_takes_nothing(api, make_quota):
    make_quota(remaining=3)
    assert code(api.consume({"cost": 4})) == (429, "quota_exhausted")
    assert remaining() == 3


def test_a_spend_opens_a_missing_quota(api):
    assert api.consume({"cost": 2}).json()["seq"] == 2
    assert remaining() == 18


def test_a_spend_resets_a_quota_that_is_due(api, make_quota, shift):
    make_quota(remaining=0)
    shift(USER, DAY)
    assert api.consume({"cost": 2}).status_code == 201
    assert (remaining(), entries("reset")) == (18, 1)


def test_a_consumption_has_exactly_these_members(api, make_quota):
    make_quota(remaining=12)
    answer = api.consume({"cost": 5}).json()
    entry = LedgerEntry.objects.get(kind="consumed")
    assert answer.keys() == {"id", "user_id", "seq", "cost", "action", "refunded", "created_at", "quota"}
    assert (answer["id"], answer["seq"], answer["action"]) == (str(entry.id), 3, None)
    assert answer["created_at"].endswith("Z")
    assert answer["quota"].items() >= {"quota_limit": 20, "quota_used": 5, "quota_remaining": 7}.items()


def test_the_quota_in_a_consumption_is_the_one_that_a_read_gives(api, make_quota):
    make_quota(remaining=12)
    spent, read = api.consume().json()["quota"], api.get("/api/v1/quota").json()
    assert spent.pop("seconds_to_reset") - read.pop("seconds_to_reset") in range(60)
    assert spent == read


def test_the_entry_keeps_who_spent_what_for_what(api, make_quota):
    make_quota(remaining=12)
    api.consume({"cost": 5, "metadata": {"prompt": "ünïcode", "deep": [1, {"a": None}]}})
    entry = LedgerEntry.objects.get(kind="consumed")
    assert (entry.actor_kind, entry.actor_id, entry.act) == ("user", "user_1", "")
    assert (entry.cost, entry.delta, entry.balance_after) == (5, -5, 7)
    assert entry.metadata == {"prompt": "ünïcode", "deep": [1, {"a": None}]}


def test_the_entry_names_who_stands_behind_an_impersonated_user(api, make_quota):
    make_quota()
    api.signed_in_as("user_1", act={"sub": "user_support"}).consume()
    entry = LedgerEntry.objects.get(kind="consumed")
    assert (entry.actor_id, entry.act) == ("user_1", "user_support")


def test_an_unlimited_quota_is_never_exhausted_and_its_costs_are_kept(api, make_quota):
    make_quota(allowance=None)
    answer = api.consume({"cost": 2_147_483_647})
    assert answer.json()["quota"]["quota_remaining"] == 2_147_483_647
    entry = LedgerEntry.objects.get(kind="consumed")
    assert (entry.cost, entry.delta, entry.balance_after) == (2_147_483_647, 0, 0)


# Refusals


def test_a_refusal_has_exactly_these_members(api, make_quota):
    make_quota(remaining=3)
    answer = api.consume({"cost": 5})
    refused = LedgerEntry.objects.get(kind="refused")
    wait = math.ceil((refused.resets_at - refused.created_at).total_seconds())
    assert (answer.status_code, answer["Content-Type"]) == (429, "application/problem+json")
    assert answer["Retry-After"] == str(wait)
    assert answer.json() == {
        "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
        "title": "Quota exceeded",
        "status": 429,
        "code": "quota_exhausted",
        "detail": answer.json()["detail"],
        "violated-policies": ["free"],
        "quota_limit": 20,
        "quota_remaining": 3,
        "cost": 5,
        "resets_at": refused.resets_at.isoformat().replace("+00:00", "Z"),
        "retry_after": wait,
    }


@pytest.mark.parametrize(
    ("left", "sentence"),
    [
        (0, "Quota exhausted: 0 of 20 left, 20 more"),
        (3, "Quota exhausted: 3 of 20 left and 5 needed, 20 more"),
    ],
)
def test_a_refusal_says_in_one_sentence_what_is_left_and_when_there_is_more(api, make_quota, left, sentence):
    make_quota(remaining=left)
    problem = api.consume({"cost": 5}).json()
    beginning, _, at = problem["detail"].removesuffix(".").partition(" at ")
    late = datetime.fromisoformat(at) - datetime.fromisoformat(problem["resets_at"])
    assert beginning == sentence
    assert timedelta(0) <= late < timedelta(seconds=1)


def test_a_refusal_under_a_plan_that_is_unlimited_by_now_says_so(api, make_quota):
    make_quota(remaining=0)
    Plan.objects.update(allowance=None)
    assert api.consume().json()["detail"].startswith("Quota exhausted: 0 of 20 left, no limit at ")


def test_what_retry_after_promises_is_kept(api, make_quota, shift):
    make_quota(remaining=0)
    wait = int(api.consume()["Retry-After"])
    shift(USER, timedelta(seconds=wait - 60))
    assert api.consume().status_code == 429
    shift(USER, timedelta(seconds=60))
    assert api.consume().status_code == 201
    assert remaining() == 19


def test_an_exhausted_quota_is_full_again_after_24_hours(api, make_quota, shift):
    make_quota(remaining=0)
    assert api.consume().status_code == 429
    shift(USER, DAY)
    assert api.quota().json()["quota_remaining"] == 20


@pytest.mark.parametrize(("milliseconds", "seconds"), [(-500, 1), (0, 1), (1, 1), (1_000, 1), (1_001, 2)])
def test_retry_after_is_at_least_1(make_quota, milliseconds, seconds):
    quota = make_quota(remaining=0).effective(datetime.now(UTC))
    ends = quota.at + timedelta(milliseconds=milliseconds)
    refusal = Exhausted(quota._replace(resets_at=ends), 1, quota.plan)
    assert of_refusal(refusal).retry_after == seconds


def test_only_the_first_refusal_of_a_period_is_written(api, make_quota):
    make_quota(remaining=3)
    for cost in (4, 4, 20):
        assert api.consume({"cost": cost}).status_code == 429
    refused = LedgerEntry.objects.get(kind="refused")
    assert (refused.cost, refused.delta, refused.balance_after) == (4, 0, 3)
    assert LedgerEntry.objects.count() == 3  # opened, adjusted, refused


def test_a_spend_between_two_refusals_writes_no_second_one(api, make_quota):
    make_quota(remaining=3)
    assert [api.consume({"cost": cost}).status_code for cost in (4, 2, 4)] == [429, 201, 429]
    assert entries("refused") == 1


def test_the_first_refusal_of_the_next_period_is_written_again(api, make_quota, shift):
    make_quota(remaining=0)
    api.consume()
    shift(USER, DAY)
    assert [api.consume({"cost": 20}).status_code for _ in range(3)] == [201, 429, 429]
    assert entries("refused") == 2


def test_a_refusal_that_finds_the_quota_due_cannot_be(api, make_quota, shift):
    make_quota(remaining=0)
    shift(USER, DAY)
    assert api.consume({"cost": 20}).status_code == 201
    assert (entries("refused"), remaining()) == (0, 0)


def test_a_cost_that_can_never_be_paid_stores_nothing(api):
    assert code(api.consume({"cost": 21})) == (422, "cost_exceeds_limit")
    assert (ChallengeQuota.objects.count(), LedgerEntry.objects.count()) == (0, 0)


def test_a_cost_that_can_never_be_paid_resets_nothing(api, make_quota, shift):
    make_quota(remaining=12)
    shift(USER, DAY)
    before = ChallengeQuota.objects.values().get()
    assert code(api.consume({"cost": 21})) == (422, "cost_exceeds_limit")
    assert ChallengeQuota.objects.values().get() == before


@pytest.mark.parametrize(("cost", "status"), [(20, 201), (21, 201), (30, 201), (31, 422)])
def test_what_is_left_above_the_allowance_can_be_spent_at_once(api, make_quota, cost, status):
    make_quota(remaining=30)
    assert api.consume({"cost": cost}).status_code == status


# Named actions


def test_a_named_action_costs_what_the_plan_says(api, make_quota):
    Plan.objects.update(actions={"generate": 3, "draw": 9})
    make_quota(remaining=12)
    answer = api.consume({"action": "draw"}).json()
    assert (answer["cost"], answer["action"], remaining()) == (9, "draw", 3)
    assert LedgerEntry.objects.get(kind="consumed").action == "draw"


def test_a_cost_of_its_own_goes_before_the_actions(api, make_quota):
    Plan.objects.update(actions={"generate": 3})
    make_quota(remaining=12)
    answer = api.consume({"action": "generate", "cost": 5}).json()
    assert (answer["cost"], answer["action"], remaining()) == (5, "generate", 7)


def test_a_user_cannot_pay_less_for_an_action_than_the_plan_asks(api, make_quota):
    Plan.objects.update(actions={"generate": 3})
    make_quota(remaining=12)
    assert code(api.consume({"action": "generate", "cost": 2})) == (422, "cost_below_price")
    assert remaining() == 12


@pytest.mark.parametrize("body", [{"action": "paint"}, {"action": "paint", "cost": 1}])
def test_an_action_that_the_plan_does_not_know_stores_nothing(api, body):
    Plan.objects.update(actions={"generate": 3})
    answer = api.consume(body)
    assert code(answer) == (422, "unknown_action")
    assert "generate" in answer.json()["detail"]
    assert LedgerEntry.objects.count() == 0


# Idempotency


def test_a_retry_with_the_same_key_gets_the_first_answer_and_spends_nothing(api, make_quota):
    make_quota(remaining=12)
    first, second = (api.consume({"cost": 5, "metadata": {"a": 1}}, key="k-1") for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json() == second.json()
    assert (remaining(), entries("consumed")) == (7, 1)


def test_only_a_replay_says_that_it_is_one(api, make_quota):
    make_quota()
    first, second = (api.consume(key="k-1") for _ in range(2))
    assert "Idempotent-Replayed" not in first
    assert second["Idempotent-Replayed"] == "true"


def test_without_a_key_each_spend_is_one(api, make_quota):
    make_quota(remaining=12)
    for _ in range(2):
        api.consume({"cost": 5})
    assert remaining() == 2


def test_a_replay_tells_how_it_was_then(api, make_quota):
    make_quota(remaining=12)
    first = api.consume({"cost": 5}, key="k-1").json()
    api.consume({"cost": 6}, key="k-2")
    assert api.consume({"cost": 5}, key="k-1").json() == first
    assert remaining() == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("abc", '"abc"'),
        ('"abc"', "abc"),
        ("8e03978e-40d5-43dd-bc93-6894a57f9324", '"8e03978e-40d5-43dd-bc93-6894a57f9324"'),
        ("AZaz09._~:/+=-", '"AZaz09._~:/+=-"'),
        ("k" * 128, f'"{"k" * 128}"'),
    ],
)
def test_a_key_is_the_same_with_and_without_quotes(api, make_quota, first, second):
    make_quota(remaining=12)
    assert api.consume(key=first).json() == api.consume(key=second).json()
    assert remaining() == 11


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"cost": 5}, {"cost": 6}),
        ({"cost": 1}, {}),
        ({}, {"metadata": {}}),
        ({"metadata": {"a": 1}}, {"metadata": {"a": 2}}),
        ({"action": "generate"}, {"action": "draw"}),
    ],
)
def test_a_key_cannot_be_used_for_another_request(api, make_quota, first, second):
    Plan.objects.update(actions={"generate": 1, "draw": 1})
    make_quota(remaining=12)
    assert api.consume(first, key="k-1").status_code == 201
    before = remaining()
    assert code(api.consume(second, key="k-1")) == (422, "idempotency_key_reused")
    assert remaining() == before


def test_the_same_request_written_otherwise_is_the_same(api, make_quota):
    make_quota(remaining=12)
    first = api.consume(raw='{"cost":5,"metadata":{"a":"é","b":2}}', key="k-1")
    second = api.consume(raw='{ "metadata": {"b": 2, "a": "\\u00e9"}, "cost": 5 }', key="k-1")
    assert first.json() == second.json()
    assert remaining() == 7


def test_a_refusal_holds_no_key(api, make_quota, shift):
    make_quota(remaining=0)
    assert [api.consume(key="k-1").status_code for _ in range(2)] == [429, 429]
    shift(USER, DAY)
    answer = api.consume(key="k-1")
    assert (answer.status_code, "Idempotent-Replayed" in answer) == (201, False)
    assert remaining() == 19


@pytest.mark.parametrize("body", [{"cost": 21}, {"action": "paint"}, {"ammount": 1}])
def test_a_request_that_was_turned_down_holds_no_key(api, make_quota, body):
    make_quota(remaining=12)
    assert api.consume(body, key="k-1").status_code in (400, 422)
    assert api.consume({"cost": 5}, key="k-1").status_code == 201
    assert remaining() == 7


def test_the_spend_that_emptied_the_quota_is_replayed(api, make_quota):
    make_quota(remaining=5)
    first, second = (api.consume({"cost": 5}, key="k-1") for _ in range(2))
    assert (second.status_code, second.json()) == (201, first.json())
    assert (remaining(), entries("refused")) == (0, 0)


def test_a_replay_after_the_reset_spends_and_resets_nothing(api, make_quota, shift):
    make_quota(remaining=12)
    first = api.consume({"cost": 5}, key="k-1").json()
    shift(USER, 2 * DAY)
    second = api.consume({"cost": 5}, key="k-1").json()
    assert (second["id"], second["quota"]["quota_remaining"]) == (first["id"], 7)
    assert second["quota"]["seconds_to_reset"] == first["quota"]["seconds_to_reset"]
    assert (remaining(), entries("reset")) == (7, 0)


def test_the_same_key_of_two_users_is_two_keys(api, make_quota):
    make_quota("user_1", remaining=12)
    make_quota("user_2", remaining=15)
    api.consume({"cost": 5}, key="k-1")
    other = api.signed_in_as("user_2").consume({"cost": 6}, key="k-1")
    assert (other.status_code, "Idempotent-Replayed" in other) == (201, False)
    assert (remaining("user_1"), remaining("user_2")) == (7, 9)


@pytest.mark.parametrize(
    "key",
    [
        "",
        " ",
        '""',
        "k" * 129,
        f'"{"k" * 129}"',
        "k\x00",
        "k\x7f",
        "k\t1",
        '"k\x01"',
        "ké",
        '"ké"',
        "k 1",
        "k-1,k-1",  # what two headers look like
        '"k-1", "k-1"',
        '"k-1";a=1',
        '"k-1',
        'k-1"',
        "k-1;a=1",
        "(k-1)",
        "<k-1>",
    ],
)
def test_a_malformed_key_is_refused_and_nothing_is_spent(api, make_quota, key):
    make_quota(remaining=12)
    assert code(api.consume(key=key)) == (400, "idempotency_key_malformed")
    assert remaining() == 12


def test_a_deleted_user_spends_nothing(api, make_quota):
    make_quota()
    ChallengeQuota.objects.delete(USER, actor=STAFF)
    assert code(api.consume()) == (410, "user_deleted")
    assert entries("consumed") == 0


def test_a_deleted_user_gets_no_replay(api, make_quota):
    make_quota()
    assert api.consume(key="k-1").status_code == 201
    ChallengeQuota.objects.delete(USER, actor=STAFF)
    assert code(api.consume(key="k-1")) == (410, "user_deleted")
    assert code(api.consume({"cost": 2}, key="k-1")) == (410, "user_deleted")


def test_a_long_body_is_read_like_a_short_one(api, make_quota):
    make_quota()
    answer = api.consume(raw=b'{"cost": 2}' + b" " * 5_000)
    assert (answer.status_code, answer.json()["cost"]) == (201, 2)

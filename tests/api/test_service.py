"""The API for services: spend, refund, adjust, reset, and change the plan of a user."""

import json as json_module
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from urllib.parse import quote
from uuid import UUID, uuid4

import pytest
from django.http import HttpResponse
from django.test import Client

from quotas.access import service_keys
from quotas.models import ChallengeQuota, LedgerEntry, Plan, ServiceKey
from quotasite.demo.tour import shift as move_back
from tests.conftest import STAFF, USER
from tests.store.test_round_trips import counted, wire  # noqa: F401 - a fixture
from tests.tools.ledger import assert_sound

pytestmark = pytest.mark.django_db
DAY = timedelta(days=1)
numbers = count(1)
ANY_KEY = "a new key for each request"
QUOTA = {
    "user_id",
    "plan",
    "unlimited",
    "quota_limit",
    "quota_used",
    "quota_remaining",
    "reset_policy",
    "period_seconds",
    "timezone",
    "last_reset_date",
    "resets_at",
    "seconds_to_reset",
}


@dataclass(frozen=True)
class Service:
    """A client with a service key, for the addresses of one user."""

    key: str
    user_id: str = USER
    client: Client = field(default_factory=lambda: Client(raise_request_exception=False))

    def of(self, user_id: str) -> "Service":
        return Service(self.key, user_id, self.client)

    def send(
        self, method: str, path: str, json: object = None, key: str | None = None, **headers: str
    ) -> HttpResponse:
        raw = b"" if json is None else json_module.dumps(json)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            given["Idempotency-Key"] = f"n-{next(numbers)}" if key == ANY_KEY else key
        usual = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        if not path.startswith("/"):
            path = f"/api/v1/users/{quote(self.user_id, safe='')}/{path}"
        return self.client.generic(method, path, raw, headers={**usual, **given})

    def get(self, path: str) -> HttpResponse:
        return self.send("GET", path)

    def post(self, path: str, json: object, key: str | None = ANY_KEY) -> HttpResponse:
        return self.send("POST", path, json, key)

    def put(self, path: str, json: object, key: str | None = None) -> HttpResponse:
        return self.send("PUT", path, json, key)

    def spend(self, cost: int = 1) -> str:
        """Spend, and return the id of the consumption."""
        return self.post("consume", {"cost": cost}).json()["id"]

    def refund(self, consumption: object, key: str | None = ANY_KEY, **body: object) -> HttpResponse:
        return self.post(f"consumptions/{consumption}/refund", {"reason": "llm_timeout", **body}, key)


def service_with(*scopes: str) -> Service:
    """Return a service with a new key that has these scopes, or all."""
    return Service(ServiceKey.make("a server", scopes or ServiceKey.SCOPES)[1])


@pytest.fixture
def service() -> Service:
    return service_with()


@pytest.fixture
def pro() -> Plan:
    return Plan.objects.create(name="pro", allowance=50)


def remaining(user_id=USER):
    return ChallengeQuota.objects.get(pk=user_id).quota_remaining


def kinds(user_id=USER):
    return list(LedgerEntry.objects.filter(user_id=user_id).order_by("seq").values_list("kind", flat=True))


def code(answer):
    return answer.status_code, answer.json().get("code")


def test_a_read_opens_a_missing_quota(service):
    answer = service.get("quota")
    assert (answer.status_code, answer.json().keys()) == (200, QUOTA)
    assert (answer.json()["quota_remaining"], kinds()) == (20, ["opened"])


def test_a_read_carries_out_a_reset_that_is_due(service, make_quota, shift):
    make_quota(remaining=3)
    shift(USER, DAY)
    assert service.get("quota").json()["quota_remaining"] == 20
    assert kinds() == ["opened", "adjusted", "reset"]


def test_user_and_service_read_the_same(api, service, make_quota):
    make_quota(remaining=12)
    own, others = api.get("/api/v1/quota").json(), service.get("quota").json()
    assert own.pop("seconds_to_reset") - others.pop("seconds_to_reset") in range(60)
    assert own == others


# Spending


def test_a_spend_has_exactly_these_members(service, make_quota):
    Plan.objects.update(actions={"draw": 5})
    make_quota(remaining=12)
    answer = service.post("consume", {"cost": 5, "action": "draw", "metadata": {"a": 1}})
    body = answer.json()
    assert answer.status_code == 201
    assert body.keys() == {"id", "user_id", "seq", "cost", "action", "refunded", "created_at", "quota"}
    assert (body["user_id"], body["seq"], body["cost"], body["action"]) == (USER, 3, 5, "draw")
    assert body["quota"].keys() == QUOTA
    assert body["quota"]["quota_remaining"] == remaining() == 7


@pytest.mark.parametrize("verb", ["consume", "refund", "adjust", "reset", "plan"])
def test_the_entry_names_the_key_that_did_it(service, make_quota, pro, verb):
    make_quota(remaining=12)
    spend = service.spend()
    {
        "consume": lambda: service.post("consume", {}),
        "refund": lambda: service.refund(spend),
        "adjust": lambda: service.post("adjust", {"delta": 1, "reason": "r"}),
        "reset": lambda: service.post("reset", {"reason": "r"}),
        "plan": lambda: service.put("plan", {"plan": "pro"}),
    }[verb]()
    entry = LedgerEntry.objects.latest("seq")
    assert (entry.seq, entry.actor_kind) == (4, "service")
    assert entry.actor_id == str(ServiceKey.objects.get().id)


def test_a_service_is_refused_a_spend_as_the_user_is(service, make_quota):
    make_quota(remaining=3)
    assert code(service.post("consume", {"cost": 4})) == (429, "quota_exhausted")
    assert code(service.post("consume", {"cost": 21})) == (422, "cost_exceeds_limit")
    assert code(service.post("consume", {"action": "paint"})) == (422, "unknown_action")
    assert remaining() == 3


# Refunds


def test_a_replay_of_a_refunded_spend_says_how_much_was_refunded(service, make_quota):
    make_quota(remaining=12)
    first = service.post("consume", {"cost": 5}, "k-1").json()
    service.refund(first["id"], amount=2)
    second = service.post("consume", {"cost": 5}, "k-1").json()
    service.refund(first["id"])
    third = service.post("consume", {"cost": 5}, "k-1").json()
    assert [answer.pop("refunded") for answer in (first, second, third)] == [0, 2, 5]
    assert first == second == third


def test_a_user_sees_in_a_replay_that_a_server_refunded_the_spend(api, service, make_quota):
    make_quota(remaining=12)
    spent = api.consume({"cost": 3}, key="k-1").json()
    service.refund(spent["id"])
    assert api.consume({"cost": 3}, key="k-1").json() == {**spent, "refunded": 3}


def test_units_without_a_limit_that_were_cancelled_are_refunded_too(service, make_quota):
    make_quota(allowance=None)
    spent = service.post("consume", {"cost": 5}, "k-1").json()
    assert service.refund(spent["id"], amount=4).json()["quota"]["unlimited"]
    assert service.post("consume", {"cost": 5}, "k-1").json()["refunded"] == 4


def test_a_refund_has_exactly_these_members(service, make_quota):
    make_quota(remaining=12)
    spend = service.spend(5)
    answer = service.refund(spend, amount=2)
    body = answer.json()
    assert answer.status_code == 201
    assert body.keys() == {
        "id",
        "user_id",
        "seq",
        "created_at",
        "quota",
        "consumption_id",
        "amount",
        "period_closed",
    }
    assert (body["consumption_id"], body["amount"], body["period_closed"]) == (spend, 2, False)
    assert (body["user_id"], body["seq"]) == (USER, 4)
    assert body["id"] == str(LedgerEntry.objects.get(kind="refunded").id)
    assert body["quota"]["quota_remaining"] == remaining() == 9


def test_without_an_amount_the_rest_is_given_back(service, make_quota):
    make_quota(remaining=12)
    spend = service.spend(5)
    assert [service.refund(spend, amount=2).json()["amount"], service.refund(spend).json()["amount"]] == [
        2,
        3,
    ]
    assert remaining() == 12


def test_no_more_than_the_rest_is_given_back(service, make_quota):
    make_quota(remaining=12)
    spend = service.spend(5)
    service.refund(spend, amount=2)
    assert code(service.refund(spend, amount=4)) == (409, "refund_too_large")
    assert remaining() == 9
    service.refund(spend, amount=3)
    assert code(service.refund(spend)) == code(service.refund(spend, amount=1)) == (409, "already_refunded")
    assert (remaining(), kinds().count("refunded")) == (12, 2)


def test_a_refund_leaves_what_staff_gave(service, make_quota):
    make_quota(remaining=12)
    spend = service.spend(10)
    service.post("adjust", {"delta": 15, "reason": "r"})
    refund = service.refund(spend, amount=10).json()
    assert (refund["amount"], refund["quota"]["quota_used"], refund["quota"]["quota_remaining"]) == (
        10,
        0,
        27,
    )
    assert remaining() == 27
    assert code(service.refund(spend)) == (409, "already_refunded")


def test_a_refund_of_a_closed_period_gives_nothing_and_says_so(service, make_quota, shift):
    make_quota(remaining=12)
    spend = service.spend(5)
    shift(USER, DAY)
    service.spend(4)
    answer = service.refund(spend)
    assert (answer.status_code, answer.json()["amount"], answer.json()["period_closed"]) == (201, 0, True)
    assert remaining() == 16


def test_a_refund_that_finds_the_quota_due_comes_too_late(service, make_quota, shift):
    make_quota(remaining=12)
    spend = service.spend(5)
    shift(USER, DAY)
    assert service.refund(spend).json()["period_closed"] is True
    assert (remaining(), kinds()[-2:]) == (20, ["reset", "refunded"])


def test_an_unlimited_quota_gets_its_refund_on_paper(service, make_quota):
    make_quota(allowance=None)
    spend = service.spend(5)
    assert service.refund(spend, amount=2).json()["amount"] == 2
    assert code(service.refund(spend, amount=4)) == (409, "refund_too_large")
    assert remaining() == 0


def test_only_a_consumption_of_this_user_can_be_refunded(service, make_quota):
    make_quota("user_1", remaining=12)
    make_quota("user_2", remaining=12)
    spend = service.spend(5)
    opened = LedgerEntry.objects.get(user_id="user_1", kind="opened").id
    refund = service.refund(spend).json()["id"]
    for user_id, wrong in [("user_2", spend), ("user_1", opened), ("user_1", refund), ("user_1", uuid4())]:
        answer = service.of(user_id).refund(wrong)
        assert code(answer) == (404, "consumption_not_found")
    assert (remaining("user_1"), remaining("user_2")) == (12, 12)


def test_a_refund_to_an_unknown_user_makes_none(service):
    assert code(service.of("user_new").refund(uuid4())) == (404, "consumption_not_found")
    assert ChallengeQuota.objects.count() == 0


@pytest.mark.parametrize("wrong", ["1", "0199", "x" * 36, str(UUID(int=5)).replace("-", ""), "%00"])
def test_what_is_no_uuid_is_no_address(service, wrong):
    assert code(service.refund(wrong)) == (404, "not_found")


# Adjustments, resets


def test_an_adjustment_has_exactly_these_members(service, make_quota):
    make_quota(remaining=12)
    answer = service.post("adjust", {"delta": 50, "reason": "sorry"})
    body = answer.json()
    assert answer.status_code == 201
    assert body.keys() == {"id", "user_id", "seq", "created_at", "quota", "delta", "reason"}
    assert (body["seq"], body["delta"], body["reason"]) == (3, 50, "sorry")
    assert body["quota"].items() >= {"quota_limit": 20, "quota_used": 0, "quota_remaining": 62}.items()


@pytest.mark.parametrize(
    ("delta", "left"), [(-12, 0), (-13, None), (2_147_483_635, 2_147_483_647), (2_147_483_636, None)]
)
def test_a_balance_stays_within_0_and_2147483647(service, make_quota, delta, left):
    make_quota(remaining=12)
    answer = service.post("adjust", {"delta": delta, "reason": "r"})
    assert code(answer) == ((409, "adjustment_out_of_range") if left is None else (201, None))
    assert remaining() == (12 if left is None else left)


def test_an_unlimited_quota_cannot_be_adjusted(service, make_quota):
    make_quota(allowance=None)
    assert code(service.post("adjust", {"delta": 1, "reason": "r"})) == (409, "adjustment_out_of_range")


def test_an_adjustment_opens_a_missing_quota_but_a_refused_one_stores_nothing(service):
    assert code(service.post("adjust", {"delta": -21, "reason": "r"})) == (409, "adjustment_out_of_range")
    assert kinds() == []
    assert service.post("adjust", {"delta": -20, "reason": "r"}).status_code == 201
    assert kinds() == ["opened", "adjusted"]


def test_a_reset_answers_with_the_full_quota(service, make_quota):
    make_quota(remaining=3)
    answer = service.post("reset", {"reason": "sorry"})
    assert (answer.status_code, answer.json().keys()) == (200, QUOTA)
    assert answer.json()["quota_remaining"] == remaining() == 20
    assert LedgerEntry.objects.get(kind="reset").reason == "sorry"


# Plans


def test_a_change_of_plan_answers_with_the_full_quota(service, make_quota, pro):
    make_quota(remaining=12)
    answer = service.put("plan", {"plan": "pro"})
    assert (answer.status_code, answer.json().keys()) == (200, QUOTA)
    assert (answer.json()["plan"], answer.json()["quota_limit"]) == ("pro", 50)
    assert answer.json()["quota_remaining"] == remaining() == 42


@pytest.mark.parametrize(
    ("body", "left"),
    [({}, 42), ({"on_change": "keep"}, 42), ({"on_change": "reset"}, 50), ({"on_change": "prorate"}, 26)],
)
def test_on_change_says_what_becomes_of_the_running_period(service, make_quota, shift, pro, body, left):
    make_quota(remaining=12)
    shift(USER, DAY / 2)
    assert service.put("plan", {"plan": "pro", **body}).json()["quota_remaining"] == left


def test_no_plan_is_the_default_one(service, make_quota, pro):
    make_quota(remaining=12)
    service.put("plan", {"plan": "pro"})
    answer = service.put("plan", {"plan": None}).json()
    assert (answer["plan"], answer["quota_limit"], answer["quota_remaining"]) == ("free", 20, 12)


def test_the_plan_that_the_user_has_changes_nothing(service, make_quota, pro):
    make_quota(remaining=12)
    for plan in (None, "free", "free"):
        answer = service.put("plan", {"plan": plan, "on_change": "reset"})
        assert (answer.status_code, answer.json()["quota_remaining"]) == (200, 12)
    assert kinds() == ["opened", "adjusted", "plan_changed"]
    assert LedgerEntry.objects.get(kind="plan_changed").plan_source == "staff"  # the only change


def test_a_retry_of_a_change_that_changed_nothing_does_not_undo_a_later_one(service, make_quota, pro):
    make_quota()
    first = service.put("plan", {"plan": "pro"}, key="first")
    same = service.put("plan", {"plan": "pro"}, key="same")
    service.put("plan", {"plan": "free"}, key="later")
    retried = service.put("plan", {"plan": "pro"}, key="same")
    assert (retried.json(), retried.headers["Idempotent-Replayed"]) == (same.json(), "true")
    assert service.get("quota").json()["plan"] == "free"
    assert kinds() == ["opened", *["plan_changed"] * 3]
    assert first.status_code == same.status_code == 200


def test_an_unknown_plan_is_not_found_and_stores_nothing(service):
    assert code(service.put("plan", {"plan": "gold"})) == (404, "unknown_plan")
    assert ChallengeQuota.objects.count() == 0


def test_an_archived_plan_is_not_given_but_its_users_keep_it(service, api, pro):
    service.put("plan", {"plan": "pro"})
    Plan.objects.archive("pro")
    assert service.put("plan", {"plan": "pro"}).json()["quota_remaining"] == 50
    service.put("plan", {"plan": "free"})
    refused = service.put("plan", {"plan": "pro"})
    assert code(refused) == (404, "unknown_plan")
    assert "or it is archived" in refused.json()["detail"]
    assert [plan["name"] for plan in api.get("/api/v1/plans").json()["plans"]] == ["free"]


def test_a_plan_for_a_user_without_a_quota_opens_it(service, pro):
    assert service.put("plan", {"plan": "pro"}).json()["quota_remaining"] == 50
    assert kinds() == ["opened", "plan_changed"]


def test_a_reason_for_a_change_of_plan_is_kept(service, make_quota, pro):
    make_quota()
    service.put("plan", {"plan": "pro", "reason": "an offer"})
    assert LedgerEntry.objects.get(kind="plan_changed").reason == "an offer"


# Malformed requests

LONG = "x" * 201
ONE = UUID(int=1)
REFUND = f"consumptions/{ONE}/refund"


@pytest.mark.parametrize(
    ("method", "path", "body", "member"),
    [
        ("POST", REFUND, {}, "reason"),
        ("POST", REFUND, {"reason": ""}, "reason"),
        ("POST", REFUND, {"reason": None}, "reason"),
        ("POST", REFUND, {"reason": LONG}, "reason"),
        ("POST", REFUND, {"reason": ["r"]}, "reason"),
        ("POST", REFUND, {"reason": "r", "amount": 0}, "amount"),
        ("POST", REFUND, {"reason": "r", "amount": -1}, "amount"),
        ("POST", REFUND, {"reason": "r", "amount": None}, "amount"),
        ("POST", REFUND, {"reason": "r", "amount": "1"}, "amount"),
        ("POST", REFUND, {"reason": "r", "amount": 1.0}, "amount"),
        ("POST", REFUND, {"reason": "r", "amount": True}, "amount"),
        ("POST", REFUND, {"reason": "r", "amount": 2_147_483_648}, "amount"),
        ("POST", REFUND, {"reason": "r", "ammount": 1}, "ammount"),
        ("POST", "adjust", {"delta": 1}, "reason"),
        ("POST", "adjust", {"delta": 1, "reason": ""}, "reason"),
        ("POST", "adjust", {"delta": 1, "reason": LONG}, "reason"),
        ("POST", "adjust", {"reason": "r"}, "delta"),
        ("POST", "adjust", {"reason": "r", "delta": 0}, "delta"),
        ("POST", "adjust", {"reason": "r", "delta": "5"}, "delta"),
        ("POST", "adjust", {"reason": "r", "delta": 1.5}, "delta"),
        ("POST", "adjust", {"reason": "r", "delta": True}, "delta"),
        ("POST", "adjust", {"reason": "r", "delta": -2_147_483_648}, "delta"),
        ("POST", "adjust", {"reason": "r", "delta": 1, "plan": "pro"}, "plan"),
        ("POST", "reset", {}, "reason"),
        ("POST", "reset", {"reason": ""}, "reason"),
        ("POST", "reset", {"reason": LONG}, "reason"),
        ("POST", "reset", {"reason": "r", "to": 5}, "to"),
        ("PUT", "plan", {}, "plan"),
        ("PUT", "plan", {"plan": ""}, "plan"),
        ("PUT", "plan", {"plan": 5}, "plan"),
        ("PUT", "plan", {"plan": "x" * 41}, "plan"),
        ("PUT", "plan", {"plan": "pro", "on_change": "later"}, "on_change"),
        ("PUT", "plan", {"plan": "pro", "on_change": None}, "on_change"),
        ("PUT", "plan", {"plan": "pro", "on_change": ["keep"]}, "on_change"),
        ("PUT", "plan", {"plan": "pro", "reason": LONG}, "reason"),
    ],
)
def test_a_malformed_order_is_refused_with_the_members_name(service, method, path, body, member):
    answer = service.send(method, path, body, ANY_KEY)
    assert code(answer) == (400, "invalid_request")
    assert member in answer.json()["detail"]
    assert ChallengeQuota.objects.count() == 0


def test_a_reason_of_200_characters_is_taken(service):
    assert service.post("reset", {"reason": "ä" * 200}).status_code == 200
    assert LedgerEntry.objects.get(kind="reset").reason == "ä" * 200


@pytest.mark.parametrize("path", ["consume", REFUND, "adjust", "reset"])
def test_a_post_needs_an_idempotency_key(service, path):
    answer = service.post(path, {"reason": "r"}, key=None)
    assert code(answer) == (400, "idempotency_key_missing")
    assert ChallengeQuota.objects.count() == 0


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "consume"), ("POST", REFUND), ("POST", "adjust"), ("POST", "reset"), ("PUT", "plan")],
)
@pytest.mark.parametrize("key", ["", '""', "a b", "k" * 129])
def test_a_malformed_key_is_refused(service, method, path, key):
    assert code(service.send(method, path, {"reason": "r"}, key)) == (400, "idempotency_key_malformed")
    assert ChallengeQuota.objects.count() == 0


ABSURD = [
    "a b",
    "user_1\n",
    "user_1\r\nX: y",
    "user_1\x00",
    "ü",
    "x" * 129,
    "' OR 1=1 --",
    "user_1;",
    "%",
    "<script>",
    "１",
    "user_1/../user_2",
]


@pytest.mark.parametrize("user_id", ABSURD)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "quota"),
        ("GET", "history"),
        ("GET", "explain"),
        ("GET", f"consumptions/{ONE}"),
        ("POST", "check"),
        ("POST", "consume"),
        ("POST", REFUND),
        ("POST", "adjust"),
        ("POST", "reset"),
        ("PUT", "plan"),
    ],
)
def test_an_absurd_user_id_is_not_found_and_stores_nothing(service, method, path, user_id):
    body = None if method == "GET" else {"reason": "r"}
    answer = service.of(user_id).send(method, path, body, None if method == "GET" else ANY_KEY)
    assert (answer.status_code, answer["Content-Type"]) == (404, "application/problem+json")
    assert answer.json()["code"] in ("unknown_user_id", "not_found")
    assert (ChallengeQuota.objects.count(), LedgerEntry.objects.count()) == (0, 0)


@pytest.mark.parametrize("user_id", ["a", "x" * 128, "user_2ABC", "org:1.a@b-c_D", "..", "0"])
def test_an_unusual_user_id_is_an_id(service, user_id):
    assert service.of(user_id).get("quota").json()["user_id"] == user_id


# Idempotency


def verbs(service):
    """Return each verb as a function that sends one request, with a key, as a service."""
    spend = service.spend(5)
    return {
        "consume": lambda by, key: by.post("consume", {"cost": 2, "metadata": {"a": 1}}, key),
        "refund": lambda by, key: by.refund(spend, key, amount=1),
        "adjust": lambda by, key: by.post("adjust", {"delta": 3, "reason": "r"}, key),
        "reset": lambda by, key: by.post("reset", {"reason": "r"}, key),
        "plan": lambda by, key: by.put("plan", {"plan": "pro", "on_change": "prorate"}, key),
    }


VERBS = ["consume", "refund", "adjust", "reset", "plan"]


@pytest.mark.parametrize("verb", VERBS)
def test_a_replay_answers_alike_and_does_nothing(service, make_quota, pro, verb):
    make_quota(remaining=12)
    send = verbs(service)[verb]
    first = send(service, "k-1")
    service.spend(1)
    before = kinds()
    second = send(service, "k-1")
    assert "Idempotent-Replayed" not in first
    assert (second.status_code, second["Idempotent-Replayed"]) == (first.status_code, "true")
    assert second.json() == first.json()
    assert kinds() == before


@pytest.mark.parametrize("verb", VERBS)
def test_a_retry_by_the_next_service_key_is_safe(service, make_quota, pro, verb):
    make_quota(remaining=12)
    send = verbs(service)[verb]
    first, second = send(service, "k-1"), send(service_with(), "k-1")
    assert (second.json(), second["Idempotent-Replayed"]) == (first.json(), "true")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("POST", "consume", {"cost": 1}), ("POST", "consume", {"cost": 2})),
        (("POST", "adjust", {"delta": 1, "reason": "r"}), ("POST", "adjust", {"delta": 2, "reason": "r"})),
        (("POST", "adjust", {"delta": 1, "reason": "r"}), ("POST", "adjust", {"delta": 1, "reason": "s"})),
        (("POST", "reset", {"reason": "r"}), ("POST", "reset", {"reason": "s"})),
        (("PUT", "plan", {"plan": "pro"}), ("PUT", "plan", {"plan": "pro", "on_change": "reset"})),
        (("PUT", "plan", {"plan": "pro"}), ("PUT", "plan", {"plan": None})),
    ],
)
def test_a_key_cannot_be_used_for_another_order(service, make_quota, pro, first, second):
    make_quota(remaining=12)
    assert service.send(*first, "k-1").status_code in (200, 201)
    before = kinds()
    assert code(service.send(*second, "k-1")) == (422, "idempotency_key_reused")
    assert kinds() == before


@pytest.mark.parametrize("body", [{"amount": 2}, {}, {"reason": "another"}])
def test_a_key_cannot_be_used_for_another_refund(service, make_quota, body):
    make_quota(remaining=12)
    spend = service.spend(5)
    service.refund(spend, "k-1", amount=1)
    assert code(service.refund(spend, "k-1", **body)) == (422, "idempotency_key_reused")
    assert code(service.refund(service.spend(5), "k-1", amount=1)) == (422, "idempotency_key_reused")


def test_one_key_may_serve_each_verb_once(service, make_quota, pro):
    make_quota(remaining=12)
    answers = [send(service, "k-1") for send in verbs(service).values()]
    assert [answer.status_code for answer in answers] == [201, 201, 201, 200, 200]
    assert not any("Idempotent-Replayed" in answer for answer in answers)
    assert_sound(USER)


def test_a_users_key_and_the_same_key_of_a_service_are_apart(api, service, make_quota):
    make_quota(remaining=12)
    assert api.consume({"cost": 5}, key="k-1").status_code == 201
    answer = service.post("consume", {"cost": 4}, "k-1")
    assert (answer.status_code, "Idempotent-Replayed" in answer) == (201, False)
    assert remaining() == 3


def test_a_change_of_plan_needs_no_key(service, make_quota, pro):
    make_quota(remaining=12)
    service.put("plan", {"plan": "pro"})
    second = service.put("plan", {"plan": "pro"})
    assert (second.status_code, "Idempotent-Replayed" in second) == (200, False)
    assert (second.json()["quota_remaining"], kinds().count("plan_changed")) == (42, 1)


def test_a_refused_act_holds_no_key(service, make_quota):
    make_quota(remaining=3)
    assert service.post("adjust", {"delta": -4, "reason": "r"}, "k-1").status_code == 409
    assert service.post("adjust", {"delta": -3, "reason": "r"}, "k-1").status_code == 201


# Tombstones


@pytest.mark.parametrize(
    "send",
    [
        lambda service, spend: service.get("quota"),
        lambda service, spend: service.get("history"),
        lambda service, spend: service.post("check", {}),
        lambda service, spend: service.post("check", {"action": "paint"}),
        lambda service, spend: service.get(f"consumptions/{spend}"),
        lambda service, spend: service.get(f"consumptions/{uuid4()}"),
        lambda service, spend: service.post("consume", {}),
        lambda service, spend: service.post("consume", {"cost": 2}, "k-1"),
        lambda service, spend: service.refund(spend),
        lambda service, spend: service.refund(uuid4()),
        lambda service, spend: service.post("adjust", {"delta": 1, "reason": "r"}),
        lambda service, spend: service.post("reset", {"reason": "r"}),
        lambda service, spend: service.put("plan", {"plan": "pro"}),
        lambda service, spend: service.put("plan", {"plan": "gold"}),
    ],
)
def test_a_deleted_user_is_gone_for_services_too(service, make_quota, shift, pro, send):
    make_quota(remaining=12)
    spend = service.post("consume", {"cost": 2}, "k-1").json()["id"]
    ChallengeQuota.objects.delete(USER, actor=STAFF)
    shift(USER, DAY)
    before = kinds()
    assert code(send(service, spend)) == (410, "user_deleted")
    assert kinds() == before


# Plans that are shown


def test_the_plans_that_may_be_shown(api, service, pro):
    Plan.objects.create(name="month", allowance=None, reset_policy="monthly", timezone="Europe/Berlin")
    Plan.objects.create(name="secret", allowance=1, is_public=False)
    Plan.objects.filter(name="pro").update(actions={"draw": 5})
    shown = service.get("/api/v1/plans")
    assert shown.json() == api.get("/api/v1/plans").json()
    assert [plan["name"] for plan in shown.json()["plans"]] == ["free", "month", "pro"]
    free, month, pro = shown.json()["plans"]
    assert free == {
        "name": "free",
        "is_default": True,
        "unlimited": False,
        "allowance": 20,
        "reset_policy": "rolling",
        "period_seconds": 86_400,
        "timezone": "UTC",
        "actions": {},
    }
    assert (month["unlimited"], month["allowance"], month["period_seconds"]) == (True, None, None)
    assert pro["actions"] == {"draw": 5}


# Round trips


@pytest.fixture
def quick(wire) -> Iterator[Service]:  # noqa: F811
    """A service whose key is cached, with an open quota, and the count of round trips at 0."""
    Plan.objects.create(name="pro", allowance=50)
    made = service_with()
    assert made.get("quota").status_code == 200
    wire.reset()
    yield made
    service_keys._cache.clear()


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True, serialized_rollback=True)
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_takes_two_round_trips_and_its_replay_one(quick, wire, verb):  # noqa: F811
    send = verbs(quick)[verb]
    expected = 200 if verb in ("reset", "plan") else 201
    wire.reset()
    assert counted(wire, send(quick, "k-1").status_code, expected) == 2
    assert counted(wire, send(quick, "k-1").status_code, expected) == 1


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True, serialized_rollback=True)
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_that_finds_the_quota_due_takes_two_as_well(quick, wire, verb):  # noqa: F811
    send = verbs(quick)[verb]
    move_back(USER, DAY)
    wire.reset()
    assert send(quick, "k-1").status_code in (200, 201)
    assert wire.round_trips == 2


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True, serialized_rollback=True)
def test_a_refused_act_takes_one(quick, wire):  # noqa: F811
    assert counted(wire, quick.refund(uuid4()).status_code, 404) == 1
    assert counted(wire, quick.get(f"consumptions/{uuid4()}").status_code, 404) == 1
    assert counted(wire, quick.put("plan", {"plan": "gold"}).status_code, 404) == 1
    assert counted(wire, quick.post("adjust", {"delta": -21, "reason": "r"}).status_code, 409) == 1

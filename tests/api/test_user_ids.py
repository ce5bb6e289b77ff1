"""QUOTA_USER_IDS: for which user ids the request of a service may open a quota."""

from uuid import uuid4

import pytest

from quotas.models import ChallengeQuota, LedgerEntry, ServiceKey
from quotas.rules.values import Actor, ImportedUsage
from quotas.store.direct import clock
from tests.api.test_service import Service, code, kinds
from tests.conftest import STAFF, USER

pytestmark = pytest.mark.django_db
quotas = ChallengeQuota.objects
CLERK = Actor("webhook", "clerk")


@pytest.fixture
def service(api):
    return Service(ServiceKey.make("a server", ServiceKey.SCOPES)[1], client=api.client)


def requests(service):
    """Return the answer to each request that could open a quota, or would read a missing one as if opened."""
    reason = {"reason": "r"}
    return {
        "quota": service.get("quota"),
        "check": service.post("check", {}),
        "consume": service.post("consume", {}),
        "refund": service.refund(uuid4()),
        "adjust": service.post("adjust", {"delta": 1, **reason}),
        "reset": service.post("reset", reason),
        "plan": service.put("plan", {"plan": "free"}),
        "choice": service.put("plan", {"plan": None}),
    }


def assert_unknown(answers):
    assert {code(answer) for answer in answers.values()} == {(404, "unknown_user")}
    assert (ChallengeQuota.objects.count(), LedgerEntry.objects.count()) == (0, 0)


@pytest.mark.parametrize("user_id", ["user_2abc", "jane@example.com", "42"])
def test_by_default_any_id_may_be_opened(service, user_id):
    assert service.of(user_id).get("quota").status_code == 200


@pytest.mark.parametrize(
    "user_id",
    ["jane@example.com", "42", "user_", "user-2abc", "User_2abc", "user_2a_b", "a_user_2abc", "org_2abc"],
)
def test_ids_of_another_form_than_clerks_are_not_opened(settings, service, user_id):
    settings.QUOTA_USER_IDS = "clerk"
    assert_unknown(requests(service.of(user_id)))


@pytest.mark.parametrize("user_id", ["user_2abc", "user_" + "Z9" * 61])
def test_ids_of_clerks_form_are_opened(settings, service, user_id):
    settings.QUOTA_USER_IDS = "clerk"
    assert service.of(user_id).post("consume", {}).status_code == 201


def test_an_id_of_another_form_that_has_a_quota_already_keeps_it(settings, service, make_quota):
    make_quota("jane@example.com")
    settings.QUOTA_USER_IDS = "clerk"
    assert service.of("jane@example.com").post("consume", {}).status_code == 201


def test_only_known_users_are_served(settings, service, make_quota):
    settings.QUOTA_USER_IDS = "known"
    assert_unknown(requests(service))
    make_quota()
    statuses = {verb: answer.status_code for verb, answer in requests(service).items()}
    expected = {"consume": 201, "refund": 404, "adjust": 201}
    assert statuses == dict.fromkeys(statuses, 200) | expected


def test_the_sentence_names_the_fix(settings, service):
    settings.QUOTA_USER_IDS = "known"
    detail = service.get("quota").json()["detail"]
    assert "QUOTA_USER_IDS" in detail
    assert "the user's id from Clerk; backfill_quotas opens" in detail


def test_a_consumption_of_an_unknown_user_is_not_found(settings, service):
    settings.QUOTA_USER_IDS = "known"
    assert code(service.get(f"consumptions/{uuid4()}")) == (404, "consumption_not_found")


@pytest.mark.parametrize("ids", ["clerk", "known"])
def test_a_users_own_token_opens_their_quota(settings, api, service, ids):
    settings.QUOTA_USER_IDS = ids
    assert api.quota().status_code == 200
    assert service.post("consume", {}).status_code == 201


@pytest.mark.parametrize(
    "open_it",
    [
        lambda user_id: quotas.open_missing(user_id, actor=CLERK),
        lambda user_id: quotas.open_many([(user_id, "", None)], actor=Actor("command", "backfill_quotas")),
        lambda user_id: quotas.import_many({user_id: ImportedUsage(clock(), 3)}, reason="r", actor=STAFF),
        lambda user_id: quotas.assign_plan(user_id, "metadata", "free", updated_at=clock(), actor=CLERK),
    ],
    ids=["a delivery", "the backfill", "an import", "an assignment"],
)
def test_what_is_no_request_of_a_service_opens_any_id(settings, service, open_it):
    settings.QUOTA_USER_IDS = "known"
    open_it("internal-42")
    assert service.of("internal-42").post("consume", {}).status_code == 201


def test_a_service_that_asks_while_a_delivery_opens_the_row_opens_none_and_finds_it_next_time(
    settings, service, step_in
):
    settings.QUOTA_USER_IDS = "known"
    step_in(lambda: quotas.open_missing(USER, actor=CLERK))
    assert code(service.post("consume", {"cost": 3}, "k-1")) == (404, "unknown_user")
    assert kinds() == ["opened"]
    assert LedgerEntry.objects.get().actor_kind == "webhook"
    again = service.post("consume", {"cost": 3}, "k-1")
    assert (again.status_code, "Idempotent-Replayed" in again) == (201, False)

"""Why a quota stood as it did at any past instant: the ledger shows what a read returned then."""

import random
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import pytest
from django.db.models import F

from quotas.models import ChallengeQuota, LedgerEntry, Plan, PlanVersion
from quotas.rules.values import rfc3339
from tests.api.test_service import QUOTA, service_with
from tests.conftest import STAFF, USER

pytestmark = pytest.mark.django_db
SECOND, MINUTE, HOUR, DAY = (timedelta(**{unit: 1}) for unit in ("seconds", "minutes", "hours", "days"))
MEMBERS = {"at", "sentence", "deleted", "reset_was_due", "plan_source", "quota", "spend", "entries"}
quotas = ChallengeQuota.objects


@pytest.fixture
def service():
    return service_with()


@pytest.fixture
def explain(service):
    def get(at=None, cost=None):
        given = {"at": at.isoformat() if isinstance(at, datetime) else at, "cost": cost}
        query = "&".join(f"{name}={quote(str(value))}" for name, value in given.items() if value is not None)
        return service.get(f"explain?{query}")

    return get


@pytest.fixture
def wait(shift):
    """As `shift`, for plans too: to the product it is as if that much time had passed."""

    def move(by):
        shift(USER, by)
        PlanVersion.objects.update(valid_from=F("valid_from") - by)

    return move


def now():
    return datetime.now(UTC)


def code(answer):
    return answer.status_code, answer.json().get("code")


def edit_plan(name="free", **rules):
    plan = Plan.objects.get(name=name)
    for rule, value in rules.items():
        setattr(plan, rule, value)
    plan.save()


def test_an_explanation_has_exactly_these_members(explain, make_quota, wait):
    make_quota(remaining=12)
    quotas.consume(USER, 5)
    wait(HOUR)
    answer = explain(now() - MINUTE, cost=3)
    body = answer.json()
    assert (answer.status_code, answer["Cache-Control"]) == (200, "no-store")
    assert body.keys() == MEMBERS
    assert body["quota"].keys() == QUOTA
    assert (body["deleted"], body["reset_was_due"]) == (False, False)
    assert ". 5 were used since " in body["sentence"]
    assert ", staff removed 8, 7 are left; it resets at " in body["sentence"]
    assert body["spend"] == {"cost": 3, "granted": True, "code": None, "detail": None}
    assert [entry["kind"] for entry in body["entries"]] == ["consumed", "adjusted", "opened"]
    assert body["entries"][1]["reason"] == "for a test"


def test_without_an_instant_it_is_explained_how_it_stands_now(explain, make_quota):
    make_quota(remaining=12)
    body = explain().json()
    assert body["quota"]["quota_remaining"] == 12
    assert now() - datetime.fromisoformat(body["at"]) < MINUTE
    assert body["spend"]["cost"] == 1


def test_an_explanation_writes_nothing(explain, make_quota, wait):
    make_quota(remaining=3)
    wait(2 * DAY)
    before = list(quotas.values()), list(LedgerEntry.objects.values())
    explain()
    explain(now() - DAY, cost=21)
    explain(now() - DAY, cost=4)
    assert (list(quotas.values()), list(LedgerEntry.objects.values())) == before


# What cannot be explained


def test_a_user_who_never_had_a_quota_is_not_opened_yet(explain):
    assert code(explain()) == (404, "not_opened_yet")
    assert quotas.count() == 0


def test_before_it_was_opened_there_was_no_quota(explain, make_quota, wait):
    make_quota()
    wait(DAY)
    opened_at = LedgerEntry.objects.get().created_at
    assert code(explain(opened_at - timedelta(microseconds=1))) == (404, "not_opened_yet")
    assert explain(opened_at).json()["quota"]["quota_remaining"] == 20


def test_the_future_is_not_explained(explain, make_quota):
    make_quota()
    assert code(explain(now() + MINUTE)) == (422, "instant_in_future")
    assert code(explain("9999-12-31T23:59:59Z")) == (422, "instant_in_future")


@pytest.mark.parametrize(
    "at",
    [
        "",
        "yesterday",
        "2026-09-24",
        "2026-09-24T08:00:00",
        "2026-13-24T08:00:00Z",
        "2026-09-24T25:00:00Z",
        "2026-02-30T08:00:00Z",
        "1758700800",
        "2026-09-24 08:00",  # no offset
        "2026-09-24T08:00:00 00",
        "2026-09-24T08:00:00  00:00",
        "2026-09-24T08 00:00",
        "10000-01-01T00:00:00Z",
        "x" * 2_000,
    ],
)
def test_what_is_no_instant_is_refused(explain, make_quota, at):
    make_quota()
    answer = explain(at)
    assert code(answer) == (400, "invalid_request")
    assert answer.json()["detail"].startswith("at: must be a date and time with an offset")


@pytest.mark.parametrize("at", ["0001-01-01T00:00:00Z", "1970-01-01T00:00:00-12:00"])
def test_long_ago_there_was_no_quota(explain, make_quota, at):
    make_quota()
    assert code(explain(at)) == (404, "not_opened_yet")


@pytest.mark.parametrize("at", ["0001-01-01T00:00:00+14:00", "0001-01-01T00:00:00+00:01"])
def test_an_instant_before_the_calendar_begins_in_utc_is_no_fault_of_ours(explain, make_quota, at):
    make_quota()
    assert explain(at).status_code in (400, 404)


@pytest.mark.parametrize("offset", ["Z", "+00:00", "-00:00", "+0000", " 00:00", " 0000"])
def test_an_instant_may_have_any_offset(explain, make_quota, wait, offset):
    make_quota()
    wait(HOUR)
    for microsecond in (0, 250_000, 7):
        at = (now() - MINUTE).replace(tzinfo=None, microsecond=microsecond)
        expected = f"{at.isoformat(timespec='microseconds')}Z"
        assert explain(f"{at.isoformat()}{offset}").json()["at"] == expected
    east = (now() - MINUTE).astimezone().isoformat()
    assert explain(east).status_code == 200


@pytest.mark.parametrize("cost", ["", "0", "-1", "1.5", "x", "2147483648", "true"])
def test_what_is_no_cost_is_refused(explain, make_quota, cost):
    make_quota()
    answer = explain(cost=cost)
    assert code(answer) == (400, "invalid_request")
    assert answer.json()["detail"].startswith("cost: ")


# What a read answered then


class Recorded:
    """The answers and their instants, which move together with the rows."""

    def __init__(self, wait):
        self._wait = wait
        self.reads, self.spends = [], []

    def wait(self, by):
        self._wait(by)
        self.reads = [(at - by, moved(answer, by)) for at, answer in self.reads]
        self.spends = [(at - by, *rest) for at, *rest in self.spends]


def moved(answer, by):
    """Return the answer as it would have been that much earlier."""
    times = ("last_reset_date", "resets_at")
    return {**answer, **{name: rfc3339(datetime.fromisoformat(answer[name]) - by) for name in times}}


def one_of_the_verbs(chance, service, recorded, spends):
    cost = chance.choice([1, 3, 8, 20, 25, 70])
    match chance.choice(["consume"] * 4 + ["refund", "adjust", "reset", "plan", "edit"]):
        case "consume":
            at = now()
            answer = service.post("consume", {"cost": cost})
            recorded.spends.append((at, cost, answer.json().get("code")))
            if answer.status_code == 201:
                spends.append(answer.json()["id"])
        case "refund" if spends:
            service.refund(chance.choice(spends), amount=1)
        case "adjust":
            service.post("adjust", {"delta": chance.choice([-3, 5, 15]), "reason": "r"})
        case "reset":
            service.post("reset", {"reason": "r"})
        case "plan":
            policies = ["keep", "reset", "prorate"]
            body = {"plan": chance.choice(["free", "pro", "most"]), "on_change": chance.choice(policies)}
            service.put("plan", body)
        case "edit":
            edit_plan(chance.choice(["free", "pro"]), allowance=chance.choice([5, 10, 20, 60]))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("reset_policy", "step"), [("rolling", SECOND), ("anchored", SECOND), ("daily", DAY), ("weekly", 7 * DAY)]
)
def test_every_answer_of_the_past_is_explained(service, explain, wait, reset_policy, step, seed):
    """`step` keeps moved rows on the grid of their policy."""
    chance, recorded, spends = random.Random(seed), Recorded(wait), []
    edit_plan(reset_policy=reset_policy)
    Plan.objects.create(name="pro", allowance=50, reset_policy=reset_policy, period_seconds=7_200)
    Plan.objects.create(name="most", allowance=None, reset_policy=reset_policy)
    service.get("quota")
    recorded.wait(step * 10)
    for _ in range(20):
        one_of_the_verbs(chance, service, recorded, spends)
        recorded.wait(step)
        recorded.reads.append((now(), service.get("quota").json()))
        recorded.wait(step * chance.choice([1, 600, 5_000, 30_000] if step == SECOND else [1, 1, 2]))
    for at, answer in recorded.reads:
        explained = explain(at + timedelta(milliseconds=500)).json()["quota"]
        assert abs(explained.pop("seconds_to_reset") - answer.pop("seconds_to_reset")) < 30
        assert explained == answer
    for at, cost, refused in recorded.spends:
        assert explain(at - timedelta(milliseconds=2), cost).json()["spend"]["code"] == refused


def test_each_verb_is_explained_from_its_own_instant_on(explain, service, make_quota, wait):
    make_quota(remaining=12)
    spend = service.spend(5)
    wait(HOUR)
    service.refund(spend, amount=2)
    wait(HOUR)
    service.post("reset", {"reason": "sorry"})
    wait(HOUR)
    entries = list(LedgerEntry.objects.filter(user_id=USER).order_by("seq"))[2:]
    before = [explain(entry.created_at - MINUTE).json() for entry in entries[1:]]
    after = [explain(entry.created_at).json() for entry in entries]
    assert [body["quota"]["quota_remaining"] for body in after] == [7, 9, 20]
    assert [body["quota"]["quota_remaining"] for body in before] == [7, 9]
    assert [body["entries"][0]["kind"] for body in after] == ["consumed", "refunded", "reset"]


def test_only_the_running_periods_entries_are_told(explain, service, make_quota, wait):
    make_quota(remaining=3)
    wait(DAY)
    service.spend(2)
    kinds = [entry["kind"] for entry in explain().json()["entries"]]
    assert kinds == ["consumed", "reset"]


def test_no_more_than_100_entries_are_told(explain, make_quota):
    make_quota(allowance=500)
    for _ in range(101):
        quotas.consume(USER)
    entries = explain().json()["entries"]
    assert [entry["seq"] for entry in entries] == list(range(102, 2, -1))


def test_a_reset_that_nobody_had_asked_for_yet_is_explained_as_due(explain, make_quota, wait):
    make_quota(remaining=3)
    wait(30 * HOUR)
    at = now() - HOUR
    body = explain(at).json()
    assert (body["reset_was_due"], body["quota"]["quota_remaining"]) == (True, 20)
    assert body["quota"]["last_reset_date"] == rfc3339(at)  # a read then would have begun the period
    assert explain(now() - 7 * HOUR).json()["reset_was_due"] is False
    assert LedgerEntry.objects.filter(kind="reset").count() == 0


def test_a_reset_that_was_carried_out_later_was_due_before(explain, service, make_quota, wait):
    make_quota(remaining=3)
    wait(30 * HOUR)
    service.spend(4)
    wait(HOUR)
    assert explain(now() - 2 * HOUR).json()["reset_was_due"] is True
    body = explain().json()
    assert (body["reset_was_due"], body["quota"]["quota_remaining"]) == (False, 16)


def test_a_change_of_plan_is_explained_on_both_sides(explain, service, make_quota, wait):
    Plan.objects.create(name="pro", allowance=50, period_seconds=7_200)
    make_quota(remaining=12)
    wait(HOUR)
    service.put("plan", {"plan": "pro"})
    wait(HOUR)
    shown = [explain(now() - ago).json()["quota"] for ago in (90 * MINUTE, 30 * MINUTE)]
    assert [(quota["plan"], quota["quota_limit"], quota["quota_remaining"]) for quota in shown] == [
        ("free", 20, 12),
        ("pro", 50, 42),
    ]
    assert [quota["period_seconds"] for quota in shown] == [86_400, 7_200]


def test_an_edited_plan_counts_from_the_reset_that_was_due_after_it(explain, make_quota, wait):
    make_quota(remaining=12)
    wait(2 * DAY)
    edit_plan(allowance=50, period_seconds=3_600)  # a day after the reset was due
    wait(DAY)
    shown = [explain(now() - ago).json()["quota"] for ago in (2 * DAY + HOUR, DAY + HOUR, HOUR)]
    assert [(quota["quota_limit"], quota["period_seconds"]) for quota in shown] == [
        (20, 86_400),  # running
        (20, 86_400),  # due, by the old version
        (50, 3_600),  # due, by the new one
    ]


def test_an_edited_plan_leaves_the_running_period_as_it_was(explain, make_quota, wait):
    make_quota(remaining=12)
    wait(HOUR)
    edit_plan(allowance=50, reset_policy="weekly")
    wait(HOUR)
    quota = explain().json()["quota"]
    assert (quota["quota_limit"], quota["quota_remaining"], quota["reset_policy"]) == (20, 12, "rolling")


@pytest.mark.parametrize("at", [HOUR, 30 * HOUR])
def test_a_plan_that_the_sites_clock_dates_later_than_the_databases_is_explained(
    explain, make_quota, shift, at
):
    make_quota(remaining=12)
    shift(USER, 2 * DAY)  # the quota alone: the plan's first version is the younger one
    answer = explain(now() - 2 * DAY + at)
    assert answer.status_code == 200
    assert answer.json()["quota"]["quota_remaining"] == (12 if at < DAY else 20)


def test_a_deleted_quota_is_explained_before_and_after(explain, make_quota, wait):
    make_quota(remaining=12)
    wait(HOUR)
    quotas.delete(USER, actor=STAFF)
    wait(HOUR)
    before, after = explain(now() - 90 * MINUTE).json(), explain().json()
    assert (before["deleted"], before["spend"]["granted"]) == (False, True)
    assert (after["deleted"], after["spend"]["granted"]) == (True, False)
    assert after["spend"]["code"] == "user_deleted"
    assert after["quota"]["quota_remaining"] == 12
    assert after["entries"][0]["kind"] == "deleted"


def test_a_deleted_quota_is_never_due(explain, make_quota, wait):
    make_quota(remaining=12)
    quotas.delete(USER, actor=STAFF)
    wait(2 * DAY)
    body = explain().json()
    assert (body["reset_was_due"], body["quota"]["quota_remaining"]) == (False, 12)


# What a spend would have met


@pytest.mark.parametrize(
    ("cost", "code"),
    [
        (1, None),
        (3, None),
        (4, "quota_exhausted"),
        (20, "quota_exhausted"),
        (21, "cost_exceeds_limit"),
        (2_147_483_647, "cost_exceeds_limit"),
    ],
)
def test_a_spend_would_have_met_what_the_rules_say(explain, make_quota, wait, cost, code):
    make_quota(remaining=3)
    wait(HOUR)
    spend = explain(now() - MINUTE, cost).json()["spend"]
    assert (spend["cost"], spend["granted"], spend["code"]) == (cost, code is None, code)
    assert bool(spend["detail"]) == (code is not None)


def test_an_unlimited_quota_would_have_granted_all(explain, make_quota, wait):
    make_quota(allowance=None)
    wait(HOUR)
    body = explain(now() - MINUTE, 2_147_483_647).json()
    assert (body["spend"]["granted"], body["quota"]["unlimited"]) == (True, True)


def test_after_a_reset_that_was_due_a_spend_would_have_been_granted(explain, make_quota, wait):
    make_quota(remaining=0)
    wait(30 * HOUR)
    assert explain(now() - 7 * HOUR).json()["spend"]["code"] == "quota_exhausted"
    assert explain(now() - HOUR).json()["spend"]["granted"] is True


@pytest.mark.parametrize(("allowance", "cost"), [(50, 30), (10, 15)])
def test_a_spend_would_have_met_the_plan_as_it_was_then(explain, service, make_quota, wait, allowance, cost):
    """Whether a cost can ever be paid depends on the current plan, not on the running period's version."""
    make_quota(remaining=3)
    wait(HOUR)
    edit_plan(allowance=allowance)
    wait(HOUR)
    met = service.post("consume", {"cost": cost}).json()
    wait(HOUR)
    then = explain(now() - HOUR - MINUTE, cost).json()["spend"]
    assert then["code"] == met["code"]
    assert then["detail"].partition(" at ")[0] == met["detail"].partition(" at ")[0]
    assert explain(now() - 2 * HOUR - MINUTE, cost).json()["spend"]["code"] != met["code"]


# Pruned


@pytest.fixture
def pruned(service, make_quota, wait):
    """Two periods, of which the first was pruned; return the first entry that is left."""
    make_quota(remaining=3)
    wait(2 * DAY)
    service.spend(4)
    wait(2 * HOUR)
    LedgerEntry.objects.filter(user_id=USER, seq__lte=2).delete()
    return LedgerEntry.objects.filter(user_id=USER).earliest("seq")


def test_what_was_pruned_says_from_when_on_there_is_history(explain, pruned):
    answer = explain(pruned.created_at - MINUTE)
    earliest = rfc3339(pruned.created_at)
    assert code(answer) == (410, "history_pruned")
    assert answer.json()["earliest"] == earliest
    assert earliest in answer.json()["detail"]


def test_the_earliest_instant_can_be_explained(explain, pruned):
    earliest = explain(pruned.created_at - MINUTE).json()["earliest"]
    body = explain(earliest).json()
    assert (body["at"], body["entries"][-1]["kind"]) == (earliest, "reset")
    assert explain().json()["quota"]["quota_remaining"] == 16


def test_now_is_explained_as_a_request_would_find_it_even_after_a_clock_that_was_ahead(
    explain, service, make_quota, shift
):
    make_quota()
    service.spend(20)
    shift(USER, -3 * DAY)
    body, quota = explain(cost=1).json(), service.get("quota").json()
    assert body["quota"]["quota_remaining"] == quota["quota_remaining"] == 0
    assert body["quota"]["resets_at"] == quota["resets_at"]
    refused = service.post("consume", {"cost": 1})
    assert refused.status_code == 429
    assert abs(int(refused["Retry-After"]) - 4 * 86_400) < 60
    assert quota["seconds_to_reset"] - int(refused["Retry-After"]) in range(3)

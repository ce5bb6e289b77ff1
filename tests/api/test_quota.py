"""Reading a quota: it is opened when it is missing, and reset when its period is over."""

import re
from datetime import UTC, datetime, timedelta

import pytest

from quotas.models import ChallengeQuota, LedgerEntry, Plan
from tests.conftest import STAFF, USER

pytestmark = pytest.mark.django_db
DAY = timedelta(days=1)
RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


def kinds():
    return list(LedgerEntry.objects.order_by("user_id", "seq").values_list("kind", flat=True))


def test_the_simple_quota_has_exactly_three_members(api, make_quota):
    make_quota(remaining=12)
    answer = api.quota()
    assert answer.status_code == 200
    assert answer.json().keys() == {"user_id", "quota_remaining", "last_reset_date"}
    assert (answer.json()["user_id"], answer.json()["quota_remaining"]) == ("user_1", 12)


@pytest.mark.parametrize("path", ["/api/quota", "/api/v1/quota"])
def test_a_missing_quota_is_opened_full(api, path):
    assert api.get(path).json()["quota_remaining"] == 20
    assert kinds() == ["opened"]


def test_a_second_read_writes_nothing(api):
    assert api.quota().json() == api.quota().json()
    assert kinds() == ["opened"]


def test_a_new_quota_has_the_default_plans_allowance(api):
    Plan.objects.update(allowance=7)
    assert api.quota().json()["quota_remaining"] == 7


@pytest.mark.parametrize("path", ["/api/quota", "/api/v1/quota"])
def test_a_quota_is_full_again_after_exactly_24_hours(api, make_quota, shift, path):
    make_quota(remaining=12)
    shift(USER, timedelta(hours=24))
    assert api.get(path).json()["quota_remaining"] == 20
    assert kinds() == ["opened", "adjusted", "reset"]


def test_a_quota_is_not_back_after_23_hours_and_59_minutes(api, make_quota, shift):
    make_quota(remaining=12)
    shift(USER, timedelta(hours=23, minutes=59))
    assert api.quota().json()["quota_remaining"] == 12
    assert kinds() == ["opened", "adjusted"]


def test_a_reset_moves_the_last_reset_date_to_now(api, make_quota, shift):
    make_quota(remaining=12)
    shift(USER, timedelta(hours=30))
    moved_to = datetime.fromisoformat(api.quota().json()["last_reset_date"])
    assert abs(datetime.now(UTC) - moved_to) < timedelta(minutes=1)
    assert moved_to == LedgerEntry.objects.get(kind="reset").created_at


def test_a_read_that_is_not_due_leaves_the_last_reset_date(api, shift):
    api.quota()
    shift(USER, timedelta(hours=23))
    before = ChallengeQuota.objects.get().last_reset_date
    assert datetime.fromisoformat(api.quota().json()["last_reset_date"]) == before


def test_a_week_away_is_one_reset(api, make_quota, shift):
    make_quota(remaining=12)
    shift(USER, timedelta(days=7))
    api.quota()
    assert kinds() == ["opened", "adjusted", "reset"]


def test_units_above_the_allowance_are_gone_after_a_reset(api, make_quota, shift):
    make_quota(remaining=50)
    shift(USER, DAY)
    assert api.quota().json()["quota_remaining"] == 20
    assert LedgerEntry.objects.get(kind="reset").delta == -30


def test_an_edited_plan_counts_from_the_next_reset(api, shift):
    api.quota()
    Plan.objects.update(allowance=50)
    assert api.get("/api/v1/quota").json()["quota_limit"] == 20
    shift(USER, DAY)
    assert api.get("/api/v1/quota").json()["quota_limit"] == 50
    assert api.quota().json()["quota_remaining"] == 50


def test_the_full_quota_has_these_members_of_these_types(api, make_quota):
    make_quota(remaining=12)
    assert {name: type(value) for name, value in api.get("/api/v1/quota").json().items()} == {
        "user_id": str,
        "plan": str,
        "unlimited": bool,
        "quota_limit": int,
        "quota_used": int,
        "quota_remaining": int,
        "reset_policy": str,
        "period_seconds": int,
        "timezone": str,
        "last_reset_date": str,
        "resets_at": str,
        "seconds_to_reset": int,
    }


def test_the_full_quota_tells_how_much_is_used_of_what(api, make_quota):
    make_quota()
    api.consume({"cost": 8})
    quota = api.get("/api/v1/quota").json()
    assert (quota["quota_limit"], quota["quota_used"], quota["quota_remaining"]) == (20, 8, 12)
    assert (quota["plan"], quota["unlimited"], quota["reset_policy"]) == ("free", False, "rolling")
    assert (quota["period_seconds"], quota["timezone"]) == (86_400, "UTC")


def test_the_full_quota_tells_when_it_comes_back(api, make_quota, shift):
    make_quota()
    shift(USER, timedelta(hours=10))
    quota = api.get("/api/v1/quota").json()
    began, ends = (datetime.fromisoformat(quota[name]) for name in ("last_reset_date", "resets_at"))
    assert ends - began == DAY
    assert 14 * 3600 - 60 < quota["seconds_to_reset"] <= 14 * 3600


@pytest.mark.parametrize(("remaining", "left"), [(25, 17), (12, 4)])
def test_what_staff_gave_or_took_is_nothing_used(api, make_quota, remaining, left):
    make_quota(remaining=remaining)
    api.consume({"cost": 8})
    quota = api.get("/api/v1/quota").json()
    assert (quota["quota_limit"], quota["quota_used"], quota["quota_remaining"]) == (20, 8, left)


@pytest.mark.parametrize("path", ["/api/quota", "/api/v1/quota"])
def test_every_time_is_rfc_3339_with_z(api, path):
    times = {name: value for name, value in api.get(path).json().items() if name.endswith(("_at", "_date"))}
    assert times
    assert all(RFC3339.fullmatch(value) for value in times.values())


def test_an_unlimited_quota_reads_as_a_very_large_number(api, make_quota):
    make_quota(allowance=None)
    assert api.quota().json()["quota_remaining"] == 2_147_483_647


def test_an_unlimited_quota_says_so(api, make_quota):
    make_quota(allowance=None)
    quota = api.get("/api/v1/quota").json()
    assert (quota["unlimited"], quota["quota_limit"], quota["quota_used"]) == (True, None, 0)
    assert quota["quota_remaining"] == 2_147_483_647


def test_an_allowance_of_0_is_not_unlimited(api, make_quota):
    make_quota(allowance=0)
    quota = api.get("/api/v1/quota").json()
    assert (quota["unlimited"], quota["quota_limit"], quota["quota_remaining"]) == (False, 0, 0)


@pytest.mark.parametrize("path", ["/api/quota", "/api/v1/quota"])
def test_the_quota_of_a_deleted_user_is_gone(api, make_quota, shift, path):
    make_quota()
    ChallengeQuota.objects.delete(USER, actor=STAFF)
    shift(USER, DAY)
    answer = api.get(path)
    assert (answer.status_code, answer.json()["code"]) == (410, "user_deleted")
    assert kinds() == ["opened", "deleted"]


def test_a_user_reads_their_own_quota_whatever_else_they_name(api, make_quota):
    make_quota("user_1", remaining=3)
    make_quota("user_2", remaining=15)
    path = "/api/v1/quota?user_id=user_1&sub=user_1"
    quota = api.signed_in_as("user_2").get(path, X_User_Id="user_1").json()
    assert (quota["user_id"], quota["quota_remaining"]) == ("user_2", 15)


@pytest.mark.parametrize("path", ["users/user_1/quota", "users/user_2/quota", "quota/user_1"])
def test_a_session_token_opens_no_address_of_anothers_quota(api, make_quota, path):
    make_quota("user_1")
    assert api.signed_in_as("user_2").get(f"/api/v1/{path}").status_code in (401, 403, 404)


def test_a_read_opens_nobody_elses_quota(api):
    api.quota()
    assert list(ChallengeQuota.objects.values_list("user_id", flat=True)) == ["user_1"]


def test_a_clock_that_steps_back_resets_nothing_and_ages_no_entry(api, make_quota, shift):
    make_quota(remaining=12)
    shift(USER, timedelta(hours=-30))  # the rows are in the future, as if the clock had stepped back
    assert api.quota().json()["quota_remaining"] == 12
    assert api.consume({"cost": 2}).status_code == 201
    times = list(LedgerEntry.objects.order_by("seq").values_list("created_at", flat=True))
    assert times == sorted(times)
    assert times[2] == times[1] > datetime.now(UTC) + timedelta(hours=29)


def test_after_a_clock_that_stepped_back_the_wait_is_the_true_one(api, make_quota, shift):
    make_quota()
    shift(USER, timedelta(hours=-30))
    assert 54 * 3_600 - 10 < api.get("/api/v1/quota").json()["seconds_to_reset"] <= 54 * 3_600


ANSWERS = {
    "simple": (200, lambda api: api.quota()),
    "full": (200, lambda api: api.get("/api/v1/quota")),
    "spent": (201, lambda api: api.consume()),
    "too little left": (429, lambda api: api.consume({"cost": 20})),
    "malformed": (400, lambda api: api.consume(raw=b"{")),
    "not signed in": (401, lambda api: api.get("/api/quota", Authorization="")),
    "not found": (404, lambda api: api.get("/api/v1/nothing")),
    "another method": (405, lambda api: api.send("PUT", "/api/quota", b"{}")),
    "too large": (413, lambda api: api.consume(Content_Length="65537")),
    "another type": (415, lambda api: api.consume(Content_Type="text/plain")),
    "never payable": (422, lambda api: api.consume({"cost": 21})),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_no_answer_may_be_kept_by_a_cache(api, make_quota, name):
    make_quota(remaining=12)
    status, ask = ANSWERS[name]
    answer = ask(api)
    assert (answer.status_code, answer["Cache-Control"]) == (status, "no-store")


def test_every_instant_of_an_answer_has_one_form(api, make_quota):
    Plan.objects.update(reset_policy="daily")  # its periods begin and end at whole seconds
    make_quota(remaining=1)
    refused = api.consume({"cost": 2})
    answers = [
        api.quota(),
        api.get("/api/v1/quota"),
        api.consume(),
        api.get("/api/v1/quota/history"),
        refused,
    ]
    found = [text for answer in answers for text in re.findall(r'"(20\d\d-[^"]+)"', answer.content.decode())]
    assert len(found) >= 6
    assert all(RFC3339.fullmatch(text) for text in found), found
    assert refused.json()["resets_at"].endswith("00:00.000000Z")
    assert "00:00Z." in refused.json()["detail"]  # for people: a whole second

"""The list of users for servers: in the order of the ids, filtered, a bounded page at a time."""

from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

import pytest
from django.db.models import F

from quotas.models import ChallengeQuota, LedgerEntry, Plan, ServiceKey
from quotas.reports import users
from quotas.rules.values import MAX_UNITS, rfc3339
from tests.api.test_service import Service, code
from tests.conftest import STAFF

pytestmark = pytest.mark.django_db
quotas = ChallengeQuota.objects
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
MEMBERS = {
    *("user_id", "email", "plan", "plan_source", "quota_limit", "quota_remaining", "quota_used"),
    *("last_reset_date", "resets_at", "updated_at", "deleted_at"),
}


@pytest.fixture
def listed(api):
    """Ask for a page; the parameters are those of the query."""
    service = Service(ServiceKey.make("a server", ["read"])[1], client=api.client)
    return lambda **query: service.get(f"/api/v1/users?{urlencode(query)}")


@pytest.fixture
def ids(listed):
    def get(**query):
        return [user["user_id"] for user in listed(**query).json()["users"]]

    return get


def test_a_user_has_exactly_these_members(listed, make_quota):
    row = make_quota("user_1", remaining=18)
    quotas.note_profile("user_1", "jane@example.com", datetime(2026, 9, 1, tzinfo=UTC))
    answer = listed()
    [user] = answer.json()["users"]
    assert (answer.status_code, answer["Cache-Control"], answer.json()["next_cursor"]) == (
        200,
        "no-store",
        None,
    )
    assert user.keys() == MEMBERS
    assert (user["user_id"], user["email"]) == ("user_1", "jane@example.com")
    assert (user["plan"], user["plan_source"]) == ("free", "default")
    assert (user["quota_limit"], user["quota_used"], user["quota_remaining"]) == (20, 0, 18)
    assert (user["updated_at"], user["deleted_at"]) == (rfc3339(row.updated_at), None)


def test_they_come_in_the_order_of_their_ids(ids, make_quota):
    for user_id in ("user_b", "user_a", "user_c"):
        make_quota(user_id)
    assert ids() == ["user_a", "user_b", "user_c"]


def test_nobody_is_listed_where_nobody_is(listed):
    assert listed().json() == {"users": [], "next_cursor": None}


def test_a_reset_that_is_due_counts_as_carried_out_and_nothing_is_stored(listed, make_quota, shift):
    make_quota("user_1", remaining=0)
    shift("user_1", DAY)
    before = list(quotas.values()), LedgerEntry.objects.count()
    [user] = listed().json()["users"]
    assert user["quota_remaining"] == 20
    assert (list(quotas.values()), LedgerEntry.objects.count()) == before


def test_without_a_limit_there_are_as_many_units_as_can_be(listed, make_quota):
    make_quota(allowance=None)
    [user] = listed().json()["users"]
    assert (user["quota_limit"], user["quota_remaining"], user["email"]) == (None, MAX_UNITS, None)


# Filters


def test_the_deleted_are_listed_only_if_asked_for(ids, listed, make_quota):
    make_quota("user_1")
    make_quota("user_2")
    quotas.delete("user_2", actor=STAFF)
    assert (ids(), ids(deleted="false"), ids(deleted="true")) == (["user_1"], ["user_1"], ["user_2"])
    assert listed(deleted="true").json()["users"][0]["deleted_at"]


def test_those_of_a_plan_are_listed(ids, make_quota):
    Plan(name="pro", allowance=50).save()
    make_quota("user_1")
    make_quota("user_2")
    quotas.change_plan("user_2", "pro", actor=STAFF)
    assert (ids(plan="pro"), ids(plan="free")) == (["user_2"], ["user_1"])


def test_the_exhausted_are_those_who_can_spend_nothing_now(ids, make_quota, shift):
    make_quota("user_due", remaining=0)
    shift("user_due", DAY)
    make_quota("user_empty", remaining=0)
    make_quota("user_rich", remaining=1)
    make_quota("user_unlimited", allowance=None)
    assert ids(exhausted="true") == ["user_empty"]
    assert ids(exhausted="false") == ["user_due", "user_rich", "user_unlimited"]


def test_a_plan_that_gives_nothing_leaves_its_users_exhausted_unless_staff_gave_something(
    ids, make_quota, shift
):
    make_quota("user_given", allowance=0, remaining=3)
    make_quota("user_given_before", remaining=3, allowance=0)
    shift("user_given_before", DAY)
    make_quota("user_none", allowance=0)
    assert ids(exhausted="true") == ["user_given_before", "user_none"]
    assert ids(exhausted="false") == ["user_given"]


def test_a_row_that_an_earlier_release_wrote_is_judged_by_the_rules(ids, make_quota):
    make_quota("user_1", remaining=0)
    quotas.filter(pk="user_1").update(usage_seq=F("seq") - 1, resets_at=datetime(2026, 1, 1, tzinfo=UTC))
    assert (ids(exhausted="true"), ids(exhausted="false")) == (["user_1"], [])


def test_those_seen_since_are_those_whose_quota_was_changed_then_or_later(ids, make_quota, shift):
    changed_at = make_quota("user_1").updated_at
    make_quota("user_2")
    shift("user_2", HOUR)
    assert ids(seen_since=rfc3339(changed_at)) == ["user_1"]
    assert ids(seen_since=rfc3339(changed_at + timedelta(microseconds=1))) == []
    assert ids(seen_since=rfc3339(changed_at - 2 * HOUR)) == ["user_1", "user_2"]


def test_filters_are_joined_by_and(ids, make_quota):
    for user_id in ("user_1", "user_2", "user_3"):
        make_quota(user_id, remaining=0)
    quotas.delete("user_2", actor=STAFF)
    assert ids(plan="free", exhausted="true") == ["user_1", "user_3"]
    assert ids(plan="free", exhausted="true", deleted="true") == ["user_2"]


# Pages


def walk(listed, **query):
    """Return the ids of each page."""
    pages, cursor = [], {}
    while cursor is not None:
        page = listed(**query, **cursor).json()
        pages.append([user["user_id"] for user in page["users"]])
        cursor = page["next_cursor"] and {"cursor": page["next_cursor"]}
    return pages


def test_pages_list_everybody_once(listed, make_quota):
    for number in range(5):
        make_quota(f"user_{number}")
    assert walk(listed, limit=2) == [["user_0", "user_1"], ["user_2", "user_3"], ["user_4"]]
    assert walk(listed, limit=5) == [[f"user_{number}" for number in range(5)]]


def test_a_page_looks_at_a_limited_number_of_rows_even_if_it_finds_nobody(listed, make_quota, monkeypatch):
    monkeypatch.setattr(users, "MAX_ROWS_PER_PAGE", 2)
    for number in range(5):
        make_quota(f"user_{number}", remaining=0 if number in (1, 4) else 5)
    assert walk(listed, exhausted="true") == [["user_1"], [], ["user_4"]]
    assert walk(listed, exhausted="true", limit=1) == [["user_1"], [], ["user_4"]]
    assert walk(listed, limit=1) == [[f"user_{number}"] for number in range(5)]


def test_the_deleted_are_found_without_a_look_at_the_others(listed, make_quota, monkeypatch):
    monkeypatch.setattr(users, "MAX_ROWS_PER_PAGE", 2)
    for number in range(5):
        make_quota(f"user_{number}")
    quotas.delete("user_4", actor=STAFF)
    assert walk(listed, deleted="true") == [["user_4"]]


def test_who_comes_between_two_pages_moves_nobody(listed, make_quota):
    for name in "bd":
        make_quota(f"user_{name}")
    first = listed(limit=1).json()
    for name in "ac":
        make_quota(f"user_{name}")
    rest = listed(cursor=first["next_cursor"]).json()["users"]
    assert [user["user_id"] for user in rest] == ["user_c", "user_d"]


# Bad input


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        *(("limit", value, (400, "invalid_request")) for value in ("", "0", "-1", "201", "x", "1.0")),
        *(("exhausted", value, (400, "invalid_request")) for value in ("", "1", "True", "yes", "null")),
        *(("deleted", value, (400, "invalid_request")) for value in ("", "0", "FALSE")),
        *(("plan", value, (400, "invalid_request")) for value in ("", "Free", "a b", "x" * 41, "\x00", "é")),
        *(
            ("cursor", value, (400, "invalid_request"))
            for value in ("", "a b", "x" * 129, "a\n", "\x00", "'")
        ),
        *(("seen_since", value, (400, "invalid_request")) for value in ("", "now", "2026-09-24")),
        ("plan", "gold", (404, "unknown_plan")),
        ("seen_since", "9999-12-31T23:59:59Z", (422, "instant_in_future")),
        ("more", "a" * 3_000, (400, "invalid_request")),
    ],
)
def test_a_bad_parameter_is_refused_with_its_name(listed, name, value, expected):
    answer = listed(**{name: value})
    assert code(answer) == expected
    assert name in answer.json()["detail"] or name == "more"


def test_only_a_service_that_may_read_may_ask(api):
    lacking = Service(ServiceKey.make("a server", ["consume", "refund", "adjust", "admin"])[1])
    assert code(lacking.get("/api/v1/users")) == (403, "scope_missing")
    assert code(api.get("/api/v1/users")) == (403, "service_only")
    assert code(api.get("/api/v1/users", Authorization="")) == (401, "token_missing")

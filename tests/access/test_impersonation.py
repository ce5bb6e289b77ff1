"""Each ledger entry records who impersonates the user, from the token to the history."""

from datetime import timedelta

import pytest

from quotas.models import LedgerEntry
from tests.api.test_service import service_with
from tests.conftest import USER

pytestmark = pytest.mark.django_db

STAFF = {"iss": "https://dashboard.clerk.com", "sid": "sess_2staff", "sub": "user_2staff"}
AGENT = {"sub": "agent_2abc", "type": "agent"}


@pytest.fixture(params=[False, True], ids=["version 1", "version 2"])
def staff(request, api):
    """The API with a token that Clerk issued to staff who impersonate the user."""
    return api.signed_in_as(USER, act=STAFF, v2=request.param)


def actors():
    """Return the kind and actor of each entry, oldest first, as one of the product's servers reads them."""
    entries = service_with("read").get("history").json()["entries"]
    return [(entry["kind"], entry["actor"]) for entry in reversed(entries)]


def user(act):
    return {"kind": "user", "id": USER, "act": act}


def test_a_spend_is_the_users_and_names_who_stands_behind_it(staff):
    assert staff.consume({"cost": 3}).status_code == 201
    assert actors() == [("opened", user("user_2staff")), ("consumed", user("user_2staff"))]
    entry = LedgerEntry.objects.get(kind="consumed")
    assert (entry.actor_kind, entry.actor_id, entry.act) == ("user", USER, "user_2staff")


def test_a_read_that_resets_names_who_stands_behind_it(staff, make_quota, shift):
    make_quota(remaining=3)
    shift(USER, timedelta(days=2))
    assert staff.quota().json()["quota_remaining"] == 20
    assert actors()[-1] == ("reset", user("user_2staff"))


def test_a_refusal_names_who_stands_behind_it(staff, make_quota):
    make_quota(remaining=0)
    assert staff.consume().status_code == 429
    assert actors()[-1] == ("refused", user("user_2staff"))


def test_an_agent_is_named_as_staff_is(api):
    api.signed_in_as(USER, act=AGENT).consume()
    assert actors()[-1] == ("consumed", user("agent_2abc"))


def test_the_users_own_spends_name_nobody(api, staff):
    staff.consume()
    api.consume()
    assert [actor["act"] for _, actor in actors()] == ["user_2staff", "user_2staff", None]


def test_what_staff_began_the_user_repeats_and_it_stays_on_record_as_it_was(api, staff):
    first, again = staff.consume(key="k-1"), api.consume(key="k-1")
    assert (again.json(), again["Idempotent-Replayed"]) == (first.json(), "true")
    assert [actor for kind, actor in actors() if kind == "consumed"] == [user("user_2staff")]


def test_staff_spend_the_users_units_and_not_their_own(api, staff):
    staff.consume({"cost": 5})
    assert api.quota().json()["quota_remaining"] == 15
    assert api.signed_in_as("user_2staff").quota().json()["quota_remaining"] == 20

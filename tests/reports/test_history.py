"""The history: a user's ledger page by page, newest first, without what the user must not see."""

from datetime import timedelta
from uuid import uuid4

import pytest

from quotas.models import ChallengeQuota, LedgerEntry
from quotas.rules.values import Actor, rfc3339
from tests.api.test_service import service_with
from tests.conftest import STAFF, USER

pytestmark = pytest.mark.django_db
OWN = "/api/v1/quota/history"
PUBLIC = {"id", "seq", "kind", "delta", "balance_after", "action", "created_at", "metadata"}
MORE = {
    "cost",
    "plan",
    "plan_source",
    "quota_limit",
    "used_after",
    "given_after",
    "last_reset_date",
    "resets_at",
    "period_seq",
    "actor",
    "reason",
    "refund_of",
}


@pytest.fixture
def service():
    return service_with("read")


@pytest.fixture(params=["own", "service"])
def page(request, api, service):
    """Read a page as the user, or as a service."""

    def read(query=""):
        return api.get(OWN + query) if request.param == "own" else service.get("history" + query)

    return read


def spend(times, user_id=USER):
    for _ in range(times):
        ChallengeQuota.objects.consume(user_id)


def seqs(answer):
    return [entry["seq"] for entry in answer.json()["entries"]]


def code(answer):
    return answer.status_code, answer.json().get("code")


def test_the_newest_entry_is_first(page, make_quota):
    make_quota()
    spend(3)
    answer = page()
    assert (answer.status_code, answer["Cache-Control"]) == (200, "no-store")
    assert answer.json().keys() == {"entries", "next_cursor"}
    assert seqs(answer) == [4, 3, 2, 1]
    assert answer.json()["next_cursor"] is None


def test_a_user_without_a_row_has_an_empty_history_and_gets_no_row(page):
    assert page().json() == {"entries": [], "next_cursor": None}
    assert ChallengeQuota.objects.count() == 0


def test_a_read_resets_nothing(page, make_quota, shift):
    make_quota(remaining=3)
    shift(USER, timedelta(days=2))
    assert seqs(page()) == [2, 1]
    assert LedgerEntry.objects.count() == 2


def test_an_own_entry_has_exactly_these_members(api, make_quota):
    make_quota(remaining=12)
    ChallengeQuota.objects.consume(USER, 5, metadata={"a": [1]})
    entry = LedgerEntry.objects.get(kind="consumed")
    assert api.get(OWN).json()["entries"][0] == {
        "id": str(entry.id),
        "seq": 3,
        "kind": "consumed",
        "delta": -5,
        "balance_after": 7,
        "action": None,
        "created_at": rfc3339(entry.created_at),
        "metadata": {"a": [1]},
    }


def test_a_page_is_bounded_by_its_bytes_as_well(page):
    """Earlier releases took metadata that PostgreSQL writes out to 45 times its length."""
    spend(5)
    LedgerEntry.objects.filter(seq__gte=3).update(metadata={"a": "x" * 600_000})
    seen, query = [], ""
    while query is not None:
        answer = page(query)
        assert len(answer.content) < 2**20
        seen.append(seqs(answer))
        cursor = answer.json()["next_cursor"]
        query = cursor and f"?cursor={cursor}"
    assert seen == [[6], [5], [4], [3, 2, 1]]


def test_an_own_entry_tells_the_action(api, make_quota):
    make_quota()
    LedgerEntry.objects.filter(user_id=USER).update(action="draw")
    assert api.get(OWN).json()["entries"][0]["action"] == "draw"


def test_a_user_never_sees_who_and_why(api, make_quota, shift):
    make_quota()
    by = Actor("staff", "alice@example.com")
    receipt = ChallengeQuota.objects.consume(USER, 5, actor=Actor("user", USER, "user_support"))
    ChallengeQuota.objects.adjust(USER, 5, reason="pitied", actor=by)
    ChallengeQuota.objects.refund(USER, receipt.entry.id, reason="pitied", actor=by)
    ChallengeQuota.objects.reset(USER, reason="pitied", actor=by)
    answer = api.get(OWN)
    assert [entry.keys() for entry in answer.json()["entries"]] == [PUBLIC] * 5
    for secret in ("alice", "pitied", "user_support"):
        assert secret not in answer.content.decode()


def test_a_service_sees_who_why_and_the_state_after(service, make_quota):
    make_quota(remaining=12)
    by = Actor("user", USER, "user_support")
    spent = ChallengeQuota.objects.consume(USER, 5, actor=by).entry
    ChallengeQuota.objects.refund(USER, spent.id, 2, reason="llm_timeout", actor=STAFF)
    refunded, consumed, *_ = service.get("history").json()["entries"]
    assert refunded.keys() == consumed.keys() == PUBLIC | MORE
    assert refunded["actor"] == {"kind": "staff", "id": "a test", "act": None}
    assert (refunded["reason"], refunded["refund_of"]) == ("llm_timeout", str(spent.id))
    assert consumed["actor"] == {"kind": "user", "id": USER, "act": "user_support"}
    assert (consumed["reason"], consumed["refund_of"], consumed["cost"]) == (None, None, 5)
    assert [(entry["used_after"], entry["given_after"]) for entry in (consumed, refunded)] == [
        (5, -8),
        (3, -8),
    ]
    assert (consumed["plan"], consumed["quota_limit"], consumed["period_seq"]) == ("free", 20, 1)


def test_a_history_is_ones_own(api, service, make_quota):
    make_quota("user_1", remaining=3)
    make_quota("user_2")
    assert seqs(api.signed_in_as("user_2").get(f"{OWN}?user_id=user_1")) == [1]
    assert seqs(service.of("user_2").get("history")) == [1]


def test_a_deleted_user_has_none(page, make_quota):
    make_quota()
    ChallengeQuota.objects.delete(USER, actor=STAFF)
    assert code(page()) == (410, "user_deleted")
    assert code(page("?cursor=1")) == (410, "user_deleted")


# Pages


def walk(page, limit, between=lambda: None):
    """Read all pages; return every seq in order, and the sizes of the pages."""
    seen, sizes, query = [], [], f"?limit={limit}"
    while True:
        answer = page(query)
        seen += seqs(answer)
        sizes.append(len(seqs(answer)))
        cursor = answer.json()["next_cursor"]
        if cursor is None:
            return seen, sizes
        assert isinstance(cursor, str)
        query = f"?limit={limit}&cursor={cursor}"
        between()


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 11, 12, 13, 200])
def test_the_pages_are_the_whole_ledger(page, make_quota, limit):
    make_quota()
    spend(11)
    seen, sizes = walk(page, limit)
    assert seen == list(range(12, 0, -1))
    assert sizes == [limit] * (12 // limit) + [12 % limit] * (12 % limit > 0)


def test_no_entry_is_missed_or_told_twice_while_spends_go_on(page, make_quota):
    make_quota()
    spend(9)
    seen, sizes = walk(page, 3, between=lambda: spend(2))
    assert seen == list(range(10, 0, -1))
    assert sizes == [3, 3, 3, 1]
    assert LedgerEntry.objects.count() == 16


def test_a_reset_between_two_pages_moves_nothing(page, make_quota, shift):
    make_quota()
    spend(5)

    def a_day_passes():
        shift(USER, timedelta(days=1))
        ChallengeQuota.objects.current(USER)

    assert walk(page, 2, between=a_day_passes)[0] == [6, 5, 4, 3, 2, 1]


def test_a_page_has_50_entries_and_at_most_200(page, make_quota):
    opened = make_quota()
    first = LedgerEntry.objects.get()
    more = []
    for seq in range(2, 205):
        first.pk, first.seq = uuid4(), seq
        more.append(
            LedgerEntry(**{field.attname: getattr(first, field.attname) for field in first._meta.fields})
        )
    LedgerEntry.objects.bulk_create(more)
    assert opened.user_id == USER
    assert (len(seqs(page())), page().json()["next_cursor"]) == (50, "155")
    assert (len(seqs(page("?limit=200"))), page("?limit=200").json()["next_cursor"]) == (200, "5")


def test_a_cursor_before_the_first_entry_has_an_empty_page(page, make_quota):
    make_quota()
    assert page("?cursor=1").json() == {"entries": [], "next_cursor": None}


def test_a_cursor_beyond_the_newest_entry_is_the_first_page(page, make_quota):
    make_quota()
    assert seqs(page(f"?cursor={2**62}")) == [1]


@pytest.mark.parametrize("name", ["limit", "cursor"])
@pytest.mark.parametrize(
    "value",
    ["", "0", "-1", "1.0", "1e2", "x", "%00", "%D9%A1", "9" * 19, "9" * 400, "0x1", "1%201", "%2B1", "null"],
)
def test_what_is_no_number_of_a_page_is_refused(page, make_quota, name, value):
    make_quota()
    answer = page(f"?{name}={value}")
    assert code(answer) == (400, "invalid_request")
    assert answer.json()["detail"].startswith(f"{name}: must be a whole number from 1 to ")


@pytest.mark.parametrize("limit", [201, 2**31, 2**63])
def test_a_page_of_more_than_200_is_refused(page, limit):
    assert code(page(f"?limit={limit}")) == (400, "invalid_request")


def test_a_cursor_that_no_ledger_reaches_is_refused(page):
    assert code(page(f"?cursor={2**62 + 1}")) == (400, "invalid_request")

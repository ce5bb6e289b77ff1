"""The admin console: staff see the current state, and each action is applied once, for a reason."""

import re
from collections.abc import Callable
from datetime import timedelta
from uuid import uuid4

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from quotas.console import quotas
from quotas.models import ChallengeQuota, LedgerEntry
from quotas.reports import counts
from quotas.rules.durations import duration_in_words
from quotas.rules.values import Actor
from tests.tools.staff import ACTING, LIST, PAGE, SCRIPT, confirm, send, sign_in, text
from webhooks.models import WebhookEvent

pytestmark = pytest.mark.django_db
Make = Callable[..., ChallengeQuota]
Shift = Callable[[str, timedelta], None]


@pytest.fixture
def staff() -> Client:
    return sign_in(*ACTING)


@pytest.fixture
def viewer() -> Client:
    return sign_in("view_challengequota", "view_ledgerentry", "view_webhookevent")


@pytest.fixture
def root() -> Client:
    return sign_in(is_superuser=True)


def balance(user_id: str = "user_1") -> int:
    return ChallengeQuota.objects.get(pk=user_id).quota_remaining


def adjustments() -> list[LedgerEntry]:
    return list(LedgerEntry.objects.filter(kind="adjusted"))


def test_the_list_shows_what_a_request_would_find_and_not_the_stale_row(
    staff: Client, make_quota: Make, shift: Shift
) -> None:
    make_quota(allowance=20)
    ChallengeQuota.objects.consume("user_1", 20)
    assert "0 of 20" in text(staff.get(LIST))
    shift("user_1", timedelta(hours=24))
    assert "20 of 20" in text(staff.get(LIST))
    assert balance() == 0  # viewing changes nothing


@pytest.mark.parametrize(
    ("allowance", "remaining", "state"),
    [(20, 5, "healthy"), (20, 4, "low"), (20, 0, "exhausted"), (0, 0, "exhausted"), (None, None, "healthy")],
)
def test_a_state_is_one_word(
    staff: Client, make_quota: Make, allowance: int | None, remaining: int | None, state: str
) -> None:
    make_quota(allowance=allowance, remaining=remaining)
    assert f'<span class="chip {state}">{state}</span>' in text(staff.get(LIST))


def test_an_unlimited_quota_has_no_meter(staff: Client, make_quota: Make) -> None:
    make_quota(allowance=None)
    page = text(staff.get(LIST))
    assert "<meter" not in page
    assert '<td class="field-remaining">unlimited</td>' in page


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (59, "59 s"), (5_400, "1 h 30 min"), (90_061, "1 d 1 h 1 min 1 s")]
)
def test_a_time_is_said_in_words(seconds: int, words: str) -> None:
    assert duration_in_words(seconds) == words


def test_the_time_to_the_reset_is_rounded_up(staff: Client, make_quota: Make, shift: Shift) -> None:
    make_quota()
    shift("user_1", timedelta(hours=18, minutes=48, seconds=30))
    assert "5 h 12 min</time>" in text(staff.get(LIST))


@pytest.mark.parametrize(
    ("found", "searched"), [(1, "user_1"), (1, "ada@"), (0, "ser_1"), (0, "example.com")]
)
def test_a_search_goes_by_the_beginning(staff: Client, make_quota: Make, found: int, searched: str) -> None:
    make_quota()
    ChallengeQuota.objects.note_profile("user_1", "ada@example.com", timezone.now())
    assert f"{found} found" in text(staff.get(LIST, {"q": searched}))


def test_deleted_users_can_be_left_out(staff: Client, make_quota: Make) -> None:
    make_quota("user_1")
    make_quota("user_2")
    ChallengeQuota.objects.delete("user_2", actor=Actor("webhook", "clerk"))
    shown = [
        re.findall(r"user_\d(?=</a>)", text(staff.get(LIST, {"state": state})))
        for state in ("open", "deleted")
    ]
    assert shown == [["user_1"], ["user_2"]]


@pytest.mark.parametrize("path", [LIST, "/admin/quotas/ledgerentry/"])
def test_a_list_costs_as_many_queries_for_many_rows_as_for_one(
    root: Client, make_quota: Make, path: str
) -> None:
    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            assert root.get(path).status_code == 200
        return len(captured)

    make_quota("user_0")
    few = queries()
    for number in range(1, 8):
        make_quota(f"user_{number}")
    assert queries() == few


def test_counting_stops(staff: Client, make_quota: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        make_quota(f"user_{number}")
    assert "4 quotas" in text(staff.get(LIST))
    monkeypatch.setattr(counts, "MAX_COUNTED", 3)
    with CaptureQueriesContext(connection) as captured:
        assert "more than 3 quotas" in text(staff.get(LIST))
    assert any("LIMIT 4" in query["sql"] for query in captured)


def test_the_page_tells_what_can_be_spent_and_why(staff: Client, make_quota: Make) -> None:
    make_quota(allowance=20)
    ChallengeQuota.objects.consume("user_1", 3)
    page = text(staff.get(PAGE))
    for shown in (
        "17 of 20",
        "rolling: a period after the last reset",
        "1 d, since",
        "healthy",
        "Reset now",
        "Adjust",
        "the user",
    ):
        assert shown in page
    assert page.index("consumed") < page.index("opened")
    assert "?q=user_1" in page


def test_the_page_keeps_the_ledger_from_who_may_not_see_it(make_quota: Make) -> None:
    make_quota(allowance=20)
    ChallengeQuota.objects.consume("user_1", 3)
    page = text(sign_in("view_challengequota").get(PAGE))
    assert "17 of 20" in page
    assert "consumed</td>" not in page
    assert "?q=user_1" not in page


def test_the_page_shows_the_newest_50_entries(staff: Client, make_quota: Make) -> None:
    make_quota()
    for _ in range(51):
        ChallengeQuota.objects.reset("user_1", reason="again", actor=Actor("staff", "bob"))
    assert text(staff.get(PAGE)).count("<td>reset</td>") == 50


def test_an_unknown_user_has_no_page(staff: Client) -> None:
    assert staff.get(f"{LIST}nobody/change/").status_code == 404


def test_a_tombstone_offers_no_action(staff: Client, make_quota: Make) -> None:
    make_quota()
    assert 'value="reset_now"' in text(staff.get(PAGE))
    ChallengeQuota.objects.delete("user_1", actor=Actor("webhook", "clerk"))
    page = text(staff.get(PAGE))
    assert "closed permanently" in page
    assert 'value="reset_now"' not in page


def test_an_adjustment_is_shown_before_it_is_made(staff: Client, make_quota: Make) -> None:
    make_quota(remaining=8)
    form = text(send(staff, "adjust", "user_1"))
    assert "Show before and after" in form
    token = re.search(r'name="token" value="([^"]+)"', form)
    assert token
    shown = text(send(staff, "adjust", "user_1", token=token[1], delta="-3", reason="sorry"))
    assert "Adjust by -3" in shown
    assert shown.index("8 of 20") < shown.index("5 of 20")
    assert balance() == 8
    done = text(send(staff, "adjust", "user_1", token=token[1], delta="-3", reason="sorry", confirmed="1"))
    assert "Adjusted user_1: now 5 of 20." in done
    entry = LedgerEntry.objects.latest("seq")
    assert (entry.kind, entry.delta, entry.reason) == ("adjusted", -3, "sorry")
    assert (entry.actor_kind, entry.actor_id) == ("staff", "alice")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ({"delta": "5", "reason": ""}, "This field is required."),
        ({"delta": "5", "reason": "   "}, "This field is required."),
        ({"delta": "5", "reason": "x" * 201}, "at most 200 characters"),
        ({"delta": "0", "reason": "x"}, "An adjustment by 0 changes nothing."),
        ({"delta": "1.5", "reason": "x"}, "Enter a whole number."),
        ({"delta": "2147483648", "reason": "x"}, "less than or equal to 2147483647"),
        ({"delta": "5", "reason": "x", "token": "mine"}, "Enter a valid UUID."),
    ],
)
def test_an_adjustment_needs_a_number_and_a_reason(
    staff: Client, make_quota: Make, data: dict[str, str], why: str
) -> None:
    make_quota()
    assert why in confirm(staff, "adjust", "user_1", **data)
    assert adjustments() == []


def test_a_reset_needs_a_reason(staff: Client, make_quota: Make) -> None:
    make_quota(remaining=1)
    assert "This field is required." in confirm(staff, "reset_now", "user_1", reason="")
    assert balance() == 1


def test_a_form_that_is_sent_twice_adjusts_once(staff: Client, make_quota: Make) -> None:
    make_quota()
    token = uuid4()
    confirm(staff, "adjust", "user_1", delta="5", token=token)
    again = confirm(staff, "adjust", "user_1", delta="5", token=token)
    assert "nothing was done again" in again
    assert "Adjusted" not in again
    assert balance() == 25


def test_a_form_that_was_edited_after_it_was_sent_is_refused(staff: Client, make_quota: Make) -> None:
    make_quota()
    token = uuid4()
    confirm(staff, "adjust", "user_1", delta="5", token=token)
    page = confirm(staff, "adjust", "user_1", delta="6", token=token)
    assert "Not done for user_1: this form was already submitted with other values" in page
    assert balance() == 25


def test_many_users_are_reset_at_once(staff: Client, make_quota: Make) -> None:
    make_quota("user_1", remaining=0)
    make_quota("user_2", remaining=3)
    assert "Reset 2 users." in confirm(staff, "reset_now", "user_1", "user_2")
    assert (balance("user_1"), balance("user_2")) == (20, 20)


def test_the_refusal_of_one_user_does_not_stop_the_others(staff: Client, make_quota: Make) -> None:
    make_quota("user_1", remaining=2)
    make_quota("user_2")
    ChallengeQuota.objects.delete("user_2", actor=Actor("webhook", "clerk"))
    make_quota("user_3", remaining=9)
    before = text(send(staff, "adjust", "user_1", "user_2", "user_3", token=uuid4(), delta="-4", reason="x"))
    assert "would leave -2" in before
    after = confirm(staff, "adjust", "user_1", "user_2", "user_3", delta="-4")
    assert "Not done for user_1: An adjustment by -4 would leave -2" in after
    assert "Not done for user_2: This user was deleted" in after
    assert "Adjusted user_3: now 5 of 20." in after


def test_too_many_users_at_a_time_are_refused(
    staff: Client, make_quota: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_quota("user_1", remaining=0)
    make_quota("user_2", remaining=0)
    monkeypatch.setattr(quotas, "MAX_USERS_PER_ACTION", 1)
    assert "Nothing was changed: select at most 1 users at a time." in confirm(
        staff, "reset_now", "user_1", "user_2"
    )
    assert (balance("user_1"), balance("user_2")) == (0, 0)


def test_a_confirmation_goes_by_name_whatever_the_list_would_show(staff: Client, make_quota: Make) -> None:
    make_quota(remaining=0)
    confirm(staff, "reset_now", "user_1", path=f"{LIST}?state=deleted")
    assert balance() == 20


def test_who_may_only_look_cannot_act(viewer: Client, make_quota: Make) -> None:
    make_quota(remaining=7)
    assert re.findall(r'<option value="(\w+)"', text(viewer.get(LIST))) == ["export"]
    assert 'name="action"' not in text(viewer.get(PAGE))
    confirm(viewer, "reset_now", "user_1")
    confirm(viewer, "adjust", "user_1", delta="5")
    confirm(viewer, "change_plan", "user_1", plan="pro", on_change="reset")
    assert balance() == 7


def test_the_acts_ask_for_the_permission_themselves(
    viewer: Client, make_quota: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_quota(remaining=7)
    everything = quotas.QuotaAdmin._get_base_actions
    monkeypatch.setattr(
        quotas.QuotaAdmin, "_filter_actions_by_permissions", lambda self, *_: everything(self)
    )
    assert "403" in confirm(viewer, "reset_now", "user_1")
    assert balance() == 7


def test_a_balance_cannot_be_typed(root: Client, make_quota: Make) -> None:
    make_quota(remaining=7)
    forged = {"quota_remaining": "999", "quota_limit": "999", "_save": "Save"}
    assert root.post(PAGE, forged).status_code == 403
    assert balance() == 7


def test_nothing_of_the_record_can_be_added_edited_or_deleted(root: Client, make_quota: Make) -> None:
    make_quota()
    entry = LedgerEntry.objects.get()
    WebhookEvent.objects.create(svix_id="msg_1", type="user.created", status="success")
    for path, pk in [
        (LIST, "user_5F1"),
        ("/admin/quotas/ledgerentry/", str(entry.pk)),
        ("/admin/webhooks/webhookevent/", "msg_5F1"),
    ]:
        assert root.get(f"{path}{pk}/change/").status_code == 200
        for refused in ("add/", f"{pk}/delete/", f"{pk}/change/"):
            assert root.post(path + refused, {"post": "yes"}).status_code == 403
        root.post(path, {"action": "delete_selected", "_selected_action": pk, "post": "yes"})
    assert (ChallengeQuota.objects.count(), LedgerEntry.objects.count()) == (1, 1)
    assert WebhookEvent.objects.count() == 1


def test_hostile_text_is_shown_as_text(root: Client, make_quota: Make) -> None:
    make_quota()
    hostile = Actor("staff", SCRIPT)
    ChallengeQuota.objects.adjust("user_1", 1, reason=SCRIPT, actor=hostile)
    ChallengeQuota.objects.note_profile("user_1", SCRIPT, timezone.now())
    WebhookEvent.objects.create(svix_id=SCRIPT, type=SCRIPT, user_id=SCRIPT, note=SCRIPT, status="ignored")
    form = {"token": uuid4(), "delta": "1", "reason": SCRIPT}
    for page in (
        root.get(LIST),
        root.get(PAGE),
        root.get("/admin/quotas/ledgerentry/"),
        root.get("/admin/webhooks/webhookevent/"),
        send(root, "adjust", "user_1", **form),
        send(root, "adjust", "user_1", **{**form, "delta": SCRIPT}),
    ):
        assert SCRIPT not in text(page)
        assert "&lt;script&gt;" in text(page)


def test_a_hostile_user_id_is_shown_as_text(root: Client, make_quota: Make) -> None:
    make_quota()
    ChallengeQuota.objects.update(user_id=SCRIPT)
    LedgerEntry.objects.update(user_id=SCRIPT)
    for page in (root.get(LIST), root.get("/admin/quotas/ledgerentry/"), send(root, "adjust", SCRIPT)):
        assert SCRIPT not in text(page)
        assert "&lt;script&gt;" in text(page)


def test_no_page_has_a_script_or_style_of_its_own(root: Client, make_quota: Make) -> None:
    make_quota()
    for page in (root.get(LIST), root.get(PAGE), send(root, "adjust", "user_1")):
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=)", text(page))


def test_the_ledger_is_searched_by_a_whole_user_id_and_without_a_join(root: Client, make_quota: Make) -> None:
    make_quota("user_1")
    make_quota("user_11")
    with CaptureQueriesContext(connection) as captured:
        page = text(root.get("/admin/quotas/ledgerentry/", {"q": "user_1"}))
    assert "1 found" in page
    assert not any("ledger_entries" in query["sql"] and "JOIN" in query["sql"] for query in captured)


def test_the_inbox_is_filtered_by_the_types_that_are_handled(root: Client) -> None:
    for number, (name, status) in enumerate([("user.created", "success"), ("session.created", "ignored")]):
        WebhookEvent.objects.create(
            svix_id=f"msg_{number}", type=name, user_id=f"user_{number}", status=status
        )
    path = "/admin/webhooks/webhookevent/"
    for given, shown in [("user.created", ["user_0"]), ("other", ["user_1"]), ("", ["user_1", "user_0"])]:
        page = text(root.get(path, {"type": given} if given else {}))
        assert re.findall(r'field-user"><a [^>]+>(user_\d)', page) == shown

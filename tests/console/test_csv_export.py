"""CSV for staff: complete, in bounded chunks, and harmless to a spreadsheet."""

import csv
import io
import json
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from quotas.console import csv_export, display
from quotas.models import ChallengeQuota, LedgerEntry, Plan
from quotas.rules.values import Actor
from tests.tools.staff import LIST, SCRIPT, send, sign_in, text

pytestmark = pytest.mark.django_db
Make = Callable[..., ChallengeQuota]
Shift = Callable[[str, timedelta], None]

QUOTAS = f"{LIST}csv/"
LEDGER = f"{LIST}user_5F1/ledger.csv"
HOSTILE = ["=cmd()", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝cmd()", SCRIPT, 'a"b,c\r\n=1']


@pytest.fixture
def viewer() -> Client:
    return sign_in("view_challengequota", "view_ledgerentry")


def rows(client: Client, path: str, **query: str) -> list[dict[str, str]]:
    response = client.get(path, query)
    assert response.status_code == 200
    assert response["Content-Type"] == "text/csv; charset=utf-8"
    return read(text(response))


def read(sent: str) -> list[dict[str, str]]:
    assert sent.startswith("\ufeff")  # by which Excel knows UTF-8
    return list(csv.DictReader(io.StringIO(sent.removeprefix("\ufeff"), newline="")))


def ids(found: list[dict[str, str]]) -> list[str]:
    return [row["user_id"] for row in found]


def test_an_export_has_the_figures_of_the_list(viewer: Client, make_quota: Make, shift: Shift) -> None:
    make_quota("user_1")
    ChallengeQuota.objects.consume("user_1", 8)
    make_quota("user_2", remaining=0)
    make_quota("user_3", remaining=0)
    shift("user_3", timedelta(hours=24))
    ChallengeQuota.objects.note_profile("user_1", "ada@example.com", timezone.now())
    first, second, third = rows(viewer, QUOTAS)
    assert (first["user_id"], first["email"], first["plan"]) == ("user_1", "ada@example.com", "free")
    assert (first["quota_limit"], first["quota_used"], first["quota_remaining"]) == ("20", "8", "12")
    assert [row["state"] for row in (first, second, third)] == ["healthy", "exhausted", "healthy"]
    assert (third["quota_remaining"], third["last_reset_date"]) == ("20", third["as_of"])
    assert first["resets_at"] > first["as_of"]


def test_an_unlimited_and_a_deleted_quota_are_exported_too(viewer: Client, make_quota: Make) -> None:
    make_quota("user_1", allowance=None)
    make_quota("user_2", allowance=None)
    ChallengeQuota.objects.delete("user_2", actor=Actor("webhook", "clerk"))
    first, second = rows(viewer, QUOTAS)
    assert (first["quota_limit"], first["quota_remaining"]) == ("", "2147483647")
    assert (second["state"], first["deleted_at"]) == ("deleted", "")
    assert second["deleted_at"].endswith("Z")


def test_a_process_sends_one_export_at_a_time(viewer: Client, make_quota: Make) -> None:
    make_quota("user_1")
    first = viewer.get(QUOTAS)
    for path in (QUOTAS, LEDGER):
        busy = viewer.get(path)
        assert (busy.status_code, busy["Retry-After"]) == (503, "30")
        assert "Wait until the other one has arrived" in text(busy)
    assert send(viewer, "export", "user_1").status_code == 503
    assert "user_1" in text(first)
    assert rows(viewer, LEDGER)


def test_an_export_that_nobody_reads_to_its_end_lets_the_next_begin(viewer: Client, make_quota: Make) -> None:
    make_quota("user_1")
    for lines_read in (0, 1):
        export = viewer.get(QUOTAS)
        for _ in zip(range(lines_read), export, strict=False):
            pass
        for _ in range(2):
            for close in [
                *export._resource_closers
            ]:  # as export.close(), which ends the test's transaction too
                close()
    assert rows(viewer, QUOTAS)


def test_an_export_whose_response_is_forgotten_lets_the_next_begin() -> None:
    csv_export.stream("a.csv", ("a",), [], lambda _: ())
    assert not csv_export.ONE_EXPORT.locked()


def test_behind_a_semicolon_no_cell_of_another_spreadsheet_is_a_formula() -> None:
    assert csv_export.defused('{"a": ";=1+1;@b;c"}') == '{"a": ";\'=1+1;\'@b;c"}'


@pytest.mark.parametrize("hostile", HOSTILE)
def test_no_text_is_a_formula(viewer: Client, make_quota: Make, hostile: str) -> None:
    make_quota("user_1")
    ChallengeQuota.objects.adjust("user_1", -3, reason=hostile, actor=Actor("staff", hostile))
    ChallengeQuota.objects.filter(pk="user_1").update(email=hostile)
    quota, (*_, entry) = rows(viewer, QUOTAS)[0], rows(viewer, LEDGER)
    for cell in (quota["email"], entry["reason"], entry["actor_id"]):
        assert cell == (hostile if hostile in (SCRIPT, HOSTILE[-1]) else f"'{hostile}")
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "＝"))
    assert (entry["delta"], entry["balance_after"]) == ("-3", "17")  # a number stays one


@pytest.mark.parametrize("hostile", ["=cmd()", "-user", "@user", SCRIPT, 'a"b,c\r\n=1'])
def test_no_user_id_is_a_formula_or_breaks_a_row_or_a_header(
    viewer: Client, make_quota: Make, hostile: str
) -> None:
    make_quota()
    ChallengeQuota.objects.update(user_id=hostile)
    LedgerEntry.objects.update(user_id=hostile)
    assert ids(rows(viewer, QUOTAS)) == [f"'{hostile}" if hostile[0] in "=-@" else hostile]
    link = display.quota_url(hostile).replace("/change/", "/ledger.csv")
    answer = viewer.get(link)
    assert len(read(text(answer))) == 1
    assert answer["Content-Disposition"].startswith("attachment; ")
    assert "\n" not in answer["Content-Disposition"]


def test_an_export_is_complete_and_read_in_chunks(
    viewer: Client, make_quota: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = [f"user_{number}" for number in range(7)]
    for user_id in users:
        make_quota(user_id)
    make_quota("user_7", allowance=30)  # so that the others keep an old version of the plan
    monkeypatch.setattr(csv_export, "ROWS_AT_ONCE", 3)
    answer = viewer.get(QUOTAS)
    with CaptureQueriesContext(connection) as captured:
        assert ids(read(text(answer))) == [*users, "user_7"]
    reads = [query["sql"] for query in captured if 'FROM "challenge_quotas"' in query["sql"]]
    assert len(reads) == 3  # of 3, 3 and 2 rows
    assert all("LIMIT 3" in sql for sql in reads)
    assert not any("DECLARE" in query["sql"] or "OFFSET" in query["sql"] for query in captured)
    assert len(captured) == 2 * len(reads)  # each with the versions of its plans


def test_a_chunk_is_read_when_the_one_before_was_sent(
    viewer: Client, make_quota: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        make_quota(f"user_{number}")
    monkeypatch.setattr(csv_export, "ROWS_AT_ONCE", 2)
    sent = iter(viewer.get(QUOTAS).streaming_content)
    with CaptureQueriesContext(connection) as captured:
        assert next(sent).startswith(b"\xef\xbb\xbfuser_id,email")
        assert len(captured) == 0
        assert next(sent).count(b"\r\n") == 2
        few = len(captured)
        assert next(sent).count(b"\r\n") == 2
    assert len(captured) == 2 * few


def test_an_export_goes_by_the_filters_of_the_list(viewer: Client, make_quota: Make) -> None:
    Plan(name="pro", allowance=50).save()
    for number in range(4):
        make_quota(f"user_{number}")
    ChallengeQuota.objects.consume("user_1", 20)
    ChallengeQuota.objects.change_plan("user_2", "pro", actor=Actor("staff", "bob"))
    ChallengeQuota.objects.delete("user_3", actor=Actor("webhook", "clerk"))
    assert ids(rows(viewer, QUOTAS, state="exhausted")) == ["user_1"]
    assert ids(rows(viewer, QUOTAS, state="deleted")) == ["user_3"]
    assert ids(rows(viewer, QUOTAS, plan__name__exact="pro")) == ["user_2"]
    assert ids(rows(viewer, QUOTAS, q="user_0", state="open")) == ["user_0"]
    page = text(viewer.get(LIST, {"state": "open", "q": "user"}))
    assert f'href="{QUOTAS}?q=user&amp;state=open"' in page


def test_an_export_of_a_search_is_not_cut_off_where_the_list_stops_counting(
    viewer: Client, make_quota: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        make_quota(f"user_{number}")
    monkeypatch.setattr("quotas.console.quotas.MAX_COUNTED", 1)
    assert len(rows(viewer, QUOTAS, q="user")) == 4


def test_an_export_of_the_exhausted_has_more_of_them_than_the_list_shows(
    viewer: Client, make_quota: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        make_quota(f"user_{number}", remaining=0)
    monkeypatch.setattr("quotas.console.quotas.MAX_EXHAUSTED", 1)
    assert len(rows(viewer, QUOTAS, state="exhausted")) == 3


@pytest.mark.parametrize("query", [{"nonsense": "1"}, {"plan__versions__version": "1"}, {"q": "\0"}])
def test_an_export_of_nonsense_is_a_bad_request(viewer: Client, query: dict[str, str]) -> None:
    assert viewer.get(QUOTAS, query).status_code == 400


def test_those_that_are_ticked_can_be_exported(viewer: Client, make_quota: Make) -> None:
    for number in range(3):
        make_quota(f"user_{number}")
    assert ids(read(text(send(viewer, "export", "user_0", "user_2")))) == ["user_0", "user_2"]
    ticked = send(viewer, "export", "user_0", select_across="1", path=f"{LIST}?q=user_1")
    assert ids(read(text(ticked))) == ["user_1"]


def test_a_ledger_is_exported_from_its_beginning(
    viewer: Client, make_quota: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_quota("user_1")
    make_quota("user_2")
    for number in range(5):
        ChallengeQuota.objects.consume("user_1", 2, metadata={"number": number})
    monkeypatch.setattr(csv_export, "ROWS_AT_ONCE", 4)
    found = rows(viewer, LEDGER)
    assert [row["seq"] for row in found] == ["1", "2", "3", "4", "5", "6"]
    assert [row["kind"] for row in found] == ["opened", *["consumed"] * 5]
    assert found[-1]["balance_after"] == "10"
    assert json.loads(found[-1]["metadata"]) == {"number": 4}
    assert (found[0]["metadata"], found[0]["refund_of"]) == ("", "")
    assert found[0]["created_at"].endswith("Z")


def test_nobody_has_no_ledger(viewer: Client) -> None:
    assert viewer.get(f"{LIST}nobody/ledger.csv").status_code == 404


def test_an_export_is_only_read(viewer: Client, make_quota: Make) -> None:
    make_quota()
    assert viewer.post(QUOTAS).status_code == 405
    assert viewer.post(LEDGER).status_code == 405


@pytest.mark.parametrize("holds", ["", "view_ledgerentry", "view_plan"])
def test_an_export_needs_the_permission_to_look(make_quota: Make, holds: str) -> None:
    make_quota()
    client = sign_in(holds)
    assert client.get(QUOTAS).status_code == 403
    assert client.get(LEDGER).status_code == 403


def test_the_export_of_a_ledger_needs_the_permission_of_the_ledger_too(make_quota: Make) -> None:
    make_quota()
    assert sign_in("view_challengequota").get(LEDGER).status_code == 403


def test_a_stranger_is_asked_to_sign_in(make_quota: Make) -> None:
    make_quota()
    client = sign_in()
    client.logout()
    for path in (QUOTAS, LEDGER):
        assert client.get(path)["Location"].startswith("/admin/login/")

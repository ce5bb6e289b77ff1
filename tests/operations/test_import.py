"""import_quotas: each user of another service keeps what they have left, and nothing else is lost."""

import io
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier, Thread
from typing import Any, NamedTuple

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from quotas.models import ChallengeQuota, LedgerEntry, Plan
from quotas.operations import importing
from quotas.reports import audit
from quotas.rules.values import ImportedUsage
from tests.conftest import STAFF
from tests.tools.site import url_of_the_test_database

pytestmark = pytest.mark.django_db
quotas = ChallengeQuota.objects
HOUR = timedelta(hours=1)
COLUMNS = "user_id, quota_remaining, last_reset_date"
SEED = """
    CREATE TABLE challenge_quotas (
        id INTEGER NOT NULL PRIMARY KEY, user_id VARCHAR NOT NULL, quota_remaining INTEGER NOT NULL,
        last_reset_date TIMESTAMP
    )
"""


class Run(NamedTuple):
    out: str
    lines: list[str]  # of stderr
    error: str


def import_quotas(*options: str | Path) -> Run:
    out, err, error = io.StringIO(), io.StringIO(), ""
    try:
        call_command("import_quotas", *map(str, options), stdout=out, stderr=err)
    except CommandError as failure:
        error = str(failure)
    return Run(out.getvalue().strip(), err.getvalue().splitlines(), error)


def counts(run: Run) -> list[int]:
    """Return the counts of the summary: rows, imported, already here, deleted here, left out."""
    return [int(part.split()[-1]) for part in run.out.split(", ")]


def ago(age: timedelta) -> str:
    """An instant as SQLAlchemy stores it in SQLite: in UTC, without saying so."""
    return str((datetime.now(UTC) - age).replace(tzinfo=None))


@pytest.fixture
def seed(tmp_path: Path) -> Callable[[Iterable[tuple[Any, Any, Any]]], str]:
    """Make the old app's SQLite file with these rows; return its URL."""

    def make(rows: Iterable[tuple[Any, Any, Any]]) -> str:
        with closing(sqlite3.connect(tmp_path / "old.sqlite3")) as database:
            database.execute(SEED.replace(" NOT NULL,", ","))
            database.executemany(f"INSERT INTO challenge_quotas ({COLUMNS}) VALUES (?, ?, ?)", rows)
            database.commit()
        return f"sqlite:///{tmp_path}/old.sqlite3"

    return make


@pytest.fixture
def csv_file(tmp_path: Path) -> Callable[[str], Path]:
    def make(text: str, encoding: str = "utf-8") -> Path:
        path = tmp_path / "old.csv"
        path.write_text(text, encoding=encoding)
        return path

    return make


Seed = Callable[[Iterable[tuple[Any, Any, Any]]], str]
CSVFile = Callable[..., Path]


def test_users_keep_what_they_have_left_and_the_clock_of_the_old_app(seed: Seed) -> None:
    begun = datetime.now(UTC) - 5 * HOUR
    run = import_quotas("--from", seed([("user_1", 7, str(begun.replace(tzinfo=None)))]))
    assert run == ("rows 1, imported 1, already here 0, deleted here 0, left out 0", [], "")
    row = quotas.get(pk="user_1")
    assert (row.quota_remaining, row.last_reset_date, row.resets_at) == (7, begun, begun + 24 * HOUR)
    assert list(audit.faults()) == []


def test_a_quota_whose_old_period_is_over_resets_at_the_next_request(seed: Seed) -> None:
    import_quotas("--from", seed([("user_1", 0, ago(24 * HOUR)), ("user_2", 0, ago(23.9 * HOUR))]))
    assert [quotas.current(user_id).quota_remaining for user_id in ("user_1", "user_2")] == [20, 0]
    assert list(audit.faults()) == []


def test_the_ledger_says_what_was_imported_and_from_where(seed: Seed) -> None:
    import_quotas("--from", seed([("user_1", 7, ago(HOUR))]))
    opened, entry = LedgerEntry.objects.filter(user_id="user_1").order_by("seq")
    assert (opened.kind, opened.balance_after, opened.actor_id) == ("opened", 20, "import_quotas")
    assert (entry.kind, entry.cost, entry.balance_after) == ("imported", 13, 7)
    assert (entry.reason, entry.actor_kind) == ("from challenge_quotas", "command")


def test_a_second_run_changes_nothing(seed: Seed) -> None:
    url = seed([("user_1", 7, ago(HOUR)), ("user_2", 3, ago(HOUR))])
    quotas.consume("user_2", 4)
    assert counts(import_quotas("--from", url)) == [2, 1, 1, 0, 0]
    quotas.consume("user_1", 2)
    assert counts(import_quotas("--from", url)) == [2, 0, 2, 0, 0]
    assert list(quotas.order_by("pk").values_list("quota_remaining", flat=True)) == [5, 16]


def test_users_whose_quota_something_else_made_are_counted_as_not_taken_over(seed: Seed) -> None:
    url = seed([("user_1", 7, ago(HOUR)), ("user_2", 3, ago(HOUR)), ("user_3", 1, ago(HOUR))])
    quotas.current("user_2")
    quotas.delete("user_3", actor=STAFF)
    for run in (import_quotas("--from", url, "--dry-run"), import_quotas("--from", url)):
        assert run.error == (
            "1 users have a quota here that no import made, but a delivery, the backfill or their first "
            "request: what they had left was not taken over."
        )


@pytest.mark.parametrize(("left", "lines"), [(20, 0), (21, 1)])
def test_users_who_have_more_left_than_the_plan_gives_are_counted(seed: Seed, left: int, lines: int) -> None:
    run = import_quotas("--from", seed([("user_1", left, ago(HOUR))]))
    assert len(run.lines) == lines
    assert not lines or run.lines[0].startswith("1 users have more left than the plan's 20 units")


def test_a_user_who_was_deleted_here_stays_deleted(seed: Seed) -> None:
    quotas.delete("user_1", actor=STAFF)
    assert counts(import_quotas("--from", seed([("user_1", 7, ago(HOUR))]))) == [1, 0, 0, 1, 0]
    assert LedgerEntry.objects.filter(kind="imported").count() == 0


def test_a_dry_run_counts_the_same_and_makes_nothing(seed: Seed) -> None:
    quotas.current("user_2")
    run = import_quotas(
        "--dry-run", "--from", seed([("user_1", 7, ago(HOUR)), ("user_2", 3, ago(HOUR)), ("", 1, None)])
    )
    assert run.out == "dry run: rows 3, imported 1, already here 1, deleted here 0, left out 1"
    assert list(quotas.values_list("pk", flat=True)) == ["user_2"]


TOMORROW = str(datetime.now(UTC).replace(tzinfo=None) + 24 * HOUR)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (("user 1", 5, ago(HOUR)), "a user id has 1 to 128 characters of A-Z a-z 0-9 _ : . @ -"),
        ((None, 5, ago(HOUR)), "a user id has 1 to 128"),
        (("u" * 129, 5, ago(HOUR)), "a user id has 1 to 128"),
        ((b"user\xff\x00", 5, ago(HOUR)), "a user id has 1 to 128"),
        (("user_1", -1, ago(HOUR)), "remaining: '-1' is not a whole number from 0 to 2147483647"),
        (("user_1", 2**31, ago(HOUR)), "remaining: '2147483648' is not"),
        (("user_1", "9" * 30, ago(HOUR)), "remaining: '1.0e+30' is not"),
        (("user_1", 1.5, ago(HOUR)), "remaining: '1.5' is not"),
        (("user_1", "many", ago(HOUR)), "remaining: 'many' is not"),
        (("user_1", None, ago(HOUR)), "neither the units used nor those remaining are given"),
        (("user_1", 5, None), "it has no last reset"),
        (("user_1", 5, "yesterday"), "last reset: 'yesterday' is not a date and time such as"),
        (("user_1", 5, "0001-01-01 00:00:00"), "last reset: '0001-01-01 00:00:00' is before 1970"),
        (("user_1", 5, "9999-12-31 23:59:59-12:00"), "last reset: '9999-12-31 23:59:59-12:00' is not"),
        (("user_1", 5, TOMORROW), "is in the future: is --timezone right?"),
    ],
)
def test_an_unusable_row_is_left_out_with_its_reason_and_the_others_are_imported(
    seed: Seed, row: tuple[Any, Any, Any], reason: str
) -> None:
    run = import_quotas("--from", seed([("user_8", 1, ago(HOUR)), row, ("user_9", 2, ago(HOUR))]))
    assert counts(run) == [3, 2, 0, 0, 1]
    [line] = run.lines
    assert line.startswith("row 2: ")
    assert reason in line
    assert len(line) < 250
    assert run.error == "1 rows were left out, for the reasons above."
    assert sorted(quotas.values_list("pk", flat=True)) == ["user_8", "user_9"]


def test_only_so_many_reasons_are_listed(seed: Seed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "MAX_LISTED", 2)
    run = import_quotas("--from", seed([("", number, None) for number in range(5)]))
    assert [line.partition(":")[0] for line in run.lines] == [
        "row 1",
        "row 2",
        "and 3 more rows that were left out",
    ]


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_rows_of_one_user_the_one_that_used_most_counts(seed: Seed, order: int) -> None:
    rows = [("user_1", 20, ago(HOUR)), ("user_1", 4, ago(2 * HOUR))][::order]
    run = import_quotas("--from", seed(rows))
    assert counts(run) == [2, 1, 0, 0, 1]
    assert "'user_1': this user is there twice; row " in run.lines[0]
    assert quotas.get(pk="user_1").quota_remaining == 4


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_rows_that_used_the_same_the_later_reset_counts(seed: Seed, order: int) -> None:
    late, early = ago(HOUR), ago(30 * HOUR)
    import_quotas("--from", seed([("user_1", 4, late), ("user_1", 4, early)][::order]))
    assert str(quotas.get(pk="user_1").last_reset_date.replace(tzinfo=None)) == late


def test_an_instant_without_an_offset_is_of_the_named_zone(csv_file: CSVFile) -> None:
    text = (
        "user_id,quota_remaining,last_reset_date\nuser_1,5,2026-01-10 12:00:00\nuser_2,5,2026-07-10T12:00Z\n"
    )
    import_quotas("--csv", csv_file(text), "--timezone", "Europe/Berlin")
    found = dict(quotas.values_list("pk", "last_reset_date"))
    assert found["user_1"] == datetime(2026, 1, 10, 11, tzinfo=UTC)
    assert found["user_2"] == datetime(2026, 7, 10, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("user_id,quota_remaining,last_reset_date\nuser_1,5,{at}\n", "utf-8"),
        ("Last_Reset ; USED ; user_id\r\n{at} ; 15 ; user_1\r\n", "utf-8-sig"),
        ('used\tuser_id\tlast_reset_at\tnote\n15.0\tuser_1\t"{at}"\tü\n\n', "utf-8"),
    ],
)
def test_a_csv_file_may_have_any_order_and_names_used_or_remaining(
    csv_file: CSVFile, text: str, encoding: str
) -> None:
    run = import_quotas("--csv", csv_file(text.format(at=ago(HOUR)), encoding))
    assert counts(run) == [1, 1, 0, 0, 0]
    assert quotas.get(pk="user_1").quota_remaining == 5


@pytest.mark.parametrize(
    ("column", "units", "left", "left_on_pro"), [("remaining", 26, 26, 106), ("used", 50, 0, 50)]
)
def test_more_than_the_allowance_counts_under_the_next_plan_too(
    csv_file: CSVFile, column: str, units: int, left: int, left_on_pro: int
) -> None:
    Plan(name="pro", allowance=100, reset_policy="monthly").save()  # its period began before the imported one
    import_quotas("--csv", csv_file(f"user_id,{column},last_reset\nuser_1,{units},{ago(HOUR)}\n"))
    assert quotas.current("user_1").quota_remaining == left
    assert list(audit.faults()) == []
    assert quotas.change_plan("user_1", "pro", actor=STAFF).quota.quota_remaining == left_on_pro
    assert list(audit.faults()) == []


def test_a_line_of_a_csv_file_is_named_by_its_number(csv_file: CSVFile) -> None:
    text = f'user_id,used,last_reset,note\nuser_1,5,{ago(HOUR)},"two\nlines"\nuser_2\n'
    run = import_quotas("--csv", csv_file(text))
    assert run.lines == ["line 4: 'user_2': neither the units used nor those remaining are given"]


def test_all_of_them_may_get_a_plan(seed: Seed) -> None:
    Plan(name="pro", allowance=50).save()
    import_quotas("--from", seed([("user_1", 30, ago(HOUR))]), "--plan", "pro")
    row = quotas.get(pk="user_1")
    assert (row.plan_id, row.plan_source, row.period_consumed) == ("pro", "staff", 20)
    assert list(audit.faults()) == []


@pytest.mark.parametrize("dry_run", [["--dry-run"], []])
def test_an_unknown_plan_is_refused_before_anything_is_made(seed: Seed, dry_run: list[str]) -> None:
    run = import_quotas("--from", seed([("user_1", 30, ago(HOUR))]), "--plan", "gold", *dry_run)
    assert run.error == "There is no plan gold: add it first, or leave --plan out."
    assert not quotas.exists()


BAD_CSV = "user_id,used,last_reset\n" + 'user_1,5,"2026-01-01" x\n'


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--from", "sqlite:////nowhere/old.sqlite3"], "--from: there is no file /nowhere/old.sqlite3."),
        (["--from", "sqlite:///:memory:"], "--from: there is no file :memory:."),
        (["--from", "mysql://root:secret@host/app"], "--from must be sqlite:///PATH or postgresql://"),
        (["--from", "postgresql://me:sec%ret@host/app"], "(special characters in the password"),
        (["--from", "postgresql://me:secret@host/app?schema=public"], "without options of other clients"),
        (["--from", "postgresql://me:secret@127.0.0.1:1/app"], "connection failed"),
        (["--from", "sqlite:///x", "--table", "a; DROP TABLE b"], "--table must name a table"),
        (["--csv", "/nowhere/old.csv"], "--csv /nowhere/old.csv: No such file or directory."),
        (["--csv", "{folder}"], "Is a directory."),
    ],
)
def test_a_source_that_cannot_be_read_is_named_with_the_fix(
    options: list[str], error: str, tmp_path: Path
) -> None:
    run = import_quotas(*(option.format(folder=tmp_path) for option in options))
    assert error in run.error
    assert "sec" not in run.error
    assert "\n" not in run.error


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "has no column user_id or clerk_user_id or clerk_id; last_reset_date"),
        ("user_id,quota\nuser_1,5\n", "quota_remaining or remaining. It has: user_id, quota."),
        (BAD_CSV, "line 2: ',' expected after '\"'."),
    ],
)
def test_a_csv_file_of_another_form_is_refused(csv_file: CSVFile, text: str, error: str) -> None:
    run = import_quotas("--csv", csv_file(text))
    assert error in run.error
    assert counts(run)[1] == 0


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no database" * 100)
    assert "file is not a database." in import_quotas("--from", f"sqlite:///{tmp_path}/notes.txt").error


@pytest.fixture
def old_database() -> Iterator[psycopg.Connection[Any]]:
    """A session with the old app's table in a schema of its own, which vanishes with the test."""
    with psycopg.connect(url_of_the_test_database(), autocommit=True) as session:
        session.execute("CREATE SCHEMA old_app")
        session.execute(SEED.replace("TABLE ", "TABLE old_app.").replace("INTEGER NOT NULL P", "serial P"))
        yield session
        session.execute("DROP SCHEMA old_app CASCADE")


@pytest.mark.postgres
def test_a_table_in_postgresql_is_read_with_naive_and_with_aware_times(
    old_database: psycopg.Connection[Any],
) -> None:
    url = f"postgresql+asyncpg://{url_of_the_test_database().partition('://')[2]}"
    old_database.execute("ALTER ROLE CURRENT_USER SET datestyle = 'German'")
    try:
        insert = f"INSERT INTO old_app.challenge_quotas ({COLUMNS}) VALUES (%s, 5, %s)"
        old_database.execute(insert, ("user_1", datetime(2026, 1, 10, 12)))  # noqa: DTZ001 - as the old app does
        old_database.execute(insert.replace("%s)", "'infinity')"), ("user_2",))
        run = import_quotas("--from", url, "--table", "old_app.challenge_quotas")
        assert counts(run) == [2, 1, 0, 0, 1]
        assert quotas.get(pk="user_1").last_reset_date == datetime(2026, 1, 10, 12, tzinfo=UTC)
        old_database.execute("DELETE FROM old_app.challenge_quotas")
        old_database.execute("ALTER TABLE old_app.challenge_quotas ALTER last_reset_date TYPE timestamptz")
        old_database.execute(insert, ("user_3", datetime(2026, 1, 10, 12, tzinfo=UTC)))
        import_quotas("--from", url, "--table", "old_app.challenge_quotas", "--timezone", "Europe/Berlin")
        assert quotas.get(pk="user_3").last_reset_date == datetime(2026, 1, 10, 12, tzinfo=UTC)
    finally:
        old_database.execute("ALTER ROLE CURRENT_USER RESET datestyle")


@pytest.mark.postgres
def test_a_table_that_is_not_there_is_named(old_database: psycopg.Connection[Any]) -> None:
    run = import_quotas("--from", url_of_the_test_database(), "--table", "old_app.quotas")
    assert run.error == '--from: relation "old_app.quotas" does not exist.'


def test_an_interrupted_run_keeps_whole_batches_and_the_next_one_does_the_rest(
    seed: Seed, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = seed([(f"user_{number}", 7, ago(HOUR)) for number in range(5)])
    monkeypatch.setattr(importing, "USERS_PER_BATCH", 2)
    store, calls = quotas.import_many, list[int]()

    def interrupted(usages: dict[str, ImportedUsage], **options: Any) -> Any:
        calls.append(len(usages))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return store(usages, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(quotas), "import_many", staticmethod(interrupted))
        with pytest.raises(CommandError) as stopped:
            call_command("import_quotas", "--from", url, stdout=io.StringIO())
    assert stopped.value.returncode == 130
    assert str(stopped.value) == "Interrupted: run it again; what was imported stays."
    assert quotas.count() == 2
    assert counts(import_quotas("--from", url)) == [5, 3, 2, 0, 0]
    assert list(audit.faults()) == []


@pytest.mark.django_db(transaction=True, serialized_rollback=True)
@pytest.mark.postgres
def test_users_who_come_during_the_import_have_one_ledger_each(seed: Seed) -> None:
    """Each user is either imported, or opened by their request; nobody's ledger begins twice."""
    url = seed([(f"user_{number:03}", 7, ago(HOUR)) for number in range(300)])
    barrier = Barrier(3)

    def spend(numbers: Iterable[int]) -> None:
        barrier.wait()
        for number in numbers:
            quotas.consume(f"user_{number:03}", 3)
        connection.close()

    threads = [Thread(target=spend, args=(numbers,)) for numbers in (range(0, 300, 3), range(299, 0, -3))]
    for thread in threads:
        thread.start()
    barrier.wait()
    run = import_quotas("--from", url)
    for thread in threads:
        thread.join()
    assert counts(run)[1] + counts(run)[2] == 300 == quotas.count()
    assert list(audit.faults()) == []
    left = {4, 17, 7}  # imported and spent; opened and spent; imported
    assert set(quotas.values_list("quota_remaining", flat=True)) <= left

"""The quotas of another service, read from its database or from a CSV file."""
# ruff: noqa: S608 - the names of tables match TABLE, those of columns are quoted

import csv
import re
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import quote
from zoneinfo import ZoneInfo

import psycopg
from django.db import connection
from psycopg import conninfo, sql

from quotas.rules.values import MAX_UNITS, USER_ID, ImportedUsage

ROWS_PER_FETCH = 2_000
CONNECT_SECONDS = 5
EARLIEST = datetime(1970, 1, 2, tzinfo=UTC)
# The names of a column in a table, and of a field in the first line of a CSV file.
NAMES = {
    "user_id": ("user_id", "clerk_user_id", "clerk_id"),
    "used": ("quota_used", "used"),
    "remaining": ("quota_remaining", "remaining"),
    "last_reset": ("last_reset_date", "last_reset_at", "last_reset"),
}
TABLE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)?", re.ASCII)
WHOLE = re.compile(r"(-?[0-9]{1,18})(\.0+)?")


class CannotRead(Exception):
    """There is no such source, or it lacks a column; the text names the option and the fix."""


class UnusableRow(Exception):
    """A row that cannot be imported, and why."""


class SourceRow(NamedTuple):
    """A row as text, as its source writes it; `place` says where it stands."""

    place: str
    user_id: str
    used: str | None
    remaining: str | None
    last_reset: str | None

    def usage(self, zone: ZoneInfo, now: datetime) -> ImportedUsage:
        """Return what the row says; instants without an offset are of the zone. Raises UnusableRow."""
        if not USER_ID.fullmatch(self.user_id):
            raise UnusableRow("a user id has 1 to 128 characters of A-Z a-z 0-9 _ : . @ -")
        used = None if self.used is None else _units("used", self.used)
        remaining = None if self.remaining is None else _units("remaining", self.remaining)
        if used is None and remaining is None:
            raise UnusableRow("neither the units used nor those remaining are given")
        return ImportedUsage(_instant(self.last_reset, zone, now), used, remaining)


def _units(name: str, text: str) -> int:
    match = WHOLE.fullmatch(text.strip())
    if not match or not 0 <= int(match[1]) <= MAX_UNITS:
        raise UnusableRow(f"{name}: {text!r:.40} is not a whole number from 0 to {MAX_UNITS}")
    return int(match[1])


def _instant(text: str | None, zone: ZoneInfo, now: datetime) -> datetime:
    if text is None:
        raise UnusableRow("it has no last reset")
    try:
        written = datetime.fromisoformat(text.strip())
        at = (written if written.tzinfo else written.replace(tzinfo=zone)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise UnusableRow(
            f"last reset: {text!r:.40} is not a date and time such as 2026-09-24 08:00:00"
        ) from None
    if at > now:
        raise UnusableRow(f"last reset: {text!r:.40} is in the future: is --timezone right?")
    if at < EARLIEST:
        raise UnusableRow(f"last reset: {text!r:.40} is before 1970")
    return at


def csv_rows(name: str) -> Iterator[SourceRow]:
    """Yield the rows of a CSV file (`-` is standard input) with a line of names. Raises CannotRead."""
    with _opened(name) as file:
        heading = file.readline()
        delimiter = max(",;\t", key=heading.count)
        order = _positions(next(csv.reader([heading], delimiter=delimiter), []), f"--csv {name}")
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            for line in reader:
                fields = [field.strip() or None for field in line]
                if any(fields):
                    yield _row(f"line {reader.line_num + 1}", order, fields)
        except csv.Error as error:
            raise CannotRead(f"--csv {name}: line {reader.line_num + 1}: {error}.") from error


@contextmanager
def _opened(name: str) -> Iterator[IO[str]]:
    form = {"encoding": "utf-8-sig", "errors": "backslashreplace", "newline": ""}
    descriptor = sys.stdin.fileno() if name == "-" else name
    try:
        file = open(descriptor, closefd=name != "-", **form)  # type: ignore[call-overload] # noqa: SIM115
    except OSError as error:
        raise CannotRead(f"--csv {name}: {error.strerror}.") from error
    with file:
        yield file


def table_rows(url: str, table: str) -> Iterator[SourceRow]:
    """Yield the rows of a table in the database at the URL, as of one instant. Raises CannotRead.

    A URL may have the form that SQLAlchemy reads, such as postgresql+asyncpg://…
    """
    if not TABLE.fullmatch(table):
        raise CannotRead("--table must name a table, such as challenge_quotas or public.challenge_quotas.")
    scheme, _, rest = url.partition("://")
    dialect = scheme.partition("+")[0]
    if dialect == "sqlite" and rest.startswith("/"):
        yield from _sqlite_rows(rest[1:], table)
    elif dialect in ("postgres", "postgresql"):
        yield from _postgresql_rows(_parameters(f"postgresql://{rest}"), table)
    else:
        raise CannotRead("--from must be sqlite:///PATH or postgresql://USER:PASSWORD@HOST:PORT/NAME.")


def own_rows(table: str) -> Iterator[SourceRow]:
    """Yield the rows of a table in our own database. Raises CannotRead."""
    if connection.vendor == "sqlite":
        return _sqlite_rows(str(connection.settings_dict["NAME"]), table)
    return _postgresql_rows(connection.get_connection_params(), table, "DATABASE_URL")


def _sqlite_rows(path: str, table: str) -> Iterator[SourceRow]:
    if not Path(path).is_file():
        raise CannotRead(f"--from: there is no file {path}.")
    source = f"--from: {path}"
    try:
        with closing(sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True)) as database:
            database.text_factory = lambda text: text.decode("utf-8", "backslashreplace")
            names = [column[0] for column in database.execute(f"SELECT * FROM {table} LIMIT 0").description]
            order = _positions(names, f"{source}: {table}")
            columns = ", ".join(f"CAST({_quoted(name)} AS text)" for name in names)
            yield from _numbered(order, database.execute(f"SELECT {columns} FROM {table}"))
    except sqlite3.Error as error:
        raise CannotRead(f"{source}: {error}.") from error


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _parameters(url: str) -> dict[str, Any]:
    try:
        return {"connect_timeout": CONNECT_SECONDS} | conninfo.conninfo_to_dict(url)
    except psycopg.Error:  # its message may hold the password
        raise CannotRead(
            "--from must be postgresql://USER:PASSWORD@HOST:PORT/NAME (special characters in the password "
            "percent-encoded), without options of other clients such as ?schema=… or ?ssl=…."
        ) from None


def _postgresql_rows(parameters: dict[str, Any], table: str, place: str = "--from") -> Iterator[SourceRow]:
    name = sql.Identifier(*table.split("."))
    try:
        with psycopg.connect(**parameters) as session:
            session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            session.execute("SET LOCAL datestyle = 'ISO'")
            found = session.execute(sql.SQL("SELECT * FROM {} LIMIT 0").format(name)).description or []
            names = [column.name for column in found]
            order = _positions(names, f"{place}: {table}")
            columns = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(each)) for each in names)
            with session.cursor("rows") as cursor:
                cursor.itersize = ROWS_PER_FETCH
                yield from _numbered(
                    order, cursor.execute(sql.SQL("SELECT {} FROM {}").format(columns, name))
                )
    except psycopg.errors.InsufficientPrivilege as error:
        raise CannotRead(
            f"{place}: {str(error).strip()}. Use the role that owns the table, or GRANT SELECT on it to this."
        ) from error
    except psycopg.Error as error:
        raise CannotRead(f"{place}: {str(error).strip().partition(chr(10))[0]}.") from error


def _positions(names: Sequence[str], source: str) -> list[int | None]:
    """Return where user id, used, remaining and last reset stand. Raises CannotRead if one is missing."""
    known = [name.strip().lower() for name in names]
    found = {
        field: next((known.index(name) for name in choices if name in known), None)
        for field, choices in NAMES.items()
    }
    missing = [field for field in ("user_id", "last_reset") if found[field] is None]
    if found["used"] is None and found["remaining"] is None:
        missing.append("remaining")
    if missing:
        wanted = "; ".join(" or ".join(NAMES[field]) for field in missing)
        raise CannotRead(f"{source} has no column {wanted}. It has: {', '.join(names)}.")
    return list(found.values())


def _numbered(order: Sequence[int | None], rows: Iterable[Sequence[str | None]]) -> Iterator[SourceRow]:
    for number, fields in enumerate(rows, start=1):
        yield _row(f"row {number}", order, fields)


def _row(place: str, order: Sequence[int | None], fields: Sequence[str | None]) -> SourceRow:
    user_id, *rest = (
        fields[position] if position is not None and position < len(fields) else None for position in order
    )
    return SourceRow(place, user_id or "", *rest)

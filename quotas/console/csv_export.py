"""CSV files in bounded memory, without cells that a spreadsheet would run as formulas."""

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from threading import Lock
from typing import Any, TypeVar

from django.db.models import Model, QuerySet
from django.http import StreamingHttpResponse
from django.utils.http import content_disposition_header

ROWS_AT_ONCE = 2_000
# A spreadsheet reads a text that starts with one of these as a formula; \uff… are the full-width = + - @.
FORMULA = re.compile(r"(?:^|(?<=;))(?=[=+@\t\r\n\uff1d\uff0b\uff0d\uff20-])")

# An export takes one of the process's few threads for as long as it is read, and the others serve everybody.
ONE_EXPORT = Lock()

Row = TypeVar("Row", bound=Model)


class Busy(Exception):
    """This process is sending another export."""


def stream(
    name: str, columns: Sequence[str], chunks: Iterable[list[Row]], cells: Callable[[Row], Iterable[object]]
) -> StreamingHttpResponse:
    """Return a response that streams the rows as a file, and reads each chunk when the one before is sent.

    Raises Busy: a process sends one export at a time.
    """
    if not ONE_EXPORT.acquire(blocking=False):
        raise Busy
    disposition = content_disposition_header(True, name) or ""
    return StreamingHttpResponse(
        _Lines(_csv_lines(columns, chunks, cells)),
        content_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": disposition},
    )


def chunks_of(rows: QuerySet[Row], key: str) -> Iterator[list[Row]]:
    """Yield all rows in the order of the unique `key`, each chunk from its own query.

    So no cursor, lock or transaction outlives a chunk. The chunks are read after the view has returned,
    when the page's statement timeout no longer applies.
    """
    rest = rows.order_by(key)
    chunk = list(rest[:ROWS_AT_ONCE])
    while chunk:
        yield chunk
        if len(chunk) < ROWS_AT_ONCE:
            return
        chunk = list(rest.filter(**{f"{key}__gt": getattr(chunk[-1], key)})[:ROWS_AT_ONCE])


def defused(value: object) -> object:
    """Return the value as a cell: a text that would be read as a formula is quoted, a number is unchanged.

    A formula after a semicolon is quoted too, because some spreadsheets begin a new cell there.
    """
    return FORMULA.sub("'", value) if isinstance(value, str) else value


class _Lines:
    """Lines, until they are closed: the response does so whether or not it was sent, or even begun.

    A response that is replaced by an error page is only forgotten.
    """

    def __init__(self, lines: Iterator[str]) -> None:
        self.lines, self.is_open = lines, True

    def __iter__(self) -> Iterator[str]:
        return self.lines

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            ONE_EXPORT.release()

    def __del__(self) -> None:
        self.close()


class _Pass:
    """A file whose `write` returns the text, so that csv.writer returns each line."""

    def write(self, text: str) -> str:
        return text


def _csv_lines(
    columns: Sequence[str], chunks: Iterable[list[Row]], cells: Callable[[Row], Iterable[object]]
) -> Iterator[str]:
    writer: Any = csv.writer(_Pass())
    yield "\ufeff" + writer.writerow(columns)  # without this mark Excel does not read UTF-8
    for chunk in chunks:
        yield "".join(writer.writerow([defused(cell) for cell in cells(row)]) for row in chunk)

"""CSV that a spreadsheet can open without harm, in bounded memory however long it is."""

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from django.db.models import Model, QuerySet
from django.http import StreamingHttpResponse
from django.utils.http import content_disposition_header

ROWS_AT_ONCE = 2_000
# With one of these in front a spreadsheet takes a text for a formula; the last four are full-width.
FORMULA = re.compile(r"(?:^|(?<=;))(?=[=+@\t\r\n\uff1d\uff0b\uff0d\uff20-])")

Row = TypeVar("Row", bound=Model)


def stream(
    name: str, columns: Sequence[str], chunks: Iterable[list[Row]], cells: Callable[[Row], Iterable[object]]
) -> StreamingHttpResponse:
    """Answer with the rows of all chunks as a file, each chunk read when the one before was sent."""
    disposition = content_disposition_header(True, name) or ""
    return StreamingHttpResponse(
        _csv_lines(columns, chunks, cells),
        content_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": disposition},
    )


def chunks_of(rows: QuerySet[Row], key: str) -> Iterator[list[Row]]:
    """All rows by the ascending, unique `key`, each chunk by a query of its own.

    So no cursor, lock or transaction outlives a chunk. They are read while the file is sent, when the
    page's own time-out is over.
    """
    rest = rows.order_by(key)
    chunk = list(rest[:ROWS_AT_ONCE])
    while chunk:
        yield chunk
        if len(chunk) < ROWS_AT_ONCE:
            return
        chunk = list(rest.filter(**{f"{key}__gt": getattr(chunk[-1], key)})[:ROWS_AT_ONCE])


def defused(value: object) -> object:
    """The value as a cell: a text that would be read as a formula is quoted, a number is left as it is.

    Also behind a semicolon, at which some spreadsheets would begin another cell.
    """
    return FORMULA.sub("'", value) if isinstance(value, str) else value


class _Pass:
    """A file that hands back what is written to it."""

    def write(self, text: str) -> str:
        return text


def _csv_lines(
    columns: Sequence[str], chunks: Iterable[list[Row]], cells: Callable[[Row], Iterable[object]]
) -> Iterator[str]:
    writer: Any = csv.writer(_Pass())
    yield writer.writerow(columns)
    for chunk in chunks:
        yield "".join(writer.writerow([defused(cell) for cell in cells(row)]) for row in chunk)

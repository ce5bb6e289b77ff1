"""Charts as SVG without inline script or style; quotas/overview.css sets their colours."""

from collections.abc import Sequence

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from quotas.reports.totals import Day

# Units of the viewBox. The picture is stretched to the available width, so it contains no text.
SLOT, BAR = 10, 8  # widths of a day and of its bar
UP, DOWN = 100, 40  # heights of the tallest bars: spent above the line, refused below it


def daily_bars(days: Sequence[Day]) -> SafeString:
    """Draw each day's spending above a line and its refusals below it, each to its own scale.

    A day shows its figures as a tooltip; a table below the chart lists all of them.
    """
    if not days:
        return SafeString('<p class="quiet">There are no figures yet.</p>')
    most_spent, most_refused = max(day.spent for day in days), max(day.refused for day in days)
    bars = format_html_join(
        "\n",
        '<g class="day"><title>{}</title><rect class="slot" x="{}" width="{}" height="{}"/>'
        '<rect class="spent" x="{}" y="{}" width="{}" height="{}"/>'
        '<rect class="refused" x="{}" y="{}" width="{}" height="{}"/></g>',
        (
            (
                _tooltip(day), slot * SLOT, SLOT, UP + DOWN,
                slot * SLOT + 1, UP - up, BAR, up,
                slot * SLOT + 1, UP, BAR, down,
            )
            for slot, day in enumerate(days)
            for up, down in [(_height(day.spent, most_spent, UP), _height(day.refused, most_refused, DOWN))]
        ),
    )  # fmt: skip
    rows = format_html_join(
        "\n",
        '<tr><th scope="row"><time datetime="{}">{}</time></th><td>{}</td><td>{}</td></tr>',
        ((day.date.isoformat(), _date(day), f"{day.spent:,}", f"{day.refused:,}") for day in reversed(days)),
    )
    return format_html(
        CHART,
        summary=f"Spent and refused per day from {_date(days[0])} to {_date(days[-1])}: at most "
        f"{most_spent:,} spent and {most_refused:,} refused. The table below lists all figures.",
        width=len(days) * SLOT,
        height=UP + DOWN,
        line=UP,
        bars=bars,
        most_spent=f"{most_spent:,}",
        most_refused=f"{most_refused:,}",
        first=_date(days[0]),
        last=_date(days[-1]),
        rows=rows,
    )


CHART = """<figure class="daily">
<figcaption><span class="key spent">Spent, at most {most_spent} per day</span>
<span class="key refused">Refused, at most {most_refused} per day</span></figcaption>
<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" aria-label="{summary}">
{bars}
<line x1="0" x2="{width}" y1="{line}" y2="{line}"/>
</svg>
<div class="axis" aria-hidden="true"><span>{first}</span><span>{last}</span></div>
<details><summary>Show as a table</summary>
<table>
<thead><tr><th scope="col">Day (UTC)</th><th scope="col">Spent</th><th scope="col">Refused</th></tr></thead>
<tbody>
{rows}
</tbody>
</table></details>
</figure>"""


def _tooltip(day: Day) -> str:
    return f"{_date(day)}: {day.spent:,} spent, {day.refused:,} refused"


def _date(day: Day) -> str:
    return f"{day.date.day} {day.date:%b}"


def _height(figure: int, most: int, room: int) -> int:
    """Scale the figure to `room`; any figure above 0 stays visible."""
    return max(2, round(figure * room / most)) if figure else 0

"""Charts that the server draws: SVG without script or style, coloured by quotas/overview.css."""

from collections.abc import Sequence

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from quotas.reports.totals import Day

# Units of the viewBox; the picture is stretched to the width that there is, so no text is in it.
SLOT, BAR = 10, 8  # a day's width, and its bar's
UP, DOWN = 100, 40  # the tallest bars: spent above the line, refused below it


def daily_bars(days: Sequence[Day]) -> SafeString:
    """Draw what was spent each day above a line, and what was refused below it, each by a scale of its own.

    Each day has its figures as a tooltip, and all of them stand in a table below.
    """
    if not days:
        return SafeString('<p class="quiet">There is nothing to draw yet.</p>')
    most_spent, most_refused = max(day.spent for day in days), max(day.refused for day in days)
    bars = format_html_join(
        "\n",
        '<g class="day"><title>{}</title><rect class="slot" x="{}" width="{}" height="{}"/>'
        '<rect class="spent" x="{}" y="{}" width="{}" height="{}"/>'
        '<rect class="refused" x="{}" y="{}" width="{}" height="{}"/></g>',
        (
            (
                _figures_in_words(day), slot * SLOT, SLOT, UP + DOWN,
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
        summary=f"Spent and refused a day from {_date(days[0])} to {_date(days[-1])}: at the most "
        f"{most_spent:,} spent and {most_refused:,} refused; the figures are in the table below.",
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
<figcaption><span class="key spent">Spent, at the most {most_spent} a day</span>
<span class="key refused">Refused, at the most {most_refused} a day</span></figcaption>
<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" aria-label="{summary}">
{bars}
<line x1="0" x2="{width}" y1="{line}" y2="{line}"/>
</svg>
<div class="axis" aria-hidden="true"><span>{first}</span><span>{last}</span></div>
<details><summary>In figures</summary>
<table>
<thead><tr><th scope="col">Day (UTC)</th><th scope="col">Spent</th><th scope="col">Refused</th></tr></thead>
<tbody>
{rows}
</tbody>
</table></details>
</figure>"""


def _figures_in_words(day: Day) -> str:
    """12 Nov: 340 spent, 3 refused."""
    return f"{_date(day)}: {day.spent:,} spent, {day.refused:,} refused"


def _date(day: Day) -> str:
    return f"{day.date.day} {day.date:%b}"


def _height(figure: int, most: int, room: int) -> int:
    """What is not 0 can be seen."""
    return max(2, round(figure * room / most)) if figure else 0

"""Dots with whiskers in rows, as inline SVG: shares with their errors, two encoders side by side.

Like ``curves.py``: plain strings, escaped labels, colours from the classes of the style sheet. A hollow dot is the same
quantity before training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from saga_dist.report.curves import Chart, number
from saga_dist.report.text import shown_name

WIDTH = 480
_RIGHT, _TOP, _AXIS = 14, 6, 22
_DOT_ROOM, _ROW_ROOM = 6.0, 22
_LETTER = 5.9
"""Width of a letter of a label, roughly."""


@dataclass(frozen=True, slots=True)
class Dot:
    """A share with the range that it may be in."""

    value: float
    low: float
    high: float

    @classmethod
    def with_error(cls, value: float, error: float) -> Dot:
        """Returns a dot whose whiskers reach two standard errors, about 95 %."""
        return cls(value, max(0.0, value - 2 * error), min(1.0, value + 2 * error))


@dataclass(frozen=True, slots=True)
class DotSeries:
    """One quantity over the rows."""

    label: str
    colour: int
    """0 to 5."""
    dots: Sequence[Dot | None]
    """One for each row, None where it was not measured."""
    hollow: bool = False


def dot_chart(
    title: str, rows: Sequence[str], series: Sequence[DotSeries], *, marks: Sequence[float | None] = ()
) -> Chart:
    """Returns a chart of shares, a row for each name.

    Args:
        title: untrusted.
        rows: names of the rows, untrusted.
        series: what to draw; hollow ones are left out of the legend.
        marks: a share for each row that a short line marks (chance), or none at all.
    """
    names = [shown_name(row) for row in rows]
    left = min(200.0, 14 + _LETTER * max(map(len, names), default=0))
    room = _ROW_ROOM + _DOT_ROOM * (len(series) - 1)
    height = _TOP + room * len(names) + _AXIS
    ends = [end for line in series for dot in line.dots if dot is not None for end in (dot.value, dot.high)]
    top = next(limit for limit in (0.25, 0.5, 1.0) if max(ends, default=1.0) <= limit or limit == 1.0)

    def to_x(share: float) -> float:
        return left + (WIDTH - _RIGHT - left) * share / top

    parts = [f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(shown_name(title))}">']
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, bottom = to_x(tick * top), height - _AXIS
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom:.1f}"/>')
        anchor = "end" if tick == 1 else "middle"
        parts.append(
            f'<text class="tick" x="{x + (12 if tick == 1 else 0):.1f}" y="{height - 7:.0f}" text-anchor="{anchor}">'
            f"{number(100 * tick * top)} %</text>"
        )
    for index, name in enumerate(names):
        middle = _TOP + room * (index + 0.5)
        parts.append(
            f'<text class="tick" x="{left - 8:.1f}" y="{middle + 3.5:.1f}" text-anchor="end">{escape(name)}</text>'
        )
        if marks and (mark := marks[index]) is not None:
            reach = room / 2 - 2
            parts.append(
                f'<line class="mark" x1="{to_x(mark):.1f}" x2="{to_x(mark):.1f}" y1="{middle - reach:.1f}" '
                f'y2="{middle + reach:.1f}"><title>{escape(name)}, chance: {100 * mark:.1f} %</title></line>'
            )
        for place, line in enumerate(series):
            dot = line.dots[index]
            if dot is not None:
                parts += _dot(name, line, dot, to_x, middle + _DOT_ROOM * (place - (len(series) - 1) / 2))
    parts.append("</svg>")
    legend = [(line.colour, shown_name(line.label), "") for line in series if not line.hollow]
    return Chart(shown_name(title), Markup("".join(parts)), legend, averaged=False)


def _dot(name: str, line: DotSeries, dot: Dot, to_x: Callable[[float], float], y: float) -> list[str]:
    what = f"{name}, {shown_name(line.label)}: {100 * dot.value:.1f} % ({100 * dot.low:.1f}–{100 * dot.high:.1f})"
    kind = f"s{line.colour}{' hollow' if line.hollow else ''}"
    x = to_x(dot.value)
    return [
        f'<line class="whisker {kind}" x1="{to_x(dot.low):.1f}" x2="{to_x(dot.high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>',
        f'<circle class="dot {kind}" cx="{x:.1f}" cy="{y:.1f}" r="2.9"><title>{escape(what)}</title></circle>',
    ]

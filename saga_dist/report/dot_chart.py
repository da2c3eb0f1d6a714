"""Dot charts: shares with error bars, one row per name, one or more series per row.

The colours are the style classes ``s0`` … ``s5``; a hollow dot shows the same quantity before training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from saga_dist.report.line_chart import Chart, LegendEntry
from saga_dist.report.text import shown_name
from saga_dist.utils.svg_charts import Axis, Drawing, Scale, label_width, number

WIDTH = 480
"""Width of a chart, in pixels."""
_RIGHT, _TOP, _AXIS = 14, 6, 38
_DOT_HEIGHT, _ROW_HEIGHT = 6.0, 22
_FONT_SIZE = 11


@dataclass(frozen=True, slots=True)
class Dot:
    """A share with its interval."""

    value: float
    """Share, in [0, 1]."""
    low: float
    """Lower end of the interval, in [0, 1]."""
    high: float
    """Upper end of the interval, in [0, 1]."""

    @classmethod
    def with_error(cls, value: float, error: float) -> Dot:
        """Returns a dot whose interval is two standard errors to each side, about 95 %, clipped to [0, 1]."""
        return cls(value, max(0.0, value - 2 * error), min(1.0, value + 2 * error))


@dataclass(frozen=True, slots=True)
class DotSeries:
    """One quantity in all rows."""

    label: str
    """Label in the legend."""
    colour: int
    """Number of the colour, 0 to 5."""
    dots: Sequence[Dot | None]
    """Dot of each row; None where the quantity was not measured."""
    hollow: bool = False
    """True for hollow dots, which have no entry in the legend."""


def dot_chart(
    title: str,
    rows: Sequence[str],
    series: Sequence[DotSeries],
    *,
    quantity: str,
    marks: Sequence[float | None] = (),
) -> Chart:
    """Returns a chart of shares.

    Args:
        title: title, untrusted text.
        rows: names of the rows, untrusted text.
        series: series to draw, with untrusted labels.
        quantity: label of the axis.
        marks: share of each row that is marked with a short line (chance), None for no mark; empty for no marks.
    """
    names = [shown_name(row) for row in rows]
    left = min(200.0, 14 + label_width(names, _FONT_SIZE))
    height = _ROW_HEIGHT + _DOT_HEIGHT * (len(series) - 1)
    bottom = _TOP + height * len(names)
    scale = Scale(0, _top_share(series), left, WIDTH - _RIGHT)
    ticks = [scale.high * quarter / 4 for quarter in range(5)]
    drawing = Drawing(WIDTH, bottom + _AXIS, shown_name(title), font_size=_FONT_SIZE)
    drawing.x_axis(Axis(scale, [(tick, f"{number(100 * tick)} %") for tick in ticks]), bottom=bottom, grid_top=_TOP)
    drawing.text("unit", WIDTH - _RIGHT, bottom + _AXIS - 8, quantity, anchor="end")
    for index, name in enumerate(names):
        middle = _TOP + height * (index + 0.5)
        drawing.text("tick", left - 8, middle, name, anchor="end")
        if marks and (mark := marks[index]) is not None:
            half = height / 2 - 2
            ends = (middle - half, middle + half)
            drawing.line("mark", (scale(mark),) * 2, ends, title=f"{name}, chance: {100 * mark:.1f} %")
        for place, line in enumerate(series):
            dot = line.dots[index]
            if dot is not None:
                _draw_dot(drawing, scale, name, line, dot, middle + _DOT_HEIGHT * (place - (len(series) - 1) / 2))
    legend = [LegendEntry(f"k{line.colour}", shown_name(line.label), "") for line in series if not line.hollow]
    return Chart(shown_name(title), Markup(drawing.svg()), legend)


def _top_share(series: Sequence[DotSeries]) -> float:
    """Returns the end of the axis: 25, 50 or 100 %."""
    ends = [end for line in series for dot in line.dots if dot is not None for end in (dot.value, dot.high)]
    return next(limit for limit in (0.25, 0.5, 1.0) if max(ends, default=1.0) <= limit or limit == 1.0)


def _draw_dot(drawing: Drawing, scale: Scale, name: str, line: DotSeries, dot: Dot, y: float) -> None:
    """Draws a dot with its interval at height ``y``."""
    what = f"{name}, {shown_name(line.label)}: {100 * dot.value:.1f} % ({100 * dot.low:.1f}–{100 * dot.high:.1f})"
    kind = f"s{line.colour}{' hollow' if line.hollow else ''}"
    drawing.line(f"whisker {kind}", (scale(dot.low), scale(dot.high)), (y, y))
    drawing.dot(f"dot {kind}", scale(dot.value), y, 2.9, title=what)

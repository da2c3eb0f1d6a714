"""Dots with whiskers in rows: shares with their errors, two encoders side by side.

The colours are the classes ``s0`` … ``s5``; a hollow dot is the same quantity before training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from saga_dist.report.curves import Chart
from saga_dist.report.text import shown_name
from saga_dist.utils.svg_charts import Axis, Drawing, Scale, label_width, number

WIDTH = 480
_RIGHT, _TOP, _AXIS = 14, 6, 22
_DOT_ROOM, _ROW_ROOM = 6.0, 22
_FONT_SIZE = 11


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
    left = min(200.0, 14 + label_width(names, _FONT_SIZE))
    room = _ROW_ROOM + _DOT_ROOM * (len(series) - 1)
    bottom = _TOP + room * len(names)
    scale = Scale(0, _top_share(series), left, WIDTH - _RIGHT)
    ticks = [scale.high * quarter / 4 for quarter in range(5)]
    drawing = Drawing(WIDTH, bottom + _AXIS, shown_name(title), font_size=_FONT_SIZE)
    drawing.x_axis(Axis(scale, [(tick, f"{number(100 * tick)} %") for tick in ticks]), bottom=bottom, grid_top=_TOP)
    for index, name in enumerate(names):
        middle = _TOP + room * (index + 0.5)
        drawing.text("tick", left - 8, middle, name, anchor="end")
        if marks and (mark := marks[index]) is not None:
            reach = room / 2 - 2
            ends = (middle - reach, middle + reach)
            drawing.line("mark", (scale(mark),) * 2, ends, title=f"{name}, chance: {100 * mark:.1f} %")
        for place, line in enumerate(series):
            dot = line.dots[index]
            if dot is not None:
                _draw_dot(drawing, scale, name, line, dot, middle + _DOT_ROOM * (place - (len(series) - 1) / 2))
    legend = [(line.colour, shown_name(line.label), "") for line in series if not line.hollow]
    return Chart(shown_name(title), Markup(drawing.svg()), legend, averaged=False)


def _top_share(series: Sequence[DotSeries]) -> float:
    ends = [end for line in series for dot in line.dots if dot is not None for end in (dot.value, dot.high)]
    return next(limit for limit in (0.25, 0.5, 1.0) if max(ends, default=1.0) <= limit or limit == 1.0)


def _draw_dot(drawing: Drawing, scale: Scale, name: str, line: DotSeries, dot: Dot, y: float) -> None:
    what = f"{name}, {shown_name(line.label)}: {100 * dot.value:.1f} % ({100 * dot.low:.1f}–{100 * dot.high:.1f})"
    kind = f"s{line.colour}{' hollow' if line.hollow else ''}"
    drawing.line(f"whisker {kind}", (scale(dot.low), scale(dot.high)), (y, y))
    drawing.dot(f"dot {kind}", scale(dot.value), y, 2.9, title=what)

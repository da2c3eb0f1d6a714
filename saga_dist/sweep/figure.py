"""Draws tables of a sweep as one figure: a dot per run, a bar for the mean, a whisker for the 95 % interval,
the wider of that over classes and that over seeds.

The figure is a self-contained SVG file, with its own styles for light and dark, and without scripts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

from saga_dist.sweep.collected import Collected, gain
from saga_dist.sweep.records import Summary, SummaryRow
from saga_dist.utils.printable import printable
from saga_dist.utils.svg_charts import Axis, Drawing, Scale, label_width, nice_ticks, number

_PLOT = 360
_FONT_SIZE = 12
_TITLE, _ROW, _AXIS, _GAP = 30, 19, 24, 12
_STYLE = """
text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; fill: #22252a; }
.title { font-weight: 600; font-size: 13px; } .soft { fill: #626871; } .paper { fill: #ffffff; }
.grid { stroke: #e4e1db; } .run { fill: #2f6690; fill-opacity: 0.4; } .mean, .whisker { stroke: #2f6690; }
.mean { stroke-width: 2.4; } .whisker { stroke-width: 1.2; opacity: 0.7; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6e4df; } .soft { fill: #9aa0a8; } .paper { fill: #15171a; } .grid { stroke: #31353b; }
  .run { fill: #7fb2dc; } .mean, .whisker { stroke: #7fb2dc; }
}
"""


@dataclass(frozen=True, slots=True)
class _Frame:
    """Horizontal layout of the figure, in pixels."""

    left: float
    """Left edge of the plots."""
    right: float
    """Right edge of the plots."""
    width: float
    """Width of the figure."""


def figure(collected: Collected) -> str:
    """Returns the SVG of Recall@1 on unseen classes, with a panel per table and a row per variant."""
    tables = [(table, [row for row in table.rows if row.figures]) for table in collected.tables.values()]
    rows = [row for _, drawn in tables for row in drawn]
    left = 24 + label_width([row.label for row in rows], _FONT_SIZE)
    right = left + _PLOT
    gains = [gain(row, table.num_classes) for table, drawn in tables for row in drawn]
    frame = _Frame(left, right, right + 24 + label_width(gains, _FONT_SIZE))
    heights = [_TITLE + _ROW * len(drawn) + _AXIS + _GAP for _, drawn in tables]
    drawing = Drawing(frame.width, sum(heights), "Recall@1 on unseen classes", style=_STYLE, font_size=_FONT_SIZE)
    for (table, drawn), top in zip(tables, accumulate(heights, initial=0), strict=False):
        _draw_panel(drawing, frame, table, drawn, top)
    return drawing.document()


def _draw_panel(drawing: Drawing, frame: _Frame, table: Summary, rows: list[SummaryRow], top: float) -> None:
    """Draws the panel of one table, from ``top`` down."""
    first, bottom = top + _TITLE, top + _TITLE + _ROW * len(rows)
    axis = _share_axis(frame, rows)
    drawing.text("title", 10, top + 15, printable(table.title))
    drawing.x_axis(axis, bottom=bottom, grid_top=first, css_class="soft")
    for index, row in enumerate(rows):
        y = first + _ROW * (index + 0.5)
        _draw_row(drawing, frame, axis.scale, row, y)
        drawing.text("soft", frame.right + 10, y, printable(gain(row, table.num_classes)))


def _share_axis(frame: _Frame, rows: list[SummaryRow]) -> Axis:
    """Returns the axis of a panel, from 0 % to above its largest value."""
    highest = max((max(*_recalls(row), (row.confidence_interval or (0, 0))[1]) for row in rows), default=0.1)
    ticks = nice_ticks(0.0, highest, 6)
    labels = [f"{number(100 * tick)}{' %' if tick == ticks[-1] else ''}" for tick in ticks]
    return Axis(Scale(0.0, ticks[-1], frame.left, frame.right), list(zip(ticks, labels, strict=True)))


def _draw_row(drawing: Drawing, frame: _Frame, scale: Callable[[float], float], row: SummaryRow, y: float) -> None:
    """Draws label, whisker, dots and mean of one variant at height ``y``."""
    drawing.text("label", frame.left - 10, y, printable(row.label), anchor="end")
    if row.confidence_interval is not None:
        low, high = map(scale, row.confidence_interval)
        drawing.line("whisker", (low, high), (y, y))
    for value in _recalls(row):
        drawing.dot("run", scale(value), y, 3)
    mean = scale(row.figures["recall_at_1"].mean)
    drawing.line("mean", (mean, mean), (y - 6, y + 6))


def _recalls(row: SummaryRow) -> tuple[float, ...]:
    """Returns Recall@1 of each run of a variant."""
    return row.figures["recall_at_1"].values

"""Line charts over optimizer steps; the colours of the lines are the classes ``s0`` … ``s5`` of the page's style sheet.

A line carries its steps and its values as text (``data-steps``, ``data-values``), which ``charts.js`` shows under the
pointer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from markupsafe import Markup

from saga_dist.report.text import shown_name
from saga_dist.utils.svg_charts import (
    Axis,
    Drawing,
    LogScale,
    Scale,
    label_width,
    log_ticks,
    nice_ticks,
    number,
    tick_labels,
)

Point = tuple[float, float]
"""Step and value."""

WIDTH, HEIGHT = 360, 214
"""Size of a chart, in pixels."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 24, 38
_FONT_SIZE = 11
MAX_POINTS = 240
"""Largest number of points of a line; longer series are averaged over intervals with equal numbers of points."""
NUM_COLOURS = 6
"""Number of line colours; the lines after these have the same colours and are dashed."""
LOG_RATIO = 100.0
"""Ratio of the largest to the smallest value from which the axis of positive values is logarithmic."""
SIZE_RATIO = 10.0
"""Ratio of the largest values of two lines from which a linear axis would flatten one of them."""
_MAX_DOTS = 30
"""Largest number of points of a line that are drawn as dots."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart."""

    label: str
    """Label in the legend."""
    points: Sequence[Point]
    """Steps and values, in the order of steps; values that are not finite are left out."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A value that does not depend on the step, drawn as a level line."""

    label: str
    """Label in the legend."""
    value: float
    """The value."""


class LegendEntry(NamedTuple):
    """One entry of a legend."""

    mark: str
    """Style classes of the mark: ``k0`` … ``k5``, ``dashed``, ``reference``."""
    label: str
    """Label, safe to print."""
    value: str
    """Value beside the label; empty for none."""


@dataclass(frozen=True, slots=True)
class About:
    """Explanation of a metric in a chart."""

    name: str
    """Name in ``metrics.jsonl``."""
    measures: str
    """Meaning of the number."""
    healthy: str
    """Values of a run that is well."""
    otherwise: str
    """Cause and remedy of other values."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart for the template: title, SVG and legend."""

    title: str
    """Title, safe to print."""
    svg: Markup
    """The chart as SVG, or a note when there is nothing to draw."""
    legend: list[LegendEntry]
    """Entry of each line, with its last value."""
    averaged: bool = False
    """True when some line shows means over several steps."""
    about: list[About] = field(default_factory=list)
    """Explanations of the metrics; empty when they are unknown."""


def line_chart(
    title: str,
    lines: Sequence[Series],
    *,
    unit: str = "",
    percent: bool = False,
    references: Sequence[Reference] = (),
    about: Sequence[About] = (),
) -> Chart:
    """Returns a chart of lines over the steps.

    Args:
        title: title, untrusted text.
        lines: lines, with untrusted labels.
        unit: unit of the values; empty for none.
        percent: True for shares in [0, 1], which are shown in percent on an axis that begins at 0.
        references: level lines, with untrusted labels.
        about: explanations of the metrics.
    """
    drawn = [Series(shown_name(line.label), thin_out(_finite(line.points))) for line in lines]
    points = [point for line in drawn for point in line.points]
    if not points:
        return Chart(shown_name(title), Markup('<p class="note">no finite value</p>'), [], about=list(about))
    levels = [[reference.value] for reference in references]
    y_axis = _value_axis([[y for _, y in line.points] for line in drawn] + levels, percent=percent)
    left = max(_LEFT, 8 + label_width([label for _, label in y_axis.ticks], _FONT_SIZE))
    x_axis = _step_axis([x for x, _ in points], left)
    drawing = Drawing(WIDTH, HEIGHT, shown_name(title), font_size=_FONT_SIZE)
    drawing.y_axis(y_axis, left=left, right=WIDTH - _RIGHT)
    drawing.x_axis(x_axis, bottom=HEIGHT - _BOTTOM)
    scale_note = "logarithmic" if isinstance(y_axis.scale, LogScale) else ""
    drawing.text("unit", 2, 8, ", ".join(filter(None, (shown_name(unit), scale_note))))
    drawing.text("unit", WIDTH - _RIGHT, HEIGHT - 8, "optimizer step", anchor="end")
    for reference in references:
        y = y_axis.scale(reference.value)
        what = f"{shown_name(reference.label)}: {_value(reference.value, percent)}"
        drawing.line("reference", (left, WIDTH - _RIGHT), (y, y), title=what)
    for index, line in enumerate(drawn):
        _draw_line(drawing, index, line, x_axis, y_axis, percent=percent)
    legend = [
        LegendEntry(_classes("k", index), line.label, _value(lines[index].points[-1][1], percent))
        for index, line in enumerate(drawn)
        if lines[index].points
    ]
    legend += [LegendEntry("reference", shown_name(one.label), _value(one.value, percent)) for one in references]
    averaged = any(len(_finite(line.points)) > MAX_POINTS for line in lines)
    return Chart(shown_name(title), Markup(drawing.svg()), legend, averaged, list(about))


def is_logarithmic(lines: Sequence[Sequence[float]]) -> bool:
    """Returns True when a linear axis would press the values together, and a logarithmic one is possible.

    Args:
        lines: finite values of each line.
    """
    values = [value for line in lines for value in line]
    if not values or min(values) <= 0:
        return False
    return max(values) / min(values) >= LOG_RATIO or differ_in_size(lines)


def differ_in_size(lines: Sequence[Sequence[float]]) -> bool:
    """Returns True when a linear axis would flatten a line; lines of zeros do not count.

    Args:
        lines: finite values of each line.
    """
    largest = [size for line in lines if (size := max(map(abs, line), default=0.0)) > 0]
    return bool(largest) and max(largest) / min(largest) >= SIZE_RATIO


def _draw_line(drawing: Drawing, index: int, line: Series, x_axis: Axis, y_axis: Axis, *, percent: bool) -> None:
    places = [(x_axis.scale(x), y_axis.scale(y)) for x, y in line.points]
    data = {
        "label": line.label,
        "steps": "|".join(number(step) for step, _ in line.points),
        "values": "|".join(_value(value, percent) for _, value in line.points),
    }
    drawing.polyline(f"line {_classes('s', index)}", places, data=data)
    if len(places) <= _MAX_DOTS:
        for x, y in places:
            drawing.dot(f"dot s{index % NUM_COLOURS}", x, y, 2.2)


def _classes(letter: str, index: int) -> str:
    """Returns the style classes of the line of this index, or of its mark in the legend."""
    return f"{letter}{index % NUM_COLOURS}" + (" dashed" if index >= NUM_COLOURS else "")


def _step_axis(steps: Sequence[float], left: float) -> Axis:
    """Returns the horizontal axis from position ``left``, with ticks at whole steps."""
    first, last = min(steps), max(steps)
    ticks = nice_ticks(first, last, 5, whole=True)
    scale = Scale(min(ticks[0], first), max(ticks[-1], last), left, WIDTH - _RIGHT)
    return Axis(scale, list(zip(ticks, tick_labels(ticks), strict=True)))


def _value_axis(lines: Sequence[Sequence[float]], *, percent: bool) -> Axis:
    """Returns the vertical axis for the values of all lines, logarithmic for positive values of very different size."""
    values = [value for line in lines for value in line]
    lowest, highest = min(values), max(values)
    if not percent and is_logarithmic(lines):
        ticks = log_ticks(lowest, highest)
        log_scale = LogScale(ticks[0], ticks[-1], HEIGHT - _BOTTOM, _TOP)
        return Axis(log_scale, list(zip(ticks, tick_labels(ticks), strict=True)))
    if percent and lowest >= 0:
        ticks = [0.0, 0.25, 0.5, 0.75, 1.0] if 0.5 < highest <= 1 else nice_ticks(0.0, max(highest, 0.01), 5)
    else:
        ticks = nice_ticks(lowest, highest, 5)
    scale = Scale(ticks[0], ticks[-1], HEIGHT - _BOTTOM, _TOP)
    labels = [f"{label} %" for label in tick_labels([100 * tick for tick in ticks])] if percent else tick_labels(ticks)
    return Axis(scale, list(zip(ticks, labels, strict=True)))


def thin_out(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """Returns at most ``limit`` points: all of a short series, else means over intervals of about equal length."""
    if len(points) <= limit:
        return list(points)
    edges = [round(index * len(points) / limit) for index in range(limit + 1)]
    parts = [points[start:end] for start, end in pairwise(edges)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def _value(value: float, percent: bool) -> str:
    """Returns a value as text."""
    if not math.isfinite(value):
        return "not finite"
    return f"{100 * value:.1f} %" if percent else number(value)


def _finite(points: Sequence[Point]) -> list[Point]:
    """Returns the points whose value is finite."""
    return [(x, y) for x, y in points if math.isfinite(y)]

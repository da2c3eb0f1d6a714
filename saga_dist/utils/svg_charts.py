"""Charts as SVG: scales, ticks, axes, lines and dots.

Elements have a class and no style attribute, because the content security policy of a page may forbid that attribute.
Colours and strokes come from the style sheet of the page or of the drawing, which may define a light and a dark theme.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from xml.etree import ElementTree

LETTER_WIDTH = 6.4 / 12
"""Mean width of a letter as a share of the font size; an estimate, because the viewer chooses the font."""
_BASELINE = 0.32
"""Distance of the baseline below the middle of the letters, as a share of the font size."""
_MOST_POWERS = 5
"""Largest number of intervals between the ticks of a logarithmic axis."""
_EDGE = 20.0
"""Distance from the right border within which a tick label is right-aligned, in units of the view box."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Linear map from values to positions: ``low`` to ``start`` and ``high`` to ``end``."""

    low: float
    """Value at ``start``."""
    high: float
    """Value at ``end``."""
    start: float
    """Position of ``low``, in units of the view box."""
    end: float
    """Position of ``high``, in units of the view box."""

    def __call__(self, value: float) -> float:
        """Returns the position of a value."""
        width = self.high - self.low if self.high > self.low else 1.0
        return self.start + (value - self.low) * (self.end - self.start) / width


@dataclass(frozen=True, slots=True)
class LogScale:
    """Logarithmic map from positive values to positions: ``low`` to ``start`` and ``high`` to ``end``."""

    low: float
    """Value at ``start``, above 0."""
    high: float
    """Value at ``end``, above ``low``."""
    start: float
    """Position of ``low``, in units of the view box."""
    end: float
    """Position of ``high``, in units of the view box."""

    def __call__(self, value: float) -> float:
        """Returns the position of a value above 0."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale with labelled ticks."""

    scale: Callable[[float], float]
    """Map from values to positions."""
    ticks: Sequence[tuple[float, str]]
    """Value and label of each tick."""


class Drawing:
    """An SVG under construction.

    Args:
        width: width of the view box. Its unit, a pixel at full size, is that of all positions and lengths.
        height: height of the view box.
        label: description of the drawing for screen readers (``aria-label``).
        style: style sheet inside the drawing, for a drawing in its own file; empty: the page has one.
        font_size: font size of the labels in the style sheet.
    """

    def __init__(self, width: float, height: float, label: str, *, style: str = "", font_size: float = 11) -> None:
        width, height = round(width), round(height)
        self._width, self._font_size = width, font_size
        attributes = {"viewBox": f"0 0 {width} {height}", "role": "img", "aria-label": label}
        self._svg = ElementTree.Element("svg", attributes)
        if style:
            self._svg.set("xmlns", "http://www.w3.org/2000/svg")
            ElementTree.SubElement(self._svg, "style").text = style
            self._add("rect", "paper", width=width, height=height)

    def line(self, css_class: str, x: tuple[float, float], y: tuple[float, float], *, title: str = "") -> None:
        """Draws a straight line.

        Args:
            css_class: class of the element.
            x: horizontal positions of both ends.
            y: vertical positions of both ends.
            title: tooltip; empty for none.
        """
        self._add("line", css_class, title=title, x1=x[0], x2=x[1], y1=y[0], y2=y[1])

    def polyline(
        self, css_class: str, points: Iterable[tuple[float, float]], *, data: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Draws straight lines through points (x, y), in their order.

        Args:
            css_class: class of the element.
            points: the points.
            data: name and value of ``data-`` attributes, for a script of the page.
        """
        places = " ".join(f"{_short(x)},{_short(y)}" for x, y in points)
        ElementTree.SubElement(self._svg, "polyline", {"class": css_class, "points": places, **_data(data)})

    def dot(
        self,
        css_class: str,
        x: float,
        y: float,
        radius: float,
        *,
        title: str = "",
        data: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Draws a circle around (x, y); see ``line`` and ``polyline`` for the other arguments."""
        self._add("circle", css_class, title=title, cx=x, cy=y, r=radius).attrib.update(_data(data))

    def text(self, css_class: str, x: float, y: float, words: str, *, anchor: str = "start") -> None:
        """Draws a text.

        Args:
            css_class: class of the element.
            x: horizontal position of the anchor.
            y: vertical position of the middle of the text.
            words: the text.
            anchor: part of the text that is at ``x``: start, middle or end.
        """
        element = self._add("text", css_class, x=x, y=y + _BASELINE * self._font_size)
        element.set("text-anchor", anchor)
        element.text = words

    def x_axis(self, axis: Axis, *, bottom: float, grid_top: float | None = None, css_class: str = "tick") -> None:
        """Draws the labels of a horizontal axis, and its vertical grid lines.

        Args:
            axis: the axis.
            bottom: vertical position below which the labels are.
            grid_top: upper end of the grid lines, which end at ``bottom``; None for no grid lines.
            css_class: class of the labels.
        """
        for value, label in axis.ticks:
            x = axis.scale(value)
            if grid_top is not None:
                self.line("grid", (x, x), (grid_top, bottom))
            at_edge = x > self._width - _EDGE
            y = bottom + 1.15 * self._font_size
            self.text(css_class, self._width - 2 if at_edge else x, y, label, anchor="end" if at_edge else "middle")

    def y_axis(self, axis: Axis, *, left: float, right: float, css_class: str = "tick") -> None:
        """Draws the labels of a vertical axis, and its horizontal grid lines.

        Args:
            axis: the axis.
            left: horizontal position left of which the labels are, and at which the grid lines start.
            right: right end of the grid lines.
            css_class: class of the labels.
        """
        for value, label in axis.ticks:
            y = axis.scale(value)
            self.line("grid", (left, right), (y, y))
            self.text(css_class, left - 6, y, label, anchor="end")

    def svg(self) -> str:
        """Returns the drawing as one line of SVG, in which texts are escaped."""
        return ElementTree.tostring(self._svg, encoding="unicode")

    def document(self) -> str:
        """Returns the drawing as the content of a file, one element per line."""
        ElementTree.indent(self._svg, "")
        return self.svg() + "\n"

    def _add(self, tag: str, css_class: str, *, title: str = "", **places: float) -> ElementTree.Element:
        attributes = {"class": css_class, **{name: _short(value) for name, value in places.items()}}
        element = ElementTree.SubElement(self._svg, tag, attributes)
        if title:
            ElementTree.SubElement(element, "title").text = title
        return element


def label_width(labels: Iterable[str], font_size: float) -> float:
    """Returns the estimated width of the longest label; 0 without labels.

    Args:
        labels: the labels.
        font_size: their font size.
    """
    return LETTER_WIDTH * font_size * max(map(len, labels), default=0)


def nice_ticks(low: float, high: float, wanted: int, *, whole: bool = False) -> list[float]:
    """Returns round numbers that cover [low, high].

    Args:
        low: smallest value.
        high: largest value, at least ``low``.
        wanted: approximate number of ticks, at least 2.
        whole: True for whole numbers, none of them below ``low`` (for steps).
    """
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        low, high = (low - (1 if whole else pad), high + (1 if whole else pad))
    rough = (high - low) / (wanted - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    spacing = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    if whole:
        spacing = max(1.0, math.ceil(spacing))
        first = math.ceil(low / spacing)
        return [index * spacing for index in range(first, max(math.floor(high / spacing), first + 1) + 1)]
    first, last = math.floor(low / spacing + 1e-9), math.ceil(high / spacing - 1e-9)
    return [index * spacing for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Returns powers of ten that cover [low, high]; of many, every second, third, … so that few are left.

    Args:
        low: smallest value, above 0.
        high: largest value, at least ``low``.
    """
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    spacing = max(1, math.ceil((last - first) / _MOST_POWERS))
    count = max(1, math.ceil((last - first) / spacing))
    return [10.0 ** (first + index * spacing) for index in range(count + 1)]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Returns a label for each tick: numbers of 3 significant digits, or of as many, up to 6, as tell them apart."""
    for digits in range(3, 7):
        labels = [number(tick, digits) for tick in ticks]
        if len(set(labels)) == len(ticks):
            break
    return labels


def number(value: float, digits: int = 3) -> str:
    """Returns a number as text, from 1,000 on with all digits before the decimal point.

    Numbers of at least 1e5 or below 1e-3 in magnitude have an exponent.

    Args:
        value: the number.
        digits: significant digits, 1 to 6.
    """
    if value == 0:
        return "0"
    if abs(value) >= 1e5 or abs(value) < 1e-3:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    if abs(value) >= 1000:
        return f"{value:,.{max(0, digits - len(str(int(abs(value)))))}f}"
    return f"{float(f'{value:.{digits}g}'):g}"


def _data(data: Mapping[str, str]) -> dict[str, str]:
    return {f"data-{name}": value for name, value in data.items()}


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")

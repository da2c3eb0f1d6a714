"""Charts as SVG: scales, ticks, axes, lines and dots.

Every element has a class and no style attribute, which the content policy of a page may forbid. Colours and strokes
come from the style sheet around the drawing, or from the one that it carries, so that it follows a light or dark theme.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

LETTER_WIDTH = 6.4 / 12
"""Mean width of a letter as a share of the font size; the font is the reader's."""
_BASELINE = 0.32
"""Share of the font size by which a baseline lies below the middle of its letters."""
_EDGE = 20.0
"""Room for half a label beyond the last tick."""


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear map from values in [low, high] to positions from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Returns the position of a value."""
        width = self.high - self.low if self.high > self.low else 1.0
        return self.start + (value - self.low) * (self.end - self.start) / width


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale with its ticks: (value, label)."""

    scale: Scale
    ticks: Sequence[tuple[float, str]]


class Drawing:
    """An SVG under construction.

    Args:
        width: of the view box; heights and positions share its unit, which is a pixel at full size.
        height: of the view box.
        label: what the drawing shows, for readers who do not see it.
        style: style sheet of a drawing that is a file of its own; empty where a page has one.
        font_size: of the labels, as the style sheet sets it.
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
        """Draws a straight line of a class of the style sheet; ``title`` is shown where the reader points."""
        self._add("line", css_class, title=title, x1=x[0], x2=x[1], y1=y[0], y2=y[1])

    def polyline(self, css_class: str, points: Iterable[tuple[float, float]]) -> None:
        """Draws lines from point to point."""
        places = " ".join(f"{_short(x)},{_short(y)}" for x, y in points)
        ElementTree.SubElement(self._svg, "polyline", {"class": css_class, "points": places})

    def dot(self, css_class: str, x: float, y: float, radius: float, *, title: str = "") -> None:
        """Draws a filled circle."""
        self._add("circle", css_class, title=title, cx=x, cy=y, r=radius)

    def text(self, css_class: str, x: float, y: float, words: str, *, anchor: str = "start") -> None:
        """Writes words whose vertical middle is at ``y``; ``anchor`` (start, middle, end) is their part at ``x``."""
        element = self._add("text", css_class, x=x, y=y + _BASELINE * self._font_size)
        element.set("text-anchor", anchor)
        element.text = words

    def x_axis(self, axis: Axis, *, bottom: float, grid_top: float | None = None, css_class: str = "tick") -> None:
        """Labels ticks below ``bottom``, and rules the plot from ``grid_top`` down to there."""
        for value, label in axis.ticks:
            x = axis.scale(value)
            if grid_top is not None:
                self.line("grid", (x, x), (grid_top, bottom))
            at_edge = x > self._width - _EDGE
            y = bottom + 1.15 * self._font_size
            self.text(css_class, self._width - 2 if at_edge else x, y, label, anchor="end" if at_edge else "middle")

    def y_axis(self, axis: Axis, *, left: float, right: float, css_class: str = "tick") -> None:
        """Labels ticks left of ``left``, and rules the plot from there to ``right``."""
        for value, label in axis.ticks:
            y = axis.scale(value)
            self.line("grid", (left, right), (y, y))
            self.text(css_class, left - 6, y, label, anchor="end")

    def svg(self) -> str:
        """Returns the drawing as one line of markup, everything escaped."""
        return ElementTree.tostring(self._svg, encoding="unicode")

    def document(self) -> str:
        """Returns the drawing as a file, an element a line."""
        ElementTree.indent(self._svg, "")
        return self.svg() + "\n"

    def _add(self, tag: str, css_class: str, *, title: str = "", **places: float) -> ElementTree.Element:
        attributes = {"class": css_class, **{name: _short(value) for name, value in places.items()}}
        element = ElementTree.SubElement(self._svg, tag, attributes)
        if title:
            ElementTree.SubElement(element, "title").text = title
        return element


def label_width(labels: Iterable[str], font_size: float) -> float:
    """Returns about how wide the longest of the labels is; 0 without any."""
    return LETTER_WIDTH * font_size * max(map(len, labels), default=0)


def nice_ticks(low: float, high: float, wanted: int, *, whole: bool = False) -> list[float]:
    """Returns round numbers that cover [low, high], about ``wanted`` of them.

    Args:
        low: smallest value.
        high: largest value, >= low.
        wanted: how many, >= 2.
        whole: whole numbers, and none below ``low`` (steps).
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


def number(value: float) -> str:
    """Returns a short form: 3 significant digits, exponents only where they are shorter."""
    if value == 0:
        return "0"
    if abs(value) >= 1e5 or abs(value) < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{float(f'{value:.3g}'):g}"


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")

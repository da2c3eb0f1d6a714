"""Tables as one picture: a dot for each run, a bar for the mean, a whisker for what other classes might have given.

A file of its own, for a README or a slide: SVG with its style inside, light and dark, without a script.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterator
from dataclasses import dataclass

from saga_dist.sweep.collected import Collected, gain
from saga_dist.sweep.summary import SummaryRow
from saga_dist.utils.printable import printable

_PLOT = 360
_LETTER = 6.4
"""Width of a letter, roughly."""
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
    """Room for labels to the left of the plot, and for gains to its right."""

    left: float
    right: float

    @property
    def width(self) -> float:
        return self.left + _PLOT + self.right


def figure(collected: Collected) -> str:
    """Returns the picture of Recall@1 on unseen classes: a panel for each table, a line for each variant."""
    tables = [(table, [row for row in table.rows if row.figures]) for table in collected.tables.values()]
    drawn = [row for _, rows in tables for row in rows]
    frame = _Frame(_room([row.label for row in drawn]), _room([gain(row) for row in drawn]))
    height = sum(_TITLE + _ROW * len(rows) + _AXIS + _GAP for _, rows in tables)
    top = 0
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {frame.width:.0f} {height}" role="img" '
        f'aria-label="Recall@1 on unseen classes"><style>{_STYLE}</style>',
        f'<rect class="paper" width="{frame.width:.0f}" height="{height}"/>',
    ]
    for table, rows in tables:
        parts += _panel(frame, table.title, rows, top)
        top += _TITLE + _ROW * len(rows) + _AXIS + _GAP
    return "\n".join([*parts, "</svg>"]) + "\n"


def _room(texts: list[str]) -> float:
    return 24 + _LETTER * max(map(len, texts), default=0)


def _panel(frame: _Frame, title: str, rows: list[SummaryRow], top: int) -> Iterator[str]:
    highest = max((max(*_recalls(row), (row.confidence_interval or (0, 0))[1]) for row in rows), default=0.1)
    step = next(step for step in (0.02, 0.05, 0.1, 0.2, 0.25) if highest / step <= 5 or step == 0.25)
    ticks = math.ceil(highest / step)

    def to_x(share: float) -> float:
        return frame.left + _PLOT * share / (ticks * step)

    first, end = top + _TITLE, top + _TITLE + _ROW * len(rows)
    yield _text(10, top + 19, title, "title")
    for tick in range(ticks + 1):
        x = to_x(tick * step)
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{first}" y2="{end}"/>'
        yield _text(x, end + 15, f"{100 * tick * step:.0f}{' %' if tick == ticks else ''}", "soft", "middle")
    for number, row in enumerate(rows):
        y = first + _ROW * (number + 0.5)
        yield _text(frame.left - 10, y + 4, row.label, "", "end")
        yield _text(frame.left + _PLOT + 10, y + 4, gain(row).strip(" ()"), "soft")
        if row.confidence_interval is not None:
            low, high = map(to_x, row.confidence_interval)
            yield f'<line class="whisker" x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        for value in _recalls(row):
            yield f'<circle class="run" cx="{to_x(value):.1f}" cy="{y:.1f}" r="3"/>'
        x = to_x(row.figures["recall_at_1"].mean)
        yield f'<line class="mean" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 6:.1f}" y2="{y + 6:.1f}"/>'


def _recalls(row: SummaryRow) -> tuple[float, ...]:
    return row.figures["recall_at_1"].values


def _text(x: float, y: float, words: str, kind: str, anchor: str = "start") -> str:
    safe = html.escape(printable(words), quote=False)
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{safe}</text>'

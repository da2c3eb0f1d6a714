"""Line charts as inline SVG: no library, no style attribute (the page's policy forbids them), colours from its classes.

A chart is a plain string of numbers and escaped labels; series colours are the classes ``s0`` … ``s5`` of the style
sheet, so that a chart follows the reader's light or dark theme.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

from saga_dist.report.text import shown_name

Point = tuple[float, float]

WIDTH, HEIGHT = 360, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 24
MAX_POINTS = 240
"""Points of one line; longer series are averaged over equal stretches of steps."""
NUM_COLOURS = 6


@dataclass(frozen=True, slots=True)
class Series:
    """One line."""

    label: str
    points: Sequence[Point]
    """(step, value), by step; values that are not finite are gaps."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A titled SVG with its legend, ready for the template."""

    title: str
    svg: Markup
    legend: list[tuple[int, str, str]]
    """(colour, label, last value) of each line."""
    averaged: bool
    """True when some line shows means over several steps."""


@dataclass(frozen=True, slots=True)
class Panel:
    """Which metrics share a chart."""

    title: str
    metrics: Mapping[str, str]
    """Metric name to its label."""
    percent: bool = False
    """Shares in [0, 1], shown in percent from 0 up."""


PANELS: tuple[Panel, ...] = (
    Panel("Validation Recall@1", {"validation/recall_at_1": "unseen classes"}, percent=True),
    Panel("Reward", {"rollout/reward_mean": "mean over completions"}, percent=True),
    Panel(
        "Verdict accuracy",
        {"rollout/verdict_accuracy_same": "same class", "rollout/verdict_accuracy_different": "different"},
        percent=True,
    ),
    Panel("Groups that contribute", {"rollout/contributing_share": "share with reward variance"}, percent=True),
    Panel(
        "Groups that contribute, by pair",
        {"rollout/contributing_same": "same class", "rollout/contributing_different": "different"},
    ),
    Panel("Metric loss", {"loss/dml": "L_DML"}),
    Panel("Policy loss", {"loss/grpo": "L_GRPO"}),
    Panel("Attention alignment", {"loss/kl": "L_KL"}),
    Panel(
        "Gradient norms",
        {
            "gradient/total_norm": "total",
            "gradient/dml_at_tokens_norm": "metric, at tokens",
            "gradient/grpo_at_tokens_norm": "GRPO, at tokens",
        },
    ),
    Panel(
        "Answers out of form",
        {
            "rollout/unparseable_share": "no verdict",
            "rollout/truncated_share": "cut off",
        },
        percent=True,
    ),
    Panel(
        "Seconds a step",
        {
            "step/encode_s": "encode",
            "step/rollout_s": "rollout",
            "step/replay_s": "replay",
            "step/update_s": "update",
        },
    ),
    Panel("Generated tokens a second", {"rollout/tokens_per_s": "all workers"}),
    Panel("Completion length", {"rollout/completion_tokens_mean": "tokens, mean"}),
    Panel("Engine mismatch", {"replay/log_prob_gap_mean": "|log p engine − replay|"}),
)
BY_WORD = (("Staleness", "stale"), ("Idle", "idle"))
"""(title, word): metrics with the word in their name share a chart; which there are depends on the mode of the run."""


def run_charts(rows: Sequence[Mapping[str, float]]) -> tuple[list[Chart], list[Chart]]:
    """Returns the charts of a run: the main ones, and one for each further metric, so that nothing is left out.

    Args:
        rows: of ``metrics.jsonl``.
    """
    series = metric_series(rows)
    panels = [*PANELS]
    for title, word in BY_WORD:
        metrics = {name: name for name in series if word in name}
        if metrics:
            panels.append(Panel(title, metrics))
    main = [
        line_chart(
            panel.title,
            [Series(label, series[name]) for name, label in panel.metrics.items() if name in series],
            percent=panel.percent,
        )
        for panel in panels
        if any(name in series for name in panel.metrics)
    ]
    used = {name for panel in panels for name in panel.metrics}
    others = [line_chart(name, [Series(name, series[name])]) for name in sorted(series.keys() - used)]
    return main, others


def metric_series(rows: Sequence[Mapping[str, float]]) -> dict[str, list[Point]]:
    """Returns metric name to its (step, value) points."""
    series: dict[str, list[Point]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                series.setdefault(name, []).append((float(row["step"]), float(value)))
    return series


def line_chart(title: str, lines: Sequence[Series], *, percent: bool = False) -> Chart:
    """Returns a chart of up to six distinguishable lines over the steps.

    Args:
        title: untrusted.
        lines: what to draw.
        percent: values are shares; the axis begins at 0 %.
    """
    drawn = [Series(line.label, thin_out(_finite(line.points))) for line in lines]
    points = [point for line in drawn for point in line.points]
    if not points:
        return Chart(title, Markup('<p class="note">no finite value</p>'), [], averaged=False)
    x_ticks = nice_ticks(min(x for x, _ in points), max(x for x, _ in points), 5, whole=True)
    lowest, highest = min(y for _, y in points), max(y for _, y in points)
    if percent and lowest >= 0:
        y_ticks = [0.0, 0.25, 0.5, 0.75, 1.0] if 0.5 < highest <= 1 else nice_ticks(0.0, max(highest, 0.01), 5)
    else:
        y_ticks = nice_ticks(lowest, highest, 5)
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    to_x = _scale(min(x_ticks[0], first), max(x_ticks[-1], last), _LEFT, WIDTH - _RIGHT)
    to_y = _scale(y_ticks[0], y_ticks[-1], HEIGHT - _BOTTOM, _TOP)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(shown_name(title))}">']
    for tick in y_ticks:
        y = to_y(tick)
        label = f"{number(100 * tick)} %" if percent else number(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{label}</text>')
    for tick in x_ticks:
        x = to_x(tick)
        anchor = "end" if x > WIDTH - _RIGHT - 12 else "middle"
        parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 7}" text-anchor="{anchor}">{number(tick)}</text>')
    for index, line in enumerate(drawn):
        colour = index % NUM_COLOURS
        path = " ".join(f"{to_x(x):.1f},{to_y(y):.1f}" for x, y in line.points)
        parts.append(f'<polyline class="line s{colour}" points="{path}"/>')
        if len(line.points) <= 30:
            parts += [
                f'<circle class="dot s{colour}" cx="{to_x(x):.1f}" cy="{to_y(y):.1f}" r="2.2">'
                f"<title>step {number(x)}: {_value(y, percent)}</title></circle>"
                for x, y in line.points
            ]
    parts.append("</svg>")
    legend = [
        (index % NUM_COLOURS, shown_name(line.label), _value(line.points[-1][1], percent))
        for index, line in enumerate(lines)
        if line.points
    ]
    averaged = any(len(_finite(line.points)) > MAX_POINTS for line in lines)
    return Chart(shown_name(title), Markup("".join(parts)), legend, averaged)


def thin_out(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """Returns at most ``limit`` points: means over equal stretches of the series, all of it where it is short."""
    if len(points) <= limit:
        return list(points)
    edges = [round(index * len(points) / limit) for index in range(limit + 1)]
    parts = [points[start:end] for start, end in pairwise(edges)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


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


def _value(value: float, percent: bool) -> str:
    if not math.isfinite(value):
        return "not finite"
    return f"{100 * value:.1f} %" if percent else number(value)


def _finite(points: Sequence[Point]) -> list[Point]:
    return [(x, y) for x, y in points if math.isfinite(y)]


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    factor = (end - start) / (high - low if high > low else 1.0)
    return lambda value: start + (value - low) * factor

"""Line charts of a run's metrics over its steps; the colours of the lines are the classes ``s0`` … ``s5``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from saga_dist.report.text import shown_name
from saga_dist.utils.svg_charts import Axis, Drawing, Scale, nice_ticks, number

Point = tuple[float, float]
"""Step and value."""

WIDTH, HEIGHT = 360, 190
"""Size of a chart, in pixels."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 24
MAX_POINTS = 240
"""Largest number of points of a line; longer series are averaged over intervals with equal numbers of points."""
NUM_COLOURS = 6
"""Number of line colours, after which they repeat."""
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
class Chart:
    """A chart for the template: title, SVG and legend."""

    title: str
    """Title, safe to print."""
    svg: Markup
    """The chart as SVG, or a note when there is nothing to draw."""
    legend: list[tuple[int, str, str]]
    """Colour, label and last value of each line."""
    averaged: bool
    """True when some line shows means over several steps."""


@dataclass(frozen=True, slots=True)
class Panel:
    """Metrics that are drawn in one chart."""

    title: str
    """Title of the chart."""
    metrics: Mapping[str, str]
    """Label of each metric, by name of the metric."""
    percent: bool = False
    """True for shares in [0, 1], which are shown in percent on an axis that begins at 0."""


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
    Panel("Verdict loss", {"loss/verdict": "L_verdict"}),
    Panel(
        "Probability of the right verdict",
        {
            "verdict/probability_mean_same": "same class, mean",
            "verdict/probability_mean_different": "different, mean",
        },
        percent=True,
    ),
    Panel(
        "Right verdict above one half",
        {"verdict/right_share_same": "same class", "verdict/right_share_different": "different"},
        percent=True,
    ),
    Panel("Attention alignment", {"loss/kl": "L_KL"}),
    Panel(
        "Share of each loss in the gradient",
        {
            "share/tower_grpo": "GRPO, at the tower; the rest is the metric loss",
            "share/tower_verdict": "verdict, at the tower; the rest is the metric loss",
            "share/pooler_kl": "alignment, at the pooler; the rest is the metric loss",
        },
        percent=True,
    ),
    Panel("Gradient norm before clipping", {"gradient/total_norm": "encoder and pooler"}),
    Panel(
        "Gradient norms at the tokens",
        {"gradient/dml_at_tokens_norm": "metric loss", "gradient/grpo_at_tokens_norm": "GRPO"},
    ),
    Panel(
        "Answers out of form",
        {
            "rollout/unparseable_share": "no verdict",
            "rollout/verdict_form_repaired_share": "verdict in another form",
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
"""Title and word of charts of all metrics whose name has the word; these metrics depend on the mode of the run."""


def run_charts(rows: Sequence[Mapping[str, float]]) -> tuple[list[Chart], list[Chart]]:
    """Returns the main charts of a run, and one chart for each metric that is in none of them.

    Args:
        rows: rows of ``metrics.jsonl``.
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
    """Returns the points of each metric, by name of the metric."""
    series: dict[str, list[Point]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                series.setdefault(name, []).append((float(row["step"]), float(value)))
    return series


def line_chart(title: str, lines: Sequence[Series], *, percent: bool = False) -> Chart:
    """Returns a chart of lines over the steps; after six lines the colours repeat.

    Args:
        title: title, untrusted text.
        lines: lines, with untrusted labels.
        percent: True for shares in [0, 1], which are shown in percent on an axis that begins at 0.
    """
    drawn = [Series(line.label, thin_out(_finite(line.points))) for line in lines]
    points = [point for line in drawn for point in line.points]
    if not points:
        return Chart(title, Markup('<p class="note">no finite value</p>'), [], averaged=False)
    drawing = Drawing(WIDTH, HEIGHT, shown_name(title))
    x_axis, y_axis = _step_axis([x for x, _ in points]), _value_axis([y for _, y in points], percent=percent)
    drawing.y_axis(y_axis, left=_LEFT, right=WIDTH - _RIGHT)
    drawing.x_axis(x_axis, bottom=HEIGHT - _BOTTOM)
    for index, line in enumerate(drawn):
        colour = f"s{index % NUM_COLOURS}"
        places = [(x_axis.scale(x), y_axis.scale(y)) for x, y in line.points]
        drawing.polyline(f"line {colour}", places)
        if len(places) <= _MAX_DOTS:
            for (step, value), (x, y) in zip(line.points, places, strict=True):
                drawing.dot(f"dot {colour}", x, y, 2.2, title=f"step {number(step)}: {_value(value, percent)}")
    legend = [
        (index % NUM_COLOURS, shown_name(line.label), _value(line.points[-1][1], percent))
        for index, line in enumerate(lines)
        if line.points
    ]
    averaged = any(len(_finite(line.points)) > MAX_POINTS for line in lines)
    return Chart(shown_name(title), Markup(drawing.svg()), legend, averaged)


def _step_axis(steps: Sequence[float]) -> Axis:
    """Returns the horizontal axis, with ticks at whole steps."""
    first, last = min(steps), max(steps)
    ticks = nice_ticks(first, last, 5, whole=True)
    scale = Scale(min(ticks[0], first), max(ticks[-1], last), _LEFT, WIDTH - _RIGHT)
    return Axis(scale, [(tick, number(tick)) for tick in ticks])


def _value_axis(values: Sequence[float], *, percent: bool) -> Axis:
    """Returns the vertical axis."""
    lowest, highest = min(values), max(values)
    if percent and lowest >= 0:
        ticks = [0.0, 0.25, 0.5, 0.75, 1.0] if 0.5 < highest <= 1 else nice_ticks(0.0, max(highest, 0.01), 5)
    else:
        ticks = nice_ticks(lowest, highest, 5)
    scale = Scale(ticks[0], ticks[-1], HEIGHT - _BOTTOM, _TOP)
    return Axis(scale, [(tick, f"{number(100 * tick)} %" if percent else number(tick)) for tick in ticks])


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

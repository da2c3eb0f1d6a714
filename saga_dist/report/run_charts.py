"""The charts of the metrics of one or several runs; titles, units and explanations come from the registry of metrics.

Metrics of one heading share a chart. With several runs, a chart shows one metric, with a line for each run.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from saga_dist.metrics.registry import all_metrics, find_metric, metric_groups
from saga_dist.report.line_chart import (
    About,
    Chart,
    Point,
    Reference,
    Series,
    differ_in_size,
    is_logarithmic,
    line_chart,
)

MAIN = (
    "Validation Recall@1",
    "Mean reward",
    "Verdict accuracy",
    "Contributing groups",
    "Metric loss L_DML",
    "Policy loss L_GRPO",
    "Verdict loss L_verdict",
    "Probability of the right verdict",
    "Pairs with p(right) above 1/2",
    "Attention alignment L_KL",
    "Share of each loss in the tower’s gradient",
    "Share of each loss in the pooler’s gradient",
    "Gradient norm before clipping",
    "Gradient norm at the tokens",
    "Completions out of form",
    "Mean completion length",
    "Time of a step",
    "Generation throughput",
    "Engine mismatch",
    "Mean staleness",
)
"""Headings of the charts that a page shows first, in order; the others are below them, by group of the registry."""
UNREGISTERED = "Metrics of your own"
"""Title of the group of metrics that the registry does not have."""


@dataclass(frozen=True, slots=True)
class RunRows:
    """The metrics of one run."""

    label: str
    """Name of the run, untrusted text."""
    rows: Sequence[Mapping[str, float]]
    """Rows of ``metrics.jsonl``."""


@dataclass(frozen=True, slots=True)
class ChartGroup:
    """Charts of one subject."""

    title: str
    """Heading."""
    charts: list[Chart]
    """The charts, at least one."""


@dataclass(frozen=True, slots=True)
class _Line:
    """One metric of one run."""

    name: str
    """Name in ``metrics.jsonl``."""
    label: str
    """Label within its heading; empty where the heading has one line."""
    run: str
    """Label of the run."""
    points: list[Point]
    """Steps and finite or infinite values."""


def run_charts(
    runs: Sequence[RunRows], references: Mapping[str, Sequence[Reference]]
) -> tuple[list[Chart], list[ChartGroup]]:
    """Returns the main charts of the runs, and those of all other metrics by group.

    Args:
        runs: the metrics of each run.
        references: level lines, by name of the metric.
    """
    panels: dict[str, list[_Line]] = {}
    for heading, line in _lines(runs):
        panels.setdefault(heading, []).append(line)
    charts = {heading: _charts(heading, lines, len(runs), references) for heading, lines in panels.items()}
    main = [chart for heading in MAIN if heading in charts for chart in charts[heading]]
    groups: dict[str, list[Chart]] = {}
    for heading, made in charts.items():
        if heading not in MAIN:
            groups.setdefault(_group_of(panels[heading][0].name), []).extend(made)
    return main, [ChartGroup(title, made) for title, made in groups.items()]


def metric_series(rows: Sequence[Mapping[str, float]]) -> dict[str, list[Point]]:
    """Returns the points of each metric, by name of the metric."""
    series: dict[str, list[Point]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                series.setdefault(name, []).append((float(row["step"]), float(value)))
    return series


def _lines(runs: Sequence[RunRows]) -> list[tuple[str, _Line]]:
    """Returns (heading, line) of every metric of every run, in the order of the registry, runs within a metric."""
    series = [(run.label, metric_series(run.rows)) for run in runs]
    names = {name for _, found in series for name in found}
    lines = []
    for name in sorted(names, key=_place):
        metric = find_metric(name)
        heading, label = (name, "") if metric is None else metric.title_of(name)
        lines += [(heading, _Line(name, label, run, found[name])) for run, found in series if name in found]
    return lines


def _charts(
    heading: str, lines: Sequence[_Line], num_runs: int, references: Mapping[str, Sequence[Reference]]
) -> list[Chart]:
    """Returns the chart of a heading, or one for each metric where they cannot share it."""
    by_name: dict[str, list[_Line]] = {}
    for line in lines:
        by_name.setdefault(line.name, []).append(line)
    metric = find_metric(lines[0].name)
    unit, percent = ("", False) if metric is None else (metric.axis_unit, metric.is_share)
    values = [[y for _, y in line.points if math.isfinite(y)] for line in lines]
    flattened = not percent and differ_in_size(values) and not is_logarithmic(values)
    apart = len(by_name) > 1 and (num_runs > 1 or flattened)
    return [
        line_chart(
            ": ".join(filter(None, (heading, part[0].label if apart else ""))),
            [Series(line.run if num_runs > 1 else line.label or heading, line.points) for line in part],
            unit=unit,
            percent=percent,
            references=[one for name in dict.fromkeys(line.name for line in part) for one in references.get(name, ())],
            about=_about(part),
        )
        for part in (by_name.values() if apart else [lines])
    ]


def _about(lines: Sequence[_Line]) -> list[About]:
    """Returns the explanation of each metric, or family of metrics, once."""
    found = {metric.name: metric for line in lines if (metric := find_metric(line.name)) is not None}
    return [About(name, metric.measures, metric.healthy, metric.otherwise) for name, metric in found.items()]


def _place(name: str) -> tuple[int, int, int, str]:
    """Returns the sort key of a metric: place of its entry in the registry, place within the family, and the name."""
    for place, metric in enumerate(all_metrics()):
        if metric.covers(name):
            return place, *metric.position_of(name), name
    return sys.maxsize, 0, 0, name


def _group_of(name: str) -> str:
    """Returns the title of the registry's group of a metric."""
    metric = find_metric(name)
    return next((group.title for group in metric_groups() if metric in group.metric), UNREGISTERED)

"""Line charts: averaging, and where a point lands; labels cannot break out."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from saga_dist.report.curves import Series, line_chart, run_charts, thin_out


def test_long_series_become_means() -> None:
    points = [(float(step), float(step % 2)) for step in range(1000)]
    thin = thin_out(points, 100)
    assert len(thin) == 100
    assert {y for _, y in thin} == {0.5}
    assert thin[0][0] == 4.5


def test_points_land_where_the_axes_say() -> None:
    chart = line_chart("t", [Series("s", [(0.0, 0.0), (10.0, 1.0)])])
    root = ElementTree.fromstring(chart.svg)
    (line,) = root.iter("polyline")
    first, last = (tuple(map(float, point.split(","))) for point in line.attrib["points"].split())
    grid = sorted(float(one.attrib["y1"]) for one in root.iter("line"))
    assert first[1] == grid[-1] and last[1] == grid[0]  # 0 at the lowest, 1 at the highest grid line
    assert (first[0], last[0]) == (
        float(next(root.iter("line")).attrib["x1"]),
        float(next(root.iter("line")).attrib["x2"]),
    )


def test_values_that_are_not_finite_are_gaps_and_named() -> None:
    chart = line_chart("t", [Series("s", [(0.0, 1.0), (1.0, float("inf")), (2.0, float("nan"))])])
    assert "nan" not in chart.svg and "inf" not in chart.svg
    assert chart.legend == [(0, "s", "not finite")]
    assert "no finite value" in line_chart("t", [Series("s", [(0.0, float("nan"))])]).svg


def test_every_metric_has_a_chart() -> None:
    rows = [
        {"step": 1, "loss/dml": 0.5, "some/new_quantity": 2.0, "pool/rollout_idle_share": 0.1},
        {"step": 1, "validation/recall_at_1": 0.2},
        {"step": 2, "loss/dml": 0.4, "async/staleness_mean": 1.0},
    ]
    main, others = run_charts(rows)
    assert [chart.title for chart in main] == ["Validation Recall@1", "Metric loss", "Staleness", "Idle"]
    assert [chart.title for chart in others] == ["some/new_quantity"]


def test_titles_are_escaped_and_no_style_attribute_is_used() -> None:
    chart = line_chart("<script>", [Series("<b>", [(1.0, 1.0)])])
    assert "<script>" not in chart.svg
    assert not re.search(r"\sstyle=", chart.svg)

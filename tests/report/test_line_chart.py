"""Line charts: averaging, where a point lands, units, values for the pointer; labels cannot break out."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from saga_dist.report.line_chart import LegendEntry, Reference, Series, line_chart, thin_out


def rows_of(svg: str) -> list[float]:
    """Heights of the grid lines."""
    return sorted(
        float(one.attrib["y1"]) for one in ElementTree.fromstring(svg).iter("line") if one.get("class") == "grid"
    )


def places(svg: str) -> list[tuple[float, float]]:
    (line,) = ElementTree.fromstring(svg).iter("polyline")
    return [(float(x), float(y)) for x, y in (point.split(",") for point in line.attrib["points"].split())]


def words(svg: str) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(svg).iter("text")]


def test_long_series_become_means() -> None:
    points = [(float(step), float(step % 2)) for step in range(1000)]
    thin = thin_out(points, 100)
    assert len(thin) == 100
    assert {y for _, y in thin} == {0.5}
    assert thin[0][0] == 4.5


def test_points_land_where_the_axes_say() -> None:
    svg = line_chart("t", [Series("s", [(0.0, 0.0), (10.0, 1.0)])]).svg
    first, last = places(svg)
    grid = [one for one in ElementTree.fromstring(svg).iter("line") if one.get("class") == "grid"]
    assert first[1] == rows_of(svg)[-1] and last[1] == rows_of(svg)[0]  # 0 at the lowest, 1 at the highest grid line
    assert (first[0], last[0]) == (float(grid[0].attrib["x1"]), float(grid[0].attrib["x2"]))


def test_positive_values_of_very_different_size_have_a_logarithmic_axis_that_says_so() -> None:
    chart = line_chart("t", [Series("s", [(0.0, 1.0), (1.0, 10.0), (2.0, 1000.0)])], unit="seconds")
    heights = [y for _, y in places(chart.svg)]
    assert heights[0] - heights[1] == pytest.approx((heights[0] - heights[2]) / 3, abs=0.1)
    assert words(chart.svg)[:4] == ["1", "10", "100", "1,000"]
    assert "seconds, logarithmic" in words(chart.svg)
    for points in ([(0.0, 1.0), (1.0, 99.0)], [(0.0, 0.0), (1.0, 1000.0)], [(0.0, -1.0), (1.0, 1000.0)]):
        assert "seconds" in words(line_chart("t", [Series("s", points)], unit="seconds").svg)
    assert "share" in words(line_chart("t", [Series("s", [(0.0, 0.001), (1.0, 1.0)])], unit="share", percent=True).svg)


def test_a_line_far_below_another_makes_the_axis_logarithmic() -> None:
    def scale(lower: float) -> bool:
        lines = [Series("a", [(0.0, 5.0), (1.0, 6.0)]), Series("b", [(0.0, lower), (1.0, lower)])]
        return "logarithmic" in words(line_chart("t", lines).svg)

    assert scale(0.5) and not scale(1.0) and not scale(0.0)


def test_both_axes_are_labelled() -> None:
    assert {"nats", "optimizer step"} <= set(words(line_chart("t", [Series("s", [(1.0, 2.0)])], unit="nats").svg))


def test_a_line_carries_its_steps_and_values_for_the_pointer() -> None:
    chart = line_chart("t", [Series("mine", [(1.0, 0.25), (2.0, 0.5)])], percent=True)
    (line,) = ElementTree.fromstring(chart.svg).iter("polyline")
    found = {name: line.attrib[f"data-{name}"] for name in ("label", "steps", "values")}
    assert found == {"label": "mine", "steps": "1|2", "values": "25.0 %|50.0 %"}


def test_a_reference_is_a_level_line_within_the_axis() -> None:
    chart = line_chart(
        "t", [Series("s", [(0.0, 0.1), (9.0, 0.2)])], percent=True, references=[Reference("before", 0.4)]
    )
    (level,) = [one for one in ElementTree.fromstring(chart.svg).iter("line") if one.get("class") == "reference"]
    grid = rows_of(chart.svg)
    assert float(level.attrib["y1"]) == float(level.attrib["y2"]) == pytest.approx(grid[0], abs=0.1)  # 40 % is the top
    assert chart.legend[-1] == LegendEntry("reference", "before", "40.0 %")


def test_values_that_are_not_finite_are_gaps_and_named() -> None:
    chart = line_chart("t", [Series("s", [(0.0, 1.0), (1.0, float("inf")), (2.0, float("nan"))])])
    assert "nan" not in chart.svg and "inf" not in chart.svg
    assert chart.legend == [LegendEntry("k0", "s", "not finite")]
    assert "no finite value" in line_chart("t", [Series("s", [(0.0, float("nan"))])]).svg


def test_the_seventh_line_is_dashed_in_the_first_colour() -> None:
    chart = line_chart("t", [Series(str(index), [(0.0, 1.0), (1.0, 2.0)]) for index in range(7)])
    assert [entry.mark for entry in chart.legend] == ["k0", "k1", "k2", "k3", "k4", "k5", "k0 dashed"]
    lines = [line.attrib["class"] for line in ElementTree.fromstring(chart.svg).iter("polyline")]
    assert lines[0] == "line s0" and lines[6] == "line s0 dashed"


def test_titles_are_escaped_and_no_style_attribute_is_used() -> None:
    chart = line_chart("<script>", [Series("<b>", [(1.0, 1.0)])], unit="<i>")
    assert "<script>" not in chart.svg and "<b>" not in chart.svg and "<i>" not in chart.svg
    assert not re.search(r"\sstyle=", chart.svg)

"""Dot charts: places by hand, nothing hostile gets through, what was not measured leaves a gap."""

from __future__ import annotations

import re

import pytest

from saga_dist.report.dot_chart import WIDTH, Dot, DotSeries, dot_chart

HOSTILE = "<img src=x onerror=alert(1)>"


def places(svg: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r'<circle class="dot [^"]*" cx="([\d.]+)" cy="([\d.]+)"', svg)]


def test_shares_lie_on_the_axis_and_rows_below_each_other() -> None:
    dots = [Dot(0.0, 0.0, 0.0), Dot(1.0, 1.0, 1.0), Dot(0.5, 0.4, 0.6)]
    svg = str(dot_chart("t", ["a", "b", "c"], [DotSeries("one", 0, dots)], quantity="accuracy").svg)
    (zero, first), (whole, second), (half, third) = places(svg)
    assert whole == WIDTH - 14
    assert half == pytest.approx((zero + whole) / 2, abs=0.1)
    assert second - first == pytest.approx(third - second, abs=0.1)
    low, high = re.findall(r'<line class="whisker s0" x1="([\d.]+)" x2="([\d.]+)"', svg)[2]
    assert float(low) == pytest.approx(zero + 0.4 * (whole - zero), abs=0.1)
    assert float(high) == pytest.approx(zero + 0.6 * (whole - zero), abs=0.1)


def test_small_shares_get_a_shorter_axis() -> None:
    svg = str(dot_chart("t", ["a"], [DotSeries("one", 0, [Dot(0.1, 0.05, 0.25)])], quantity="accuracy").svg)
    assert "25 %" in svg and "100 %" not in svg
    assert ">accuracy<" in svg


def test_gaps_hollow_dots_and_marks() -> None:
    full = DotSeries("after", 1, [Dot(0.5, 0.5, 0.5), None])
    before = DotSeries("before", 1, [None, Dot(0.2, 0.2, 0.2)], hollow=True)
    chart = dot_chart("t", ["a", "b"], [full, before], marks=[0.25, None], quantity="accuracy")
    svg = str(chart.svg)
    assert svg.count("<circle") == 2
    assert svg.count('class="dot s1 hollow"') == 1
    assert svg.count('class="mark"') == 1
    assert chart.legend == [("k1", "after", "")]


def test_names_are_escaped() -> None:
    chart = dot_chart(
        HOSTILE, [HOSTILE], [DotSeries(HOSTILE, 0, [Dot(0.5, 0.4, 0.6)])], marks=[0.2], quantity="accuracy"
    )
    assert "<img" not in str(chart.svg)
    assert "&lt;img" in str(chart.svg)


def test_two_standard_errors_within_the_axis() -> None:
    assert Dot.with_error(0.5, 0.1) == Dot(0.5, 0.3, 0.7)
    assert Dot.with_error(0.95, 0.1) == Dot(0.95, 0.75, 1.0)

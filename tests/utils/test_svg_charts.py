"""Drawings: positions, ticks and numbers by hand; labels cannot break out, and nothing has a style of its own."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

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

HOSTILE = "<script>alert(\"1\") & 'x'</script>"


@pytest.mark.parametrize(
    ("low", "high", "whole", "expected"),
    [
        (0, 1, False, [0, 0.25, 0.5, 0.75, 1.0]),
        (1, 6, True, [2, 4, 6]),
        (0, 1000, True, [0, 250, 500, 750, 1000]),
        (-0.01, 0.0025, False, [-0.01, -0.005, 0, 0.005]),
        (6, 6, True, [5, 6, 7]),
    ],
)
def test_ticks_are_round_and_cover_the_values(low: float, high: float, whole: bool, expected: list[float]) -> None:
    assert nice_ticks(low, high, 5, whole=whole) == pytest.approx(expected)


def test_ticks_cover_any_range() -> None:
    generator = np.random.default_rng(0)
    for _ in range(300):
        low, high = sorted(generator.normal(0, 10.0 ** generator.integers(-6, 6), 2))
        ticks = nice_ticks(low, high, 5)
        assert ticks[0] <= low + 1e-9 * abs(low) and high - 1e-9 * abs(high) <= ticks[-1]
        assert 2 <= len(ticks) <= 9


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.0815, "0.0815"), (8060.2, "8,060"), (9.06e-8, "9.06e-8"), (2.0, "2")]
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


def test_a_scale_is_linear_and_may_run_upwards() -> None:
    scale = Scale(10, 30, 190, 90)
    assert [scale(10), scale(15), scale(30), scale(40)] == [190, 165, 90, 40]
    assert Scale(5, 5, 0, 100)(5) == 0


def test_axes_rule_the_plot_and_label_every_tick() -> None:
    drawing = Drawing(200, 100, "t", font_size=10)
    drawing.x_axis(Axis(Scale(0, 1, 50, 190), [(0, "none"), (1, "all")]), bottom=80, grid_top=5)
    drawing.y_axis(Axis(Scale(0, 2, 80, 5), [(1, "one")]), left=50, right=190)
    root = ElementTree.fromstring(drawing.svg())
    lines = [tuple(float(line.attrib[name]) for name in ("x1", "x2", "y1", "y2")) for line in root.iter("line")]
    assert lines == [(50, 50, 5, 80), (190, 190, 5, 80), (50, 190, 42.5, 42.5)]
    texts = {text.text: text.attrib for text in root.iter("text")}
    assert {words: (found["text-anchor"], float(found["x"])) for words, found in texts.items()} == {
        "none": ("middle", 50),
        "all": ("end", 198),  # half of it would be cut off at the edge
        "one": ("end", 44),
    }


def test_shapes_have_classes_titles_and_no_style() -> None:
    drawing = Drawing(99.6, 50, "t")
    drawing.line("mark", (1, 2), (3.04, 4.06), title="a line")
    drawing.polyline("line s0", [(0, 1), (2.25, 3)])
    drawing.dot("dot s1", 7, 8, 2.2)
    root = ElementTree.fromstring(drawing.svg())
    line, polyline, dot = root
    assert root.attrib == {"viewBox": "0 0 100 50", "role": "img", "aria-label": "t"}
    assert line.attrib == {"class": "mark", "x1": "1", "x2": "2", "y1": "3", "y2": "4.1"}
    assert [child.text for child in line] == ["a line"]
    assert polyline.attrib == {"class": "line s0", "points": "0,1 2.2,3"}
    assert dot.attrib == {"class": "dot s1", "cx": "7", "cy": "8", "r": "2.2"}


def test_words_cannot_break_out() -> None:
    drawing = Drawing(100, 100, HOSTILE)
    drawing.text("label", 1, 1, HOSTILE)
    drawing.dot("run", 1, 1, 1, title=HOSTILE)
    assert "<script" not in drawing.svg()
    root = ElementTree.fromstring(drawing.svg())
    assert root.attrib["aria-label"] == HOSTILE
    assert [root[0].text, root[1][0].text] == [HOSTILE, HOSTILE]


def test_a_file_of_its_own_carries_its_style_and_its_paper() -> None:
    drawing = Drawing(30, 20, "t", style=".paper { fill: white; }")
    root = ElementTree.fromstring(drawing.document())
    space = "{http://www.w3.org/2000/svg}"
    style, paper = root
    assert (style.tag, style.text) == (f"{space}style", ".paper { fill: white; }")
    assert paper.attrib == {"class": "paper", "width": "30", "height": "20"}
    assert drawing.document().endswith("</svg>\n")


def test_room_for_labels_grows_with_the_longest() -> None:
    assert label_width(["ab", "abcd", ""], 12) == pytest.approx(4 * 6.4)
    assert label_width([], 12) == 0


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1, 1000, [1, 10, 100, 1000]),
        (0.02, 30, [0.01, 0.1, 1, 10, 100]),
        (2, 3, [1, 10]),
        (1e-9, 1, [1e-9, 1e-7, 1e-5, 1e-3, 0.1, 10]),
    ],
)
def test_logarithmic_ticks_are_powers_of_ten_that_cover_the_values(
    low: float, high: float, expected: list[float]
) -> None:
    assert log_ticks(low, high) == pytest.approx(expected)


def test_a_logarithmic_scale_has_equal_steps_for_equal_ratios() -> None:
    scale = LogScale(1, 10_000, 200, 0)
    assert [scale(value) for value in (1, 10, 100, 10_000)] == pytest.approx([200, 150, 100, 0])


def test_data_for_a_script_is_escaped() -> None:
    drawing = Drawing(10, 10, "t")
    drawing.polyline("line", [(0, 0)], data={"label": HOSTILE})
    drawing.dot("dot", 1, 2, 3, data={"index": "4"})
    root = ElementTree.fromstring(drawing.svg())
    assert [child.get("data-label") or child.get("data-index") for child in root] == [HOSTILE, "4"]


@pytest.mark.parametrize(
    ("ticks", "labels"),
    [
        ([40, 40.02, 40.04], ["40", "40.02", "40.04"]),
        ([2000, 2000.5], ["2,000.0", "2,000.5"]),
        ([0, 0.5, 1], ["0", "0.5", "1"]),
        ([1000, 2500], ["1,000", "2,500"]),
        ([5.0001e-5, 5.0002e-5], ["5.0001e-5", "5.0002e-5"]),
    ],
)
def test_labels_tell_the_ticks_apart(ticks: list[float], labels: list[str]) -> None:
    assert tick_labels(ticks) == labels

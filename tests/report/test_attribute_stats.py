"""What the attributes decide, against numbers worked out by hand and against loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from saga_dist.report.attribute_stats import (
    DescribedPair,
    attribute_spans,
    attribute_table,
    attribute_values,
    correlation,
    disagreement,
    disagreement_by_step,
    group_disagreement,
    within_correlation,
)

TEXT = (
    'Sure: {"bird_1": {"bill": " Dark  RED", "crown": "blue", "bill": "x"}, "bird_2": {"bill": "red", "size": 3}} bye'
)


def said(bill_a: str, bill_b: str, verdict: bool | None, same: bool) -> DescribedPair:
    return DescribedPair({"bill": bill_a}, {"bill": bill_b}, verdict, right=verdict == same)


def test_values_are_normalised_and_the_first_of_a_repeated_key_counts() -> None:
    assert attribute_values(TEXT, "bird_1") == {"bill": "dark red", "crown": "blue"}
    assert attribute_values(TEXT, "bird_2") == {"bill": "red"}
    assert attribute_values(TEXT, "bird_3") == {}


def test_attributes_are_those_of_the_answer_whose_verdict_counts() -> None:
    first = '{"bird_1": {"bill": "draft"}, "bird_2": {}, "same": "no"}'
    last = "{'Bird 1': {'bill': 'the bird\\'s', “crown”: “Blue”, 'size': 3}, 'bird_2': {}, 'same': 'yes'}"
    assert attribute_values(f"{first} {last}", "bird_1", verdict_key="same") == {
        "bill": "the bird\\'s",
        "crown": "blue",
    }


def test_spans_point_into_the_whole_text() -> None:
    span = attribute_spans(TEXT, "bird_1")["crown"]
    assert TEXT[span.start : span.end] == '"blue"'


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"bird_1": {"bill": "re', '{"bird_1": "bill"}', '{"bird_1": {"bill": ' + '"' + "x" * 1000 + '"}}'],
)
def test_cut_off_or_huge_values_are_left_out(text: str) -> None:
    assert attribute_values(text, "bird_1") == {}


def test_a_cut_off_description_keeps_what_was_finished() -> None:
    assert attribute_values('{"bird_1": {"bill": "red", "crown": "bl', "bird_1") == {"bill": "red"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [(["a", "a"], 0.0), (["a", "b"], 1.0), (["a", "a", "b"], 2 / 3), (["a", "a", "b", "b"], 2 / 3), (["a"], None)],
)
def test_disagreement_by_hand(values: list[str], expected: float | None) -> None:
    assert disagreement(values) == (None if expected is None else pytest.approx(expected))


def test_disagreement_is_the_share_of_unequal_pairs() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        values = [str(value) for value in generator.integers(0, 4, generator.integers(2, 9))]
        pairs = list(itertools.combinations(values, 2))
        assert disagreement(values) == pytest.approx(sum(x != y for x, y in pairs) / len(pairs))


def test_group_disagreement_averages_the_images_that_are_described() -> None:
    group = [said("red", "red", True, True), said("red", "blue", False, True)]
    assert group_disagreement(group, "bill") == pytest.approx(0.5)  # image a 0, image b 1
    one_sided = [DescribedPair({}, {"bill": value}, None, right=False) for value in ("x", "y")]
    assert group_disagreement(one_sided, "bill") == 1.0
    assert group_disagreement(group, "legs") is None


def test_correlation_of_yes_and_no_is_phi() -> None:
    # a = 3, b = 1, c = 1, d = 3: (9 - 1) / sqrt(4 * 4 * 4 * 4) = 0.5
    x = [1, 1, 1, 1, 0, 0, 0, 0]
    y = [1, 1, 1, 0, 1, 0, 0, 0]
    assert correlation(x, y) == pytest.approx(0.5)
    assert correlation(x, [1] * 8) is None
    assert correlation([0.1] * 7, [0.3] * 7) is None  # their means are rounded
    assert correlation([], []) is None


def test_within_groups_what_differs_between_groups_does_not_count() -> None:
    # Over all, x and y go together; within each group they oppose each other.
    groups = [([0, 1], [1, 0]), ([10, 11], [11, 10])]
    assert correlation([0, 1, 10, 11], [1, 0, 11, 10]) > 0.9
    assert within_correlation(groups) == pytest.approx(-1.0)
    assert within_correlation([([1, 1], [0, 1])]) is None
    assert within_correlation([]) is None


def test_table_by_hand() -> None:
    groups = [
        # same class; who sees a difference says "different" and is wrong
        [said("red", "red", True, True), said("red", "blue", False, True)],
        # two classes; both see it, both are right: nothing varies
        [said("red", "blue", False, False), said("red", "blue", False, False)],
        # no verdict, one description without a bill
        [said("red", "red", None, True), DescribedPair({}, {"bill": "red"}, True, right=True)],
    ]
    (row,) = attribute_table(groups, steps=[0, 1, 2], same=[True, False, True], attributes=["bill"])
    assert row.stated == pytest.approx(5 / 6)
    assert row.disagreement == pytest.approx((0.5 + 0.0 + 0.0) / 3)
    assert (row.early, row.late) == (0.5, 0.0)
    assert row.differs == pytest.approx(3 / 5)
    assert row.verdict_link == pytest.approx(1.0)  # four judged: apart and different always together
    # apart (0,1,1,1,0) with two classes (0,0,1,1,0): phi = (2 * 2 - 1 * 0) / sqrt(3 * 2 * 2 * 3)
    assert row.truth_link == pytest.approx(4 / 6)
    assert row.decides == pytest.approx(1.0)
    assert row.right_link == pytest.approx(-1.0)


def test_disagreement_by_step_is_the_mean_of_its_groups() -> None:
    agree = [said("red", "red", True, True)] * 2
    differ = [said("red", "red", True, True), said("blue", "blue", True, True)]
    assert disagreement_by_step([differ, agree, agree], [4, 4, 2], "bill") == [(2, 0.0), (4, 0.5)]

"""Which rows the gallery shows."""

from __future__ import annotations

import numpy as np

from saga_dist.report.gallery import choose_rows

RIGHT = np.array(
    [
        [1, 1, 0],  # 0: class 0, two right, strongest wrong .5
        [1, 1, 1],  # 1: class 0, all right: the best of its class
        [1, 1, 0],  # 2: class 1, strongest wrong .8: a closer look-alike
        [0, 1, 1],  # 3: class 1, wrong at .9
        [0, 0, 1],  # 4: class 2, wrong at .95
        [0, 0, 0],  # 5: class 2, wrong at .7
    ],
    dtype=bool,
)
SCORES = np.array(
    [[0.9, 0.8, 0.5], [0.9, 0.8, 0.7], [0.9, 0.85, 0.8], [0.9, 0.8, 0.7], [0.95, 0.9, 0.8], [0.7, 0.6, 0.5]]
)
LABELS = np.array([0, 0, 1, 1, 2, 2])


def test_half_of_the_rows_are_successes_and_half_failures_one_per_class() -> None:
    assert choose_rows(RIGHT, SCORES, LABELS, 4) == [1, 2, 4, 3]
    assert choose_rows(RIGHT, SCORES, LABELS, 2) == [1, 4]
    assert choose_rows(RIGHT, SCORES, LABELS, 0) == []


def test_where_one_half_has_too_few_the_other_fills_up() -> None:
    all_right = np.ones((4, 2), bool)
    assert len(choose_rows(all_right, np.ones((4, 2)), np.arange(4), 4)) == 4
    assert len(choose_rows(~all_right, np.ones((4, 2)), np.arange(4), 4)) == 4

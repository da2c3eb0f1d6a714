"""Which rows the gallery shows, and who is taken for whom."""

from __future__ import annotations

import numpy as np

from saga_dist.report.confusions import confused_pairs
from saga_dist.report.gallery import choose_rows
from saga_dist.report.ranking import nearest


def test_nearest_is_what_a_loop_finds() -> None:
    generator = np.random.default_rng(0)
    queries, gallery = (generator.normal(size=(count, 5)) for count in (30, 40))
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    scores_QK, places_QK = nearest(queries, gallery, 3, exclude_self=False)
    for query in range(30):
        ranked = sorted(range(40), key=lambda item: -float(queries[query] @ gallery[item]))
        assert places_QK[query].tolist() == ranked[:3]
        np.testing.assert_allclose(scores_QK[query], [queries[query] @ gallery[item] for item in ranked[:3]])


def test_a_query_does_not_find_itself() -> None:
    vectors = np.eye(4)
    _, places_QK = nearest(vectors, vectors, 5, exclude_self=True)
    assert places_QK.tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]


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


def test_confused_pairs_count_both_directions() -> None:
    labels = np.array([0, 0, 1, 2, 2, 2])
    found = np.array([1, 0, 0, 1, 1, 2])
    assert confused_pairs(labels, found) == [((0, 1), [0], [2]), ((1, 2), [], [3, 4])]
    assert confused_pairs(labels, labels) == []

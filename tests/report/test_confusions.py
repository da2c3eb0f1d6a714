"""Confused classes: counts of both directions, and the example of each pair."""

from __future__ import annotations

from typing import cast

import numpy as np

from saga_dist.data.image_sets import ArrayImageSet, ImageSet
from saga_dist.report.confusions import build_confusions, confused_pairs
from saga_dist.report.ranking import Ranking
from saga_dist.report.shown_images import ImageRenderer, ShownImage


class Names:
    """Renders an image as its class and its number."""

    def render(self, images: ImageSet, index: int) -> ShownImage:
        return ShownImage("", "", images.class_names[images.labels_I[index]], str(index))


def test_confused_pairs_count_both_directions() -> None:
    labels = np.array([0, 0, 1, 2, 2, 2])
    found = np.array([1, 0, 0, 1, 1, 2])
    assert confused_pairs(labels, found) == [((0, 1), [0], [2]), ((1, 2), [], [3, 4])]
    assert confused_pairs(labels, labels) == []


def test_the_example_is_the_most_similar_confused_query_of_the_class_with_more_of_them() -> None:
    images = ArrayImageSet(np.zeros((5, 2, 2, 3), np.uint8), np.array([0, 0, 1, 1, 1]), ("owl", "wren"))
    nearest_Q, scores_Q = np.array([2, 1, 0, 1, 4]), np.array([0.9, 0.8, 0.5, 0.7, 0.99])
    ranking = Ranking(images, np.arange(5), np.zeros((5, 2)), images, nearest_Q[:, None], scores_Q[:, None], 5)
    (pair,) = build_confusions(ranking, cast(ImageRenderer, Names()))
    assert (pair.class_a, pair.class_b) == ("wren", "owl")
    assert (pair.a_for_b, pair.num_a, pair.b_for_a, pair.num_b) == (2, 3, 1, 2)
    assert (pair.query.name, pair.neighbour.name, pair.score) == ("3", "1", 0.7)
    assert build_confusions(ranking, cast(ImageRenderer, Names()), limit=0) == []

"""The ranking that the retrieval parts share: against a loop, without the query itself, and of a separate gallery."""

from __future__ import annotations

from typing import cast

import numpy as np

from saga_dist.data.image_sets import ArrayImageSet
from saga_dist.models.encoder import Encoder
from saga_dist.report.ranking import nearest, rank_images


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


class FirstPixel:
    """An encoder whose embedding is the direction of the first pixel's colour."""

    def encode(self, images: list[np.ndarray]) -> np.ndarray:
        colours = np.array([image[0, 0] for image in images], np.float64)
        return colours / np.linalg.norm(colours, axis=1, keepdims=True)


def colours(*values: tuple[int, int, int], labels: list[int]) -> ArrayImageSet:
    return ArrayImageSet(np.array(values, np.uint8)[:, None, None], np.array(labels), ("red", "green"))


ENCODER = cast(Encoder, FirstPixel())
QUERIES = colours((9, 0, 1), (0, 0, 9), (0, 9, 1), labels=[0, 0, 1])


def test_queries_search_each_other_without_themselves() -> None:
    ranking = rank_images(ENCODER, QUERIES, None, max_images=10)
    assert ranking.found_QK.tolist() == [[1, 2], [0, 2], [1, 0]]
    assert ranking.right_QK.tolist() == [[True, False], [True, False], [False, False]]
    assert not ranking.has_gallery and ranking.num_searched == 3


def test_queries_search_a_separate_gallery_and_both_are_thinned_evenly() -> None:
    gallery = colours((1, 9, 0), (5, 5, 5), (9, 1, 0), labels=[1, 0, 0])
    ranking = rank_images(ENCODER, QUERIES, gallery, max_images=2)
    assert ranking.chosen_Q.tolist() == [0, 2]
    assert ranking.found_QK.tolist() == [[2, 0], [0, 2]]  # places in the gallery, of which the middle is left out
    assert ranking.right_QK.tolist() == [[True, False], [True, False]]
    assert ranking.has_gallery and ranking.num_searched == 2

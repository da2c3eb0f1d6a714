"""The map of embeddings: coordinates against a singular value decomposition, one dot an image, bounded."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from saga_dist.data.image_sets import ArrayImageSet
from saga_dist.report.embedding_map import build_map, principal_components
from saga_dist.report.ranking import Ranking

HOSTILE = "<b>owl</b>\x1b"


def ranking(values_QE: np.ndarray, found: list[int], labels: list[int]) -> Ranking:
    images = ArrayImageSet(np.zeros((len(labels), 4, 4, 3), np.uint8), np.array(labels), (HOSTILE, "wren"))
    count = len(labels)
    return Ranking(
        images, np.arange(count), values_QE, images, np.array(found)[:, None], np.full((count, 1), 0.5), count
    )


def test_coordinates_are_the_leading_principal_components() -> None:
    values_IE = np.random.default_rng(0).normal(size=(40, 6)) * np.array([1, 5, 2, 1, 3, 1.0])
    places_I2, shares = principal_components(values_IE)
    left, sizes, _ = np.linalg.svd(values_IE - values_IE.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(places_I2), np.abs((left * sizes)[:, :2]), atol=1e-9)
    assert shares == pytest.approx(tuple(sizes[:2] ** 2 / (sizes**2).sum()))


def test_the_largest_entry_of_each_axis_is_positive_so_that_a_map_is_not_mirrored() -> None:
    for seed in range(6):
        values_IE = np.random.default_rng(seed).normal(size=(10, 4)) * np.array([1, 5, 2, 1.0])
        places_I2, _ = principal_components(values_IE)
        axes_E2 = (values_IE - values_IE.mean(0)).T @ places_I2  # each column is its axis times a positive number
        assert (axes_E2[np.abs(axes_E2).argmax(0), [0, 1]] > 0).all()


def test_one_entry_embeddings_lie_on_a_line() -> None:
    places_I2, shares = principal_components(np.array([[1.0], [3.0]]))
    np.testing.assert_allclose(places_I2, [[-1, 0], [1, 0]])
    assert shares == (1.0, 0.0)


def test_each_image_is_a_dot_with_its_picture_and_its_nearest() -> None:
    values_QE = np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 3.0]])
    made = build_map(ranking(values_QE, found=[1, 2, 1], labels=[0, 1, 1]), limit=10)
    assert made is not None
    dots = list(ElementTree.fromstring(made.svg).iter("circle"))
    assert [(dot.attrib["class"], dot.attrib["data-index"]) for dot in dots] == [
        ("place wrong", "0"), ("place right", "1"), ("place right", "2")
    ]  # fmt: skip
    places = np.array([[float(dot.attrib[name]) for name in ("cx", "cy")] for dot in dots])
    sides = [np.linalg.norm(places[a] - places[b]) for a, b in ((0, 1), (1, 2), (0, 2))]
    np.testing.assert_allclose(np.array(sides) / sides[0], [1, 0.75, 1.25], atol=0.01)  # 4 : 3 : 5, undistorted
    first = made.images[0]
    assert (first["nearest"], first["right"], first["score"]) == ("wren", False, 0.5)
    assert first["class"] == "<b>owl</b>\\x1b" and "<b>" not in made.svg
    assert made.classes == ["<b>owl</b>\\x1b", "wren"]


def test_a_large_set_is_thinned_evenly_and_counted() -> None:
    values_QE = np.random.default_rng(0).normal(size=(9, 3))
    made = build_map(ranking(values_QE, found=[1] * 9, labels=[0, 1] * 4 + [0]), limit=5)
    assert made is not None
    assert (len(made.images), made.num_embedded) == (5, 9)


def test_equal_embeddings_have_no_map() -> None:
    assert build_map(ranking(np.full((4, 3), 0.577), found=[1, 0, 3, 2], labels=[0, 0, 1, 1]), limit=10) is None

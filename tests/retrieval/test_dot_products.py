from __future__ import annotations

import numpy as np
import pytest

from saga_dist.retrieval.candidates import best_of_gallery, best_of_others
from saga_dist.retrieval.dot_products import DotProducts, listed_cosines
from saga_dist.retrieval.normalized import NormalizedRows, normalized_rows


def _embeddings(kind: str, count: int = 300, width: int = 96) -> np.ndarray:
    generator = np.random.default_rng(0)
    values = generator.normal(size=(count, width))
    if kind == "one way":  # as encoders without training: all cosines near 1
        values += 30
    if kind == "scales":
        values *= 10.0 ** generator.uniform(-6, 1, values.shape)
    if kind == "duplicates":
        values = values[generator.integers(0, 20, count)]
    return values


KINDS = ["cloud", "one way", "scales", "duplicates"]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_no_score_is_further_off_than_its_margin(kind: str, half: bool) -> None:
    values = _embeddings(kind)
    rows = NormalizedRows(values)
    centre = rows.mean()
    products = DotProducts(rows, centre, half=half)
    found = products.scores(slice(0, 300), products, slice(0, 300))
    unit = normalized_rows(values).astype(np.float64)
    error = np.abs(found - (unit @ unit.T - centre @ centre))
    margins = products.margins(slice(0, 300), products, found)
    assert (error <= margins).all()
    assert margins.max() < (0.02 if half else 1e-4), "a bound that says nothing"


def test_embeddings_that_point_one_way_lose_no_digits_to_it() -> None:
    products = {}
    for kind in ("cloud", "one way"):
        rows = NormalizedRows(_embeddings(kind))
        products[kind] = DotProducts(rows, rows.mean(), half=True)
    ranges = {}
    for kind, part in products.items():
        scores = part.scores(slice(0, 300), part, slice(0, 300))
        off_diagonal = scores[~np.eye(300, dtype=bool)]
        ranges[kind] = np.median(part.margins(slice(0, 300), part, scores)) / off_diagonal.std()
    assert ranges["one way"] < 2 * ranges["cloud"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_are_those_of_a_full_sort(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saga_dist.retrieval.candidates.BLOCK", 64)
    rows = NormalizedRows(_embeddings(kind))
    products = DotProducts(rows, rows.mean(), half=False)
    scores = products.scores(slice(0, 300), products, slice(0, 300))
    np.fill_diagonal(scores, -np.inf)
    expected = -np.sort(-scores, axis=1)[:, :40]
    for best in (best_of_others(products, 40), best_of_gallery(products, products, 40, np.arange(300))):
        np.testing.assert_allclose(best.scores_QM, expected, atol=1e-6)  # products of other shapes round otherwise
        np.testing.assert_allclose(np.take_along_axis(scores, best.items_QM, 1), expected, atol=1e-6)
        assert all(len(set(items)) == 40 for items in best.items_QM.tolist())
        assert not (best.items_QM == np.arange(300)[:, None]).any()
    with_itself = best_of_gallery(products, products, 1)
    assert (kind == "duplicates") or with_itself.items_QM[:, 0].tolist() == list(range(300))


@pytest.mark.parametrize("double", [False, True])
def test_listed_cosines_are_those_of_a_loop(double: bool) -> None:
    queries = NormalizedRows(_embeddings("scales", 5, 150))
    gallery = NormalizedRows(_embeddings("cloud", 9, 150).astype(np.float32))
    lists, rows = [[0, 8, 3], [], [3], [3, 4], []], np.array([4, 0, 1, 3, 2])
    starts = np.cumsum([0, *map(len, lists)])
    items = np.array([item for items in lists for item in items], np.int32)
    found, error = listed_cosines(queries, rows, gallery, starts, items, double=double)
    left, right = queries.rows(slice(0, 5)).astype(np.float64), gallery.rows(slice(0, 9)).astype(np.float64)
    expected = [float(left[q] @ right[item]) for q, items in zip(rows, lists, strict=True) for item in items]
    assert np.abs(found - expected).max() <= error
    assert error == (1e-12 if double else pytest.approx(7.7e-6, rel=0.1))


def test_unit_rows_are_normalised_in_fp64_and_kept_in_fp32() -> None:
    values = _embeddings("scales", 3000, 7)
    expected = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)
    for given in (values, np.asfortranarray(values)):
        rows = NormalizedRows(given)
        np.testing.assert_array_equal(normalized_rows(given), expected)
        np.testing.assert_array_equal(rows.rows(np.array([2999, 0])), expected[[2999, 0]])
        np.testing.assert_array_equal(rows.columns(slice(2, 4)), expected[:, 2:4])
        np.testing.assert_allclose(rows.mean(), expected.mean(0, dtype=np.float64), rtol=1e-12)

from __future__ import annotations

import numpy as np
import pytest

from saga_dist.diagnostics.probes import PENALTIES, class_half, crossed_probe
from saga_dist.errors import DataError


def world(width: int, num_classes: int = 24, images: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features that hold attribute 0, and the class, but nothing of attribute 1 besides what the class tells."""
    generator = np.random.default_rng(5)
    labels = np.repeat(np.arange(num_classes) * 3 + 1, images)
    values = np.repeat(generator.integers(0, 3, (num_classes, 2)) * 2, images, axis=0)
    codes, names = generator.normal(size=(3, width)), np.repeat(generator.normal(size=(num_classes, width)), images, 0)
    return codes[values[:, 0] // 2] * 2 + names + 0.3 * generator.normal(size=(len(labels), width)), values, labels


def loop(features: np.ndarray, values: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """The same probe with plain normal equations, attribute by attribute."""

    def predict(fit: np.ndarray, test: np.ndarray, column: int, penalty: float) -> np.ndarray:
        mean, spread = features[fit].mean(0), features[fit].std(0)
        x, z = (features[fit] - mean) / spread, (features[test] - mean) / spread
        known = sorted(set(values[fit, column]))
        scores = []
        for value in known:
            y = (values[fit, column] == value).astype(float)
            weights = np.linalg.solve(x.T @ x + penalty * len(x) * np.eye(x.shape[1]), x.T @ (y - y.mean()))
            scores.append(z @ weights + y.mean())
        return np.array(known)[np.argmax(scores, axis=0)]

    right = np.zeros(values.shape, bool)
    half = class_half(labels, seed)
    for test in (half, ~half):
        inner = class_half(labels[~test], seed)
        fit_ids = np.flatnonzero(~test)
        counts = []
        for penalty in PENALTIES:
            count = 0
            for part in (inner, ~inner):
                for column in range(values.shape[1]):
                    predicted = predict(fit_ids[~part], fit_ids[part], column, penalty)
                    count += int((predicted == values[fit_ids[part], column]).sum())
            counts.append(count)
        penalty = PENALTIES[int(np.argmax(counts))]
        for column in range(values.shape[1]):
            right[test, column] = predict(fit_ids, np.flatnonzero(test), column, penalty) == values[test, column]
    return right


@pytest.mark.parametrize("width", [10, 200], ids=["more images than features", "more features than images"])
def test_against_a_loop(width: int) -> None:
    features, values, labels = world(width)
    probed = crossed_probe(features, values, labels, seed=3)
    np.testing.assert_array_equal(probed.correct_IA, loop(features, values, labels, 3))


def test_what_only_the_class_tells_is_not_told_on_other_classes() -> None:
    features, values, labels = world(60, num_classes=60)
    right = crossed_probe(features, values, labels, seed=0).correct_IA.mean(0)
    assert right[0] > 0.9
    assert right[1] < 0.6


def test_chance_is_the_commonest_value_of_the_other_half() -> None:
    features, values, labels = world(8)
    chance = crossed_probe(features, values, labels, seed=3).chance_IA
    half = class_half(labels, 3)
    for test in (half, ~half):
        for column in range(2):
            counts = np.bincount(values[~test, column])
            np.testing.assert_array_equal(chance[test, column], values[test, column] == counts.argmax())


def test_halves_divide_classes() -> None:
    labels = np.array([4, 4, 9, 9, 9, 1, 2, 2, 7])
    half = class_half(labels, 0)
    assert set(labels[half]).isdisjoint(labels[~half])
    assert len(set(labels[half])) == 2
    assert any((class_half(labels, seed) != half).any() for seed in range(1, 5))


def test_refusals() -> None:
    features, values, labels = world(4, num_classes=3)
    with pytest.raises(DataError, match="3 classes"):
        crossed_probe(features, values, labels, seed=0)
    features, values, labels = world(4)
    features[0, 0] = np.nan
    with pytest.raises(DataError, match="NaN"):
        crossed_probe(features, values, labels, seed=0)

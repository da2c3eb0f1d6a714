from __future__ import annotations

import numpy as np
import pytest

from saga_dist.errors import DataError
from saga_dist.retrieval.probe import linear_probe_accuracy


def _world(count: int, seed: int, width: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Features that hold attribute 0 exactly, attribute 1 with noise, and attribute 2 not at all."""
    generator = np.random.default_rng(seed)
    values = generator.integers(0, 4, (count, 3)) * 10 - 3
    codes = np.random.default_rng(99).normal(size=(2, 4, width))
    features = codes[0][(values[:, 0] + 3) // 10] + codes[1][(values[:, 1] + 3) // 10]
    return features + np.array([0.05]) * generator.normal(size=(count, width)), values


@pytest.mark.parametrize("width", [12, 400])
def test_reads_what_is_there_and_nothing_else(width: int) -> None:
    """Width 400 with 300 items takes the item-by-item system."""
    train_x, train_y = _world(300, 0, width)
    test_x, test_y = _world(500, 1, width)
    accuracy = linear_probe_accuracy(train_x, train_y, test_x, test_y)
    assert accuracy.shape == (3,)
    assert accuracy[0] > 0.95
    assert accuracy[1] > 0.95
    assert abs(accuracy[2] - 0.25) < 0.08


@pytest.mark.parametrize("width", [5, 60])
def test_equals_least_squares_on_stacked_rows(width: int) -> None:
    """Ridge is ordinary least squares with sqrt(penalty) * I appended to the data."""
    generator = np.random.default_rng(0)
    train_x, test_x = generator.normal(3, 2, (40, width)), generator.normal(3, 2, (200, width))
    train_y, test_y = generator.integers(0, 3, (40, 2)), generator.integers(0, 3, (200, 2))
    mean, spread = train_x.mean(0), train_x.std(0)
    stacked = np.vstack([(train_x - mean) / spread, np.sqrt(0.3 * 40) * np.eye(width)])
    expected = []
    for column in range(2):
        targets = np.eye(3)[train_y[:, column]]
        offset = targets.mean(0)
        weights = np.linalg.lstsq(stacked, np.vstack([targets - offset, np.zeros((width, 3))]), rcond=None)[0]
        predicted = ((test_x - mean) / spread @ weights + offset).argmax(1)
        expected.append((predicted == test_y[:, column]).mean())
    assert linear_probe_accuracy(train_x, train_y, test_x, test_y, ridge=0.3).tolist() == expected


def test_unseen_values_are_wrong_and_constant_features_harmless() -> None:
    train_x, train_y = _world(200, 0)
    train_x[:, 3] = 7.0
    test_x = train_x.copy()
    assert linear_probe_accuracy(train_x, train_y, test_x, train_y + 100).tolist() == [0.0, 0.0, 0.0]
    assert linear_probe_accuracy(train_x, train_y, test_x, train_y)[0] > 0.9
    constant = np.full((200, 1), 5)
    assert linear_probe_accuracy(train_x, constant, test_x, constant).tolist() == [1.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_x": np.zeros((4, 2), int)}, "train_x is int64"),
        ({"train_y": np.zeros((3, 1), int)}, r"expected integers \[4, attributes\]"),
        ({"test_y": np.zeros((4, 2), int)}, "the same columns"),
        ({"test_x": np.full((4, 2), np.inf)}, "test_x holds NaN or infinity"),
        ({"ridge": 0.0}, "ridge"),
    ],
)
def test_mistakes(change: dict, message: str) -> None:
    features, values = np.eye(4)[:, :2].copy(), np.zeros((4, 1), int)
    arguments = {"train_x": features, "train_y": values, "test_x": features, "test_y": values, "ridge": 1.0}
    with pytest.raises(DataError, match=message):
        linear_probe_accuracy(**(arguments | change))

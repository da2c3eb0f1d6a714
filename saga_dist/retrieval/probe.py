"""Linear probes: what an embedding says about known attributes, read out by ridge regression in closed form."""

from __future__ import annotations

import numpy as np

from saga_dist.errors import DataError


def linear_probe_accuracy(
    train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray, *, ridge: float = 1e-2
) -> np.ndarray:
    """Returns [A] float64: the share of test items whose value of each attribute a linear read-out gets right.

    One-against-all ridge regression on features standardised with training statistics; the largest output wins. A value
    that occurs only in the test set counts as wrong.

    Args:
        train_x: [n, E] floating.
        train_y: [n, A] integers.
        test_x: [m, E] floating.
        test_y: [m, A] integers.
        ridge: penalty per training item on standardised features, positive.

    Raises:
        DataError: shapes or types do not fit, or a feature is not finite.
    """
    train_x, test_x = _features(train_x, "train_x"), _features(test_x, "test_x")
    train_y, test_y = _attributes(train_y, len(train_x), "train_y"), _attributes(test_y, len(test_x), "test_y")
    if train_x.shape[1] != test_x.shape[1] or train_y.shape[1] != test_y.shape[1]:
        raise DataError(
            f"train {train_x.shape}, {train_y.shape} and test {test_x.shape}, {test_y.shape}",
            expected="the same columns",
        )
    if not ridge > 0:
        raise DataError(f"ridge = {ridge}", expected="a positive number")
    mean, spread = train_x.mean(0), train_x.std(0)
    spread[spread < 1e-12] = 1.0  # a constant feature says nothing, and becomes zero
    train, test = (train_x - mean) / spread, (test_x - mean) / spread
    known = [np.unique(train_y[:, column]) for column in range(train_y.shape[1])]
    # Targets of all attributes side by side: one factorisation serves them all.
    targets = np.concatenate([train_y[:, [column]] == values for column, values in enumerate(known)], axis=1).astype(
        float
    )
    offset = targets.mean(0)
    scores = test @ _ridge_weights(train, targets - offset, ridge * len(train)) + offset
    accuracies, first = [], 0
    for column, values in enumerate(known):
        predicted = values[scores[:, first : first + len(values)].argmax(1)]
        accuracies.append((predicted == test_y[:, column]).mean())
        first += len(values)
    return np.array(accuracies)


def _ridge_weights(features: np.ndarray, targets: np.ndarray, penalty: float) -> np.ndarray:
    """Solves the smaller of the two equivalent systems: features by features, or items by items."""
    num_items, width = features.shape
    if width <= num_items:
        return np.linalg.solve(features.T @ features + penalty * np.eye(width), features.T @ targets)
    return features.T @ np.linalg.solve(features @ features.T + penalty * np.eye(num_items), targets)


def _features(values: np.ndarray, name: str) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 2 or 0 in values.shape or not np.issubdtype(values.dtype, np.floating):
        raise DataError(f"{name} is {values.dtype} {values.shape}", expected="a floating matrix, one row per item")
    if not np.isfinite(values).all():
        raise DataError(f"{name} holds NaN or infinity", expected="finite features")
    return values.astype(np.float64)


def _attributes(values: np.ndarray, count: int, name: str) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 2 or values.shape[0] != count or not np.issubdtype(values.dtype, np.integer):
        raise DataError(f"{name} is {values.dtype} {values.shape}", expected=f"integers [{count}, attributes]")
    return values

"""Linear probes: accuracy of a ridge classifier that predicts known attributes from embeddings."""

from __future__ import annotations

import numpy as np

from saga_dist.errors import DataError


def linear_probe_accuracy(
    train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray, *, ridge: float = 1e-2
) -> np.ndarray:
    """Returns the test accuracy of a linear probe for each attribute, float64 [A] in [0, 1].

    The probe is a one-against-all ridge regression on features standardised with training statistics; the value with
    the largest output is predicted. Test items with a value that does not occur in training count as wrong.

    Args:
        train_x: [n, E], floating, training embeddings.
        train_y: [n, A], integers, their attribute values.
        test_x: [m, E], floating, test embeddings.
        test_y: [m, A], integers, their attribute values.
        ridge: penalty per training item on standardised features, positive.

    Raises:
        DataError: shapes or dtypes do not fit, a feature is not finite, or ``ridge`` is not positive.
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
    return (predict_attributes(train_x, train_y, test_x, ridge=ridge) == test_y).mean(0)


def predict_attributes(train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, *, ridge: float) -> np.ndarray:
    """Returns the attribute values [m, A] that a ridge classifier per attribute predicts for the test items.

    Args:
        train_x: [n, E], floating, finite; features are standardised with the means and deviations of these items.
        train_y: [n, A], integers; a value that does not occur here is never predicted.
        test_x: [m, E], floating, finite.
        ridge: penalty per training item on standardised features, positive.
    """
    from sklearn.linear_model import RidgeClassifier
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train_x)
    train, test = scaler.transform(train_x), scaler.transform(test_x)
    classifier = RidgeClassifier(alpha=ridge * len(train))
    return np.stack([classifier.fit(train, column).predict(test) for column in train_y.T], axis=1)


def _features(values: np.ndarray, name: str) -> np.ndarray:
    """Returns features as float64 [n, E].

    Raises:
        DataError: they are no finite floating matrix.
    """
    values = np.asarray(values)
    if values.ndim != 2 or 0 in values.shape or not np.issubdtype(values.dtype, np.floating):
        raise DataError(f"{name} is {values.dtype} {values.shape}", expected="a floating matrix, one row per item")
    if not np.isfinite(values).all():
        raise DataError(f"{name} holds NaN or infinity", expected="finite features")
    return values.astype(np.float64)


def _attributes(values: np.ndarray, count: int, name: str) -> np.ndarray:
    """Returns attribute values [count, A].

    Raises:
        DataError: they are no integer matrix with ``count`` rows.
    """
    values = np.asarray(values)
    if values.ndim != 2 or values.shape[0] != count or not np.issubdtype(values.dtype, np.integer):
        raise DataError(f"{name} is {values.dtype} {values.shape}", expected=f"integers [{count}, attributes]")
    return values

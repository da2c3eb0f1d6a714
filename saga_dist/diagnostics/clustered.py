"""The standard error of a mean over images that are grouped in classes, and therefore not independent of each other."""

from __future__ import annotations

import math

import numpy as np

from saga_dist.errors import DataError


def clustered_error(values_I: np.ndarray, labels_I: np.ndarray) -> float:
    """Returns the standard error of ``values_I.mean()`` when the classes, not the images, are independent draws.

    ``sqrt(C / (C - 1) * sum_c (sum_{i in c} (v_i - mean))^2) / I``: the cluster-robust (sandwich) estimate with its
    usual small-sample factor. With one image per class it is the ordinary standard error.

    Args:
        values_I: [I] numbers or bool.
        labels_I: [I] integers, at least two classes.

    Raises:
        DataError: ``values_I`` and ``labels_I`` are not of one length [I], or there is only one class.
    """
    values = np.asarray(values_I, np.float64)
    classes, place_I = np.unique(labels_I, return_inverse=True)
    if values.ndim != 1 or place_I.shape != values.shape:
        raise DataError(f"values {values.shape} with labels {place_I.shape}", expected="one label per value")
    if len(classes) < 2:
        raise DataError(f"{len(classes)} classes", expected="at least two, for a standard error over classes")
    sums_C = np.bincount(place_I, values - values.mean())
    return math.sqrt(len(classes) / (len(classes) - 1) * float(sums_C @ sums_C)) / len(values)

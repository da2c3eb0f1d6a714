from __future__ import annotations

import math

import numpy as np
import pytest

from saga_dist.diagnostics.clustered import clustered_error
from saga_dist.errors import DataError


def test_by_hand() -> None:
    # Mean 0.5; class sums of deviations: (0.5 + 0.5), (-0.5 - 0.5 + 0.5 - 0.5) = 1, -1. sqrt(2 / 1 * 2) / 6 = 1/3.
    values, labels = np.array([1, 1, 0, 0, 1, 0]), np.array([7, 7, 3, 3, 3, 3])
    assert clustered_error(values, labels) == pytest.approx(1 / 3)


def test_one_image_a_class_is_the_ordinary_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=40)
    assert clustered_error(values, np.arange(40)) == pytest.approx(values.std(ddof=1) / math.sqrt(40))


def test_it_is_the_spread_of_means_over_drawn_classes() -> None:
    generator = np.random.default_rng(1)
    labels = np.repeat(np.arange(60), 8)

    def draw() -> np.ndarray:
        return np.repeat(generator.normal(size=60), 8) + generator.normal(size=480)

    means = [draw().mean() for _ in range(2000)]
    errors = [clustered_error(draw(), labels) for _ in range(200)]
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.1)


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1]])
def test_refusals(labels: list[int]) -> None:
    with pytest.raises(DataError):
        clustered_error(np.array([1.0, 0.0, 1.0]), np.array(labels))

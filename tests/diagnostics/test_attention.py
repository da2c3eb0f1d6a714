from __future__ import annotations

import math

import numpy as np
import pytest

from saga_dist.diagnostics.attention import entropy_nats, share_on, tokens_in
from saga_dist.errors import DataError


def test_entropy_by_hand() -> None:
    weights = np.array([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]])
    np.testing.assert_allclose(entropy_nats(weights), [math.log(4), 0.0, math.log(2)])


def test_tokens_in_against_a_loop() -> None:
    masks = np.random.default_rng(0).random((3, 6, 8)) < 0.12
    covered = tokens_in(masks, 2, 4)
    for image in range(3):
        for row in range(2):
            for column in range(4):
                square = masks[image, 3 * row : 3 * row + 3, 2 * column : 2 * column + 2]
                assert covered[image, 4 * row + column] == (square.sum() / 6 >= 0.1)
    assert 0 < covered.mean() < 1
    with pytest.raises(DataError, match="5 x 4 tokens"):
        tokens_in(masks, 5, 4)


def test_share_by_hand() -> None:
    weights = np.array([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]])
    inside = np.array([[True, False, False, True], [False, True, True, False]])
    np.testing.assert_allclose(share_on(weights, inside), [0.5, 0.2])

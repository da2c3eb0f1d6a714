"""Statistics of attention over the tokens of an image: its entropy, and its share on a region of the image."""

from __future__ import annotations

import numpy as np

from saga_dist.errors import DataError

NOTICEABLE = 0.1
"""Smallest share of a token's square of pixels, in (0, 1], that a region must cover for the token to belong to it."""


def entropy_nats(weights_N: np.ndarray) -> np.ndarray:
    """Returns the entropy ``-sum_n w_n log w_n`` over the last axis, float64 [...], in nats.

    The value is ln N for uniform weights and 0 when all weight is on one token.

    Args:
        weights_N: [..., N] floating, non-negative, adding up to 1 along the last axis.
    """
    weights = np.asarray(weights_N, np.float64)
    logs = np.log(weights, out=np.zeros_like(weights), where=weights > 0)
    return -(weights * logs).sum(-1)


def tokens_in(masks_IHW: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Returns bool [I, rows * columns], True for each token of which the region covers at least ``NOTICEABLE``.

    Tokens are in row-major order.

    Args:
        masks_IHW: bool [I, H, W] pixels of the region; H and W are multiples of ``rows`` and ``columns``.
        rows: number of token rows.
        columns: number of token columns.

    Raises:
        DataError: H is no multiple of ``rows``, or W no multiple of ``columns``.
    """
    num_images, height, width = masks_IHW.shape
    if height % rows or width % columns:
        raise DataError(f"{rows} x {columns} tokens on {height} x {width} pixels", expected="whole pixels per token")
    squares = masks_IHW.reshape(num_images, rows, height // rows, columns, width // columns)
    covered: np.ndarray = squares.mean(axis=(2, 4)).reshape(num_images, -1) >= NOTICEABLE
    return covered


def share_on(weights_IN: np.ndarray, inside_IN: np.ndarray) -> np.ndarray:
    """Returns float64 [I], in [0, 1]: the share of each image's attention on the tokens of a region.

    Args:
        weights_IN: [I, N] floating, non-negative, adding up to 1 for each image.
        inside_IN: bool [I, N], True for the tokens of the region.
    """
    return (np.asarray(weights_IN, np.float64) * inside_IN).sum(-1)

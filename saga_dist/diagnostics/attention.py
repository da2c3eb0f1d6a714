"""Where attention lies: how spread it is, and how much of it falls on a part, on the bird, on what only distracts."""

from __future__ import annotations

import numpy as np

from saga_dist.errors import DataError

NOTICEABLE = 0.1
"""A token counts for a region that covers at least this share of its square of pixels."""


def entropy_nats(weights_N: np.ndarray) -> np.ndarray:
    """Returns ``-sum_n w_n log w_n`` over the last axis, in nats: ln N when uniform, 0 when all is on one token.

    Args:
        weights_N: [..., N] non-negative, adding up to 1 along the last axis.
    """
    weights = np.asarray(weights_N, np.float64)
    logs = np.log(weights, out=np.zeros_like(weights), where=weights > 0)
    return -(weights * logs).sum(-1)


def tokens_in(masks_IHW: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Returns bool [I, rows * columns]: the tokens, row by row, that a region covers noticeably.

    Args:
        masks_IHW: bool [I, H, W] pixels of the region; H and W are multiples of ``rows`` and ``columns``.
        rows: tokens down.
        columns: tokens across.

    Raises:
        DataError: the tokens do not divide the image.
    """
    num_images, height, width = masks_IHW.shape
    if height % rows or width % columns:
        raise DataError(f"{rows} x {columns} tokens on {height} x {width} pixels", expected="whole pixels per token")
    squares = masks_IHW.reshape(num_images, rows, height // rows, columns, width // columns)
    covered: np.ndarray = squares.mean(axis=(2, 4)).reshape(num_images, -1) >= NOTICEABLE
    return covered


def share_on(weights_IN: np.ndarray, inside_IN: np.ndarray) -> np.ndarray:
    """Returns float64 [I]: the part of each image's attention that lies on the tokens of a region.

    Args:
        weights_IN: [I, N] adding up to 1 for each image.
        inside_IN: bool [I, N].
    """
    return (np.asarray(weights_IN, np.float64) * inside_IN).sum(-1)

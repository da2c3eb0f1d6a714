"""Normalisation of embeddings to length 1, and checks of embeddings and labels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from saga_dist.errors import DataError

_BLOCK_ROWS = 2048


class NormalizedRows:
    """Rows normalised to length 1 in float32 on access, because a copy would double the memory of a large gallery."""

    def __init__(self, embeddings: np.ndarray) -> None:
        """Checks a floating matrix [I, E] and keeps a reference to it.

        Raises:
            DataError: the embeddings are not a non-empty floating matrix, or a row is zero or not finite.
        """
        if embeddings.ndim != 2 or 0 in embeddings.shape or not np.issubdtype(embeddings.dtype, np.floating):
            raise DataError(
                f"embeddings are {embeddings.dtype} {embeddings.shape}", expected="a floating matrix, one row each"
            )
        self._embeddings = embeddings
        self._norms_I = np.concatenate(
            [np.linalg.norm(embeddings[part].astype(np.float64), axis=1) for part in blocks(len(embeddings))]
        )
        bad = np.flatnonzero(~(np.isfinite(self._norms_I) & (self._norms_I > 0)))
        if len(bad):
            raise DataError(
                f"{len(bad)} embeddings are zero or not finite, first at row {bad[0]}",
                fix="check the image at that row and the encoder",
            )

    def __len__(self) -> int:
        return len(self._embeddings)

    @property
    def width(self) -> int:
        """E, number of components of a row."""
        return int(self._embeddings.shape[1])

    def rows(self, which: slice | np.ndarray) -> np.ndarray:
        """Returns the selected rows, normalised, float32 [R, E]."""
        return self._unit(self._embeddings[which], self._norms_I[which])

    def all(self) -> np.ndarray:
        """Returns all rows, normalised, contiguous float32 [I, E]."""
        values_IE = np.empty(self._embeddings.shape, np.float32)
        for part in blocks(len(self)):
            values_IE[part] = self.rows(part)
        return values_IE

    def columns(self, which: slice) -> np.ndarray:
        """Returns the selected components of all normalised rows, float32 [I, C]."""
        return self._unit(self._embeddings[:, which], self._norms_I)

    def take(self, rows_R: np.ndarray) -> NormalizedRows:
        """Returns the rows with the indices ``rows_R``, integer [R], as a new object."""
        return NormalizedRows(self._embeddings[rows_R])

    def mean(self) -> np.ndarray:
        """Returns the mean of the normalised rows, float64 [E]."""
        total_E = np.zeros(self.width)
        for part in blocks(len(self)):
            total_E += self.rows(part).sum(0, dtype=np.float64)
        return total_E / len(self)

    @staticmethod
    def _unit(values: np.ndarray, norms: np.ndarray) -> np.ndarray:
        return np.divide(values, norms[:, None], dtype=np.float64).astype(np.float32)


def normalized_rows(embeddings: np.ndarray) -> np.ndarray:
    """Returns the rows of a floating matrix [I, E] normalised to length 1, as a contiguous float32 array.

    Raises:
        DataError: the embeddings are not a non-empty floating matrix, or a row is zero or not finite.
    """
    return NormalizedRows(embeddings).all()


def blocks(count: int, size: int = _BLOCK_ROWS) -> Iterator[slice]:
    """Yields consecutive slices of at most ``size`` rows that cover ``count`` rows."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def check_labels(labels: np.ndarray, count: int) -> np.ndarray:
    """Returns the labels as int64 [count].

    Raises:
        DataError: there are none, the shape is wrong, or they are not integers (float labels collide above 2^24).
    """
    labels = np.asarray(labels)
    if count == 0 or labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"labels are {labels.dtype} {labels.shape}", expected=f"{max(count, 1)} integers")
    return labels.astype(np.int64)

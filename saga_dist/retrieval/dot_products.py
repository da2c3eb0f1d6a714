"""Cosines of many pairs: fast with a proven bound on the error, or exact for listed pairs.

Fast cosines are matrix products of rows rounded to bfloat16 or float32. The rounding error of each row is measured, so
that the Cauchy-Schwarz inequality bounds the error of every product. The mean of the gallery is subtracted before the
product and accounted for after it, so that a large common component of all embeddings costs no precision.
"""

from __future__ import annotations

import time
import warnings
from functools import cache

import numpy as np

from saga_dist.retrieval.normalized import NormalizedRows, blocks

_UNIT_32, _UNIT_16 = 2.0**-24, 2.0**-8
"""Largest relative error of rounding to float32 and to bfloat16."""
_SLICE = 64
"""Components multiplied at a time for exact cosines, so that the slice of a gallery fits into the processor's cache."""


class DotProducts:
    """Rows minus a centre, rounded, with the norm of each row's rounding error.

    Args:
        rows: I rows of length 1.
        centre_E: float64 [E], subtracted from every row.
        half: round to bfloat16, else to float32.
    """

    def __init__(self, rows: NormalizedRows, centre_E: np.ndarray, *, half: bool) -> None:
        import torch

        self.half = half
        """True when the rows are bfloat16."""
        self._values_IE = torch.empty((len(rows), rows.width), dtype=torch.bfloat16 if half else torch.float32)
        self._offset_I = np.empty(len(rows), np.float32)
        self._length_I, self._error_I = np.empty(len(rows)), np.empty(len(rows))
        for part in blocks(len(rows)):
            exact_RE = rows.rows(part) - centre_E
            rounded_RE = torch.from_numpy(exact_RE).to(self._values_IE.dtype)
            self._values_IE[part] = rounded_RE
            self._offset_I[part] = exact_RE @ centre_E
            self._error_I[part] = np.linalg.norm(exact_RE - rounded_RE.double().numpy(), axis=1)
            self._length_I[part] = np.linalg.norm(exact_RE, axis=1) + self._error_I[part]

    def __len__(self) -> int:
        return len(self._offset_I)

    def scores(self, rows: slice, gallery: DotProducts, columns: slice) -> np.ndarray:
        """Returns approximate cosines of some queries and gallery items, minus the squared norm of the centre.

        Args:
            rows: range of the R queries, which are rows of this object.
            gallery: the gallery, with the same centre and rounding.
            columns: range of the C items of the gallery.

        Returns:
            float32 [R, C].
        """
        left, right = self._values_IE[rows], gallery._values_IE[columns]
        # numpy multiplies in full float32, while torch may be set to a lower precision.
        product_RC: np.ndarray = (left @ right.T).float().numpy() if self.half else left.numpy() @ right.numpy().T
        product_RC += self._offset_I[rows, None]
        product_RC += gallery._offset_I[columns]
        return product_RC

    def margins(self, rows: slice, gallery: DotProducts, scores_RM: np.ndarray) -> np.ndarray:
        """Returns a bound on the error of each score, float64 [R, M].

        Score + margin and score - margin increase with the score, so a conclusion from one holds for all smaller ones.

        Args:
            rows: range of the R queries.
            gallery: the gallery of the scores.
            scores_RM: float32 [R, M], scores as ``scores`` returns them.
        """
        longest, offset_R = gallery._length_I.max(), np.abs(self._offset_I[rows]) + np.abs(gallery._offset_I).max()
        rounding_R = self._error_I[rows] * longest + self._length_I[rows] * gallery._error_I.max()
        summation_R = 2 * (summation_error(self._values_IE.shape[1]) * self._length_I[rows] * longest)
        summation_R += 8 * _UNIT_32 * offset_R
        # The product itself is returned in bfloat16.
        output_RM = 1.01 * _UNIT_16 * (np.abs(scores_RM) + offset_R[:, None]) if self.half else 0.0
        return np.asarray((rounding_R + summation_R)[:, None] + output_RM)


def summation_error(width: int) -> float:
    """Returns a bound on the error of a float32 product of two rows of length 1 with ``width`` components.

    A sum of E products has an error of at most E u / (1 - E u) times the sum of their magnitudes, in any order (Higham,
    Accuracy and Stability of Numerical Algorithms, section 3.1), where u is half the distance of 1 to the next number.
    """
    return 1.01 * _UNIT_32 * (width + 4)


@cache
def half_is_faster() -> bool:
    """Returns True when this processor multiplies bfloat16 matrices clearly faster than float32 ones.

    Measured once, on products of 0.1 GFLOP, in processor time, which other programs do not affect much. Results do not
    depend on the answer, only their speed.
    """
    import torch

    left, right = torch.ones(256, 1024), torch.ones(256, 1024)
    left_16, right_16 = left.bfloat16(), right.bfloat16()
    best = [float("inf"), float("inf")]
    for _ in range(4):
        for index, product in enumerate((lambda: left @ right.T, lambda: left_16 @ right_16.T)):
            started = time.process_time()
            product()
            best[index] = min(best[index], time.process_time() - started)
    return best[1] < 0.8 * best[0]


def listed_cosines(
    queries: NormalizedRows,
    rows_Q: np.ndarray,
    gallery: NormalizedRows,
    starts_Q1: np.ndarray,
    items_L: np.ndarray,
    *,
    double: bool,
) -> tuple[np.ndarray, float]:
    """Returns cosines of listed pairs, float64 [L], and a bound on their error.

    Args:
        queries: rows that contain the queries.
        rows_Q: int64 [Q], indices of the queries among them.
        gallery: G rows.
        starts_Q1: int64 [Q + 1]; query q is compared with ``items_L[starts_Q1[q] : starts_Q1[q + 1]]``.
        items_L: int32 [L], indices of gallery rows.
        double: multiply in float64, which holds products of float32 exactly; False: multiply in float32.
    """
    import torch

    dtype = torch.float64 if double else torch.float32
    total_L = np.zeros(len(items_L))
    starts, zeros = torch.from_numpy(starts_Q1.astype(np.int32)), torch.zeros(len(items_L), dtype=dtype)
    size = (len(rows_Q), len(gallery))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR", UserWarning)  # torch calls its support beta
        pattern = torch.sparse_csr_tensor(starts, torch.from_numpy(items_L), zeros, size, check_invariants=False)
        for part in blocks(gallery.width, _SLICE):
            right_GS = torch.from_numpy(gallery.columns(part)).to(dtype)
            left_IS = right_GS if queries is gallery else torch.from_numpy(queries.columns(part)).to(dtype)
            total_L += torch.sparse.sampled_addmm(pattern, left_IS[rows_Q], right_GS.T, beta=0.0).values().numpy()
    return total_L, 1e-12 if double else 2 * _UNIT_32 * (_SLICE + 1)

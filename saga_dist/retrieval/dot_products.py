"""Cosines of many pairs: fast and with a proven bound on the error, or exact for listed pairs.

Fast ones are matrix products of rows that were rounded to bfloat16 or float32. What rounding took from each row is
measured, so that by Cauchy and Schwarz no product can be further off than the bound says. The mean of the gallery is
subtracted before and accounted for after: embeddings that all point one way lose no digits to what they share.
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
"""Components that are multiplied at a time for exact cosines: such a slice of a gallery stays in the cache."""


class DotProducts:
    """Rows less a centre, rounded, with what rounding took from them."""

    def __init__(self, rows: NormalizedRows, centre_E: np.ndarray, *, half: bool) -> None:
        import torch

        self.half = half
        self._values_IE = torch.empty((len(rows), rows.width), dtype=torch.bfloat16 if half else torch.float32)
        self._offset_I = np.empty(len(rows), np.float32)
        self._length_I, self._lost_I = np.empty(len(rows)), np.empty(len(rows))
        for part in blocks(len(rows)):
            exact_RE = rows.rows(part) - centre_E
            rounded_RE = torch.from_numpy(exact_RE).to(self._values_IE.dtype)
            self._values_IE[part] = rounded_RE
            self._offset_I[part] = exact_RE @ centre_E
            self._lost_I[part] = np.linalg.norm(exact_RE - rounded_RE.double().numpy(), axis=1)
            self._length_I[part] = np.linalg.norm(exact_RE, axis=1) + self._lost_I[part]

    def __len__(self) -> int:
        return len(self._offset_I)

    def scores(self, rows: slice, gallery: DotProducts, columns: slice) -> np.ndarray:
        """Returns nearly the cosines of some queries (rows) and gallery items, less one number for all: float32."""
        left, right = self._values_IE[rows], gallery._values_IE[columns]
        # numpy's product is float32 whatever precision someone allowed torch.
        product_RC: np.ndarray = (left @ right.T).float().numpy() if self.half else left.numpy() @ right.numpy().T
        product_RC += self._offset_I[rows, None]
        product_RC += gallery._offset_I[columns]
        return product_RC

    def margins(self, rows: slice, gallery: DotProducts, scores_RM: np.ndarray) -> np.ndarray:
        """Returns how far scores of some queries can be from the truth, float64 [R, M].

        What holds for a score holds for all smaller ones: score + margin and score - margin grow with the score.
        """
        longest, offset_R = gallery._length_I.max(), np.abs(self._offset_I[rows]) + np.abs(gallery._offset_I).max()
        lost_R = self._lost_I[rows] * longest + self._length_I[rows] * gallery._lost_I.max()
        # A sum of E products is off by at most E roundings; the factor 2 leaves room for how processors pair them.
        width = self._values_IE.shape[1]
        summed_R = 2 * _UNIT_32 * ((width + 4) * self._length_I[rows] * longest + 4 * offset_R)
        written_RM = 1.01 * _UNIT_16 * (np.abs(scores_RM) + offset_R[:, None]) if self.half else 0.0
        return np.asarray((lost_R + summed_R)[:, None] + written_RM)


@cache
def half_is_faster() -> bool:
    """Returns whether this processor multiplies bfloat16 matrices faster than float32: measured, 0.1 GFLOP each.

    Processor time, which other programs do not stretch. Results do not depend on the answer.
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
    """Returns cosines of listed pairs, float64 [L], and how far they can be off.

    Args:
        queries: rows, of which ``rows_Q`` are compared, int64 [Q].
        rows_Q: see ``queries``.
        gallery: G rows.
        starts_Q1: int64 [Q + 1]; query q is compared with ``items_L[starts_Q1[q] : starts_Q1[q + 1]]``.
        items_L: int32 [L], rows of the gallery.
        double: multiply in float64 (exact: products of float32 fit), not in float32.
    """
    import torch

    dtype = torch.float64 if double else torch.float32
    total_L = np.zeros(len(items_L))
    starts, zeros = torch.from_numpy(starts_Q1.astype(np.int32)), torch.zeros(len(items_L), dtype=dtype)
    size = (len(rows_Q), len(gallery))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR", UserWarning)  # said to be in beta
        pattern = torch.sparse_csr_tensor(starts, torch.from_numpy(items_L), zeros, size, check_invariants=False)
        for part in blocks(gallery.width, _SLICE):
            right_GS = torch.from_numpy(gallery.columns(part)).to(dtype)
            left_IS = right_GS if queries is gallery else torch.from_numpy(queries.columns(part)).to(dtype)
            total_L += torch.sparse.sampled_addmm(pattern, left_IS[rows_Q], right_GS.T, beta=0.0).values().numpy()
    return total_L, 1e-12 if double else 2 * _UNIT_32 * (_SLICE + 1)

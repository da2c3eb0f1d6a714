"""Queries and gallery of an exact ranking, and its order: other classes come first among equal cosines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from saga_dist.retrieval.normalized import NormalizedRows

SLACK = 1e-9
"""Tolerance when scores are compared; larger than any effect of rounding cosines to ``_SCORE_DECIMALS``."""
_SCORE_DECIMALS = 10
"""Decimals to which cosines are rounded; equal rounded cosines are a tie."""


@dataclass(frozen=True, slots=True)
class RankingTask:
    """Queries, gallery and the number of ranks to compute."""

    queries: NormalizedRows
    """Q rows."""
    query_labels: np.ndarray
    """int64 [Q]."""
    gallery: NormalizedRows
    """G rows."""
    gallery_labels: np.ndarray
    """int64 [G]."""
    num_ranks: int
    """K, at most ``num_items``."""
    queries_are_gallery: bool
    """True when the queries are the gallery, so that no query may find itself."""
    num_items: int
    """Number of items that a query can find."""

    def same(self, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Returns True where query and item have the same class; the index arrays are broadcast."""
        return np.equal(self.gallery_labels[items], self.query_labels[rows])


def pessimistic_order(scores_RC: np.ndarray, same_RC: np.ndarray, num_ranks: int) -> np.ndarray:
    """Returns bool [R, K], the matches at the best ranks, with other classes first among equal scores.

    Args:
        scores_RC: float64 [R, C], cosines.
        same_RC: bool [R, C], True where the item has the query's class.
        num_ranks: K.
    """
    order_RC = np.lexsort((same_RC, -np.round(scores_RC, _SCORE_DECIMALS)), axis=-1)[:, :num_ranks]
    return np.take_along_axis(same_RC, order_RC, 1)

"""Selection of the M best gallery items of every query by fast scores, block by block in little memory.

When the queries are the gallery, the matrix of scores is symmetric: a block above the diagonal is used for its rows and
for its columns, which halves the operations.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from saga_dist.retrieval.dot_products import DotProducts
from saga_dist.retrieval.normalized import blocks

BLOCK = 2048
"""Rows and columns of a block of scores; at most 65,536 (``add_transposed`` sorts rows as 16-bit numbers)."""


class TopCandidates:
    """The M best items of each query among those added so far.

    Args:
        num_queries: Q.
        num_candidates: M.
    """

    def __init__(self, num_queries: int, num_candidates: int) -> None:
        self.scores_QM = np.full((num_queries, num_candidates), -np.inf, np.float32)
        """float32 [Q, M], scores of the items, best first; unused places hold -inf."""
        self.items_QM = np.zeros((num_queries, num_candidates), np.int32)
        """int32 [Q, M], indices of the items in the gallery."""

    def add(self, queries: slice, items: slice, scores_RC: np.ndarray) -> None:
        """Adds the scores of some queries for some items.

        Args:
            queries: range of the R queries.
            items: range of the C items.
            scores_RC: float32 [R, C].
        """
        border_R = self.scores_QM[queries, -1]
        if np.isneginf(border_R).any():
            self._add_all(queries, items, scores_RC)
            return
        hits = np.flatnonzero(scores_RC > border_R[:, None])
        row_H, column_H = np.divmod(hits, scores_RC.shape[1])
        self._merge(queries, row_H, (column_H + items.start).astype(np.int32), scores_RC.ravel()[hits])

    def add_transposed(self, queries: slice, items: slice, scores_CR: np.ndarray) -> None:
        """Adds the scores of some queries for some items, given with items as rows.

        Args:
            queries: range of the R queries.
            items: range of the C items.
            scores_CR: float32 [C, R].
        """
        border_R = self.scores_QM[queries, -1]
        if np.isneginf(border_R).any():
            self._add_all(queries, items, np.ascontiguousarray(scores_CR.T))
            return
        hits = np.flatnonzero(scores_CR > border_R)
        item_H, row_H = np.divmod(hits, scores_CR.shape[1])
        order_H = np.argsort(row_H.astype(np.uint16), kind="stable")  # numpy sorts 16-bit integers by radix sort
        item_H = (item_H[order_H] + items.start).astype(np.int32)
        self._merge(queries, row_H[order_H], item_H, scores_CR.ravel()[hits[order_H]])

    def _add_all(self, queries: slice, items: slice, scores_RC: np.ndarray) -> None:
        """Adds all scores, float32 [R, C], of queries that do not have M items yet."""
        import torch

        best = torch.from_numpy(scores_RC).topk(min(self.scores_QM.shape[1], scores_RC.shape[1]))
        scores = np.concatenate([self.scores_QM[queries], best.values.numpy()], 1)
        items_RC = (best.indices.numpy() + items.start).astype(np.int32)
        self._keep_best(queries, scores, np.concatenate([self.items_QM[queries], items_RC], 1))

    def _merge(self, queries: slice, row_H: np.ndarray, item_H: np.ndarray, score_H: np.ndarray) -> None:
        """Adds scores that are better than the worst kept one of their query.

        Args:
            queries: range of the queries to which the rows belong.
            row_H: integer [H], row of each score within the range, ascending.
            item_H: int32 [H], item of each score.
            score_H: float32 [H].
        """
        rows_T, place_H, counts_T = np.unique(row_H, return_inverse=True, return_counts=True)
        if len(rows_T) == 0:
            return
        rows_T += queries.start
        kept = self.scores_QM.shape[1]
        column_H = kept + np.arange(len(row_H)) - np.repeat(np.cumsum(counts_T) - counts_T, counts_T)
        scores = np.full((len(rows_T), kept + counts_T.max()), -np.inf, np.float32)
        items = np.zeros(scores.shape, np.int32)
        scores[:, :kept], items[:, :kept] = self.scores_QM[rows_T], self.items_QM[rows_T]
        scores[place_H, column_H], items[place_H, column_H] = score_H, item_H
        self._keep_best(rows_T, scores, items)

    def _keep_best(self, queries: slice | np.ndarray, scores: np.ndarray, items: np.ndarray) -> None:
        import torch

        best, columns = torch.from_numpy(scores).topk(self.scores_QM.shape[1])
        self.scores_QM[queries] = best.numpy()
        self.items_QM[queries] = np.take_along_axis(items, columns.numpy(), 1)


def best_of_others(gallery: DotProducts, num_candidates: int) -> TopCandidates:
    """Returns the best other items of every item of a gallery.

    Args:
        gallery: G rows.
        num_candidates: M, at most G - 1.
    """
    return best_of_symmetric(
        len(gallery), num_candidates, lambda rows, columns: gallery.scores(rows, gallery, columns), BLOCK
    )


def best_of_symmetric(
    num_items: int, num_candidates: int, scores_of: Callable[[slice, slice], np.ndarray], block: int
) -> TopCandidates:
    """Returns the best other items of every item, by a symmetric matrix of scores of which one half is computed.

    The blocks on the diagonal come first: afterwards every item has M candidates, where they fit into a block, and the
    other blocks add only scores above the worst of them.

    Args:
        num_items: G.
        num_candidates: M, at most G - 1.
        scores_of: returns the scores of a range of rows and a range of columns, float32 [R, C], in a new array.
        block: rows and columns of a block, at most 65,536.
    """
    best = TopCandidates(num_items, num_candidates)
    parts = list(blocks(num_items, block))
    for rows in parts:
        scores_RR = scores_of(rows, rows)
        np.fill_diagonal(scores_RR, -np.inf)
        best.add(rows, rows, scores_RR)
    for index, rows in enumerate(parts):
        for columns in parts[index + 1 :]:
            scores_RC = scores_of(rows, columns)
            best.add_transposed(columns, rows, scores_RC)
            best.add(rows, columns, scores_RC)
    return best


def best_of_gallery(
    queries: DotProducts, gallery: DotProducts, num_candidates: int, own_Q: np.ndarray | None = None
) -> TopCandidates:
    """Returns the best gallery items of every query.

    Args:
        queries: Q rows.
        gallery: G rows, of which each query may find at least M.
        num_candidates: M.
        own_Q: int64 [Q], the item that each query must not find; None: every item may be found.
    """
    best = TopCandidates(len(queries), num_candidates)
    for rows in blocks(len(queries), BLOCK):
        for columns in blocks(len(gallery), BLOCK):
            scores_RC = queries.scores(rows, gallery, columns)
            if own_Q is not None:
                own_R = own_Q[rows] - columns.start
                inside = np.flatnonzero((own_R >= 0) & (own_R < scores_RC.shape[1]))
                scores_RC[inside, own_R[inside]] = -np.inf
            best.add(rows, columns, scores_RC)
    return best

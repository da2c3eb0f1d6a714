"""Exact ranking of a small gallery by plain float32 products, where selecting candidates block by block costs more.

The products have a proven bound on their error, so their order is the exact one except among scores that are closer
than twice the bound. Of these only the ones that matter are computed again in float64: groups of close scores that mix
the query's class with other classes.
"""

from __future__ import annotations

import numpy as np

from saga_dist.retrieval.candidates import best_of_symmetric
from saga_dist.retrieval.dot_products import summation_error
from saga_dist.retrieval.normalized import blocks
from saga_dist.retrieval.ranking_task import SLACK, RankingTask, pessimistic_order

MOST_PRODUCTS = 4 * 10**11
"""Multiplications, queries x gallery items x components, up to which plain products are the faster way
(``saga-dist bench evaluation``): 20,000 images of 1,024 components, 10,000 of 4,096."""
_EXTRA_ITEMS = 8
"""Items of a query besides those per rank, among which the border of the ranks is sought."""
_BLOCK = 1536
"""Rows and columns of a block of products when the queries are the gallery."""
_BLOCK_BYTES = 16 * 2**20
"""Size in bytes of a block of products, or of the rows that are multiplied in float64 at a time."""


def rank_by_products(task: RankingTask, matches_QK: np.ndarray) -> np.ndarray:
    """Ranks the queries whose best items the products tell apart from all others; returns the other queries.

    Args:
        task: queries and gallery.
        matches_QK: bool [Q, K], in which the rows of ranked queries are set.

    Returns:
        int64, indices of the queries that are not ranked.
    """
    gallery_GE = task.gallery.all()
    queries_QE = gallery_GE if task.queries_are_gallery else task.queries.all()
    margin = summation_error(task.gallery.width) + SLACK
    scores_QM, items_QM = _best_items(task, queries_QE, gallery_GE)
    # The last item bounds all items that are not among the best; it must be below every required rank.
    is_ranked_Q = scores_QM[:, -1] + margin < scores_QM[:, task.num_ranks - 1] - margin
    if scores_QM.shape[1] == task.num_items:
        is_ranked_Q[:] = True
    rows_R = np.flatnonzero(is_ranked_Q)
    scores_RM, items_RM = scores_QM[rows_R].astype(np.float64), items_QM[rows_R]
    same_RM = task.same(rows_R[:, None], items_RM)
    unclear_RM = _mixed_groups(scores_RM, same_RM, 2 * margin)
    scores_RM[unclear_RM] = _exact_cosines(
        queries_QE, rows_R[np.nonzero(unclear_RM)[0]], gallery_GE, items_RM[unclear_RM]
    )
    matches_QK[rows_R] = pessimistic_order(scores_RM, same_RM, task.num_ranks)
    return np.flatnonzero(~is_ranked_Q)


def _best_items(task: RankingTask, queries_QE: np.ndarray, gallery_GE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns scores float32 [Q, M] of the best items of every query, best first, and the items, int32 [Q, M]."""
    kept = min(task.num_ranks + _EXTRA_ITEMS, task.num_items)

    def products(rows: slice, columns: slice) -> np.ndarray:
        return queries_QE[rows] @ gallery_GE[columns].T  # in numpy, because torch may be set to a lower precision

    if task.queries_are_gallery:
        best = best_of_symmetric(len(queries_QE), kept, products, _BLOCK)
        return best.scores_QM, best.items_QM
    import torch

    scores_QM = np.empty((len(queries_QE), kept), np.float32)
    items_QM = np.empty(scores_QM.shape, np.int32)
    for part in blocks(len(queries_QE), max(1, _BLOCK_BYTES // (4 * len(gallery_GE)))):
        top = torch.from_numpy(products(part, slice(None))).topk(kept)
        scores_QM[part], items_QM[part] = top.values.numpy(), top.indices.numpy()
    return scores_QM, items_QM


def _mixed_groups(scores_RM: np.ndarray, same_RM: np.ndarray, gap: float) -> np.ndarray:
    """Returns bool [R, M], True for the members of groups of close scores that have items of both kinds.

    Args:
        scores_RM: float64 [R, M], best first.
        same_RM: bool [R, M], True where the item has the query's class.
        gap: largest difference of neighbouring scores of one group.
    """
    begins_RM = np.ones(scores_RM.shape, bool)
    begins_RM[:, 1:] = scores_RM[:, :-1] - scores_RM[:, 1:] > gap
    group_RM = begins_RM.ravel().cumsum().reshape(scores_RM.shape) - 1
    sizes, matches = np.bincount(group_RM.ravel()), np.bincount(group_RM.ravel(), same_RM.ravel())
    is_mixed: np.ndarray = (matches > 0) & (matches < sizes)
    return is_mixed[group_RM]


def _exact_cosines(
    queries_QE: np.ndarray, rows_L: np.ndarray, gallery_GE: np.ndarray, items_L: np.ndarray
) -> np.ndarray:
    """Returns float64 cosines [L] of listed pairs of rows of length 1; products of float32 are exact in float64."""
    cosines_L = np.empty(len(rows_L))
    for part in blocks(len(rows_L), max(1, _BLOCK_BYTES // (16 * gallery_GE.shape[1]))):
        left_PE, right_PE = queries_QE[rows_L[part]].astype(np.float64), gallery_GE[items_L[part]].astype(np.float64)
        cosines_L[part] = np.einsum("pe,pe->p", left_PE, right_PE)
    return cosines_L

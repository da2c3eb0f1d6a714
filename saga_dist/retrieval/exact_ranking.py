"""Exact ranking: fast products select candidates, float64 ranks them, and ties do not depend on the gallery's order.

Scores in bfloat16 (when the processor is faster with it) select a few candidates for each query and bound their error:
every item that could be among the required ranks is scored again, in float32 and then in float64. When the bound is too
wide to exclude the items that are not candidates, as with many duplicates, the query is repeated with float32 scores
and, if that is not sufficient, compared with the whole gallery in float64. Small galleries are ranked by plain products
first (``small_ranking``). The result equals that of a plain float64 loop.
"""

from __future__ import annotations

import numpy as np

from saga_dist.errors import DataError
from saga_dist.retrieval.candidates import TopCandidates, best_of_gallery, best_of_others
from saga_dist.retrieval.dot_products import DotProducts, half_is_faster, listed_cosines
from saga_dist.retrieval.normalized import NormalizedRows, blocks, check_labels
from saga_dist.retrieval.ranking_task import SLACK, RankingTask, pessimistic_order
from saga_dist.retrieval.small_ranking import MOST_PRODUCTS, rank_by_products

_CANDIDATES_PER_RANK = 8
_EXTRA_CANDIDATES = 32
"""Candidates of a query besides those per rank."""
_BLOCK_BYTES = 128 * 2**20
"""Size in bytes of a float64 block when a query is compared with the whole gallery."""
_QUERIES_AT_ONCE = 4096
"""Undecided queries for which candidates are selected at a time."""
_PAIRS_AT_ONCE = 4_000_000
"""Pairs of query and candidate that are scored again at a time."""


def ranked_matches(
    queries_QE: np.ndarray,
    query_labels_Q: np.ndarray,
    num_ranks: int,
    gallery_GE: np.ndarray | None = None,
    gallery_labels_G: np.ndarray | None = None,
    *,
    most_products: int = MOST_PRODUCTS,
) -> np.ndarray:
    """Returns bool [Q, K], True where the item at the rank has the query's class; K = num_ranks or the gallery's size.

    Items are ranked by cosine. Among equal cosines, items of other classes come first, so that the order of files on
    disk does not affect the result, and an encoder that maps all images to one point has no hits.

    Args:
        queries_QE: floating [Q, E]; normalised here.
        query_labels_Q: integers [Q].
        num_ranks: number of ranks, at least 1.
        gallery_GE: floating [G, E]; None: the queries are the gallery, and item q is left out of the ranking of query q
            by its index (never by its score).
        gallery_labels_G: integers [G], given together with ``gallery_GE``.
        most_products: largest queries x gallery items x components that are multiplied plainly; 0: candidates are
            selected at every size. It has no effect on the result.

    Raises:
        DataError: shapes or types do not fit, or an embedding is zero or not finite.
    """
    if (gallery_GE is None) != (gallery_labels_G is None):
        raise DataError("a gallery with embeddings or labels alone", expected="both or neither")
    queries = NormalizedRows(queries_QE)
    query_labels = check_labels(query_labels_Q, len(queries))
    queries_are_gallery = gallery_GE is None
    gallery = queries if gallery_GE is None else NormalizedRows(gallery_GE)
    gallery_labels = query_labels if gallery_labels_G is None else check_labels(gallery_labels_G, len(gallery))
    if queries.width != gallery.width or num_ranks < 1:
        raise DataError(
            f"queries {queries_QE.shape}, gallery {len(gallery)} x {gallery.width}, {num_ranks} ranks",
            expected="one dimension, ranks >= 1",
        )
    num_items = len(gallery) - queries_are_gallery
    task = RankingTask(
        queries, query_labels, gallery, gallery_labels, min(num_ranks, num_items), queries_are_gallery, num_items
    )
    matches_QK = np.zeros((len(queries), task.num_ranks), dtype=bool)
    undecided = np.arange(len(queries) if task.num_ranks else 0)
    if len(undecided) and len(queries) * len(gallery) * gallery.width <= most_products:
        undecided = rank_by_products(task, matches_QK)
    if _num_candidates(task) < task.num_items:
        for half in (True, False) if half_is_faster() else (False,):
            undecided = _rank_by_candidates(task, undecided, matches_QK, half=half)
    matches_QK[undecided] = _rank_against_all(task, undecided)
    return matches_QK


def _num_candidates(task: RankingTask) -> int:
    """Returns M, the number of candidates per query."""
    return _CANDIDATES_PER_RANK * task.num_ranks + _EXTRA_CANDIDATES


def _rank_by_candidates(task: RankingTask, undecided: np.ndarray, matches_QK: np.ndarray, *, half: bool) -> np.ndarray:
    """Ranks the queries for which fast scores suffice to select the candidates; returns the other queries.

    Args:
        task: queries and gallery.
        undecided: int64, indices of the queries to rank.
        matches_QK: bool [Q, K], in which the rows of ranked queries are set.
        half: use bfloat16 scores, else float32.
    """
    if len(undecided) == 0:
        return undecided
    centre_E = task.gallery.mean()
    gallery = DotProducts(task.gallery, centre_E, half=half)
    if task.queries_are_gallery and len(undecided) == len(gallery):
        best = best_of_others(gallery, _num_candidates(task))
        counts_Q = _num_possible(best, gallery, gallery, task.num_ranks)
        del gallery
        return _rescore(task, undecided, best, counts_Q, matches_QK)
    remaining = []
    for part in blocks(len(undecided), _QUERIES_AT_ONCE):
        rows = undecided[part]
        queries = DotProducts(task.queries.take(rows), centre_E, half=half)
        best = best_of_gallery(queries, gallery, _num_candidates(task), rows if task.queries_are_gallery else None)
        counts_Q = _num_possible(best, queries, gallery, task.num_ranks)
        remaining.append(_rescore(task, rows, best, counts_Q, matches_QK))
    return np.concatenate(remaining)


def _num_possible(best: TopCandidates, queries: DotProducts, gallery: DotProducts, num_ranks: int) -> np.ndarray:
    """Returns int64 [Q], the number of candidates that could be among the required ranks, or 0.

    It is 0 when items that are not candidates could be among them as well.
    """
    counts_Q = np.empty(len(queries), np.int64)
    for rows in blocks(len(queries)):
        scores_RM = best.scores_QM[rows]
        margins_RM = queries.margins(rows, gallery, scores_RM)
        lowest_R1 = (scores_RM - margins_RM)[:, num_ranks - 1 : num_ranks]
        possible_RM = scores_RM + margins_RM >= lowest_R1 - SLACK
        counts_Q[rows] = np.where(possible_RM[:, -1], 0, possible_RM.sum(1))
    return counts_Q


def _rescore(
    task: RankingTask, rows_Q: np.ndarray, best: TopCandidates, counts_Q: np.ndarray, matches_QK: np.ndarray
) -> np.ndarray:
    """Ranks queries by scoring their candidates again, in float32 and then in float64; returns the other queries.

    Args:
        task: queries and gallery.
        rows_Q: int64 [Q], indices of the queries.
        best: candidates of these queries.
        counts_Q: int64 [Q], number of candidates to score of each query; 0: the query cannot be ranked by them.
        matches_QK: bool, in which the rows of ranked queries are set.
    """
    decidable = np.flatnonzero(counts_Q)
    step = max(1, _PAIRS_AT_ONCE // best.items_QM.shape[1])
    for part in blocks(len(decidable), step):
        chosen = decidable[part]
        possible_QM = np.arange(counts_Q[chosen].max()) < counts_Q[chosen, None]
        items_QM = best.items_QM[chosen, : possible_QM.shape[1]]
        for double in (False, True):
            starts_Q1 = np.concatenate([[0], possible_QM.sum(1).cumsum()])
            cosine_L, error = listed_cosines(
                task.queries, rows_Q[chosen], task.gallery, starts_Q1, items_QM[possible_QM], double=double
            )
            scores_QM = np.full(items_QM.shape, -np.inf)
            scores_QM[possible_QM] = cosine_L
            if not double:
                border_Q = np.partition(scores_QM, -task.num_ranks, axis=1)[:, -task.num_ranks]
                possible_QM = scores_QM >= border_Q[:, None] - 2 * error - SLACK
        same_QM = task.same(rows_Q[chosen, None], items_QM)
        matches_QK[rows_Q[chosen]] = pessimistic_order(scores_QM, same_QM, task.num_ranks)
    return rows_Q[counts_Q == 0]


def _rank_against_all(task: RankingTask, rows: np.ndarray) -> np.ndarray:
    """Returns bool [R, K], the matches of some queries by float64 comparison with the whole gallery."""
    matches = np.zeros((len(rows), task.num_ranks), dtype=bool)
    columns = max(1, _BLOCK_BYTES // (8 * task.gallery.width))
    for part in blocks(len(rows), max(1, _BLOCK_BYTES // (8 * len(task.gallery)))):
        chosen = rows[part]
        queries_RE = task.queries.rows(chosen).astype(np.float64)
        scores = np.empty((len(chosen), len(task.gallery)))
        for items in blocks(len(task.gallery), columns):
            scores[:, items] = queries_RE @ task.gallery.rows(items).astype(np.float64).T
        if task.queries_are_gallery:
            scores[np.arange(len(chosen)), chosen] = -np.inf
        same = task.same(chosen[:, None], np.arange(len(task.gallery)))
        matches[part] = pessimistic_order(scores, same, task.num_ranks)
    return matches

"""Exact ranking: fast products propose, fp64 decides, and ties never depend on the order of the gallery.

Scores in bfloat16 (where the processor is faster with it) name a few candidates for each query and a bound on their
error: everything that could be among the wanted ranks is scored again, in float32 and then in float64. A query whose
border is too close for the bound, such as one among many duplicates, is asked again with float32 scores, and if that is
not enough either, compared with the whole gallery in fp64. What comes out is what a plain fp64 loop gives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from saga_dist.errors import DataError
from saga_dist.retrieval.candidates import TopCandidates, best_of_gallery, best_of_others
from saga_dist.retrieval.dot_products import DotProducts, half_is_faster, listed_cosines
from saga_dist.retrieval.normalized import NormalizedRows, blocks, check_labels

_CANDIDATES_PER_RANK = 8
_SPARE_CANDIDATES = 32
_SCORE_DECIMALS = 10
"""Cosines that agree to so many decimals are a tie."""
_SLACK = 1e-9
"""More than that rounding can move."""
_BLOCK_BYTES = 128 * 2**20
_QUERIES_AT_ONCE = 4096
_PAIRS_AT_ONCE = 4_000_000


def ranked_matches(
    queries_QE: np.ndarray,
    query_labels_Q: np.ndarray,
    num_ranks: int,
    gallery_GE: np.ndarray | None = None,
    gallery_labels_G: np.ndarray | None = None,
) -> np.ndarray:
    """Returns bool [Q, K]: whether the item at each rank has the query's class; K = num_ranks or what the gallery has.

    Items are ranked by cosine. Among equal cosines those of other classes come first: the order of files on disk must
    not decide a benchmark, and an encoder that maps everything to one point deserves no hit.

    Args:
        queries_QE: [Q, E] floating; normalised here.
        query_labels_Q: [Q] integers.
        num_ranks: at least 1.
        gallery_GE: [G, E] floating; None: the queries are the gallery, and query q leaves item q out of its ranking, by
            that index (never by its score).
        gallery_labels_G: [G] integers, given together with ``gallery_GE``.

    Raises:
        DataError: shapes or types do not fit, or an embedding is zero or not finite.
    """
    if (gallery_GE is None) != (gallery_labels_G is None):
        raise DataError("a gallery with embeddings or labels alone", expected="both or neither")
    queries = NormalizedRows(queries_QE)
    query_labels = check_labels(query_labels_Q, len(queries))
    own = gallery_GE is None
    gallery = queries if gallery_GE is None else NormalizedRows(gallery_GE)
    gallery_labels = query_labels if gallery_labels_G is None else check_labels(gallery_labels_G, len(gallery))
    if queries.width != gallery.width or num_ranks < 1:
        raise DataError(
            f"queries {queries_QE.shape}, gallery {len(gallery)} x {gallery.width}, {num_ranks} ranks",
            expected="one dimension, ranks >= 1",
        )
    task = _Task(
        queries, query_labels, gallery, gallery_labels, min(num_ranks, len(gallery) - own), own, len(gallery) - own
    )
    matches_QK = np.zeros((len(queries), task.num_ranks), dtype=bool)
    unsure = np.arange(len(queries) if task.num_ranks else 0)
    if task.num_candidates < task.num_items:
        for half in (True, False) if half_is_faster() else (False,):
            unsure = _settle(task, unsure, matches_QK, half=half)
    matches_QK[unsure] = _against_everything(task, unsure)
    return matches_QK


@dataclass(frozen=True, slots=True)
class _Task:
    queries: NormalizedRows
    query_labels: np.ndarray
    gallery: NormalizedRows
    gallery_labels: np.ndarray
    num_ranks: int
    own: bool
    """The queries are the gallery."""
    num_items: int
    """That a query can find."""

    @property
    def num_candidates(self) -> int:
        return _CANDIDATES_PER_RANK * self.num_ranks + _SPARE_CANDIDATES

    def same(self, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        return np.equal(self.gallery_labels[items], self.query_labels[rows])


def _settle(task: _Task, unsure: np.ndarray, matches_QK: np.ndarray, *, half: bool) -> np.ndarray:
    """Fills the matches of the queries that candidates by fast scores decide; returns the others."""
    if len(unsure) == 0:
        return unsure
    centre_E = task.gallery.mean()
    gallery = DotProducts(task.gallery, centre_E, half=half)
    if task.own and len(unsure) == len(gallery):
        best = best_of_others(gallery, task.num_candidates)
        counts_Q = _num_possible(best, gallery, gallery, task.num_ranks)
        del gallery
        return _decide(task, unsure, best, counts_Q, matches_QK)
    left = []
    for part in blocks(len(unsure), _QUERIES_AT_ONCE):
        rows = unsure[part]
        queries = DotProducts(task.queries.take(rows), centre_E, half=half)
        best = best_of_gallery(queries, gallery, task.num_candidates, rows if task.own else None)
        counts_Q = _num_possible(best, queries, gallery, task.num_ranks)
        left.append(_decide(task, rows, best, counts_Q, matches_QK))
    return np.concatenate(left)


def _num_possible(best: TopCandidates, queries: DotProducts, gallery: DotProducts, num_ranks: int) -> np.ndarray:
    """How many candidates could be among the wanted ranks; 0 when items beyond the candidates could be."""
    counts_Q = np.empty(len(queries), np.int64)
    for rows in blocks(len(queries)):
        scores_RM = best.scores_QM[rows]
        margins_RM = queries.margins(rows, gallery, scores_RM)
        lowest_R1 = (scores_RM - margins_RM)[:, num_ranks - 1 : num_ranks]
        possible_RM = scores_RM + margins_RM >= lowest_R1 - _SLACK
        counts_Q[rows] = np.where(possible_RM[:, -1], 0, possible_RM.sum(1))
    return counts_Q


def _decide(
    task: _Task, rows_Q: np.ndarray, best: TopCandidates, counts_Q: np.ndarray, matches_QK: np.ndarray
) -> np.ndarray:
    """Fills the matches of queries with candidates; returns those without."""
    with_some = np.flatnonzero(counts_Q)
    step = max(1, _PAIRS_AT_ONCE // best.items_QM.shape[1])
    for part in blocks(len(with_some), step):
        chosen = with_some[part]
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
                possible_QM = scores_QM >= border_Q[:, None] - 2 * error - _SLACK
        same_QM = task.same(rows_Q[chosen, None], items_QM)
        matches_QK[rows_Q[chosen]] = _pessimistic_order(scores_QM, same_QM, task.num_ranks)
    return rows_Q[counts_Q == 0]


def _against_everything(task: _Task, rows: np.ndarray) -> np.ndarray:
    """Match flags of some queries by fp64 comparison with the whole gallery."""
    matches = np.zeros((len(rows), task.num_ranks), dtype=bool)
    columns = max(1, _BLOCK_BYTES // (8 * task.gallery.width))
    for part in blocks(len(rows), max(1, _BLOCK_BYTES // (8 * len(task.gallery)))):
        chosen = rows[part]
        queries_RE = task.queries.rows(chosen).astype(np.float64)
        scores = np.empty((len(chosen), len(task.gallery)))
        for items in blocks(len(task.gallery), columns):
            scores[:, items] = queries_RE @ task.gallery.rows(items).astype(np.float64).T
        if task.own:
            scores[np.arange(len(chosen)), chosen] = -np.inf
        same = task.same(chosen[:, None], np.arange(len(task.gallery)))
        matches[part] = _pessimistic_order(scores, same, task.num_ranks)
    return matches


def _pessimistic_order(scores_RC: np.ndarray, same_RC: np.ndarray, num_ranks: int) -> np.ndarray:
    """Match flags of the best ranks, other classes first among equals."""
    order_RC = np.lexsort((same_RC, -np.round(scores_RC, _SCORE_DECIMALS)), axis=-1)[:, :num_ranks]
    return np.take_along_axis(same_RC, order_RC, 1)

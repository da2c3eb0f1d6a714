"""Exact ranking: faiss proposes, fp64 decides, and ties never depend on the order of the gallery.

faiss scores in fp32 and orders ties as it pleases. Here its best candidates are scored again in fp64, and a query
whose border is too close to call, such as one among many duplicates, is compared with the whole gallery. What comes out
is what a plain fp64 loop gives.
"""

from __future__ import annotations

import numpy as np

from saga_dist.errors import DataError

_SPARE_CANDIDATES = 8
_SCORE_DECIMALS = 10
"""Cosines that agree to so many decimals are a tie."""
_BLOCK_BYTES = 128 * 2**20
_QUERIES_PER_SEARCH = 4096


def ranked_matches(
    queries_QE: np.ndarray,
    query_labels_Q: np.ndarray,
    gallery_GE: np.ndarray,
    gallery_labels_G: np.ndarray,
    num_ranks: int,
    *,
    exclude_self: bool,
) -> np.ndarray:
    """Returns bool [Q, K]: whether the item at each rank has the query's class; K = num_ranks or what the gallery has.

    Items are ranked by cosine. Among equal cosines those of other classes come first: the order of files on disk must
    not decide a benchmark, and an encoder that maps everything to one point deserves no hit.

    Args:
        queries_QE: [Q, E] floating; normalised here.
        query_labels_Q: [Q] integers.
        gallery_GE: [G, E] floating.
        gallery_labels_G: [G] integers.
        num_ranks: at least 1.
        exclude_self: query q is gallery item q, and is left out of its own ranking by that index (never by its score).

    Raises:
        DataError: shapes or types do not fit, or an embedding is zero or not finite.
    """
    import faiss

    queries, gallery = unit_rows(queries_QE), unit_rows(gallery_GE)
    query_labels, gallery_labels = (
        check_labels(query_labels_Q, len(queries)),
        check_labels(gallery_labels_G, len(gallery)),
    )
    if queries.shape[1] != gallery.shape[1] or num_ranks < 1 or (exclude_self and len(queries) != len(gallery)):
        raise DataError(
            f"queries {queries.shape}, gallery {gallery.shape}, {num_ranks} ranks", expected="one dimension, ranks >= 1"
        )
    num_ranks = min(num_ranks, len(gallery) - exclude_self)
    num_candidates = min(num_ranks + exclude_self + _SPARE_CANDIDATES, len(gallery))
    matches_QK = np.zeros((len(queries), num_ranks), dtype=bool)
    if num_ranks == 0:
        return matches_QK
    step = max(1, min(_QUERIES_PER_SEARCH, _BLOCK_BYTES // (8 * num_candidates * gallery.shape[1])))
    for start in range(0, len(queries), step):
        rows = np.arange(start, min(start + step, len(queries)))
        scores_RC, found_RC = faiss.knn(queries[rows], gallery, num_candidates, metric=faiss.METRIC_INNER_PRODUCT)
        exact_RC = np.matmul(gallery[found_RC].astype(np.float64), queries[rows, :, None].astype(np.float64))[..., 0]
        if exclude_self:
            exact_RC[found_RC == rows[:, None]] = -np.inf
        same_RC = gallery_labels[found_RC] == query_labels[rows, None]
        ranked_RC, matches_QK[rows] = _pessimistic_order(exact_RC, same_RC, num_ranks)
        if num_candidates < len(gallery):
            rounding = 2 * np.finfo(np.float32).eps * np.sqrt(gallery.shape[1])
            unsure = rows[scores_RC[:, -1] + rounding >= ranked_RC[:, -1]]
            matches_QK[unsure] = _against_everything(
                queries, query_labels, gallery, gallery_labels, unsure, num_ranks, exclude_self
            )
    return matches_QK


def unit_rows(embeddings: np.ndarray) -> np.ndarray:
    """Returns contiguous float32 rows of length 1.

    Raises:
        DataError: not a non-empty floating matrix, or a row is zero or not finite.
    """
    if embeddings.ndim != 2 or 0 in embeddings.shape or not np.issubdtype(embeddings.dtype, np.floating):
        raise DataError(
            f"embeddings are {embeddings.dtype} {embeddings.shape}", expected="a floating matrix, one row each"
        )
    values = embeddings.astype(np.float64)
    norms = np.linalg.norm(values, axis=1)
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if len(bad):
        raise DataError(
            f"{len(bad)} embeddings are zero or not finite, first at row {bad[0]}",
            fix="check the image at that row and the encoder",
        )
    return np.ascontiguousarray(values / norms[:, None], dtype=np.float32)


def check_labels(labels: np.ndarray, count: int) -> np.ndarray:
    """Returns the labels as int64 [count].

    Raises:
        DataError: none at all, wrong shape, or not integers (float labels collide above 2^24).
    """
    labels = np.asarray(labels)
    if count == 0 or labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"labels are {labels.dtype} {labels.shape}", expected=f"{max(count, 1)} integers")
    return labels.astype(np.int64)


def _against_everything(
    queries: np.ndarray,
    query_labels: np.ndarray,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    rows: np.ndarray,
    num_ranks: int,
    exclude_self: bool,
) -> np.ndarray:
    """Match flags of some queries by fp64 comparison with the whole gallery."""
    matches = np.zeros((len(rows), num_ranks), dtype=bool)
    step = max(1, _BLOCK_BYTES // (8 * len(gallery)))
    columns = max(1, _BLOCK_BYTES // (8 * gallery.shape[1]))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        scores = np.empty((len(part), len(gallery)))
        for left in range(0, len(gallery), columns):
            block = gallery[left : left + columns].astype(np.float64)
            scores[:, left : left + columns] = queries[part].astype(np.float64) @ block.T
        if exclude_self:
            scores[np.arange(len(part)), part] = -np.inf
        same = gallery_labels[None] == query_labels[part, None]
        _, matches[start : start + len(part)] = _pessimistic_order(scores, same, num_ranks)
    return matches


def _pessimistic_order(scores_RC: np.ndarray, same_RC: np.ndarray, num_ranks: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and match flags of the best ranks, other classes first among equals."""
    rounded_RC = np.round(scores_RC, _SCORE_DECIMALS)
    order_RC = np.lexsort((same_RC, -rounded_RC), axis=-1)[:, :num_ranks]
    return np.take_along_axis(rounded_RC, order_RC, 1), np.take_along_axis(same_RC, order_RC, 1)

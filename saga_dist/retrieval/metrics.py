"""Recall@K, MAP@R and R-precision as the literature defines them, with intervals that respect classes.

Rules where implementations differ:

self      the query is left out of its own gallery by index, never by its score or rank
ties      cosines of the float32 unit vectors that agree to 10 decimals are equal, and among equals the items of other
          classes come first: a tie counts against the query, and the order of the files decides nothing
one       a query whose class has no (other) image in the gallery cannot be answered: it is a miss in Recall@K, 0 in
          MAP@R and R-precision, and stays in the mean; how many there are is reported
R         of MAP@R and R-precision is the number of items of the query's class in the gallery, the query left out
K > G     a K beyond the gallery means the whole gallery
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from saga_dist.errors import DataError
from saga_dist.retrieval.exact_ranking import ranked_matches
from saga_dist.retrieval.normalized import check_labels

_DRAWS_PER_BLOCK = 256


@dataclass(frozen=True, slots=True)
class Recall:
    """Recall@K over all queries."""

    recall: dict[int, float]
    """K to Recall@K in [0, 1]: the share of queries with an item of their class among the K nearest."""
    first_hit_I: np.ndarray
    """int64, one per query: the rank, from 1, of the nearest item of its class; 0 where it is beyond the largest K."""
    num_unfindable: int
    """Queries whose class has no (other) image in the gallery."""

    @property
    def correct_at_1_I(self) -> np.ndarray:  # noqa: N802  (shape suffix)
        """bool, one per query, for intervals."""
        return hits_at(self.first_hit_I, 1)


def hits_at(first_hit_I: np.ndarray, k: int) -> np.ndarray:
    """Returns bool [I]: whether the first item of the query's class is among the k nearest (0 stands for none)."""
    return (first_hit_I > 0) & (first_hit_I <= k)


class PrecisionAtR(NamedTuple):
    """Figures in [0, 1] that look at as many ranks as there are relevant items."""

    map_at_r: float
    r_precision: float


class RankFigures(NamedTuple):
    """All figures of one ranking."""

    recall: Recall
    precision: PrecisionAtR


def rank_figures(
    embeddings_IE: np.ndarray,
    labels_I: np.ndarray,
    *,
    ks: Sequence[int] = (1, 2, 4, 8),
    gallery_GE: np.ndarray | None = None,
    gallery_labels_G: np.ndarray | None = None,
) -> RankFigures:
    """Returns Recall@K, MAP@R and R-precision of one ranking; arguments and errors as in ``recall_at_k``."""
    _check_ks(ks)
    relevant_I = _count_relevant(labels_I, gallery_labels_G)
    num_ranks = max(*ks, int(relevant_I.max()))
    matches_IK = ranked_matches(embeddings_IE, labels_I, num_ranks, gallery_GE, gallery_labels_G)
    return RankFigures(_recall(matches_IK[:, : max(ks)], relevant_I, ks), _precision(matches_IK, relevant_I))


def recall_at_k(
    embeddings_IE: np.ndarray,
    labels_I: np.ndarray,
    *,
    ks: Sequence[int] = (1, 2, 4, 8),
    gallery_GE: np.ndarray | None = None,
    gallery_labels_G: np.ndarray | None = None,
) -> Recall:
    """Returns Recall@K of queries against a gallery.

    Args:
        embeddings_IE: [I, E] floating queries; ranked by cosine, so their length does not matter.
        labels_I: [I] integers.
        ks: each >= 1. A K beyond the gallery means the whole gallery.
        gallery_GE: [G, E]; None means that the queries are the gallery, each left out of its own ranking by index.
        gallery_labels_G: [G] integers, given together with ``gallery_GE``.

    Raises:
        DataError: shapes, types or values do not fit.
    """
    _check_ks(ks)
    relevant_I = _count_relevant(labels_I, gallery_labels_G)
    return _recall(ranked_matches(embeddings_IE, labels_I, max(ks), gallery_GE, gallery_labels_G), relevant_I, ks)


def precision_at_r(
    embeddings_IE: np.ndarray,
    labels_I: np.ndarray,
    *,
    gallery_GE: np.ndarray | None = None,
    gallery_labels_G: np.ndarray | None = None,
) -> PrecisionAtR:
    """Returns MAP@R and R-precision, R being the relevant items of each query; arguments as in ``recall_at_k``."""
    relevant_I = _count_relevant(labels_I, gallery_labels_G)
    num_ranks = max(int(relevant_I.max()), 1)
    return _precision(ranked_matches(embeddings_IE, labels_I, num_ranks, gallery_GE, gallery_labels_G), relevant_I)


def clustered_interval(
    correct_Q: np.ndarray, labels_Q: np.ndarray, *, seed: int, num_resamples: int = 2000, confidence: float = 0.95
) -> tuple[float, float]:
    """Returns a bootstrap interval (low, high) of the mean of ``correct_Q``, resampling whole classes.

    Images of one class succeed or fail together, so a binomial interval over images would be too narrow. The interval
    is bias-corrected and accelerated, its tails widened for the number of classes as Student's t is (BCa of Efron,
    expansion of Hesterberg): near 100 % Recall@1 the plain percentile interval covers too rarely.

    Args:
        correct_Q: [Q] bool or real, e.g. hits at rank 1.
        labels_Q: [Q] integers, at least two classes.
        seed: of the resamples.
        num_resamples: at least 1.
        confidence: in (0, 1).

    Raises:
        DataError: shapes do not fit, or there is only one class to resample.
    """
    sums_C, counts_C = _sums_by_class(correct_Q, labels_Q)
    if num_resamples < 1 or not 0 < confidence < 1:
        raise DataError(f"{num_resamples} resamples, confidence {confidence}", expected=">= 1, in (0, 1)")
    means = _resampled_means(sums_C, counts_C, np.random.default_rng(seed), num_resamples)
    return _bootstrap_interval(means, sums_C, counts_C, confidence)


class PairedTest(NamedTuple):
    """Two methods on the same queries."""

    difference: float
    """Mean of a minus mean of b."""
    low: float
    high: float
    """95 % interval of the difference, by a bootstrap over classes."""
    p_value: float
    """Two-sided, by swapping the methods within whole classes."""


def paired_test(
    correct_a_Q: np.ndarray, correct_b_Q: np.ndarray, labels_Q: np.ndarray, *, seed: int, num_resamples: int = 10_000
) -> PairedTest:
    """Returns whether method a beats method b beyond chance, on the same queries, clustered by class.

    Under the null hypothesis the two methods could be swapped within any class, which changes the sign of the class's
    summed gain; the p-value is that of SciPy's permutation test of these sums. All 2^C swaps are tried where there are
    no more than ``num_resamples``, random ones otherwise (counting the observed one, so that p is never 0).

    Args:
        correct_a_Q: [Q] bool or real.
        correct_b_Q: [Q], same queries in the same order.
        labels_Q: [Q] integers, at least two classes.
        seed: of resamples and swaps.
        num_resamples: of either, at least 1.

    Raises:
        DataError: shapes do not fit, or there is only one class.
    """
    from scipy import stats

    if np.shape(correct_a_Q) != np.shape(correct_b_Q):
        raise DataError(f"{np.shape(correct_a_Q)} and {np.shape(correct_b_Q)} results", expected="the same queries")
    if num_resamples < 1:
        raise DataError(f"{num_resamples} resamples", expected="at least 1")
    gains_C, counts_C = _sums_by_class(
        np.asarray(correct_a_Q, np.float64) - np.asarray(correct_b_Q, np.float64), labels_Q
    )
    generator = np.random.default_rng(seed)
    means = _resampled_means(gains_C, counts_C, generator, num_resamples)
    low, high = _bootstrap_interval(means, gains_C, counts_C, 0.95)
    swapped = stats.permutation_test(
        (gains_C,),
        lambda gains, axis: np.abs(gains.sum(axis)),
        permutation_type="samples",  # of one sample: independent signs
        alternative="greater",
        n_resamples=num_resamples,
        batch=_DRAWS_PER_BLOCK,
        vectorized=True,
        rng=generator,
    )
    return PairedTest(float(gains_C.sum() / counts_C.sum()), low, high, float(swapped.pvalue))


def _check_ks(ks: Sequence[int]) -> None:
    if not ks or min(ks) < 1:
        raise DataError(f"ks = {tuple(ks)}", expected="whole numbers >= 1")


def _recall(matches_IK: np.ndarray, relevant_I: np.ndarray, ks: Sequence[int]) -> Recall:
    first_hit_I = np.zeros(len(matches_IK), np.int64)
    if matches_IK.shape[1]:
        first_hit_I = np.where(matches_IK.any(1), matches_IK.argmax(1) + 1, 0)
    recall = {k: float(hits_at(first_hit_I, k).mean()) for k in ks}
    return Recall(recall, first_hit_I, int((relevant_I == 0).sum()))


def _precision(matches_IK: np.ndarray, relevant_I: np.ndarray) -> PrecisionAtR:
    ranks_K = np.arange(1, matches_IK.shape[1] + 1)
    inside_IK = matches_IK & (ranks_K <= relevant_I[:, None])
    precision_IK = np.cumsum(inside_IK, axis=1) / ranks_K
    divisor_I = np.maximum(relevant_I, 1)
    map_at_r = ((precision_IK * inside_IK).sum(1) / divisor_I).mean()
    return PrecisionAtR(float(map_at_r), float((inside_IK.sum(1) / divisor_I).mean()))


def _count_relevant(labels_I: np.ndarray, gallery_labels_G: np.ndarray | None) -> np.ndarray:
    """Gallery items of each query's class, the query itself left out."""
    labels_I = check_labels(labels_I, len(labels_I))
    gallery = labels_I if gallery_labels_G is None else check_labels(gallery_labels_G, len(gallery_labels_G))
    known, counts = np.unique(gallery, return_counts=True)
    place_I = np.minimum(np.searchsorted(known, labels_I), len(known) - 1)
    return np.where(known[place_I] == labels_I, counts[place_I], 0) - (gallery_labels_G is None)


def _sums_by_class(values_Q: np.ndarray, labels_Q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(values_Q, np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise DataError(f"results have shape {values.shape}", expected="one finite number per query")
    classes, place_Q = np.unique(check_labels(labels_Q, len(values)), return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"{len(classes)} classes", expected="at least two to resample")
    return np.bincount(place_Q, values), np.bincount(place_Q).astype(np.float64)


def _resampled_means(
    sums_C: np.ndarray, counts_C: np.ndarray, generator: np.random.Generator, num_resamples: int
) -> np.ndarray:
    """Means over queries after drawing as many classes as there are, with replacement."""
    num_classes = len(sums_C)
    means = []
    for drawn in _blocks(num_resamples):
        times_BC = generator.multinomial(num_classes, np.full(num_classes, 1 / num_classes), size=drawn)
        means.append((times_BC @ sums_C) / (times_BC @ counts_C))
    return np.concatenate(means)


def _bootstrap_interval(
    means_B: np.ndarray, sums_C: np.ndarray, counts_C: np.ndarray, confidence: float
) -> tuple[float, float]:
    """BCa interval with expanded tails: which quantiles of the resampled means bound the mean."""
    from scipy import stats

    num_classes, mean = len(sums_C), sums_C.sum() / counts_C.sum()
    tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    wanted = np.sqrt(num_classes / (num_classes - 1)) * stats.t.ppf(tails, num_classes - 1)
    slack = 1e-12 * max(1.0, abs(mean))  # sums in another order may differ in the last digit
    below = ((means_B < mean - slack).mean() + (means_B <= mean + slack).mean()) / 2
    bias = stats.norm.ppf(np.clip(below, 0.5 / len(means_B), 1 - 0.5 / len(means_B)))
    without_C = (sums_C.sum() - sums_C) / (counts_C.sum() - counts_C)  # the jackknife: each class left out once
    lean_C = without_C.mean() - without_C
    spread = (lean_C**2).sum() ** 1.5
    acceleration = (lean_C**3).sum() / (6 * spread) if spread > 0 else 0.0
    # Beyond the pole of the formula (a handful of classes), the end of the distribution.
    shifted = bias + wanted
    quantiles = stats.norm.cdf(bias + shifted / np.maximum(1 - acceleration * shifted, 1e-9))
    low, high = np.quantile(means_B, quantiles)
    return float(low), float(high)


def _blocks(total: int) -> list[int]:
    """Sizes of the blocks in which ``total`` draws are made: memory stays small with thousands of classes."""
    return [min(_DRAWS_PER_BLOCK, total - start) for start in range(0, total, _DRAWS_PER_BLOCK)]

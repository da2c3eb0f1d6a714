"""Recall@K, MAP@R and R-precision as defined in the literature, with bootstrap intervals over classes.

Rules where implementations differ:

self      a query is excluded from its own gallery by index, not by its score or rank
ties      cosine similarities of the float32 unit vectors that agree to 10 decimals are equal, and of equal items those
          of other classes are ranked first; so a tie counts against the query, and the order of files has no effect
one       a query whose class has no (other) image in the gallery is a miss in Recall@K, and 0 in MAP@R and R-precision;
          it counts in the mean, and the number of such queries is reported
R         R of MAP@R and R-precision is the number of items of the query's class in the gallery, without the query
K > G     a K larger than the gallery stands for the whole gallery
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from saga_dist.errors import DataError
from saga_dist.retrieval.exact_ranking import ranked_matches
from saga_dist.retrieval.normalized import check_labels

_RESAMPLES_PER_BLOCK = 256
"""Number of resamples that are computed at the same time."""


@dataclass(frozen=True, slots=True)
class Recall:
    """Recall@K over all queries."""

    recall: dict[int, float]
    """Recall@K in [0, 1], by K: the share of queries with an item of their class among the K nearest."""
    first_hit_I: np.ndarray
    """int64 [I], rank (from 1) of the nearest item of each query's class; 0 when it is beyond the largest K."""
    num_unfindable: int
    """Number of queries whose class has no (other) image in the gallery."""

    @property
    def correct_at_1_I(self) -> np.ndarray:  # noqa: N802  (shape suffix)
        """bool [I], True where the nearest item has the query's class."""
        return hits_at(self.first_hit_I, 1)


def hits_at(first_hit_I: np.ndarray, k: int) -> np.ndarray:
    """Returns bool [I], True where an item of the query's class is among the k nearest.

    Args:
        first_hit_I: integers [I], rank (from 1) of the nearest item of the query's class; 0 for none.
        k: number of nearest items, at least 1.
    """
    return (first_hit_I > 0) & (first_hit_I <= k)


class PrecisionAtR(NamedTuple):
    """Metrics over the first R ranks of each query, where R is its number of relevant items."""

    map_at_r: float
    """Mean average precision at R, in [0, 1]."""
    r_precision: float
    """Precision at R, in [0, 1]."""


class RankingMetrics(NamedTuple):
    """All metrics of one ranking."""

    recall: Recall
    """Recall@K."""
    precision: PrecisionAtR
    """MAP@R and R-precision."""


def ranking_metrics(
    embeddings_IE: np.ndarray,
    labels_I: np.ndarray,
    *,
    ks: Sequence[int] = (1, 2, 4, 8),
    gallery_GE: np.ndarray | None = None,
    gallery_labels_G: np.ndarray | None = None,
) -> RankingMetrics:
    """Returns Recall@K, MAP@R and R-precision of one ranking; arguments and errors are those of ``recall_at_k``."""
    _check_ks(ks)
    relevant_I = _count_relevant(labels_I, gallery_labels_G)
    num_ranks = max(*ks, int(relevant_I.max()))
    matches_IK = ranked_matches(embeddings_IE, labels_I, num_ranks, gallery_GE, gallery_labels_G)
    return RankingMetrics(_recall(matches_IK[:, : max(ks)], relevant_I, ks), _precision(matches_IK, relevant_I))


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
        embeddings_IE: [I, E], floating, embeddings of the queries. Items are ranked by cosine similarity, so norms have
            no effect.
        labels_I: [I], integers, class of each query.
        ks: values of K, each at least 1; a K larger than the gallery stands for the whole gallery.
        gallery_GE: [G, E], embeddings of the gallery; None when the queries are the gallery, each one excluded from its
            own ranking by index.
        gallery_labels_G: [G], integers, class of each gallery item; given together with ``gallery_GE``.

    Raises:
        DataError: shapes, dtypes or values do not fit.
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
    """Returns MAP@R and R-precision; arguments and errors are those of ``recall_at_k``."""
    relevant_I = _count_relevant(labels_I, gallery_labels_G)
    num_ranks = max(int(relevant_I.max()), 1)
    return _precision(ranked_matches(embeddings_IE, labels_I, num_ranks, gallery_GE, gallery_labels_G), relevant_I)


def clustered_interval(
    correct_Q: np.ndarray, labels_Q: np.ndarray, *, seed: int, num_resamples: int = 2000, confidence: float = 0.95
) -> tuple[float, float]:
    """Returns a bootstrap interval (low, high) of the mean of ``correct_Q``, from resamples of whole classes.

    The results of images of one class are correlated, so a binomial interval over images would be too narrow. The
    interval is bias-corrected and accelerated (BCa, Efron), with its tails widened for the number of classes like
    those of Student's t (expansion of Hesterberg). Near 100 % Recall@1, the plain percentile interval would have too
    low a coverage.

    Args:
        correct_Q: [Q], bool or real, e.g. hits at rank 1.
        labels_Q: [Q], integers, class of each query, at least two classes.
        seed: seed of the resamples.
        num_resamples: number of resamples, at least 1.
        confidence: confidence level, in (0, 1).

    Raises:
        DataError: shapes do not fit, an argument is out of range, or there is only one class.
    """
    sums_C, counts_C = _sums_by_class(correct_Q, labels_Q)
    if num_resamples < 1 or not 0 < confidence < 1:
        raise DataError(f"{num_resamples} resamples, confidence {confidence}", expected=">= 1, in (0, 1)")
    means = _resampled_means(sums_C, counts_C, np.random.default_rng(seed), num_resamples)
    return _bootstrap_interval(means, sums_C, counts_C, confidence)


class PairedTest(NamedTuple):
    """Comparison of two methods a and b on the same queries."""

    difference: float
    """Mean result of a minus mean result of b."""
    low: float
    """Lower end of the 95 % interval of the difference, by a bootstrap over classes."""
    high: float
    """Upper end of this interval."""
    p_value: float
    """Two-sided p-value of a permutation test that swaps the methods within whole classes."""


def paired_test(
    correct_a_Q: np.ndarray, correct_b_Q: np.ndarray, labels_Q: np.ndarray, *, seed: int, num_resamples: int = 10_000
) -> PairedTest:
    """Returns the difference of two methods on the same queries, with an interval and a p-value, clustered by class.

    Under the null hypothesis, swapping the two methods within a class changes the sign of the class's summed gain. The
    p-value is that of SciPy's permutation test of these sums. All 2^C swaps are evaluated when there are at most
    ``num_resamples``, otherwise random ones (with the observed one among them, so that p is never 0).

    Args:
        correct_a_Q: [Q], bool or real, results of method a.
        correct_b_Q: [Q], results of method b for the same queries in the same order.
        labels_Q: [Q], integers, class of each query, at least two classes.
        seed: seed of the resamples and of the swaps.
        num_resamples: number of resamples, and largest number of swaps, at least 1.

    Raises:
        DataError: shapes do not fit, ``num_resamples`` is below 1, or there is only one class.
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
        permutation_type="samples",  # with a single sample, SciPy permutes the signs of its elements
        alternative="greater",
        n_resamples=num_resamples,
        batch=_RESAMPLES_PER_BLOCK,
        vectorized=True,
        rng=generator,
    )
    return PairedTest(float(gains_C.sum() / counts_C.sum()), low, high, float(swapped.pvalue))


def _check_ks(ks: Sequence[int]) -> None:
    """Raises ``DataError`` unless there are values of K and all are at least 1."""
    if not ks or min(ks) < 1:
        raise DataError(f"ks = {tuple(ks)}", expected="whole numbers >= 1")


def _recall(matches_IK: np.ndarray, relevant_I: np.ndarray, ks: Sequence[int]) -> Recall:
    """Returns Recall@K from matches, bool [I, K], and the number of relevant items of each query."""
    first_hit_I = np.zeros(len(matches_IK), np.int64)
    if matches_IK.shape[1]:
        first_hit_I = np.where(matches_IK.any(1), matches_IK.argmax(1) + 1, 0)
    recall = {k: float(hits_at(first_hit_I, k).mean()) for k in ks}
    return Recall(recall, first_hit_I, int((relevant_I == 0).sum()))


def _precision(matches_IK: np.ndarray, relevant_I: np.ndarray) -> PrecisionAtR:
    """Returns MAP@R and R-precision from matches, bool [I, K], and the number of relevant items R of each query."""
    ranks_K = np.arange(1, matches_IK.shape[1] + 1)
    inside_IK = matches_IK & (ranks_K <= relevant_I[:, None])
    precision_IK = np.cumsum(inside_IK, axis=1) / ranks_K
    divisor_I = np.maximum(relevant_I, 1)
    map_at_r = ((precision_IK * inside_IK).sum(1) / divisor_I).mean()
    return PrecisionAtR(float(map_at_r), float((inside_IK.sum(1) / divisor_I).mean()))


def _count_relevant(labels_I: np.ndarray, gallery_labels_G: np.ndarray | None) -> np.ndarray:
    """Returns the number of gallery items of each query's class, without the query itself, [I]."""
    labels_I = check_labels(labels_I, len(labels_I))
    gallery = labels_I if gallery_labels_G is None else check_labels(gallery_labels_G, len(gallery_labels_G))
    classes, counts = np.unique(gallery, return_counts=True)
    index_I = np.minimum(np.searchsorted(classes, labels_I), len(classes) - 1)
    return np.where(classes[index_I] == labels_I, counts[index_I], 0) - (gallery_labels_G is None)


def _sums_by_class(values_Q: np.ndarray, labels_Q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sum of the values and the number of queries of each class, [C] each.

    Raises:
        DataError: shapes do not fit, a value is not finite, or there is only one class.
    """
    values = np.asarray(values_Q, np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise DataError(f"results have shape {values.shape}", expected="one finite number per query")
    classes, index_Q = np.unique(check_labels(labels_Q, len(values)), return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"{len(classes)} classes", expected="at least two to resample")
    return np.bincount(index_Q, values), np.bincount(index_Q).astype(np.float64)


def _resampled_means(
    sums_C: np.ndarray, counts_C: np.ndarray, generator: np.random.Generator, num_resamples: int
) -> np.ndarray:
    """Returns the means over queries of resamples of C classes with replacement, [num_resamples]."""
    num_classes = len(sums_C)
    means = []
    for size in _block_sizes(num_resamples):
        times_BC = generator.multinomial(num_classes, np.full(num_classes, 1 / num_classes), size=size)
        means.append((times_BC @ sums_C) / (times_BC @ counts_C))
    return np.concatenate(means)


def _bootstrap_interval(
    means_B: np.ndarray, sums_C: np.ndarray, counts_C: np.ndarray, confidence: float
) -> tuple[float, float]:
    """Returns the BCa interval with expanded tails: two quantiles of the resampled means."""
    from scipy import stats

    num_classes, mean = len(sums_C), sums_C.sum() / counts_C.sum()
    tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    expanded = np.sqrt(num_classes / (num_classes - 1)) * stats.t.ppf(tails, num_classes - 1)
    tolerance = 1e-12 * max(1.0, abs(mean))  # sums in another order may differ in the last digit
    below = ((means_B < mean - tolerance).mean() + (means_B <= mean + tolerance).mean()) / 2
    bias = stats.norm.ppf(np.clip(below, 0.5 / len(means_B), 1 - 0.5 / len(means_B)))
    jackknife_C = (sums_C.sum() - sums_C) / (counts_C.sum() - counts_C)  # mean without each class
    deviation_C = jackknife_C.mean() - jackknife_C
    spread = (deviation_C**2).sum() ** 1.5
    acceleration = (deviation_C**3).sum() / (6 * spread) if spread > 0 else 0.0
    # With few classes the denominator may reach its pole; then the quantile is an end of the distribution.
    shifted = bias + expanded
    quantiles = stats.norm.cdf(bias + shifted / np.maximum(1 - acceleration * shifted, 1e-9))
    low, high = np.quantile(means_B, quantiles)
    return float(low), float(high)


def _block_sizes(total: int) -> list[int]:
    """Returns the sizes of the blocks of ``total`` resamples, which bound the memory with thousands of classes."""
    return [min(_RESAMPLES_PER_BLOCK, total - start) for start in range(0, total, _RESAMPLES_PER_BLOCK)]

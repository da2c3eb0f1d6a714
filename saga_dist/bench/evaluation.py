"""Retrieval metrics compared with pytorch-metric-learning's AccuracyCalculator and with a plain torch top-k.

The lower bound of the time is the product of all pairs, 2 x 37,150^2 x 4096 = 11.3 TFLOP: at the 100 GFLOP/s of one
core of this kind 113 s in float32, half of it when each pair is multiplied once, and a quarter in bfloat16 at 200
GFLOP/s, 28 s. k-means is faiss's on both sides, 30 s.

Small sets are compared with plain torch at several sizes. There both sides multiply all pairs in float32; ours also
proves the order, in float64 where float32 cannot tell, which torch does not. Rows "products" compare our two ways.

The embeddings are synthetic: one cloud per class, with classes so close that about half of the R nearest are right.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from saga_dist.bench.common import (
    BenchRow,
    Report,
    Size,
    in_own_process,
    in_turns,
    less_is_better,
    one_thread,
    peak_memory,
)
from saga_dist.retrieval.clusters import nmi
from saga_dist.retrieval.exact_ranking import ranked_matches
from saga_dist.retrieval.metrics import ranking_metrics

RECALL_AT = (1, 2, 4, 8)
"""Values K of Recall@K."""
TOLERANCE = 1e-4
"""Largest allowed difference of a metric between saga_dist and the torch top-k."""
SWAPPED_QUERIES = 2
"""Queries that may differ from AccuracyCalculator, which ranks by float32 distances and swaps nearly equal ones."""
MEMORY_BAR_MB = 1000.0
"""Target for the peak memory above the embeddings, in MB."""
NUM_RANKS = 24
"""Ranks of the comparison of our two ways: those of MAP@R with 25 images a class."""
TORCH_BLOCK = 1024
"""Queries per matrix product of the torch top-k."""


@dataclass(frozen=True, slots=True)
class EvaluationCase:
    """Sizes of the embeddings."""

    num_images: int
    """I, number of embeddings."""
    width: int
    """E, width of an embedding."""
    num_classes: int
    """C, number of classes."""


LARGE = {
    Size.TINY: EvaluationCase(60, 8, 6),
    Size.QUICK: EvaluationCase(5000, 1024, 200),
    Size.FULL: EvaluationCase(37150, 4096, 1486),
}
"""Embeddings of all rows but those of small sets."""
_SMALL = tuple(EvaluationCase(num_images, 1024, num_images // 25) for num_images in (1000, 2500, 5000, 10000, 25000))
SMALL = {Size.TINY: (EvaluationCase(40, 8, 4),), Size.QUICK: _SMALL[:4], Size.FULL: _SMALL}
"""Small sets, 25 images a class, on both sides of ``small_ranking.MOST_PRODUCTS``."""


def run(size: Size) -> Report:
    """Returns processor seconds and peak memory for Recall@K, MAP@R and NMI."""
    work = LARGE[size]
    embeddings, labels = _made_up(work)
    sides = _EvaluationSides(embeddings, labels)
    repeats = 3 if size is Size.QUICK else 1
    with one_thread():
        small = _EvaluationSides(*_made_up(EvaluationCase(60, 8, 6)))
        for warm_up in (small.ours, small.accuracy_calculator, small.torch_top_k):  # loads the libraries
            warm_up()
        rows = [
            _row("all, AccuracyCalculator", sides.ours, sides.accuracy_calculator, repeats, work.num_images),
            _row("R@K, MAP@R, torch", sides.ours_without_nmi, sides.torch_top_k, repeats, None),
        ]
    peaks = [in_own_process(_peak, name, work) / 2**20 for name in ("ours", "accuracy_calculator")]
    met = None if size is Size.TINY else peaks[0] < MEMORY_BAR_MB
    ratio = peaks[1] / max(peaks[0], 1e-9)
    rows.append(BenchRow("memory", peaks[0], peaks[1], "MB", ratio, None, met, equal=rows[0].equal))
    for small_set in SMALL[size]:
        rows += _small_rows(small_set, 1 if size is Size.TINY else 3)
    rows.append(_small_memory_row(SMALL[size][len(SMALL[size]) // 2]))
    return Report(
        bench="evaluation",
        alternative="AccuracyCalculator and torch",
        rows=tuple(rows),
        notes=(
            f"{work.num_images:,} x {work.width} embeddings, {work.num_classes:,} classes; processor seconds",
            f"memory: peak above the embeddings, to stay below {MEMORY_BAR_MB:.0f} MB",
            "small sets: 1,024 wide; products: multiplying all pairs against selecting candidates, both exact",
        ),
    )


def _small_memory_row(work: EvaluationCase) -> BenchRow:
    """Returns the row of the peak memory of one small set, against torch."""
    sides = ("ours_without_nmi", "torch_top_k")
    ours, other = (max(in_own_process(_peak, side, work) / 2**20, 0.1) for side in sides)
    return less_is_better(f"{work.num_images:,}: memory, torch", ours, other, "MB", equal=True)


def _small_rows(work: EvaluationCase, repeats: int) -> list[BenchRow]:
    """Returns the rows of one small set: time against torch, and of our two ways of ranking."""
    sides = _EvaluationSides(*_made_up(work))
    with one_thread():
        against_torch = _row(
            f"{work.num_images:,}: torch", sides.ours_without_nmi, sides.torch_top_k, repeats, None, bar=None
        )
        products, candidates = in_turns(sides.matches_by_products, sides.matches_by_candidates, repeats, warm_up=False)
    equal = bool((products.results[-1] == candidates.results[-1]).all())
    return [
        against_torch,
        less_is_better(f"{work.num_images:,}: products", products.cpu, candidates.cpu, "s", equal=equal),
    ]


class _EvaluationSides:
    """The same metrics computed in three ways; each method returns the metrics it has by name.

    Args:
        embeddings: float32 [I, E].
        labels: int64 [I].
    """

    def __init__(self, embeddings: np.ndarray, labels: np.ndarray) -> None:
        self._embeddings, self._labels = embeddings, labels

    def ours(self) -> dict[str, float]:
        """Returns Recall@K, MAP@R and NMI of saga_dist."""
        return self.ours_without_nmi() | {"nmi": nmi(self._embeddings, self._labels)}

    def ours_without_nmi(self) -> dict[str, float]:
        """Returns Recall@K and MAP@R of saga_dist."""
        found, precision = ranking_metrics(self._embeddings, self._labels, ks=RECALL_AT)
        return {f"recall_at_{k}": value for k, value in found.recall.items()} | {"map_at_r": precision.map_at_r}

    def matches_by_products(self) -> np.ndarray:
        """Returns the matches at the first ranks, by products of all pairs."""
        return ranked_matches(self._embeddings, self._labels, NUM_RANKS, most_products=sys.maxsize)

    def matches_by_candidates(self) -> np.ndarray:
        """Returns the matches at the first ranks, by candidates selected block by block."""
        return ranked_matches(self._embeddings, self._labels, NUM_RANKS, most_products=0)

    def accuracy_calculator(self) -> dict[str, float]:
        """Returns Recall@1, MAP@R and NMI of pytorch-metric-learning, which has no Recall@K for other K."""
        from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

        names = {"precision_at_1": "recall_at_1", "mean_average_precision_at_r": "map_at_r", "NMI": "nmi"}
        calculator = AccuracyCalculator(include=tuple(names), k="max_bin_count", device=torch.device("cpu"))
        found = calculator.get_accuracy(torch.from_numpy(self._embeddings), torch.from_numpy(self._labels))
        return {ours: float(found[theirs]) for theirs, ours in names.items()}

    def torch_top_k(self) -> dict[str, float]:
        """Returns Recall@K and MAP@R from top-k over blocks of a torch matrix product."""
        values_IE = torch.nn.functional.normalize(torch.from_numpy(self._embeddings), dim=1)
        labels_I = torch.from_numpy(self._labels)
        relevant_I = labels_I.bincount()[labels_I] - 1
        num_ranks = max(int(relevant_I.max()), *RECALL_AT)
        hits = dict.fromkeys(RECALL_AT, 0.0)
        total = 0.0
        ranks_K = torch.arange(1, num_ranks + 1)
        for start in range(0, len(values_IE), TORCH_BLOCK):
            rows = torch.arange(start, min(start + TORCH_BLOCK, len(values_IE)))
            scores_RI = values_IE[rows] @ values_IE.T
            scores_RI[torch.arange(len(rows)), rows] = -torch.inf
            matches_RK = labels_I[scores_RI.topk(num_ranks).indices] == labels_I[rows, None]
            for k in RECALL_AT:
                hits[k] += matches_RK[:, :k].any(1).sum().item()
            inside_RK = (matches_RK & (ranks_K <= relevant_I[rows, None])).double()
            total += (((inside_RK.cumsum(1) / ranks_K) * inside_RK).sum(1) / relevant_I[rows]).sum().item()
        figures = {f"recall_at_{k}": count / len(values_IE) for k, count in hits.items()}
        return figures | {"map_at_r": total / len(values_IE)}


def _row(
    case: str,
    ours: Callable[[], dict[str, float]],
    other: Callable[[], dict[str, float]],
    repeats: int,
    num_images: int | None,
    bar: float | None = 1.0,
) -> BenchRow:
    timing_ours, timing_other = in_turns(ours, other, repeats, warm_up=False)
    found, expected = timing_ours.results[-1], timing_other.results[-1]
    differences = {name: abs(found[name] - value) for name, value in expected.items()}
    rank_gap = TOLERANCE if num_images is None else SWAPPED_QUERIES / num_images
    nmi_gap = 0.0 if num_images is None else 2 / num_images**0.5  # k-means starts from other random points on each side
    equal = all(gap <= (nmi_gap if name == "nmi" else rank_gap) for name, gap in differences.items())
    detail = {**found, **{f"difference_{name}": gap for name, gap in differences.items()}}
    return less_is_better(case, timing_ours.cpu, timing_other.cpu, "s", equal=equal, bar=bar, detail=detail)


def _made_up(work: EvaluationCase) -> tuple[np.ndarray, np.ndarray]:
    """Returns synthetic embeddings, float32 [I, E] of norm 1, and their labels, int64 [I].

    The norm is 1 because AccuracyCalculator ranks by distance, which then agrees with the cosine.
    """
    rng = np.random.default_rng(0)
    labels = np.arange(work.num_images) % work.num_classes
    centres = rng.standard_normal((work.num_classes, work.width), dtype=np.float32)
    embeddings = rng.standard_normal((work.num_images, work.width), dtype=np.float32)
    embeddings += 1.9 * work.width**-0.25 * centres[labels]
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings, labels


def _peak(side: str, work: EvaluationCase) -> int:
    """Returns the peak memory of one side above the embeddings in bytes; runs in a separate process."""
    embeddings, labels = _made_up(work)
    small = _EvaluationSides(*_made_up(EvaluationCase(60, 8, 6)))
    sides = _EvaluationSides(embeddings, labels)
    with one_thread():
        getattr(small, side)()  # loads the libraries before the measurement
        return peak_memory(getattr(sides, side))

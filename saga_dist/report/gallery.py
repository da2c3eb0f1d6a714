"""Retrieval examples: a few queries with their nearest images.

The queries are chosen by fixed rules, so that they are not a flattering selection: half of them correct, half wrong, at
most one per class in each half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from saga_dist.report.ranking import Ranking
from saga_dist.report.shown_images import ImageRenderer, ShownImage


@dataclass(frozen=True, slots=True)
class Hit:
    """A retrieved image."""

    image: ShownImage
    """The image."""
    right: bool
    """True when the image has the query's class."""
    score: float
    """Cosine similarity with the query."""


@dataclass(frozen=True, slots=True)
class GalleryRow:
    """A query and its nearest images."""

    query: ShownImage
    """The query."""
    hits: list[Hit]
    """Nearest images, best first."""


@dataclass(frozen=True, slots=True)
class Gallery:
    """Retrieval examples of one split."""

    rows: list[GalleryRow]
    """Queries with their nearest images."""
    num_queries: int
    """Queries that were evaluated."""
    num_available: int
    """Queries of the split."""
    num_right: int
    """Evaluated queries whose nearest image has their class."""
    searched: str
    """Description of the set that the queries searched, for the sentence "They search …"."""


def build_gallery(ranking: Ranking, renderer: ImageRenderer, *, num_rows: int) -> Gallery:
    """Returns the retrieval examples of a split.

    Args:
        ranking: queries with their nearest images.
        renderer: renderer of the images.
        num_rows: number of queries to show.
    """
    right_QK = ranking.right_QK
    rows = [
        GalleryRow(
            renderer.render(ranking.queries, int(ranking.chosen_Q[query])),
            [
                Hit(renderer.render(ranking.others, int(image)), bool(right), float(score))
                for image, right, score in zip(
                    ranking.found_QK[query], right_QK[query], ranking.scores_QK[query], strict=True
                )
            ],
        )
        for query in choose_rows(right_QK, ranking.scores_QK, ranking.labels_Q, num_rows)
    ]
    return Gallery(
        rows,
        num_queries=len(ranking.chosen_Q),
        num_available=len(ranking.queries),
        num_right=int(right_QK[:, 0].sum()),
        searched=f"a gallery of {ranking.num_searched:,} images" if ranking.has_gallery else "each other",
    )


def choose_rows(right_QK: np.ndarray, scores_QK: np.ndarray, labels_Q: np.ndarray, num_rows: int) -> list[int]:
    """Returns the indices of the queries to show: correct ones, then wrong ones, at most one per class in each half.

    A query is correct when its nearest image has its class. Correct queries are ordered by the number of correct hits,
    then by the highest cosine of a wrong hit; wrong queries by the cosine of the nearest image. Ties go to the lower
    index. When one half has too few queries, the other half has more.

    Args:
        right_QK: bool [Q, K], True for hits of the query's class.
        scores_QK: floating [Q, K], cosines, best first.
        labels_Q: integer [Q], class of each query.
        num_rows: number of queries to choose.
    """
    strongest_wrong_Q = np.where(right_QK, -np.inf, scores_QK).max(1)
    right = sorted(
        np.flatnonzero(right_QK[:, 0]).tolist(), key=lambda q: (-right_QK[q].sum(), -strongest_wrong_Q[q], q)
    )
    wrong = sorted(np.flatnonzero(~right_QK[:, 0]).tolist(), key=lambda q: (-scores_QK[q, 0], q))
    right, wrong = _one_per_class(right, labels_Q), _one_per_class(wrong, labels_Q)
    num_right = min(len(right), max((num_rows + 1) // 2, num_rows - len(wrong)))
    return right[:num_right] + wrong[: num_rows - num_right]


def _one_per_class(queries: Sequence[int], labels_Q: np.ndarray) -> list[int]:
    first: dict[int, int] = {}
    for query in queries:
        first.setdefault(int(labels_Q[query]), query)
    return list(first.values())

"""The pairs of classes that are confused most often at rank 1, each with a query and its wrong neighbour."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from saga_dist.report.ranking import Ranking
from saga_dist.report.shown_images import ImageRenderer, ShownImage
from saga_dist.report.text import shown_name

NUM_CONFUSIONS = 12
"""Largest number of confused pairs of classes that are shown."""


@dataclass(frozen=True, slots=True)
class Confusion:
    """Two classes, and the number of queries of one whose nearest image is of the other."""

    class_a: str
    """Class of the query of the example, which is the one with more confused queries."""
    class_b: str
    """Class of its nearest image."""
    a_for_b: int
    """Queries of class a whose nearest image is of class b."""
    b_for_a: int
    """Queries of class b whose nearest image is of class a."""
    num_a: int
    """Queries of class a."""
    num_b: int
    """Queries of class b."""
    query: ShownImage
    """A query of class a: of those whose nearest image is of class b, the one with the highest cosine."""
    neighbour: ShownImage
    """Its nearest image, of class b."""
    score: float
    """Cosine similarity of the two images."""


def build_confusions(ranking: Ranking, renderer: ImageRenderer, limit: int = NUM_CONFUSIONS) -> list[Confusion]:
    """Returns the most confused pairs of classes, most frequent first.

    Args:
        ranking: queries with their nearest images.
        renderer: renderer of the images.
        limit: largest number of pairs.
    """
    names, sizes = ranking.queries.class_names, Counter(ranking.labels_Q.tolist())
    confusions = []
    for pair, queries_ab, queries_ba in confused_pairs(ranking.labels_Q, ranking.found_labels_QK[:, 0])[:limit]:
        (a, more), (b, fewer) = sorted(zip(pair, (queries_ab, queries_ba), strict=True), key=lambda side: -len(side[1]))
        query = max(more, key=lambda one: float(ranking.scores_QK[one, 0]))
        confusions.append(
            Confusion(
                class_a=shown_name(names[a]),
                class_b=shown_name(names[b]),
                a_for_b=len(more),
                b_for_a=len(fewer),
                num_a=sizes[a],
                num_b=sizes[b],
                query=renderer.render(ranking.queries, int(ranking.chosen_Q[query])),
                neighbour=renderer.render(ranking.others, int(ranking.found_QK[query, 0])),
                score=float(ranking.scores_QK[query, 0]),
            )
        )
    return confusions


def confused_pairs(
    labels_Q: np.ndarray, nearest_labels_Q: np.ndarray
) -> list[tuple[tuple[int, int], list[int], list[int]]]:
    """Returns the confused pairs of classes, those with most confused queries first.

    Each item is ((a, b), queries of class a whose nearest image is of b, queries of class b whose nearest image is of
    a), with a < b.

    Args:
        labels_Q: integer [Q], class of each query.
        nearest_labels_Q: integer [Q], class of the nearest image of each query.
    """
    mistakes: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
    for query, (own, other) in enumerate(zip(labels_Q.tolist(), nearest_labels_Q.tolist(), strict=True)):
        if own != other:
            sides = mistakes.setdefault((min(own, other), max(own, other)), ([], []))
            sides[own > other].append(query)
    ranked = sorted(mistakes.items(), key=lambda item: (-len(item[1][0]) - len(item[1][1]), item[0]))
    return [(pair, ab, ba) for pair, (ab, ba) in ranked]

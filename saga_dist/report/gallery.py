"""Retrieval one can look at: a few queries with their nearest images, and the classes that are taken for each other.

Which rows are shown is decided by rules, not by eye, so that nobody picks the flattering ones: half of them answered
rightly, half wrongly, at most one per class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from saga_dist.data.image_sets import ImageSet
from saga_dist.models.encoder import Encoder
from saga_dist.report.attention import pooler_maps
from saga_dist.report.images import heat, picture
from saga_dist.report.sources import evenly
from saga_dist.report.text import shown_name

NUM_HITS = 5
NUM_CONFUSIONS = 10
_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Shown:
    """One picture on the page."""

    picture: str
    """Data URI."""
    heat: str
    """Data URI of the pooler's attention; empty without an attention pooler."""
    class_name: str
    name: str


@dataclass(frozen=True, slots=True)
class Hit:
    """A retrieved image."""

    image: Shown
    right: bool
    score: float
    """Cosine."""


@dataclass(frozen=True, slots=True)
class GalleryRow:
    """A query and what it found."""

    query: Shown
    hits: list[Hit]

    @property
    def right(self) -> bool:
        """Whether the nearest image is of the query's class."""
        return self.hits[0].right


@dataclass(frozen=True, slots=True)
class Confusion:
    """Two classes, and how often a query of one has its nearest image in the other."""

    class_a: str
    class_b: str
    a_for_b: int
    """Queries of a whose nearest image is of b."""
    b_for_a: int
    num_a: int
    num_b: int
    example: tuple[Shown, Shown]
    """A query and the image it was taken for."""


@dataclass(frozen=True, slots=True)
class Gallery:
    """All that is shown of retrieval on one split."""

    rows: list[GalleryRow]
    confusions: list[Confusion]
    num_queries: int
    """Queries that were asked."""
    num_available: int
    """Queries there are."""
    num_right: int
    searched: str
    """What the queries searched, in words."""


def build_gallery(
    encoder: Encoder, queries: ImageSet, gallery: ImageSet | None, *, num_rows: int, max_images: int
) -> Gallery:
    """Returns gallery rows and confusable classes of a split.

    Args:
        encoder: the run's.
        queries: the split's images.
        gallery: what they search, where the data has a gallery of its own; None means each other.
        num_rows: rows to show.
        max_images: of either set that are embedded, evenly over it; all where there are not more.
    """
    chosen = np.array(evenly(len(queries), max_images), np.int64)
    queries_QE = _embed(encoder, queries, chosen)
    others, found, found_GE = queries, chosen, queries_QE
    if gallery is not None:
        others, found = gallery, np.array(evenly(len(gallery), max_images), np.int64)
        found_GE = _embed(encoder, gallery, found)
    scores_QK, places_QK = nearest(queries_QE, found_GE, NUM_HITS, exclude_self=gallery is None)
    labels_Q = queries.labels_I[chosen]
    found_labels_QK = others.labels_I[found][places_QK]
    right_QK = found_labels_QK == labels_Q[:, None]
    painter = _Painter(encoder)
    rows = [
        GalleryRow(
            painter.show(queries, int(chosen[query])),
            [
                Hit(painter.show(others, int(found[place])), bool(right), float(score))
                for place, right, score in zip(places_QK[query], right_QK[query], scores_QK[query], strict=True)
            ],
        )
        for query in choose_rows(right_QK, scores_QK, labels_Q, num_rows)
    ]
    sizes = Counter(labels_Q.tolist())
    confusions = []
    for (a, b), queries_ab, queries_ba in confused_pairs(labels_Q, found_labels_QK[:, 0])[:NUM_CONFUSIONS]:
        query = (queries_ab or queries_ba)[0]
        confusions.append(
            Confusion(
                shown_name(queries.class_names[a]),
                shown_name(queries.class_names[b]),
                len(queries_ab),
                len(queries_ba),
                sizes[a],
                sizes[b],
                (painter.show(queries, int(chosen[query])), painter.show(others, int(found[places_QK[query, 0]]))),
            )
        )
    return Gallery(
        rows,
        confusions,
        num_queries=len(chosen),
        num_available=len(queries),
        num_right=int(right_QK[:, 0].sum()),
        searched="each other" if gallery is None else f"a gallery of {len(found):,} images",
    )


def nearest(
    queries_QE: np.ndarray, gallery_GE: np.ndarray, k: int, *, exclude_self: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns cosines and gallery positions [Q, K] of the nearest images, best first; the earlier one wins a tie.

    Args:
        queries_QE: l2-normalised.
        gallery_GE: l2-normalised.
        k: K; fewer where the gallery is smaller.
        exclude_self: query i does not find item i.
    """
    k = min(k, len(gallery_GE) - exclude_self)
    scores, places = [], []
    for start in range(0, len(queries_QE), _BLOCK):
        block_QG = queries_QE[start : start + _BLOCK].astype(np.float64) @ gallery_GE.T.astype(np.float64)
        if exclude_self:
            rows = np.arange(len(block_QG))
            block_QG[rows, start + rows] = -np.inf
        order_QK = np.argsort(-block_QG, axis=1, kind="stable")[:, :k]
        scores.append(np.take_along_axis(block_QG, order_QK, axis=1))
        places.append(order_QK)
    return np.concatenate(scores), np.concatenate(places)


def choose_rows(right_QK: np.ndarray, scores_QK: np.ndarray, labels_Q: np.ndarray, num_rows: int) -> list[int]:
    """Returns the queries to show: half answered rightly, then half wrongly, at most one per class in each half.

    Right ones: most right among the hits first; among equals those with the strongest wrong hit, which had a look-alike
    to resist. Wrong ones: the surest mistakes (highest cosine at rank 1) first. Ties go to the lower index. Where one
    half has too few, the other fills up.

    Args:
        right_QK: bool.
        scores_QK: cosines, best first.
        labels_Q: class of each query.
        num_rows: queries to choose.
    """
    strongest_wrong_Q = np.where(right_QK, -np.inf, scores_QK).max(1)
    right = sorted(
        np.flatnonzero(right_QK[:, 0]).tolist(), key=lambda q: (-right_QK[q].sum(), -strongest_wrong_Q[q], q)
    )
    wrong = sorted(np.flatnonzero(~right_QK[:, 0]).tolist(), key=lambda q: (-scores_QK[q, 0], q))
    right, wrong = _one_per_class(right, labels_Q), _one_per_class(wrong, labels_Q)
    num_right = min(len(right), max((num_rows + 1) // 2, num_rows - len(wrong)))
    return right[:num_right] + wrong[: num_rows - num_right]


def confused_pairs(
    labels_Q: np.ndarray, nearest_labels_Q: np.ndarray
) -> list[tuple[tuple[int, int], list[int], list[int]]]:
    """Returns ((a, b), queries of a found in b, queries of b found in a), a < b, most confused first.

    Args:
        labels_Q: class of each query.
        nearest_labels_Q: class of its nearest image.
    """
    mistakes: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
    for query, (own, other) in enumerate(zip(labels_Q.tolist(), nearest_labels_Q.tolist(), strict=True)):
        if own != other:
            sides = mistakes.setdefault((min(own, other), max(own, other)), ([], []))
            sides[own > other].append(query)
    ranked = sorted(mistakes.items(), key=lambda item: (-len(item[1][0]) - len(item[1][1]), item[0]))
    return [(pair, ab, ba) for pair, (ab, ba) in ranked]


class _Painter:
    """Makes each picture and its overlay once."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._made: dict[tuple[int, int], Shown] = {}

    def show(self, images: ImageSet, index: int) -> Shown:
        key = (id(images), index)
        if key not in self._made:
            image = images.image(index)
            maps = pooler_maps(self._encoder, [image])
            self._made[key] = Shown(
                picture(image),
                heat(maps[0]) if maps else "",
                shown_name(images.class_names[images.labels_I[index]]),
                shown_name(images.name(index)),
            )
        return self._made[key]


def _one_per_class(queries: Sequence[int], labels_Q: np.ndarray) -> list[int]:
    first: dict[int, int] = {}
    for query in queries:
        first.setdefault(int(labels_Q[query]), query)
    return list(first.values())


def _embed(encoder: Encoder, images: ImageSet, chosen: np.ndarray, batch: int = 64) -> np.ndarray:
    """Embeddings [Q, E] of chosen images; no more than ``batch`` of them are open at once."""
    return np.concatenate(
        [
            encoder.encode([images.image(int(index)) for index in chosen[start : start + batch]])
            for start in range(0, len(chosen), batch)
        ]
    )

"""Retrieval examples: a few queries with their nearest images, and the pairs of classes that are confused most often.

The queries are chosen by fixed rules, so that they are not a flattering selection: half of them correct, half wrong, at
most one per class in each half.
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
"""Nearest images shown for each query."""
NUM_CONFUSIONS = 10
"""Largest number of confused pairs of classes that are shown."""
_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class GalleryImage:
    """One image on the page."""

    picture: str
    """Data URI of the image."""
    heat: str
    """Data URI of the pooler's attention; empty without an attention pooler."""
    class_name: str
    name: str
    """Name of the image in its data set."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A retrieved image."""

    image: GalleryImage
    right: bool
    """True when the image has the query's class."""
    score: float
    """Cosine similarity with the query."""


@dataclass(frozen=True, slots=True)
class GalleryRow:
    """A query and its nearest images."""

    query: GalleryImage
    hits: list[Hit]
    """Nearest images, best first."""

    @property
    def right(self) -> bool:
        """True when the nearest image has the query's class."""
        return self.hits[0].right


@dataclass(frozen=True, slots=True)
class Confusion:
    """Two classes, and the number of queries of one whose nearest image is of the other."""

    class_a: str
    class_b: str
    a_for_b: int
    """Queries of class a whose nearest image is of class b."""
    b_for_a: int
    """Queries of class b whose nearest image is of class a."""
    num_a: int
    """Queries of class a."""
    num_b: int
    """Queries of class b."""
    example: tuple[GalleryImage, GalleryImage]
    """A query of one class and its nearest image, of the other."""


@dataclass(frozen=True, slots=True)
class Gallery:
    """Retrieval examples of one split."""

    rows: list[GalleryRow]
    """Queries with their nearest images."""
    confusions: list[Confusion]
    """Confused classes, most frequent first."""
    num_queries: int
    """Queries that were evaluated."""
    num_available: int
    """Queries of the split."""
    num_right: int
    """Evaluated queries whose nearest image has their class."""
    searched: str
    """Description of the set that the queries searched, for the sentence "They search …"."""


def build_gallery(
    encoder: Encoder, queries: ImageSet, gallery: ImageSet | None, *, num_rows: int, max_images: int
) -> Gallery:
    """Returns the retrieval examples and confused classes of a split.

    Args:
        encoder: encoder of the run.
        queries: images of the split.
        gallery: images to search, for data with a separate gallery; None to search the queries, each without itself.
        num_rows: number of queries to show.
        max_images: largest number of images of either set to embed; of a larger set, evenly spaced ones are used.
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
    renderer = _ImageRenderer(encoder)
    rows = [
        GalleryRow(
            renderer.render(queries, int(chosen[query])),
            [
                Hit(renderer.render(others, int(found[place])), bool(right), float(score))
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
                (
                    renderer.render(queries, int(chosen[query])),
                    renderer.render(others, int(found[places_QK[query, 0]])),
                ),
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
    """Returns the cosines, float64 [Q, K], and gallery indices, int64 [Q, K], of the nearest images, best first.

    The lower index comes first in a tie.

    Args:
        queries_QE: floating [Q, E], l2-normalised.
        gallery_GE: floating [G, E], l2-normalised.
        k: number of images K; reduced to the size of a smaller gallery.
        exclude_self: True when gallery and queries are one set, so that query i must not retrieve item i.
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


class _ImageRenderer:
    """Renders images and their attention overlays for the page, and caches them."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._rendered: dict[tuple[int, int], GalleryImage] = {}

    def render(self, images: ImageSet, index: int) -> GalleryImage:
        key = (id(images), index)
        if key not in self._rendered:
            image = images.image(index)
            maps = pooler_maps(self._encoder, [image])
            self._rendered[key] = GalleryImage(
                picture(image),
                heat(maps[0]) if maps else "",
                shown_name(images.class_names[images.labels_I[index]]),
                shown_name(images.name(index)),
            )
        return self._rendered[key]


def _one_per_class(queries: Sequence[int], labels_Q: np.ndarray) -> list[int]:
    first: dict[int, int] = {}
    for query in queries:
        first.setdefault(int(labels_Q[query]), query)
    return list(first.values())


def _embed(encoder: Encoder, images: ImageSet, chosen: np.ndarray, batch: int = 64) -> np.ndarray:
    """Returns the embeddings [Q, E] of the chosen images, with at most ``batch`` images in memory at a time."""
    return np.concatenate(
        [
            encoder.encode([images.image(int(index)) for index in chosen[start : start + batch]])
            for start in range(0, len(chosen), batch)
        ]
    )

"""Embeds the test images of a run and ranks them for the parts of the page that show retrieval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from saga_dist.data.image_sets import ImageSet
from saga_dist.models.encoder import Encoder
from saga_dist.report.sources import evenly

NUM_HITS = 5
"""Nearest images that are kept for each query."""
_BLOCK = 1024


@dataclass(frozen=True, eq=False, slots=True)
class Ranking:
    """Queries with their nearest images.

    Indices into an image set are called images; places count the chosen images of a set.
    """

    queries: ImageSet
    """The split of the queries."""
    chosen_Q: np.ndarray
    """int64 [Q], image of each query."""
    values_QE: np.ndarray
    """floating [Q, E], embedding of each query, l2-normalised."""
    others: ImageSet
    """The set that is searched; ``queries`` itself without a gallery."""
    found_QK: np.ndarray
    """int64 [Q, K], images of the nearest in ``others``, best first."""
    scores_QK: np.ndarray
    """float64 [Q, K], their cosines."""
    num_searched: int
    """Number of images that each query searches, itself included without a gallery."""

    @property
    def labels_Q(self) -> np.ndarray:  # noqa: N802
        """int64 [Q], class of each query."""
        return self.queries.labels_I[self.chosen_Q]

    @property
    def found_labels_QK(self) -> np.ndarray:  # noqa: N802
        """int64 [Q, K], class of each of the nearest images."""
        return self.others.labels_I[self.found_QK]

    @property
    def right_QK(self) -> np.ndarray:  # noqa: N802
        """bool [Q, K], True for images of the query's class."""
        return self.found_labels_QK == self.labels_Q[:, None]

    @property
    def has_gallery(self) -> bool:
        """True when the queries search another set than their own."""
        return self.others is not self.queries


def rank_images(encoder: Encoder, queries: ImageSet, gallery: ImageSet | None, *, max_images: int) -> Ranking:
    """Returns the nearest images of the queries of a split.

    Args:
        encoder: encoder of the run.
        queries: images of the split.
        gallery: images to search, for data with a separate gallery; None to search the queries, each without itself.
        max_images: largest number of images of either set to embed; of a larger set, evenly spaced ones are used.
    """
    chosen_Q = np.array(evenly(len(queries), max_images), np.int64)
    values_QE = _embed(encoder, queries, chosen_Q)
    others, searched_G, values_GE = queries, chosen_Q, values_QE
    if gallery is not None:
        others, searched_G = gallery, np.array(evenly(len(gallery), max_images), np.int64)
        values_GE = _embed(encoder, gallery, searched_G)
    scores_QK, places_QK = nearest(values_QE, values_GE, NUM_HITS, exclude_self=gallery is None)
    return Ranking(queries, chosen_Q, values_QE, others, searched_G[places_QK], scores_QK, len(searched_G))


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


def _embed(encoder: Encoder, images: ImageSet, chosen: np.ndarray, batch: int = 64) -> np.ndarray:
    """Returns the embeddings [Q, E] of the chosen images, with at most ``batch`` images in memory at a time."""
    return np.concatenate(
        [
            encoder.encode([images.image(int(index)) for index in chosen[start : start + batch]])
            for start in range(0, len(chosen), batch)
        ]
    )

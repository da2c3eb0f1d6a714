"""A map of the test images: their embeddings projected on the two leading principal components."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from saga_dist.report.images import picture
from saga_dist.report.ranking import Ranking
from saga_dist.report.shown_images import class_name
from saga_dist.report.sources import evenly
from saga_dist.report.text import shown_name
from saga_dist.utils.svg_charts import Drawing, Scale

WIDTH, HEIGHT = 640, 420
"""Size of the map, in pixels."""
_MARGIN = 14
THUMBNAIL = 96
"""Longest side of the picture of an image, pixels."""
_NO_VARIANCE = 1e-12
"""Variance per image below which embeddings differ by rounding alone."""


@dataclass(frozen=True, slots=True)
class EmbeddingMap:
    """The map for the template."""

    svg: Markup
    """One dot for each image; ``data-index`` is its place in ``images``."""
    images: list[dict[str, Any]]
    """JSON values of each image: picture, class, name, and class and cosine of its nearest image."""
    classes: list[str]
    """Names of the classes on the map, sorted."""
    explained: tuple[float, float]
    """Share of the variance of all embedded images along each of the two axes."""
    num_embedded: int
    """Number of images that the projection was computed from."""


def build_map(ranking: Ranking, *, limit: int) -> EmbeddingMap | None:
    """Returns the map of at most ``limit`` evenly spaced queries; None when there are no two different embeddings.

    Args:
        ranking: queries with their embeddings and nearest images.
        limit: largest number of images; each adds a few kilobytes to the page.
    """
    places_Q2, explained = principal_components(ranking.values_QE)
    if not any(explained) or not limit:
        return None
    queries = evenly(len(ranking.chosen_Q), limit)
    drawing = Drawing(WIDTH, HEIGHT, "map of test images")
    scales = _scales(places_Q2[queries])
    right_Q, images = ranking.right_QK[:, 0], []
    for index, query in enumerate(queries):
        x, y = (scale(value) for scale, value in zip(scales, places_Q2[query], strict=True))
        images.append(_image(ranking, query))
        what = f"{images[-1]['class']}, {images[-1]['name']}"
        kind = "right" if right_Q[query] else "wrong"
        drawing.dot(f"place {kind}", x, y, 4, title=what, data={"index": str(index)})
    classes = sorted({str(image["class"]) for image in images})
    return EmbeddingMap(Markup(drawing.svg()), images, classes, explained, len(ranking.chosen_Q))


def principal_components(values_IE: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """Returns the coordinates on the two leading principal components, float64 [I, 2], and their share of the variance.

    The component of largest magnitude of each axis is positive, so that the map does not depend on the solver's signs.
    A share is 0 where the embeddings have no variance left.

    Args:
        values_IE: floating [I, E], embeddings.
    """
    centred_IE = values_IE.astype(np.float64) - values_IE.mean(0, dtype=np.float64)
    values_E, vectors_EE = np.linalg.eigh(centred_IE.T @ centred_IE)
    axes_E2 = vectors_EE[:, ::-1][:, :2]
    axes_E2 = axes_E2 * np.sign(axes_E2[np.abs(axes_E2).argmax(0), range(axes_E2.shape[1])])
    total = float(values_E.sum())
    places_I2 = np.zeros((len(centred_IE), 2))
    places_I2[:, : axes_E2.shape[1]] = centred_IE @ axes_E2
    if total <= _NO_VARIANCE * len(values_IE):
        return places_I2, (0.0, 0.0)
    shares = [*np.clip(values_E[::-1][:2] / total, 0, 1).tolist(), 0.0]
    return places_I2, (shares[0], shares[1])


def _scales(places_Q2: np.ndarray) -> tuple[Scale, Scale]:
    """Returns the horizontal and the vertical map; one unit has the same length on both."""
    low_2, high_2 = places_Q2.min(0), places_Q2.max(0)
    width, height = WIDTH - 2 * _MARGIN, HEIGHT - 2 * _MARGIN
    per_pixel = max((high_2[0] - low_2[0]) / width, (high_2[1] - low_2[1]) / height, 1e-12)
    (x, y), half_x, half_y = (low_2 + high_2) / 2, per_pixel * width / 2, per_pixel * height / 2
    return (
        Scale(float(x - half_x), float(x + half_x), _MARGIN, WIDTH - _MARGIN),
        Scale(float(y - half_y), float(y + half_y), HEIGHT - _MARGIN, _MARGIN),
    )


def _image(ranking: Ranking, query: int) -> dict[str, Any]:
    """Returns the JSON values of one image."""
    index = int(ranking.chosen_Q[query])
    return {
        "picture": picture(ranking.queries.image(index), THUMBNAIL),
        "class": class_name(ranking.queries, index),
        "name": shown_name(ranking.queries.name(index)),
        "nearest": class_name(ranking.others, int(ranking.found_QK[query, 0])),
        "right": bool(ranking.right_QK[query, 0]),
        "score": round(float(ranking.scores_QK[query, 0]), 3),
    }

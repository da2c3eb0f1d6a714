"""Data-set images as the page shows them: picture, the pooler's attention, class and name."""

from __future__ import annotations

from dataclasses import dataclass

from saga_dist.data.image_sets import ImageSet
from saga_dist.models.encoder import Encoder
from saga_dist.report.attention import pooler_maps
from saga_dist.report.images import heat, picture
from saga_dist.report.text import shown_name


@dataclass(frozen=True, slots=True)
class ShownImage:
    """One image on the page."""

    picture: str
    """Data URI of the image."""
    heat: str
    """Data URI of the pooler's attention; empty without an attention pooler."""
    class_name: str
    """Name of its class."""
    name: str
    """Name of the image in its data set."""


class ImageRenderer:
    """Renders images and their attention overlays for the page, each once.

    Args:
        encoder: encoder of the run, whose pooler gives the attention.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._rendered: dict[tuple[int, int], ShownImage] = {}

    def render(self, images: ImageSet, index: int) -> ShownImage:
        """Returns one image of a set.

        Args:
            images: the set, which must live as long as the renderer.
            index: number of the image in the set.
        """
        key = (id(images), index)
        if key not in self._rendered:
            image = images.image(index)
            maps = pooler_maps(self._encoder, [image])
            self._rendered[key] = ShownImage(
                picture(image), heat(maps[0]) if maps else "", class_name(images, index), shown_name(images.name(index))
            )
        return self._rendered[key]


def class_name(images: ImageSet, index: int) -> str:
    """Returns the name of an image's class, safe to print."""
    return shown_name(images.class_names[images.labels_I[index]])

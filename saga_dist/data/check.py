"""Checks a data set before a run: statistics, a decoding of every file with the code of training, and what it shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from saga_dist.data.duplicates import ReadImage, fingerprint
from saga_dist.data.image_sets import ImageSet
from saga_dist.data.left_out import MOST_NAMED
from saga_dist.errors import DataError

_CHUNK = 256  # images submitted at a time; one future per image of a large data set would need too much memory


@dataclass(frozen=True, slots=True)
class Decoded:
    """Result of ``decode_all``."""

    images: tuple[ReadImage, ...]
    """The images that can be read."""
    problems: tuple[str, ...]
    """One line for each image that cannot be read."""


def summarize(name: str, images: ImageSet) -> str:
    """Returns one line about a split: number of images, of classes, and the range of images per class.

    Args:
        name: name of the split.
        images: images of the split, of at least one class.
    """
    counts = np.bincount(images.labels_I, minlength=len(images.class_names))
    return (
        f"{name:<8}{len(images):>9,} images  {len(images.class_names):>7,} classes  "
        f"{counts.min():,} to {counts.max():,} images per class"
    )


def class_sizes(images: ImageSet) -> list[tuple[str, int]]:
    """Returns (name, number of images) of each class, in the order of the labels."""
    counts = np.bincount(images.labels_I, minlength=len(images.class_names))
    return list(zip(images.class_names, counts.tolist(), strict=True))


def unfindable(parts: Mapping[str, ImageSet]) -> Iterator[str]:
    """Yields one line for each evaluated split with queries that no retrieval can answer.

    Their class has no other image, or, where there is a gallery, no image in it.

    Args:
        parts: images by split; those of ``val`` and ``test`` are queries.
    """
    for split in ("val", "test"):
        if split not in parts:
            continue
        queries = class_sizes(parts[split])
        searched = dict(class_sizes(parts["gallery"])) if split == "test" and "gallery" in parts else None
        lost = {
            name: count
            for name, count in queries
            if count and (count == 1 if searched is None else not searched.get(name))
        }
        if lost:
            named = ", ".join([*list(lost)[:MOST_NAMED], *(["…"] if len(lost) > MOST_NAMED else [])])
            where = "in the gallery" if searched is not None else "besides the query"
            num_lost, num_queries = sum(lost.values()), len(parts[split])
            yield (
                f"{split}: {num_lost:,} of {num_queries:,} queries cannot be found and count as misses: their class "
                f"has no image {where} ({named})"
            )


def decode_all(parts: Mapping[str, ImageSet], *, jobs: int = 1, on_image: Callable[[], None] = lambda: None) -> Decoded:
    """Reads every image of every split.

    Args:
        parts: images by split.
        jobs: number of threads; the decoders release the global interpreter lock.
        on_image: called after each image.
    """
    read: list[ReadImage] = []
    problems: list[str] = []
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        for split, images in parts.items():
            for first in range(0, len(images), _CHUNK):
                chunk = range(first, min(first + _CHUNK, len(images)))
                for one in pool.map(lambda index, split=split, images=images: _read(split, images, index), chunk):
                    on_image()
                    if isinstance(one, str):
                        problems.append(one)
                    else:
                        read.append(one)
    return Decoded(tuple(read), tuple(problems))


def _read(split: str, images: ImageSet, index: int) -> ReadImage | str:
    """Returns a decoded image, or one line about the problem with it."""
    try:
        pixels = images.image(index)
    except DataError as error:
        return f"{split}: {error}"
    class_name = images.class_names[images.labels_I[index]]
    return ReadImage(split, class_name, images.name(index), fingerprint(pixels))

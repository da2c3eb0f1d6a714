"""Checks a data set before a run: statistics of its splits, and a decoding of every file with the code of training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from saga_dist.data.image_sets import ImageSet, Splits
from saga_dist.errors import DataError

_CHUNK = 256  # images submitted at a time; one future per image of a large data set would need too much memory


def summarize(name: str, images: ImageSet) -> str:
    """Returns one line about a split: number of images, of classes, and the range of images per class.

    Args:
        name: name of the split.
        images: images of the split.
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


def undecodable(splits: Splits, *, jobs: int = 1, on_image: Callable[[], None] = lambda: None) -> Iterator[str]:
    """Yields one line for every image of every split that cannot be read.

    Args:
        splits: the data set.
        jobs: number of threads; the decoders release the global interpreter lock.
        on_image: called after each image.
    """
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        for name in splits.names:
            images = splits.named(name)
            for first in range(0, len(images), _CHUNK):
                chunk = range(first, min(first + _CHUNK, len(images)))
                for problem in pool.map(lambda index, images=images: _problem(images, index), chunk):
                    on_image()
                    if problem:
                        yield f"{name}: {problem}"


def _problem(images: ImageSet, index: int) -> str:
    try:
        images.image(index)
    except DataError as error:
        return str(error)
    return ""

"""Finds images that are in two splits or in two classes: the same pixels, or nearly the same picture.

An image is known by three things that are computed when it is decoded: the sha256 of its pixels, a difference hash of
128 bits, and a thumbnail of 8 x 8 pixels. Near duplicates are candidates whose hashes agree in one of four parts of 32
bits; hash and thumbnail decide. The search takes time proportional to the number of images, because an image is
compared with at most ``_NEIGHBOURS`` others of each part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

HASH_DISTANCE = 3
"""Largest number of different bits, of 128, between the hashes of near duplicates."""
THUMBNAIL_DISTANCE = 4.0
"""Largest mean difference between the thumbnails of near duplicates, in levels of 256."""
_NEIGHBOURS = 32
_FLAT = 6.0  # standard deviation of a thumbnail below which an image has too little structure for its hash


class Fingerprint(NamedTuple):
    """An image reduced to what identifies it."""

    digest: bytes
    """[32] sha256 of its shape and pixels."""
    hash_4: np.ndarray
    """[4] uint32, whether the grey levels rise from cell to cell of a grid of 9 x 9: 64 steps across, 64 down."""
    thumbnail: np.ndarray
    """[8, 8, 3] uint8, mean colours."""


class ReadImage(NamedTuple):
    """An image that was decoded."""

    split: str
    """Split of the image."""
    class_name: str
    """Class of the image."""
    name: str
    """Name of the image."""
    fingerprint: Fingerprint
    """Fingerprint of its pixels."""


class Twins(NamedTuple):
    """Two images that show the same."""

    one: ReadImage
    """Image of the earlier split or class."""
    other: ReadImage
    """Image of the later split or class."""


def fingerprint(image_HWC: np.ndarray) -> Fingerprint:
    """Returns what identifies an image.

    Args:
        image_HWC: uint8 [H, W, 3].
    """
    sha = hashlib.sha256(repr(image_HWC.shape).encode())
    sha.update(np.ascontiguousarray(image_HWC).data)
    image = Image.fromarray(np.ascontiguousarray(image_HWC))
    grey = np.asarray(image.convert("L").resize((9, 9), Image.Resampling.BOX)).astype(np.int16)
    rises = np.concatenate([(grey[:8, 1:] > grey[:8, :-1]).ravel(), (grey[1:, :8] > grey[:-1, :8]).ravel()])
    thumbnail = np.asarray(image.resize((8, 8), Image.Resampling.BOX))
    return Fingerprint(sha.digest(), np.packbits(rises).view(np.uint32), thumbnail)


def identical(images: Sequence[ReadImage]) -> Iterator[Twins]:
    """Yields the images with the same pixels as an image of another split or class: one pair for each such place.

    Args:
        images: the decoded images.
    """
    groups: dict[bytes, dict[tuple[str, str], ReadImage]] = {}
    for image in images:
        groups.setdefault(image.fingerprint.digest, {}).setdefault((image.split, image.class_name), image)
    for places in groups.values():
        first, *others = places.values()
        yield from (Twins(first, other) for other in others)


def near(images: Sequence[ReadImage]) -> Iterator[Twins]:
    """Yields pairs of images of two splits that show nearly the same, but have other pixels.

    Images with little structure are not compared.

    Args:
        images: the decoded images.
    """
    if not images:
        return
    hashes_I4 = np.stack([image.fingerprint.hash_4 for image in images])
    thumbnails_IF = np.stack([image.fingerprint.thumbnail.ravel() for image in images]).astype(np.int16)
    names = sorted({image.split for image in images})
    splits_I = np.array([names.index(image.split) for image in images])
    usable = np.flatnonzero(thumbnails_IF.std(1) >= _FLAT)
    pairs: set[tuple[int, int]] = set()
    for one, other in _candidates(hashes_I4, usable):
        differs = np.bitwise_count(hashes_I4[one] ^ hashes_I4[other]).sum(1)
        close = (splits_I[one] != splits_I[other]) & (differs <= HASH_DISTANCE)
        one, other = one[close], other[close]
        alike = np.abs(thumbnails_IF[one] - thumbnails_IF[other]).mean(1) <= THUMBNAIL_DISTANCE
        pairs.update(zip(one[alike].tolist(), other[alike].tolist(), strict=True))
    for first, second in sorted({(min(pair), max(pair)) for pair in pairs}):
        if images[first].fingerprint.digest != images[second].fingerprint.digest:
            yield Twins(images[first], images[second])


def _candidates(hashes_I4: np.ndarray, usable: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields arrays i, j of usable images whose hashes agree in one of the four parts."""
    for part in range(hashes_I4.shape[1]):
        order = usable[np.argsort(hashes_I4[usable, part], kind="stable")]
        values = hashes_I4[order, part]
        for step in range(1, min(_NEIGHBOURS, len(order) - 1) + 1):
            agree = values[step:] == values[:-step]
            if not agree.any():
                break
            yield order[:-step][agree], order[step:][agree]

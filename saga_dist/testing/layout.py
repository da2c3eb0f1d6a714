"""Contract check of data layouts (``data.layout``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from saga_dist.data.image_sets import ImageSet, Splits
from saga_dist.data.layouts import Layout
from saga_dist.data.layouts.division import SplitOptions

OPTIONS = SplitOptions(image_size=32)
"""Default options of the check."""


def check_layout(layout: Layout, root: str | Path, options: SplitOptions = OPTIONS, **keys: Any) -> None:
    """Checks the splits that a layout returns for a data set, which should be small, because every image is read.

    - Labels, class names, image names and images have the required form.
    - Splits are class-disjoint, and every training and validation class has at least two images.
    - A second call returns the same splits.

    Args:
        layout: the object that ``data.layout`` names.
        root: folder of a data set in this layout.
        options: share of validation classes, image size and seed.
        keys: further keys of the section ``data`` that the layout takes (``manifest``, ...).

    Raises:
        AssertionError: the layout does not meet its contract; the message says in which point.
    """
    splits = layout(Path(root), options, **keys)
    assert isinstance(splits, Splits), f"the layout returned a {type(splits).__name__}, not Splits"
    for name in splits.names:
        _check_images(splits.named(name), name, options)
    _check_classes(splits)
    again = layout(Path(root), options, **keys)
    assert again.split_hash() == splits.split_hash(), "a second call found another split"


def _check_images(images: ImageSet, split: str, options: SplitOptions) -> None:
    assert len(images) > 0, f"{split}: no images"
    labels_I, num_classes = images.labels_I, len(images.class_names)
    assert labels_I.dtype == np.int64, f"{split}: labels are {labels_I.dtype}, not int64"
    assert labels_I.shape == (len(images),), f"{split}: labels of shape {labels_I.shape} for {len(images)} images"
    assert labels_I.min() >= 0 and labels_I.max() < num_classes, f"{split}: a label is outside 0 .. {num_classes - 1}"
    assert len(set(images.class_names)) == num_classes, f"{split}: two classes have one name"
    attributes = images.attributes_IA
    assert attributes is None or (attributes.dtype == np.int64 and len(attributes) == len(images)), (
        f"{split}: attributes are not int64 [I, A]"
    )
    assert len(images.digest()) == 64, f"{split}: digest() is no sha256 in hexadecimal"
    names = [images.name(index) for index in range(len(images))]
    assert len(set(names)) == len(names), f"{split}: two images have one name"
    for index, name in enumerate(names):
        image, original = images.image(index), images.original(index)
        expected = (options.image_size, options.image_size, 3)
        assert image.dtype == np.uint8 and image.shape == expected, (
            f"{split}: image {name} is {image.dtype} {image.shape}, not uint8 {expected}"
        )
        assert original.mode == "RGB", f"{split}: the original of {name} is {original.mode}, not RGB"


def _check_classes(splits: Splits) -> None:
    assert len(splits.train.class_names) >= 2, "fewer than two training classes"
    for name in ("train", "val"):
        if name in splits.names:
            counts = np.bincount(splits.named(name).labels_I, minlength=len(splits.named(name).class_names))
            assert counts.min() >= 2, f"{name}: a class has fewer than two images, so that it has no pairs"
    sides = [name for name in splits.names if name != "gallery"]  # a gallery has the classes of the test split
    for index, name in enumerate(sides):
        for other in sides[index + 1 :]:
            both = set(splits.named(name).class_names) & set(splits.named(other).class_names)
            assert not both, f"class {min(both)!r} is in {name} and in {other}: splits must be class-disjoint"

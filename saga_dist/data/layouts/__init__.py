"""Layouts of data sets on disk, one module for each; every layout gives class-disjoint ``Splits``."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from saga_dist.config import DataSection
from saga_dist.config.registries import LAYOUTS
from saga_dist.data.image_sets import Splits
from saga_dist.data.layouts.division import SplitOptions
from saga_dist.errors import ConfigError, DataError

Layout = Callable[..., Splits]
"""A function ``(root, options, **keys)`` that finds the images and classes of a data set (``data.layout``).

``root`` is ``data.root`` as a path, the current folder when it is empty. ``options`` are ``SplitOptions``. ``keys`` are
those of ``data.manifest``, ``data.train_classes``, ``data.test_classes``, ``data.image_field`` and ``data.label_field``
that are set, by their names; a layout that does not support a key has no such parameter. The splits must be
class-disjoint. Equal arguments and files must give equal splits, in every process of the learner and after a resume.
The function raises ``DataError`` when the data set does not have the layout. ``saga_dist.testing.check_layout`` checks
it on a data set.
"""


def load_splits(data: DataSection, *, seed: int) -> Splits:
    """Returns the splits of the configured data set, checked against ``data.split_hash`` if it is set.

    Args:
        data: section ``[data]``, with layout, root and the division into splits.
        seed: seed of the choice of validation classes.

    Raises:
        ConfigError: there is no such layout, it does not support a key that is set, it raised, or returned no splits.
        DataError: the data set does not have the layout, or its splits have another hash.
    """
    keys = _keys_of(data)
    layout: Layout = LAYOUTS.load_callable(data.layout, "root", "options", keywords=keys)
    options = SplitOptions(
        val_fraction=data.val_fraction, image_size=data.image_size, seed=seed, fast_jpeg=data.fast_jpeg
    )
    try:
        with LAYOUTS.calling(data.layout):
            splits = layout(Path(data.root), options, **keys)
    except OSError as error:  # of a built-in layout: a folder or a list that cannot be read, or has just vanished
        raise DataError(
            f"cannot be read ({error.strerror or error})",
            where=os.fsdecode(error.filename or data.root),
            expected="a readable data set",
            fix="check its permissions and its disk",
        ) from error
    if not isinstance(splits, Splits):
        raise ConfigError(f"{data.layout!r} returned a {type(splits).__name__}", where=LAYOUTS.key, expected="Splits")
    if data.split_hash and splits.split_hash() != data.split_hash:
        raise DataError(
            f"split hash {splits.split_hash()}",
            where=data.root,
            expected=f"data.split_hash = {data.split_hash}",
            fix="restore files, val_fraction and seed, or remove data.split_hash",
        )
    return splits


def _keys_of(data: DataSection) -> dict[str, Any]:
    """Returns the keys of the section that are set and that only some layouts support."""
    if data.layout == "birds":
        return {"birds": data.birds}
    names = ("manifest", "train_classes", "test_classes", "image_field", "label_field")
    return {name: value for name in names if (value := getattr(data, name))}

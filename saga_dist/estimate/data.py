"""Number of classes and images of the configured data set: from the data, or from the benchmark's published split."""

from __future__ import annotations

from dataclasses import dataclass

from saga_dist.config import DataSection, RunConfig
from saga_dist.data.layouts import aircraft, cars, cub, inat, inshop, sop
from saga_dist.data.layouts.division import PublishedSplit
from saga_dist.errors import DataError
from saga_dist.runtime.build import build_splits

PUBLISHED: dict[str, PublishedSplit] = {
    "aircraft": aircraft.PUBLISHED,
    "cars": cars.PUBLISHED,
    "cub": cub.PUBLISHED,
    "inat": inat.PUBLISHED,
    "inshop": inshop.PUBLISHED,
    "sop": sop.PUBLISHED,
}
"""Published split of each benchmark, by ``data.layout``."""


@dataclass(frozen=True, slots=True)
class DataShape:
    """Sizes of the data set."""

    train_classes: int
    """C, number of training classes, without validation classes, which have no proxies."""
    test_images: int
    """Number of test images, gallery images included."""
    source: str
    """Source of the numbers, as printed with them."""


def data_shape(config: RunConfig) -> DataShape:
    """Returns the sizes of the configured data set.

    Raises:
        DataError: the data cannot be read, and the layout has no published split.
    """
    data = config.data
    if data.layout == "birds":
        birds = data.birds
        return DataShape(birds.train_classes, 50 * birds.test_images_per_class, "the built-in birds")
    try:
        splits = build_splits(data, seed=config.run.seed)
    except DataError:
        if data.layout not in PUBLISHED:
            raise
        return _published(PUBLISHED[data.layout], data)
    gallery = 0 if splits.gallery is None else len(splits.gallery)
    return DataShape(len(splits.train.class_names), len(splits.test) + gallery, f"the data in {data.root}")


def _published(split: PublishedSplit, data: DataSection) -> DataShape:
    held_out = max(2, round(data.val_fraction * split.train_classes)) if data.val_fraction else 0
    return DataShape(
        train_classes=split.train_classes - held_out,
        test_images=split.test_images + split.gallery_images,
        source=f"the published split of {split.name}: no such data in {data.root}",
    )

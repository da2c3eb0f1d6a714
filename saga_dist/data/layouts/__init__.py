"""The layouts in which data sets come, one module each; all end as class-disjoint ``Splits``."""

from __future__ import annotations

from saga_dist.config import DataSection
from saga_dist.data.image_sets import Splits
from saga_dist.data.layouts.aircraft import load_aircraft
from saga_dist.data.layouts.cars import load_cars
from saga_dist.data.layouts.cub import load_cub
from saga_dist.data.layouts.division import SplitOptions
from saga_dist.data.layouts.folder import load_folder
from saga_dist.data.layouts.inat import load_inat
from saga_dist.data.layouts.inshop import load_inshop
from saga_dist.data.layouts.manifest import load_manifest
from saga_dist.data.layouts.sop import load_sop
from saga_dist.errors import DataError

BENCHMARKS = {
    "cub": load_cub,
    "cars": load_cars,
    "aircraft": load_aircraft,
    "inat": load_inat,
    "sop": load_sop,
    "inshop": load_inshop,
}
LAYOUTS = ("folder", "manifest", *BENCHMARKS)


def load_splits(data: DataSection, *, seed: int) -> Splits:
    """Returns the splits of the configured data set on disk, after comparing them with ``data.split_hash`` if given.

    Args:
        data: layout, root and how to divide.
        seed: of the choice of validation classes.

    Raises:
        DataError: the data set is not what the layout or the split hash says.
    """
    splits = _load(data, seed)
    if data.split_hash and splits.split_hash() != data.split_hash:
        raise DataError(
            f"split hash {splits.split_hash()}",
            where=data.root,
            expected=f"data.split_hash = {data.split_hash}",
            fix="restore files, val_fraction and seed, or remove data.split_hash",
        )
    return splits


def _load(data: DataSection, seed: int) -> Splits:
    options = SplitOptions(
        val_fraction=data.val_fraction, image_size=data.image_size, seed=seed, fast_jpeg=data.fast_jpeg
    )
    if data.layout == "folder":
        return load_folder(data.root, options, train_classes=data.train_classes, test_classes=data.test_classes)
    if data.layout == "manifest":
        return load_manifest(data.root, options, manifest=data.manifest)
    if data.layout not in BENCHMARKS:
        raise DataError(f"data.layout = {data.layout!r} is not on disk", expected=f"one of {', '.join(LAYOUTS)}")
    return BENCHMARKS[data.layout](data.root, options)

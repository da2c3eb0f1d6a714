"""Detection of the layout of a data set, from the files and folders that tell the layouts apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from saga_dist.data.layouts import aircraft, cars, cub, hf_dataset, inat, inshop, manifest, sop
from saga_dist.data.layouts.class_folders import class_folders
from saga_dist.data.layouts.listing import find_root
from saga_dist.errors import DataError


def _has(names: tuple[str, ...], inside: tuple[str, ...] = ()) -> Callable[[Path], bool]:
    """Returns a test of a root: it, or one of its folders ``inside``, has all ``names``."""
    return lambda root: any(all((root / folder / name).exists() for name in names) for folder in ("", *inside))


def _has_one(names: tuple[str, ...], inside: tuple[str, ...] = ()) -> Callable[[Path], bool]:
    """Returns a test of a root: it, or one of its folders ``inside``, has at least one of ``names``."""
    return lambda root: any((root / folder / name).exists() for folder in ("", *inside) for name in names)


def _is_inat(root: Path) -> bool:
    folder = root / "train_mini" if (root / "train_mini").is_dir() else root
    return bool(class_folders(folder.resolve(), keep=inat.is_bird).folders)


_TESTS: dict[str, Callable[[Path], bool]] = {
    "cub": _has(cub.LISTS, inside=("CUB_200_2011",)),
    "cars": _has_one((cars.FORM_A, *(name for _, name in cars.FORM_B), cars.UNLABELLED), inside=cars.LIST_FOLDERS),
    "aircraft": _has((aircraft.VARIANTS, *aircraft.LISTS), inside=aircraft.INSIDE),
    "sop": _has(sop.LISTS, inside=("Stanford_Online_Products",)),
    "inshop": _has_one(inshop.LISTS),
    "manifest": _has_one(manifest.DEFAULT_NAMES),
    "hf_dataset": _has_one(hf_dataset.MARKERS),
    "webdataset": lambda root: any(root.glob("**/*.tar")),
    "inat": _is_inat,
    "folder": lambda root: len(class_folders(root).folders) >= 2,
}
"""Layout to its test, the most particular first: every data set with class folders would pass for ``folder``."""


def detect_layout(root: Path) -> str:
    """Returns the name of the layout that a data set has.

    Args:
        root: folder of the data set.

    Raises:
        DataError: the folder cannot be read, or has no known layout.
    """
    folder = find_root(root)
    for layout, fits in _TESTS.items():
        if fits(folder):
            return layout
    raise DataError(
        "no known layout of a data set",
        where=str(root),
        expected=f"one folder of images per class, {' or '.join(manifest.DEFAULT_NAMES)}, or a benchmark as published",
        fix="name the folder that holds the class folders",
    )

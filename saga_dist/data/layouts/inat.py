"""iNaturalist 2021, birds only: one folder per species in ``train_mini``, named after its whole lineage."""

from __future__ import annotations

from pathlib import Path

from saga_dist.data.image_sets import Splits
from saga_dist.data.layouts.division import PublishedSplit, SplitOptions, halves, make_splits
from saga_dist.data.layouts.listing import class_folders, find_root, scan_classes
from saga_dist.errors import DataError

PUBLISHED = PublishedSplit(
    "iNaturalist-2021 Aves (train_mini)", train_classes=743, test_classes=743, train_images=37150, test_images=37150
)


def load_inat(root: str | Path, options: SplitOptions | None = None) -> Splits:
    """Returns the splits of the class Aves: species sorted by folder name, first half and second half.

    Args:
        root: ``train_mini``, or the folder around it.
        options: validation classes and image size.

    Raises:
        DataError: no Aves folders, or anything wrong with the files.
    """
    outer = find_root(root)
    folder = find_root(outer / "train_mini") if (outer / "train_mini").is_dir() else outer
    folders = class_folders(folder, keep=_is_bird)
    if len(folders) < 2:
        raise DataError(
            f"{len(folders)} folders of the class Aves",
            where=str(folder),
            expected="train_mini/NNNNN_Kingdom_Phylum_Class_Order_Family_Genus_species/",
            fix="check data.root",
        )
    files = scan_classes(folder, folders)
    return make_splits(files, *halves(files.classes), options or SplitOptions(), published=PUBLISHED)


def _is_bird(folder_name: str) -> bool:
    # number, kingdom, phylum, class, ...: Aves elsewhere in the name is something else.
    return folder_name.split("_")[3:4] == ["Aves"]

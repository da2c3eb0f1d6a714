"""iNaturalist 2021, birds only: one folder per species in ``train_mini``, named after its taxonomic ranks."""

from __future__ import annotations

from pathlib import Path

from saga_dist.data.image_sets import Splits
from saga_dist.data.layouts.class_folders import class_folders, scan_classes
from saga_dist.data.layouts.division import PublishedSplit, SplitOptions, halves, make_splits
from saga_dist.data.layouts.listing import find_root
from saga_dist.errors import DataError

PUBLISHED = PublishedSplit(
    "iNaturalist-2021 Aves (train_mini)", train_classes=743, test_classes=743, train_images=37150, test_images=37150
)
"""Size of the published split."""


def load_inat(root: str | Path, options: SplitOptions | None = None) -> Splits:
    """Returns the splits of the class Aves, with species in the order of their folder names.

    The first half of the species is for training, the second for test.

    Args:
        root: ``train_mini``, or the folder around it.
        options: validation classes and image size.

    Raises:
        DataError: there are no folders of the class Aves, or an image file is missing or wrong.
    """
    outer = find_root(root)
    folder = find_root(outer / "train_mini") if (outer / "train_mini").is_dir() else outer
    found = class_folders(folder, keep=_is_bird)
    if len(found.folders) < 2:
        raise DataError(
            f"{len(found.folders)} folders of the class Aves",
            where=str(folder),
            expected="train_mini/NNNNN_Kingdom_Phylum_Class_Order_Family_Genus_species/",
            fix="check data.root",
        )
    files = scan_classes(folder, found.folders, found.left_out)
    return make_splits(files, *halves(files.classes), options or SplitOptions(), published=PUBLISHED)


def _is_bird(folder_name: str) -> bool:
    # The name is number, kingdom, phylum, class and so on; "Aves" at another place is not the class.
    return folder_name.split("_")[3:4] == ["Aves"]

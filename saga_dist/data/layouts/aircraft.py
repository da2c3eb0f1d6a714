"""FGVC-Aircraft: variants in the order of their names, all image partitions pooled, the copyright line cut off."""

from __future__ import annotations

import difflib
from pathlib import Path

from saga_dist.data.image_sets import Splits
from saga_dist.data.layouts.division import PublishedSplit, SplitOptions, halves, make_splits
from saga_dist.data.layouts.listing import ClassFiles, find_root, read_lines
from saga_dist.errors import DataError

PUBLISHED = PublishedSplit("FGVC-Aircraft", train_classes=50, test_classes=50, train_images=5000, test_images=5000)
"""Size of the published split."""
VARIANTS = "variants.txt"
"""List of the variants."""
LISTS = ("images_variant_trainval.txt", "images_variant_test.txt")
"""Lists of images with their variants."""
INSIDE = ("data", "fgvc-aircraft-2013b/data")
"""Folders, relative to the root, that may hold the lists."""
BANNER_PX = 20
"""Height of the copyright line at the bottom of every image, pixels; it names the photographer, not the aircraft."""


def load_aircraft(root: str | Path, options: SplitOptions | None = None) -> Splits:
    """Returns the splits of FGVC-Aircraft by variant.

    Args:
        root: ``fgvc-aircraft-2013b``, its folder ``data``, or the folder around both.
        options: validation classes and image size.

    Raises:
        DataError: a list or an image file is missing or wrong.
    """
    folder = find_root(
        root,
        (VARIANTS, *LISTS),
        inside=INSIDE,
        layout="fgvc-aircraft-2013b/data/{variants.txt, images/, ...}",
    )
    files = ClassFiles(folder)
    known: dict[str, str] = {}
    for number, variant in read_lines(folder / VARIANTS):
        where = f"{folder / VARIANTS}:{number}"
        if variant in known:
            raise DataError(
                f"variant {variant!r} again (first at {known[variant]})", where=where, fix="remove the line"
            )
        known[variant] = where
    for variant in sorted(known):
        files.declare(variant, known[variant])
    seen: dict[str, str] = {}
    for name in LISTS:
        for number, line in read_lines(folder / name):
            where = f"{folder / name}:{number}"
            image_id, _, variant = line.partition(" ")  # names of variants may contain spaces
            variant = variant.strip()
            if variant not in known:
                close = difflib.get_close_matches(variant, known, n=1)
                fix = f"did you mean {close[0]!r}?" if close else "correct the line"
                raise DataError(f"unknown variant {variant!r}", where=where, expected=f"one of {VARIANTS}", fix=fix)
            if image_id in seen:
                raise DataError(f"image {image_id!r} again (first at {seen[image_id]})", where=where, fix="remove it")
            seen[image_id] = where
            files.add(variant, f"{image_id}.jpg", where, folder="images")
    return make_splits(files, *halves(files.classes), options or SplitOptions(), published=PUBLISHED, banner=BANNER_PX)

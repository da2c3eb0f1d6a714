"""Stanford Online Products: two lists with a header, one for training and one for test."""

from __future__ import annotations

from pathlib import Path

from saga_dist.data.image_sets import Splits
from saga_dist.data.layouts.division import PublishedSplit, SplitOptions, make_splits
from saga_dist.data.layouts.listing import ClassFiles, find_root, parse_id, read_lines
from saga_dist.errors import DataError

PUBLISHED = PublishedSplit(
    "Stanford Online Products", train_classes=11318, test_classes=11316, train_images=59551, test_images=60502
)
"""Size of the published split."""
LISTS = ("Ebay_train.txt", "Ebay_test.txt")
"""Lists of training and test images."""
COLUMNS = ("image_id", "class_id", "path")
"""Columns that are used."""


def load_sop(root: str | Path, options: SplitOptions | None = None) -> Splits:
    """Returns the splits of Stanford Online Products, classes in the order of their ids.

    Training classes with one image are left out with a warning.

    Args:
        root: ``Stanford_Online_Products``, or the folder around it.
        options: validation classes and image size.

    Raises:
        DataError: a list or an image file is missing or wrong, or a class is in both lists.
    """
    folder = find_root(
        root, LISTS, inside=("Stanford_Online_Products",), layout="Stanford_Online_Products/{Ebay_train.txt, ...}"
    )
    files = ClassFiles(folder)
    image_ids: dict[int, str] = {}
    sides: list[list[str]] = []
    for name in LISTS:
        before = {class_name for side in sides for class_name in side}
        class_ids: set[int] = set()
        for where, image_id, class_id, path in _rows(folder / name):
            if image_id in image_ids:
                raise DataError(
                    f"image_id {image_id} again (first at {image_ids[image_id]})", where=where, fix="remove it"
                )
            image_ids[image_id] = where
            if _class_name(class_id) in before:
                raise DataError(f"class_id {class_id} is also in {LISTS[0]}", where=where, fix="restore the lists")
            class_ids.add(class_id)
            files.add(_class_name(class_id), path, where)
        sides.append([_class_name(class_id) for class_id in sorted(class_ids)])
    train, test = sides
    return make_splits(files, train, test, options or SplitOptions(), published=PUBLISHED, drop_lone=True)


def _class_name(class_id: int) -> str:
    return f"{class_id:05d}"


def _rows(path: Path) -> list[tuple[str, int, int, str]]:
    """Returns (file and line number, image id, class id, path) of every row."""
    lines = read_lines(path)
    number, header = next(lines)
    names = header.split()
    for column in COLUMNS:
        if column not in names:
            raise DataError(
                f"no column {column!r} in the header {header!r}",
                where=f"{path}:{number}",
                expected="image_id class_id super_class_id path",
                fix="restore the list from the original",
            )
    places = [names.index(column) for column in COLUMNS]
    rows: list[tuple[str, int, int, str]] = []
    for number, line in lines:
        where, values = f"{path}:{number}", line.split()
        if len(values) != len(names):
            raise DataError(
                f"{len(values)} values", where=where, expected=f"{len(names)}: {header}", fix="correct the line"
            )
        image_id, class_id, listed = (values[place] for place in places)
        rows.append((where, parse_id(image_id, where, "image_id"), parse_id(class_id, where, "class_id"), listed))
    if not rows:
        raise DataError("a header and no rows", where=str(path), fix="restore the list from the original")
    return rows

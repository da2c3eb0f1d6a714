"""CUB-200-2011: three lists joined by id; the first half of the classes is for training, the second for test."""

from __future__ import annotations

from pathlib import Path

from saga_dist.data.image_sets import Splits
from saga_dist.data.layouts.division import PublishedSplit, SplitOptions, halves, make_splits
from saga_dist.data.layouts.listing import ClassFiles, find_root, parse_id, read_lines
from saga_dist.errors import DataError

PUBLISHED = PublishedSplit("CUB-200-2011", train_classes=100, test_classes=100, train_images=5864, test_images=5924)
"""Size of the published split."""
LISTS = ("images.txt", "image_class_labels.txt", "classes.txt")
"""Lists of image paths, of the class of each image, and of class names."""


def load_cub(root: str | Path, options: SplitOptions | None = None) -> Splits:
    """Returns the splits of CUB-200-2011, classes in the order of their ids.

    The file ``train_test_split.txt`` is ignored, because it divides images and not classes.

    Args:
        root: ``CUB_200_2011``, or the folder around it.
        options: validation classes and image size.

    Raises:
        DataError: a list or an image file is missing or wrong.
    """
    folder = find_root(root, LISTS, inside=("CUB_200_2011",), layout="CUB_200_2011/{images.txt, images/, ...}")
    paths, class_ids, names = (_read_table(folder / name) for name in LISTS)
    files = ClassFiles(folder)
    for class_id in sorted(names):
        name, where = names[class_id]
        if name in files.classes:
            raise DataError(f"class {name!r} again", where=where, fix="remove the line")
        files.declare(name, where)
    for image_id in sorted(paths):
        path, where = paths[image_id]
        if image_id not in class_ids:
            raise DataError(f"image {image_id} has no line in {LISTS[1]}", where=where, fix="complete that list")
        label, label_where = class_ids[image_id]
        class_id = parse_id(label, label_where, "class id")
        if class_id not in names:
            raise DataError(f"class {class_id} has no line in {LISTS[2]}", where=label_where, fix="complete that list")
        files.add(names[class_id][0], path, where, folder="images")
    unlisted = sorted(set(class_ids) - set(paths))
    if unlisted:
        raise DataError(
            f"image {unlisted[0]} has no line in {LISTS[0]}",
            where=class_ids[unlisted[0]][1],
            fix="complete that list",
        )
    return make_splits(files, *halves(files.classes), options or SplitOptions(), published=PUBLISHED)


def _read_table(path: Path) -> dict[int, tuple[str, str]]:
    """Returns id to (rest of the line, file and line number) for every line of a list."""
    rows: dict[int, tuple[str, str]] = {}
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        text, _, rest = line.partition(" ")
        row_id = parse_id(text, where)
        if not rest.strip():
            raise DataError(
                f"line {line!r}", where=where, expected="an id, a space and a value", fix="correct the line"
            )
        if row_id in rows:
            raise DataError(f"id {row_id} again (first at {rows[row_id][1]})", where=where, fix="remove the line")
        rows[row_id] = (rest.strip(), where)
    return rows

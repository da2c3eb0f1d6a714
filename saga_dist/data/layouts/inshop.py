"""DeepFashion In-Shop Clothes Retrieval, a data set with a separate gallery."""

from __future__ import annotations

import logging
from pathlib import Path

from saga_dist.data.image_sets import Splits
from saga_dist.data.layouts.division import PublishedSplit, SplitOptions, make_splits
from saga_dist.data.layouts.listing import ClassFiles, find_root, parse_id, read_lines
from saga_dist.errors import DataError

PUBLISHED = PublishedSplit(
    "In-Shop Clothes Retrieval",
    train_classes=3997,
    test_classes=3985,
    train_images=25882,
    test_images=14218,
    gallery_images=12612,
)
"""Size of the published split."""
LISTS = ("Eval/list_eval_partition.txt", "list_eval_partition.txt")
"""Paths at which the list of images may be, relative to the root."""
IMAGES = (".", "Img")
"""Folders that may hold ``img/``, relative to the root."""
HEADER = ["image_name", "item_id", "evaluation_status"]
"""Columns of the list."""
STATUSES = ("train", "query", "gallery")
"""Values of ``evaluation_status``."""
_LOG = logging.getLogger(__name__)


def load_inshop(root: str | Path, options: SplitOptions | None = None) -> Splits:
    """Returns the splits of In-Shop; ``test`` holds the queries, and ``gallery`` the images that they search.

    Training items with one image are left out with a warning. A query whose item has no gallery image is kept, although
    it cannot be answered: retrieval counts it as wrong.

    Args:
        root: folder with ``Eval/list_eval_partition.txt`` and ``img/`` (or ``Img/img/``).
        options: validation classes and image size.

    Raises:
        DataError: the list or an image file is missing or wrong, or an item is both in training and in test.
    """
    outer = find_root(root)
    listed = next((outer / name for name in LISTS if (outer / name).exists()), None)
    if listed is None:
        raise DataError(f"{LISTS[0]} is missing", where=str(root), fix="check data.root and data.layout")
    folder = find_root(next((outer / name for name in IMAGES if (outer / name / "img").is_dir()), outer))
    files = ClassFiles(folder)
    gallery = ClassFiles(folder, beside=files)
    status_of: dict[str, tuple[str, str]] = {}
    for where, path, item, status in _rows(listed):
        side = "train" if status == "train" else "test"
        first_side, first = status_of.setdefault(item, (side, where))
        if first_side != side:
            raise DataError(
                f"item {item!r} is in training and test (first at {first})", where=where, fix="restore the list"
            )
        (gallery if status == "gallery" else files).add(item, path, where)
    train, test = (
        sorted(item for item, (side, _) in status_of.items() if side == wanted) for wanted in ("train", "test")
    )
    for name, part in (("query", files), ("gallery", gallery)):
        if not any(part.size(item) for item in test):
            raise DataError(f"no {name} images", where=str(listed), fix="restore the list from the original")
    unanswerable = [item for item in test if files.size(item) and not gallery.size(item)]
    if unanswerable:
        _LOG.warning("%s: %d query items have no gallery image (%s)", listed, len(unanswerable), unanswerable[0])
    return make_splits(
        files, train, test, options or SplitOptions(), published=PUBLISHED, gallery=gallery, drop_lone=True
    )


def _rows(path: Path) -> list[tuple[str, str, str, str]]:
    """Returns (file and line number, image path, item id, status) of every row."""
    lines = list(read_lines(path))
    count = parse_id(lines[0][1], f"{path}:{lines[0][0]}", "number of rows")
    if len(lines) < 2 or lines[1][1].split() != HEADER:
        raise DataError("no header", where=f"{path}:2", expected=" ".join(HEADER), fix="restore it from the original")
    rows: list[tuple[str, str, str, str]] = []
    for number, line in lines[2:]:
        where, values = f"{path}:{number}", line.rsplit(maxsplit=2)
        if len(values) != 3:
            raise DataError(f"line {line!r}", where=where, expected=" ".join(HEADER), fix="correct the line")
        image, item, status = values
        if status not in STATUSES:
            raise DataError(f"evaluation_status {status!r}", where=where, expected=f"one of {', '.join(STATUSES)}")
        rows.append((where, image, item, status))
    if len(rows) != count:
        raise DataError(
            f"{len(rows)} rows", where=str(path), expected=f"{count}, as its first line says", fix="restore the list"
        )
    return rows

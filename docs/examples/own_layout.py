"""Example of a data layout: images listed in a JSON-lines file.

    PYTHONPATH=docs/examples saga-dist train configs/folder.toml data.layout=own_layout:load_json_lines \
        data.root=/path/to/images prompt.vocabulary=birds --dry-run

``data.layout`` names a function ``(root, options) -> Splits``. Each line of ``images.jsonl`` in the data set's folder,
or of the file there that ``data.manifest`` names, is ``{"image": "a/1.jpg", "class": "wren", "split": "train"}``. All
images of a class are in one split, ``train`` or ``test``. ``make_splits`` draws the validation classes from the
training classes and raises an error for data that cannot be trained on. ``saga_dist.testing.layout.check_layout``
checks a layout.
"""

from __future__ import annotations

import json
from pathlib import Path

from saga_dist.data.image_sets import Splits
from saga_dist.data.layouts.division import SplitOptions, make_splits
from saga_dist.data.layouts.listing import ClassFiles, find_root
from saga_dist.errors import DataError

SPLITS = ("train", "test")
"""Valid values of ``split`` in a line."""


def load_json_lines(root: Path, options: SplitOptions, *, manifest: str = "images.jsonl") -> Splits:
    """Returns the splits that a JSON-lines file lists.

    Args:
        root: folder of the data set; paths in the file are relative to it.
        options: share of validation classes, image size and seed.
        manifest: name of the file in the folder.

    Raises:
        DataError: a line has another form, a file is missing, or a class is in both splits.
    """
    folder = find_root(root, (manifest,), layout=f"a folder with {manifest}")
    files = ClassFiles(folder)
    split_of: dict[str, str] = {}
    for number, line in enumerate((folder / manifest).read_text("utf-8").splitlines(), start=1):
        where = f"{folder / manifest}:{number}"
        image, class_name, split = _read_line(line, where)
        if split_of.setdefault(class_name, split) != split:
            raise DataError(f"class {class_name!r} is in train and in test", where=where, expected="disjoint classes")
        files.add(class_name, image, where)
    train, test = (sorted(name for name, split in split_of.items() if split == wanted) for wanted in SPLITS)
    return make_splits(files, train, test, options)


def _read_line(line: str, where: str) -> tuple[str, str, str]:
    try:
        row = json.loads(line)
        image, class_name, split = str(row["image"]), str(row["class"]), str(row["split"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"not a line of the list ({error})", where=where, expected="image, class and split") from error
    if split not in SPLITS:
        raise DataError(f"split {split!r}", where=where, expected=" or ".join(SPLITS))
    return image, class_name, split

"""The generic layout: one folder per class, ``root/<class>/<image>``."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from pathlib import Path

from saga_dist.data.image_sets import Splits
from saga_dist.data.layouts.division import SplitOptions, halves, make_splits
from saga_dist.data.layouts.listing import class_folders, find_root, read_lines, scan_classes
from saga_dist.errors import DataError


def load_folder(
    root: str | Path,
    options: SplitOptions | None = None,
    *,
    train_classes: str | Path | None = None,
    test_classes: str | Path | None = None,
) -> Splits:
    """Returns the splits of ``root/<class>/<image>``; they depend on the files and the arguments only.

    Without lists, the classes are sorted by name (code points); the first half is for training, the second for test.
    With one list, all classes that are not in it form the other side; with two lists, classes in neither are ignored.
    Validation classes are drawn from the training classes. Hidden files and files without an image suffix are skipped.

    Args:
        root: folder of the data set; may be a symbolic link.
        options: validation classes and image size.
        train_classes: UTF-8 file with one training class name per line.
        test_classes: UTF-8 file with one test class name per line.

    Raises:
        DataError: the folder or a list cannot be read, a listed class is unknown, repeated or in both lists, or there
            are too few classes or images.
    """
    folder = find_root(root)
    folders = class_folders(folder)
    if len(folders) < 2:
        raise DataError(
            f"{len(folders)} class folders",
            where=str(folder),
            expected="root/<class>/<image>",
            fix="check data.root",
        )
    train, test = _divide(folders, folder, train_classes, test_classes)
    files = scan_classes(folder, {name: folders[name] for name in (*train, *test)})
    return make_splits(files, train, test, options or SplitOptions())


def _divide(
    known: Collection[str], root: Path, train_list: str | Path | None, test_list: str | Path | None
) -> tuple[list[str], list[str]]:
    if not train_list and not test_list:
        return halves(list(known))
    train = _read_list(Path(train_list), known, root) if train_list else None
    test = _read_list(Path(test_list), known, root) if test_list else None
    if train is None:
        train = set(known) - (test or set())
    if test is None:
        test = set(known) - train
    both = sorted(train & test)
    if both:
        raise DataError(
            f"class {both[0]!r} is also in {train_list}",
            where=str(test_list),
            expected="disjoint lists",
            fix="remove it from one",
        )
    return sorted(train), sorted(test)


def _read_list(path: Path, known: Collection[str], root: Path) -> set[str]:
    lines: dict[str, int] = {}
    for number, name in read_lines(path):
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            fix = f"did you mean {close[0]!r}?" if close else "correct or remove the line"
            raise DataError(
                f"unknown class {name!r}", where=f"{path}:{number}", expected=f"a folder of {root}", fix=fix
            )
        if name in lines:
            raise DataError(
                f"class {name!r} again (first in line {lines[name]})", where=f"{path}:{number}", fix="remove it"
            )
        lines[name] = number
    return set(lines)
